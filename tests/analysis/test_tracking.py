"""Trackers with times on networks."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedsgd
from fedsgd.analysis import load_run
from fedsgd.analysis.pricing import price
from fedsgd.analysis.tracking import PricedTracker
from fedsgd.network import build_pricing_model
from fedsgd.trackers import RunFinished, RunStarted, TrackerWarning
from tests.analysis.helpers import PRICING_MODEL, TINY

pytestmark = pytest.mark.slow


class RecordingTracker:
    """Tracker that stores its calls."""

    def __init__(self) -> None:
        self.outcomes: list[RunFinished] = []
        self.rounds: list[int] = []

    def begin(self, run: RunStarted) -> None:
        self.run = run

    def round(self, record: fedsgd.RoundRecord) -> None:
        self.rounds.append(record.round)

    def end(self, outcome: RunFinished) -> None:
        self.outcomes.append(outcome)


def test_priced_tracker_forwards_times_on_networks(root: Path, tmp_path: Path) -> None:
    tracker, pricing_models = RecordingTracker(), {"4g": build_pricing_model("4g"), "slow": PRICING_MODEL}
    scenario = fedsgd.load(root / "scenarios" / "quickstart.toml", {**TINY, "rounds": 3})
    fedsgd.run(scenario, out=tmp_path / "run", callbacks=[PricedTracker(tracker, pricing_models)])
    (outcome,) = tracker.outcomes
    assert tracker.rounds == [1, 2, 3]
    for (name, seconds), priced in zip(
        outcome.seconds_by_network.items(), price(load_run(tmp_path / "run"), list(pricing_models.values())), strict=True
    ):
        assert pricing_models[name] == priced.pricing_model
        assert list(seconds) == priced.cumulative_seconds[1:].tolist()


def test_priced_tracker_of_unpriceable_run_forwards_the_rest(root: Path, tmp_path: Path) -> None:
    settings = {"rounds": 2, "client.epochs": 1}
    with_deadline = fedsgd.load(root / "scenarios" / "participation" / "stragglers.toml", settings)
    for scenario, out, problem in (
        (with_deadline, tmp_path / "late", "deadline = 60 s"),
        (fedsgd.load(root / "scenarios" / "quickstart.toml", settings), None, "without a run folder"),
    ):
        tracker = RecordingTracker()
        with pytest.warns(TrackerWarning, match=problem):
            fedsgd.run(scenario, out=out, callbacks=[PricedTracker(tracker, {"4g": build_pricing_model("4g")})])
        (outcome,) = tracker.outcomes
        assert outcome.summary is not None
        assert not outcome.seconds_by_network
