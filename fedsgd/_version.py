"""Version of the package, importable from any module."""

__version__ = "0.1.0"
