"""The version, alone, so that the build and the specs can read it without the rest."""

__version__ = "0.1.0"
