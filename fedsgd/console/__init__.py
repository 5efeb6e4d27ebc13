"""What a person sees of a run in a terminal: progress while it goes, tables at its end. The only door to rich."""

from fedsgd.console.certificates import show_certificate, show_comparison
from fedsgd.console.comparisons import show_comparison_of_runs, show_price
from fedsgd.console.live import Shown, deployment_progress, progress, waiting
from fedsgd.console.results import show_result
from fedsgd.console.splits import MOST_CLASSES, MOST_ROWS, show_split
from fedsgd.console.sweeps import SweepShown, show_sweep, sweep_progress

__all__ = [
    "MOST_CLASSES",
    "MOST_ROWS",
    "Shown",
    "SweepShown",
    "deployment_progress",
    "progress",
    "show_certificate",
    "show_comparison",
    "show_comparison_of_runs",
    "show_price",
    "show_result",
    "show_split",
    "show_sweep",
    "sweep_progress",
    "waiting",
]
