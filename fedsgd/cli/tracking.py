"""`--track`."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.streams import DISK_FULL_ERRNOS, echo
from fedsgd.errors import ScenarioWarning
from fedsgd.trackers import TRACKERS, RunStarted, Tracker, TrackerGroup, TrackerWarning, create_tracker

if TYPE_CHECKING:
    from fedsgd.federation.round_record import RoundRecord
    from fedsgd.flower.deployment import DeploymentCallbacks
    from fedsgd.scenario.scenario import Scenario

_track_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--track",
    type=click.Choice([*TRACKERS]),
    multiple=True,
    help="Also record the run there, over rounds, bytes and the time on networks. Repeatable. tensorboard: event files in the "
    "folder tensorboard/RUN beside the run folder, so that `tensorboard --logdir runs/tensorboard` shows all. mlflow: what "
    "MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME name, otherwise mlflow.db beside the run folder. Each is an extra to be "
    "installed: 'fedsgd[tensorboard]', 'fedsgd[mlflow]'.",
)
_network_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--network",
    "networks",
    metavar="NAME,...",
    help="With --track: at the end of the run also over the time on these networks; `fedsgd list networks` has them.",
)


def tracker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with both options; they are what `trackers_from_options` takes."""
    return _track_option(_network_option(command))


@contextmanager
def print_warnings(quiet: bool = False) -> Iterator[None]:
    """Print a line on standard error for a tracker that failed, and for settings that a component is not made for.

    Other warnings are shown as Python shows them.

    Args:
        quiet: whether the summary alone names the settings.
    """
    with warnings.catch_warnings():
        as_ever = warnings.showwarning

        def show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, TrackerWarning):
                echo(f"fedsgd: {message}", err=True)
            elif issubclass(category, ScenarioWarning):
                echo(f"fedsgd: warning: {message}", err=True)
            else:
                as_ever(message, category, *where, **more)

        warnings.simplefilter("always", TrackerWarning)
        warnings.simplefilter("ignore" if quiet else "always", ScenarioWarning)
        warnings.showwarning = show_warning
        with _silence_writer_threads():
            yield


@contextmanager
def _silence_writer_threads() -> Iterator[None]:
    """Print no traceback of a thread that finds the disk full: TensorBoard's writer raises the error again in its tracker."""
    before = threading.excepthook

    def show_exception(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError) or args.exc_value.errno not in DISK_FULL_ERRNOS:
            before(args)

    threading.excepthook = show_exception
    try:
        yield
    finally:
        threading.excepthook = before


def trackers_from_options(track: Sequence[str], networks: str | None) -> list[Tracker]:
    """The trackers of these names, each once. ScenarioError for one that is not installed, or a network that there is not."""
    if networks is not None and not track:
        raise click.UsageError("--network goes with --track; `fedsgd price` prices a run that is over")
    terms = {}
    if networks is not None:
        from fedsgd.network import build_pricing_model

        terms = {name.strip(): build_pricing_model(name.strip()) for name in networks.split(",")}
    trackers = [create_tracker(name) for name in dict.fromkeys(track)]
    if not terms:
        return trackers
    from fedsgd.analysis.tracking import PricedTracker

    return [PricedTracker(one, terms) for one in trackers]


@contextmanager
def with_trackers(
    trackers: Sequence[Tracker], scenario: Scenario, folder: Path, callbacks: DeploymentCallbacks
) -> Iterator[tuple[DeploymentCallbacks, TrackerGroup]]:
    """What is called while a deployment runs, the trackers too: from when its ServerApp has built the scenario."""
    with TrackerGroup(trackers) as followed:

        def on_engine(text: str) -> None:
            callbacks.on_engine(text)
            followed.begin(RunStarted(scenario, folder))

        def on_round(record: RoundRecord) -> None:
            callbacks.on_round(record)
            followed.round(record)

        yield replace(callbacks, on_engine=on_engine, on_round=on_round), followed
