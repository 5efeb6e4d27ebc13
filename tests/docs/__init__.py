"""Tests of the documentation, and the generator of its reference."""
