"""Sweeps: a grid of experiments, each in a run folder of its own, and a file that lists them; resumable."""

from fedsgd.sweeps.cells import SWEEP_FILE, Cell, Planned, Sweep, planned
from fedsgd.sweeps.make import sweep
from fedsgd.sweeps.settings import parse_grids, read_methods

__all__ = ["SWEEP_FILE", "Cell", "Planned", "Sweep", "parse_grids", "planned", "read_methods", "sweep"]
