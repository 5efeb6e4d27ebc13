"""Helpers of the tests of trackers: a tracker that records its calls, the command line, and events without a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fedsgd
from fedsgd.cli import main
from fedsgd.experiment.run_checkpoints import find_resume_point
from fedsgd.federation.round_record import RoundRecord
from fedsgd.scenario.scenario import Scenario
from fedsgd.trackers import RunFinished, RunStarted, Tracker, TrackerGroup, create_tracker

Make = Callable[..., Scenario]
RESUME_SETTINGS: dict[str, Any] = {"rounds": 6, "checkpoint.every": 2, "evaluation.every": 3}
SECONDS_BY_NETWORK = {"lte": [1.0015, 2.5, 1e9], "office": [0.001, 0.002, 0.003]}


@dataclass
class RecordingTracker:
    """Tracker that records its calls, and raises `error` in the method `failing_method`."""

    failing_method: str = ""
    error: BaseException = field(default_factory=lambda: ValueError("no space left"))
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def _record(self, method: str, argument: Any) -> None:
        self.calls.append((method, argument))
        if method == self.failing_method:
            raise self.error

    def begin(self, run: RunStarted) -> None:
        self._record("begin", run)

    def round(self, record: RoundRecord) -> None:
        self._record("round", record)

    def end(self, outcome: RunFinished) -> None:
        self._record("end", outcome)

    @property
    def methods(self) -> list[str]:
        """Names of the called methods."""
        return [method for method, _ in self.calls]


def run_command(*arguments: str) -> Any:
    """Run `fedsgd` with these arguments."""
    return CliRunner().invoke(main, [*arguments])


def send_events(history: list[RoundRecord], scenario: Scenario, folder: Path, name: str, outcome: RunFinished) -> None:
    """Send the events of a run to the tracker of this name."""
    with TrackerGroup([create_tracker(name)]) as group:
        group.begin(RunStarted(scenario, folder))
        for record in history:
            group.round(record)
        group.end(outcome)


class InterruptionError(Exception):
    """Error that ends a run in its last round, after the checkpoint of round 4 and after the trackers received round 5."""


def interrupt_run(make_scenario: Make, out: Path, *trackers: Tracker) -> None:
    """Run a scenario of six rounds until the end of its last round."""

    def stop(record: RoundRecord) -> None:
        if record.round == 6:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        fedsgd.run(make_scenario(RESUME_SETTINGS), out=out, callbacks=trackers, on_round=stop)
    assert find_resume_point(out).manifest.round == 4
