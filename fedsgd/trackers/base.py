"""Protocol of trackers, and the group of a run's trackers, whose errors do not stop the run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    """Event before the first round of a run, or before the first further round of a resumed run.

    Attributes:
        scenario: resolved scenario.
        folder: run folder; None without one.
        history: records of the rounds before, of a resumed run.
        position: text that the tracker's method `position` returned at the checkpoint, of a resumed run; None if there is none.
    """

    scenario: Scenario
    folder: Path | None = None
    history: Sequence[RoundRecord] = ()
    position: str | None = None

    @property
    def name(self) -> str:
        """Name of the run folder; without a run folder, the scenario's name."""
        return self.scenario.name if self.folder is None else self.folder.absolute().name

    @property
    def shared_folder(self) -> Path:
        """Folder for files that several runs share: the parent of the run folder; without a run folder, `runs`."""
        return Path("runs").absolute() if self.folder is None else self.folder.absolute().parent

    @property
    def settings(self) -> dict[str, SettingValue]:
        """Values of all settings by dotted key, as for `--set`; a list is a JSON text, tables in a list are numbered from 0."""
        return dict(_flatten_settings(dump_table(self.scenario), ""))


@dataclass(frozen=True)
class RunFinished:
    """Event at the end of a run.

    Attributes:
        summary: contents of summary.json, None for a run that failed.
        error: error that ended the run, which may be KeyboardInterrupt; None for a complete run.
        seconds_by_network: [R] seconds from the start of the run to the end of each round, by the label of a network.
    """

    summary: Mapping[str, Any] | None = None
    error: BaseException | None = None
    seconds_by_network: Mapping[str, Sequence[float]] = field(default_factory=dict)


class Tracker(Protocol):
    """Protocol of a tracker, which receives the events of one run after another.

    A tracker that raises an error is reported by a `TrackerWarning`, and receives no more events of the run, which continues.

    A resumed run sends `begin` with the records of the rounds up to the checkpoint, and then `round` for each further round. An
    earlier process may have sent some of these rounds already. A tracker may define a method `position()`, which takes no
    argument and returns a text, such as the id of a run in a store. A checkpoint stores the text, and the `RunStarted` of the
    resumed run has it. A checkpoint is written before the trackers receive its last round.

    >>> class LossPrinter:
    ...     def begin(self, run):
    ...         print("begin", run.name)
    ...     def round(self, record):
    ...         print(record.round, record.metrics)
    ...     def end(self, outcome):
    ...         print("end")
    >>> check_callbacks([LossPrinter()], {})
    """

    def begin(self, run: RunStarted) -> None:
        """Receive the start of a run, after its folder was created and before its first round.

        Args:
            run: scenario and folder of the run.
        """

    def round(self, record: RoundRecord) -> None:
        """Receive the end of a round.

        Args:
            record: bytes, metrics and participants of the round.
        """

    def end(self, outcome: RunFinished) -> None:
        """Receive the end of a run, once, also after an error. The run folder of a run without an error is then complete.

        Args:
            outcome: summary of the run, or its error.
        """


def check_callbacks(trackers: object, callbacks: Mapping[str, object]) -> None:
    """Raise a ScenarioError unless trackers are a sequence of `Tracker` instances and callbacks are callable."""
    for name, callback in callbacks.items():
        if callback is not None and not callable(callback):
            raise ScenarioError(f"{name}: got {describe_value(callback)}, expected a function")
    methods = ("begin", "round", "end")
    if not isinstance(trackers, Sequence) or not all(
        not isinstance(t, type) and callable(getattr(t, name, None)) for t in trackers for name in methods
    ):
        raise ScenarioError(f"trackers: got {describe_value(trackers)}, expected a list of fedsgd.Tracker, each an instance")


class TrackerWarning(RuntimeWarning):
    """Error that a tracker raised, with the tracker's class and method, or a note on prices that a tracker receives."""


class TrackerWrapper:
    """Tracker that forwards all events to another tracker, whose position a checkpoint stores.

    Args:
        inner: tracker that receives the events.
        networks: labels of the networks whose times the wrapper adds.
    """

    def __init__(self, inner: Tracker, networks: Sequence[str] = ()) -> None:
        self.inner = inner
        self.networks = tuple(networks)

    def begin(self, run: RunStarted) -> None:
        """Forward the start of the run."""
        self.inner.begin(run)

    def round(self, record: RoundRecord) -> None:
        """Forward the record of a round."""
        self.inner.round(record)

    def end(self, outcome: RunFinished) -> None:
        """Forward the end of the run."""
        self.inner.end(outcome)

    def position(self) -> str | None:
        """Return the position of the inner tracker; None if it has no such method."""
        method: Callable[[], str] | None = getattr(self.inner, "position", None)
        return method() if callable(method) else None


@dataclass(frozen=True)
class TrackerRecord:
    """Tracker of a run, as a checkpoint stores it.

    Attributes:
        path: import path of the tracker's class, "module:Class".
        position: result of the tracker's method `position`; None without the method.
        networks: labels of the networks whose times the tracker receives.
    """

    path: str
    position: str | None = None
    networks: tuple[str, ...] = ()


