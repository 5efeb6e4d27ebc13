"""The protocol of trackers, and what keeps a run from harm by them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from fedsgd.config.component import describe_value
from fedsgd.errors import ScenarioError
from fedsgd.federation.round_record import RoundRecord
from fedsgd.scenario.parsing import dump_table
from fedsgd.scenario.scenario import Scenario

SettingValue = bool | int | float | str


@dataclass(frozen=True)
class RunStarted:
    """A run that is about to train. scenario: resolved; folder: the run folder, if there is one."""

    scenario: Scenario
    folder: Path | None = None

    @property
    def name(self) -> str:
        """The run folder's name; without one, the scenario's."""
        return self.scenario.name if self.folder is None else self.folder.absolute().name

    @property
    def shared_folder(self) -> Path:
        """Where what several runs share is written: the run folder's parent; without one, what is the parent by default."""
        return Path("runs").absolute() if self.folder is None else self.folder.absolute().parent

    @property
    def settings(self) -> dict[str, SettingValue]:
        """Dotted key → value of every setting that has one, as `--set` takes them. A list is its JSON; tables in a list are
        numbered from 0."""
        return dict(_flatten_settings(dump_table(self.scenario), ""))


@dataclass(frozen=True)
class RunFinished:
    """A run that is over. summary: as in summary.json, None if it failed; error: what it failed of, KeyboardInterrupt too;
    priced: label of a network → seconds there from the start to the end of each round."""

    summary: Mapping[str, Any] | None = None
    error: BaseException | None = None
    seconds_by_network: Mapping[str, Sequence[float]] = field(default_factory=dict)


class Tracker(Protocol):
    """Follows runs, one after the other. Who raises is reported once, and not called again in that run, which goes on."""

    def begin(self, run: RunStarted) -> None:
        """Before the first round, when the run folder is there."""

    def round(self, record: RoundRecord) -> None:
        """After each round."""

    def end(self, outcome: RunFinished) -> None:
        """Once, however the run ended, short of a kill; the run folder is complete."""


def check_callbacks(trackers: object, callbacks: Mapping[str, object]) -> None:
    """Raise a ScenarioError for what is no sequence of trackers, and for callbacks that cannot be called.

    Args:
        trackers: instances with the methods of `Tracker`.
        calls: callback by the name of its argument; None for none.
    """
    for name, call in callbacks.items():
        if call is not None and not callable(call):
            raise ScenarioError(f"{name}: got {describe_value(call)}, expected a function")
    names = ("begin", "round", "end")
    if not isinstance(trackers, Sequence) or not all(callable(getattr(one, name, None)) for one in trackers for name in names):
        raise ScenarioError(f"trackers: got {describe_value(trackers)}, expected a list of fedsgd.Tracker, each an instance")


class TrackerWarning(RuntimeWarning):
    """A tracker raised: which, and what."""


class TrackerGroup:
    """The trackers of one run. Used as a context, it tells them of an error that leaves it."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)
        self._active_trackers: list[Tracker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.end(RunFinished(error=error))

    def begin(self, run: RunStarted) -> None:
        """Tell all of them."""
        for tracker in self._trackers:
            self._active_trackers.append(tracker)  # from now on it is told of the end, of an interrupt in here too
            self._notify(tracker, "begin", run)

    def round(self, record: RoundRecord) -> None:
        """Tell those that still follow."""
        for tracker in tuple(self._active_trackers):
            self._notify(tracker, "round", record)

    def end(self, outcome: RunFinished) -> None:
        """Tell those that still follow, and nobody of anything after that."""
        following, self._active_trackers = self._active_trackers, []
        failures: list[str] = []
        interrupt: BaseException | None = None
        for tracker in following:
            try:
                tracker.end(outcome)
            except Exception as error:
                failures.append(_describe_failure(tracker, "end", error))
            except BaseException as error:  # who is impatient in one tracker must not leave the others open
                interrupt = error
        for failure in failures:
            warnings.warn(failure, TrackerWarning, stacklevel=2)
        if interrupt is not None:
            raise interrupt

    def _notify(self, tracker: Tracker, method: str, argument: RunStarted | RoundRecord) -> None:
        try:
            getattr(tracker, method)(argument)
        except Exception as error:
            self._active_trackers = [other for other in self._active_trackers if other is not tracker]
            warnings.warn(
                f"{_describe_failure(tracker, method, error)}; the run goes on without it", TrackerWarning, stacklevel=3
            )


def x_axes(record: RoundRecord) -> dict[str, int]:
    """What a metric is drawn over → where this round is there; all but the network's time, which is known at the end."""
    up, down = record.uplink_bytes, record.downlink_bytes
    return {"round": record.round, "uplink bytes": up, "all bytes": up + down}


def round_metrics(record: RoundRecord) -> dict[str, float]:
    """Return the figures of a round by the columns of rounds.parquet, and its compression ratios; without a None."""
    known: dict[str, float | None] = {
        "uplink_bytes": record.uplink_bytes,
        "uplink_received_bytes": record.uplink_received_bytes,
        "downlink_bytes": record.downlink_bytes,
        "downlink_broadcast_bytes": record.downlink_broadcast_bytes,
        **record.compression_ratios,
        "residual_norm": record.residual_norm,
        "rounds_missed": record.rounds_missed,
        "clients": len(record.cohort),
        "accepted": len(record.accepted),
        "failures": len(record.failures),
        "lr": record.lr,
        "seconds": record.seconds,
    }
    return {name: value for name, value in known.items() if value is not None}


def convert_to_milliseconds(outcome: RunFinished, n_rounds: int) -> Iterator[tuple[str, list[int]]]:
    """(a network's label, the time there at the end of each round, as whole steps). ValueError if it is not one a round."""
    for network, seconds in outcome.seconds_by_network.items():
        if len(seconds) != n_rounds:
            raise ValueError(f"{network}: {len(seconds)} times for {n_rounds} rounds")
        yield network, [round(1000 * s) for s in seconds]


def _describe_failure(tracker: Tracker, method: str, error: Exception) -> str:
    return f"{type(tracker).__name__}.{method}: {type(error).__name__}: {error}"


def _flatten_settings(value: Any, key: str) -> Iterator[tuple[str, SettingValue]]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _flatten_settings(one, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        yield from _flatten_settings({str(i): one for i, one in enumerate(value)}, key)
    else:
        yield key, value if isinstance(value, bool | int | float | str) else json.dumps(value)
