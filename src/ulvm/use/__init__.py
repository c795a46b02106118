"""The model inside other tools, one file a tool; each needs the extra of its name."""
