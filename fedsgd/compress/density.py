"""How many coordinates a sparsifier keeps, and when."""

from __future__ import annotations

from collections.abc import Sequence


def kept_of(density: float, size: int) -> int:
    """k = max(1, round(density · P)), halves to even as Python's round."""
    return max(1, round(density * size))


def staged(density: float, stages: Sequence[float], rounds: int, round: int) -> float:
    """The density in `round` (from 1): each of `stages` for `rounds` rounds, then `density`."""
    stage = (round - 1) // rounds if rounds else len(stages)
    return stages[stage] if stage < len(stages) else density
