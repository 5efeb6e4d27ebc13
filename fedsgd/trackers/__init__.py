"""Trackers, which send the metrics of runs to TensorBoard, MLflow or a user's own tool.

To add a tracker, write its module, add a line to `TRACKERS`, and add an extra with its name to pyproject.toml. A plugin's
tracker is a class that is created without arguments: `--track my_module:MyTracker`, or an entry point in `fedsgd.trackers`.
"""

from __future__ import annotations

from typing import Any

from fedsgd.config.registry import Registry
from fedsgd.errors import ScenarioError
from fedsgd.trackers.base import (
    RunFinished,
    RunStarted,
    Tracker,
    TrackerGroup,
    TrackerRecord,
    TrackerWarning,
    TrackerWrapper,
    check_callbacks,
    describe_tracker,
)

__all__ = [
    "TRACKERS",
    "RunFinished",
    "RunStarted",
    "Tracker",
    "TrackerGroup",
    "TrackerRecord",
    "TrackerWarning",
    "TrackerWrapper",
    "check_callbacks",
    "create_tracker",
    "describe_tracker",
    "find_tracker_name",
]


def _check_tracker_class(cls: Any, base: type, description: str) -> None:
    """Raise a ScenarioError unless a value is a class with the methods of a tracker."""
    missing_names = [name for name in ("begin", "round", "end") if not callable(getattr(cls, name, None))]
    if not isinstance(cls, type) or missing_names:
        problem = f"does not define {', '.join(missing_names)}" if isinstance(cls, type) else f"is {cls!r}"
        raise ScenarioError(f"{description} {problem}, expected a class with the methods of fedsgd.{base.__name__}")


_BUILTIN_PATHS = {"tensorboard": "fedsgd.trackers.tensorboard:TensorBoard", "mlflow": "fedsgd.trackers.mlflow:MLflow"}
TRACKERS: Registry[type[Tracker]] = Registry("tracker", Tracker, _BUILTIN_PATHS, check_member=_check_tracker_class)
"""Trackers by name. Each built-in tracker needs the extra of the same name."""


def find_tracker_name(path: str) -> str:
    """Return the name of a built-in tracker's import path; any other path unchanged, which `TRACKERS` accepts as a name."""
    return next((name for name, builtin_path in _BUILTIN_PATHS.items() if builtin_path == path), path)


def create_tracker(name: str) -> Tracker:
    """Return a tracker of `TRACKERS` with default settings, or raise a ScenarioError for a wrong name or missing packages."""
    try:
        cls = TRACKERS[name]
    except ScenarioError as error:
        if name in [*TRACKERS] and isinstance(error.__cause__, ModuleNotFoundError):
            raise ScenarioError(
                f"--track {name} needs, in the checkout of fedsgd, pip install '.[{name}]' ({error.__cause__})"
            ) from error
        raise ScenarioError(f"--track: {error}") from error
    try:
        return cls()
    except Exception as error:  # the constructor of the user's class
        raise ScenarioError(f"--track {name}: cannot be created: {type(error).__name__}: {error}") from error
