"""Trackers and warnings of the commands that run scenarios, and the options --track and --network."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.completers import complete_networks, complete_tracker
from fedsgd.cli.streams import DISK_FULL_ERRNOS, echo
from fedsgd.errors import ResumeWarning, ScenarioError, ScenarioWarning

if TYPE_CHECKING:
    from fedsgd.federation.round_record import RoundRecord
    from fedsgd.flower.deployment import DeploymentCallbacks
    from fedsgd.network import PricingModel
    from fedsgd.scenario.scenario import Scenario
    from fedsgd.trackers import Tracker, TrackerGroup

_track_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--track",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_tracker,
    help="Also record the run with this tracker, over rounds, bytes and the time on networks. Repeatable. tensorboard: event "
    "files in tensorboard/RUN, next to the run folder; `tensorboard --logdir runs/tensorboard` shows runs in `runs`. mlflow: "
    "the store of MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, by default mlflow.db next to the run folder. These two are "
    "extras: in fedsgd's checkout, pip install '.[tensorboard]' or '.[mlflow]'. NAME can also be a plugin's, or "
    "my_module:MyTracker.",
)
_network_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--network",
    "networks",
    metavar="NAME,...",
    shell_complete=complete_networks,
    help="With --track: at the end, also record the run over its time on these networks; see `fedsgd list networks`.",
)


def tracker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `trackers_from_options` takes to a command."""
    return _track_option(_network_option(command))


@contextmanager
def print_warnings(quiet: bool = False) -> Iterator[None]:
    """Print a line on standard error for each warning about a tracker, a checkpoint and, unless `quiet`, a setting.

    Other warnings are printed as usual.
    """
    from fedsgd.trackers import TrackerWarning

    with warnings.catch_warnings():
        show_other_warning = warnings.showwarning

        def show_warning(message: Warning | str, category: type[Warning], *location: Any, **options: Any) -> None:
            if issubclass(category, TrackerWarning):
                echo(f"fedsgd: {message}", err=True)
            elif issubclass(category, ScenarioWarning | ResumeWarning):
                echo(f"fedsgd: warning: {message}", err=True)
            else:
                show_other_warning(message, category, *location, **options)

        warnings.simplefilter("always", TrackerWarning)
        warnings.simplefilter("always", ResumeWarning)
        warnings.simplefilter("ignore" if quiet else "always", ScenarioWarning)
        warnings.showwarning = show_warning
        with _silence_writer_threads():
            yield


@contextmanager
def _silence_writer_threads() -> Iterator[None]:
    """Print no traceback of a thread that met a full disk, because TensorBoard raises the error again in its tracker."""
    default_hook = threading.excepthook

    def show_exception(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError) or args.exc_value.errno not in DISK_FULL_ERRNOS:
            default_hook(args)

    threading.excepthook = show_exception
    try:
        yield
    finally:
        threading.excepthook = default_hook


def trackers_from_options(track: Sequence[str], networks: str | None) -> list[Tracker]:
    """Create each tracker of the options once. ScenarioError if a tracker is not installed, or if a network is unknown."""
    if networks is not None and not track:
        raise click.UsageError("--network needs --track; use `fedsgd price` for a finished run")
    pricing_models = _build_pricing_models(_split_names(networks))
    from fedsgd.trackers import create_tracker

    return [_add_prices(create_tracker(name), pricing_models) for name in dict.fromkeys(track)]


def restore_trackers(run_dir: Path, track: Sequence[str], networks: str | None) -> list[Tracker]:
    """Create the trackers of a run's latest checkpoint, and trackers of the options that the run has not used.

    A tracker of the checkpoint that cannot be created is reported on standard error. `networks` replaces the networks of the
    checkpoint. ScenarioError as for `trackers_from_options`.
    """
    from fedsgd.experiment.run_checkpoints import read_trackers
    from fedsgd.trackers import create_tracker, describe_tracker, find_tracker_name

    given_models = _build_pricing_models(_split_names(networks))
    given_trackers = [create_tracker(name) for name in dict.fromkeys(track)]
    trackers: list[Tracker] = []
    records = read_trackers(run_dir)
    for record in records:
        try:
            models = _build_pricing_models(record.networks) if networks is None else given_models
            trackers.append(_add_prices(create_tracker(find_tracker_name(record.path)), models))
        except ScenarioError as error:
            echo(f"fedsgd: warning: the run continues without its tracker {record.path}: {error}", err=True)
    used_paths = {record.path for record in records}
    trackers += [_add_prices(other, given_models) for other in given_trackers if describe_tracker(other).path not in used_paths]
    if networks is not None and not trackers:
        raise click.UsageError(f"--network needs --track, because {run_dir} has no tracker")
    return trackers


def _split_names(networks: str | None) -> list[str]:
    return [] if networks is None else [name.strip() for name in networks.split(",")]


def _build_pricing_models(networks: Sequence[str]) -> dict[str, PricingModel]:
    """Return the pricing models of networks by name. ScenarioError for an unknown name."""
    if not networks:
        return {}
    from fedsgd.network import build_pricing_model

    return {name: build_pricing_model(name) for name in networks}


def _add_prices(tracker: Tracker, pricing_models: dict[str, PricingModel]) -> Tracker:
    """Return a tracker that also receives the times of a run on networks, if there are any."""
    if not pricing_models:
        return tracker
    from fedsgd.analysis.tracking import PricedTracker

    return PricedTracker(tracker, pricing_models)


@contextmanager
def with_trackers(
    trackers: Sequence[Tracker], scenario: Scenario, folder: Path, callbacks: DeploymentCallbacks
) -> Iterator[tuple[DeploymentCallbacks, TrackerGroup]]:
    """Add trackers to a deployment's callbacks. The trackers start when the ServerApp has built the scenario."""
    from fedsgd.trackers import RunStarted, TrackerGroup

    with TrackerGroup(trackers) as tracker_group:

        def on_engine(text: str) -> None:
            callbacks.on_engine(text)
            tracker_group.begin(RunStarted(scenario, folder))

        def on_round(record: RoundRecord) -> None:
            callbacks.on_round(record)
            tracker_group.round(record)

        yield replace(callbacks, on_engine=on_engine, on_round=on_round), tracker_group
