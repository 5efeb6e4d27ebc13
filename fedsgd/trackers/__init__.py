"""Where people already look at their runs: trackers by name, and the protocol for one's own.

To add one: write its file, add its line below, and an extra of the same name to pyproject.toml.
"""

from __future__ import annotations

import importlib

from fedsgd.errors import ScenarioError, suggest_name
from fedsgd.trackers.base import RunFinished, RunStarted, Tracker, TrackerGroup, TrackerWarning, check_callbacks

__all__ = [
    "TRACKERS",
    "RunFinished",
    "RunStarted",
    "Tracker",
    "TrackerGroup",
    "TrackerWarning",
    "check_callbacks",
    "create_tracker",
]

TRACKERS = {"tensorboard": "TensorBoard", "mlflow": "MLflow"}
"""Name → the class of that name's module. Each needs the extra that is called as it is."""


def create_tracker(name: str) -> Tracker:
    """The tracker of this name. ScenarioError if there is none, or if what it needs is not installed."""
    if name not in TRACKERS:
        raise ScenarioError(f'--track: got "{name}"{suggest_name(name, TRACKERS)}')
    try:
        module = importlib.import_module(f"fedsgd.trackers.{name}")
    except ModuleNotFoundError as error:
        raise ScenarioError(f"--track {name} needs pip install 'fedsgd[{name}]' ({error})") from error
    made: Tracker = getattr(module, TRACKERS[name])()
    return made
