"""What connects ulvm with other people's tools and formats, each a module, most of an extra."""

NOTICE = "Not a medical device: for research and education, not for diagnosis."
"""The sentence that stands in whatever ulvm writes for others to see."""
