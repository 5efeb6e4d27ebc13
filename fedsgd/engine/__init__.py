"""Local training of a cohort."""

from fedsgd.engine.base import Engine, Evaluated, Local, Recipe, Work
from fedsgd.engine.sequential import Sequential

__all__ = ["Engine", "Evaluated", "Local", "Recipe", "Sequential", "Work"]