def describe_tracker(tracker: Tracker, position: str | None = None) -> TrackerRecord:
    """Return the record of a tracker; the class is that of the inner tracker of a `TrackerWrapper`.

    >>> describe_tracker(TrackerWrapper(TrackerGroup([]), ["4g"]))
    TrackerRecord(path='fedsgd.trackers.base:TrackerGroup', position=None, networks=('4g',))
    """
    inner, networks = (tracker.inner, tracker.networks) if isinstance(tracker, TrackerWrapper) else (tracker, ())
    return TrackerRecord(f"{type(inner).__module__}:{type(inner).__qualname__}", position, networks)


class TrackerGroup:
    """Trackers of one run, in the order in which they are called.

    As a context, the group sends `end` with the error if an error leaves the context.

    Args:
        trackers: trackers of the run.
        records: trackers of the run at the checkpoint from which the run continues. A tracker receives the position of the
            first record of its class that no other tracker has.
    """

    def __init__(self, trackers: Sequence[Tracker], records: Sequence[TrackerRecord] = ()) -> None:
        self._trackers = list(trackers)
        self._active_trackers: list[Tracker] = []
        self._unused_records = list(records)
        self._positions = [self._take_position(tracker) for tracker in trackers]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.end(RunFinished(error=error))

    def begin(self, run: RunStarted) -> None:
        """Send the start of the run to all trackers, each with its position."""
        for tracker, position in zip(self._trackers, self._positions, strict=True):
            self._active_trackers.append(tracker)  # before the call, so that the tracker receives `end` after an interrupt
            self._call(tracker, "begin", replace(run, position=position))

    def round(self, record: RoundRecord) -> None:
        """Send the end of a round to all trackers that have not raised an error."""
        for tracker in tuple(self._active_trackers):
            self._call(tracker, "round", record)

    def describe(self) -> list[TrackerRecord]:
        """Return the records of all trackers for a checkpoint, with the last known position of a tracker that failed.

        Records of trackers that this process does not use stay, so that a later process can use these trackers again.
        """
        for n, tracker in enumerate(self._trackers):
            if any(active is tracker for active in self._active_trackers) and callable(getattr(tracker, "position", None)):
                self._positions[n] = self._call(tracker, "position") or self._positions[n]
        records = [describe_tracker(*pair) for pair in zip(self._trackers, self._positions, strict=True)]
        return [*records, *self._unused_records]

    def end(self, outcome: RunFinished) -> None:
        """Send the end of the run to all trackers that have not raised an error; later calls have no effect."""
        trackers, self._active_trackers = self._active_trackers, []
        failures: list[str] = []
        interrupt: BaseException | None = None
        for tracker in trackers:
            try:
                tracker.end(outcome)
            except Exception as error:
                failures.append(_describe_failure(tracker, "end", error))
            except BaseException as error:  # an interrupt in one tracker must not leave the other trackers open
                interrupt = error
        for failure in failures:
            warnings.warn(failure, TrackerWarning, stacklevel=2)
        if interrupt is not None:
            raise interrupt

    def _take_position(self, tracker: Tracker) -> str | None:
        """Return the position in the first record of the tracker's class that is left, and remove the record."""
        path = describe_tracker(tracker).path
        record = next((record for record in self._unused_records if record.path == path), None)
        if record is None:
            return None
        self._unused_records.remove(record)
        return record.position

    def _call(self, tracker: Tracker, method: str, *arguments: RunStarted | RoundRecord) -> str | None:
        """Call a method of a tracker, and return a position; after an error, warn and send the tracker no more events."""
        try:
            result = getattr(tracker, method)(*arguments)
            if method == "position" and result is not None and not isinstance(result, str):
                raise TypeError(f"got {describe_value(result)}, expected a text")
            return result if method == "position" else None
        except Exception as error:
            self._active_trackers = [active for active in self._active_trackers if active is not tracker]
            warnings.warn(
                f"{_describe_failure(tracker, method, error)}; the run continues without it", TrackerWarning, stacklevel=3
            )
        return None


def x_axes(record: RoundRecord) -> dict[str, int]:
    """Return the horizontal coordinate of a round by axis, without the time on a network, which is known after the run."""
    uplink, downlink = record.uplink_bytes, record.downlink_bytes
    return {"round": record.round, "uplink bytes": uplink, "all bytes": uplink + downlink}


def round_metrics(record: RoundRecord) -> dict[str, float]:
    """Return the figures of a round by the columns of rounds.parquet, and its compression ratios. None values are omitted."""
    figures: dict[str, float | None] = {
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
    return {name: value for name, value in figures.items() if value is not None}


def convert_to_milliseconds(outcome: RunFinished, n_rounds: int) -> Iterator[tuple[str, list[int]]]:
    """Yield (label of a network, [R] milliseconds at the end of each round); a ValueError if a network has not R times."""
    for network, seconds in outcome.seconds_by_network.items():
        if len(seconds) != n_rounds:
            raise ValueError(f"{network}: {len(seconds)} times for {n_rounds} rounds")
        yield network, [round(1000 * s) for s in seconds]


def _describe_failure(tracker: Tracker, method: str, error: Exception) -> str:
    return f"{type(tracker).__name__}.{method}: {type(error).__name__}: {error}"


def _flatten_settings(value: Any, key: str) -> Iterator[tuple[str, SettingValue]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flatten_settings(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        yield from _flatten_settings({str(i): item for i, item in enumerate(value)}, key)
    else:
        yield key, value if isinstance(value, bool | int | float | str) else json.dumps(value)
