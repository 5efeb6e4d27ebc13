"""Trackers that also learn what a run would have taken on networks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fedsgd.analysis.compute_profile import find_uncosted_codecs
from fedsgd.analysis.pricing import price
from fedsgd.analysis.runs import load_run
from fedsgd.analysis.tables import collect_uncosted_codec_notes
from fedsgd.errors import ReportError
from fedsgd.network import PricingModel
from fedsgd.trackers import RunFinished, RunStarted, Tracker, TrackerWarning

if TYPE_CHECKING:
    from fedsgd.federation.round_record import RoundRecord


class PricedTracker:
    """A tracker that tells another one, at the end of a run that finished, when each round would have been over on each of
    `pricing_models`, by their names. The ledger of the run folder is priced, so there has to be one."""

    def __init__(self, tracker: Tracker, pricing_models: Mapping[str, PricingModel]) -> None:
        self._tracker = tracker
        self._pricing_models = dict(pricing_models)
        self._run: RunStarted | None = None

    def begin(self, run: RunStarted) -> None:
        """Tell the other one."""
        self._run = run
        self._tracker.begin(run)

    def round(self, record: RoundRecord) -> None:
        """Tell the other one."""
        self._tracker.round(record)

    def end(self, outcome: RunFinished) -> None:
        """Tell the other one with prices. ReportError, after it was told without, for a run that cannot be priced."""
        problem: ReportError | None = None
        if outcome.summary is not None:
            try:
                outcome = replace(outcome, seconds_by_network=self._price_run())
            except ReportError as error:
                problem = error
        self._tracker.end(outcome)
        if problem is not None:
            raise problem

    def _price_run(self) -> dict[str, list[float]]:
        if self._run is None or self._run.folder is None:
            raise ReportError("without a run folder there is no ledger to be priced")
        run = load_run(self._run.folder)
        priced = price(run, list(self._pricing_models.values()))
        for text in collect_uncosted_codec_notes(self._run.name, find_uncosted_codecs(run)):
            warnings.warn(text, TrackerWarning, stacklevel=2)
        return {name: one.cumulative_seconds[1:].tolist() for name, one in zip(self._pricing_models, priced, strict=True)}
