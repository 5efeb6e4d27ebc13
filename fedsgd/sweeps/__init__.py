"""Sweeps: runs of one scenario with different settings, each in a run folder, and a file that lists them. Resumable."""

from fedsgd.sweeps.cells import SWEEP_FILE, Cell, PlannedCell, Sweep, plan_cells
from fedsgd.sweeps.settings import parse_grids, read_methods

__all__ = ["SWEEP_FILE", "Cell", "PlannedCell", "Sweep", "parse_grids", "plan_cells", "read_methods"]
