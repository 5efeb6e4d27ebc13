"""Validated components, quantities with units, and Python objects in settings."""
