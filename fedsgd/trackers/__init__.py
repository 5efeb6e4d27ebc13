"""Trackers, which send the metrics of runs to TensorBoard, MLflow or a user's own tool.

To add a tracker, write a module with its name, add a line to `TRACKERS`, and add an extra with its name to pyproject.toml.
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
"""Class by the name of its module. Each tracker needs the extra of the same name."""


def create_tracker(name: str) -> Tracker:
    """Return a tracker of `TRACKERS` with default settings, or raise a ScenarioError for a wrong name or missing packages."""
    if name not in TRACKERS:
        raise ScenarioError(f'--track: got "{name}"{suggest_name(name, TRACKERS)}')
    try:
        module = importlib.import_module(f"fedsgd.trackers.{name}")
    except ModuleNotFoundError as error:
        raise ScenarioError(f"--track {name} needs pip install 'fedsgd[{name}]' ({error})") from error
    tracker: Tracker = getattr(module, TRACKERS[name])()
    return tracker
