"""Local training of a cohort."""

from fedsgd.engine.base import Engine, Local, Recipe, Work
from fedsgd.engine.sequential import Sequential

__all__ = ["Engine", "Local", "Recipe", "Sequential", "Work"]
