"""Trackers with the times of a run on networks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

from fedsgd.analysis.compute_profile import find_uncosted_codecs
from fedsgd.analysis.pricing import price
from fedsgd.analysis.runs import load_run
from fedsgd.analysis.tables import collect_uncosted_codec_notes
from fedsgd.errors import ReportError
from fedsgd.network import PricingModel
from fedsgd.trackers import RunFinished, RunStarted, Tracker, TrackerWarning, TrackerWrapper


class PricedTracker(TrackerWrapper):
    """Wrapper of a tracker that adds the time to each round's end on each network, priced from the ledger in the run folder."""

    def __init__(self, tracker: Tracker, pricing_models: Mapping[str, PricingModel]) -> None:
        super().__init__(tracker, [*pricing_models])
        self._pricing_models = dict(pricing_models)
        self._run: RunStarted | None = None

    def begin(self, run: RunStarted) -> None:
        """Forward the start of the run."""
        self._run = run
        super().begin(run)

    def end(self, outcome: RunFinished) -> None:
        """Forward the outcome with prices. If the run cannot be priced, forward the outcome alone, then raise ReportError."""
        problem: ReportError | None = None
        if outcome.summary is not None:
            try:
                outcome = replace(outcome, seconds_by_network=self._price_run())
            except ReportError as error:
                problem = error
        super().end(outcome)
        if problem is not None:
            raise problem

    def _price_run(self) -> dict[str, list[float]]:
        if self._run is None or self._run.folder is None:
            raise ReportError("a run without a run folder has no ledger that could be priced")
        run = load_run(self._run.folder)
        priced_runs = price(run, list(self._pricing_models.values()))
        for text in collect_uncosted_codec_notes(self._run.name, find_uncosted_codecs(run)):
            warnings.warn(text, TrackerWarning, stacklevel=2)
        networks = zip(self._pricing_models, priced_runs, strict=True)
        return {name: priced_run.cumulative_seconds[1:].tolist() for name, priced_run in networks}
