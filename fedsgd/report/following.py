"""Trackers that also learn what a run would have taken on networks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fedsgd.errors import ReportError
from fedsgd.network import Terms
from fedsgd.report.price import price
from fedsgd.report.runs import load_run
from fedsgd.report.tables import uncounted_notes
from fedsgd.report.work import uncounted_codecs
from fedsgd.track import Begun, Ended, Tracker, TrackerWarning

if TYPE_CHECKING:
    from fedsgd.record import Round


class OnNetworks:
    """A tracker that tells another one, at the end of a run that finished, when each round would have been over on each of
    `terms`, by their names. The ledger of the run folder is priced, so there has to be one."""

    def __init__(self, tracker: Tracker, terms: Mapping[str, Terms]) -> None:
        self._tracker = tracker
        self._terms = dict(terms)
        self._run: Begun | None = None

    def begin(self, run: Begun) -> None:
        """Tell the other one."""
        self._run = run
        self._tracker.begin(run)

    def round(self, record: Round) -> None:
        """Tell the other one."""
        self._tracker.round(record)

    def end(self, ended: Ended) -> None:
        """Tell the other one with prices. ReportError, after it was told without, for a run that cannot be priced."""
        problem: ReportError | None = None
        if ended.summary is not None:
            try:
                ended = replace(ended, priced=self._priced())
            except ReportError as error:
                problem = error
        self._tracker.end(ended)
        if problem is not None:
            raise problem

    def _priced(self) -> dict[str, list[float]]:
        if self._run is None or self._run.folder is None:
            raise ReportError("without a run folder there is no ledger to be priced")
        run = load_run(self._run.folder)
        priced = price(run, list(self._terms.values()))
        for text in uncounted_notes(self._run.name, uncounted_codecs(run)):
            warnings.warn(text, TrackerWarning, stacklevel=2)
        return {name: one.seconds[1:].tolist() for name, one in zip(self._terms, priced, strict=True)}
