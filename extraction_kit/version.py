"""The version of the package, at the bottom of all imports."""

__version__ = "0.1.0"
