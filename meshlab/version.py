"""The version of meshlab. A module that needs it imports this one, and not the package with all its names."""

__version__ = "0.1.0"
