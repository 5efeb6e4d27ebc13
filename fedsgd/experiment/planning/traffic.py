"""Bytes of each round of a run: measured in the rounds of the calibration, estimated in all others.

A reply has the bytes of the calibrated replies, times the ratio of two trials of the compressor: in its round, and in the
calibrated rounds. A message has TASK, BUFFERS and REFERENCE frames as calibrated, and MODEL frames by the policy:

* "model": as calibrated, times the ratio of two trials.
* all others: the smallest of the candidates of `fedsgd.federation.downlink`, for the clients that the run will draw.

The share of coordinates that change in some rounds is 1 − exp(−h), with the hazard h. If clients chose their coordinates
independently, the hazard of a round would be x = C · h of one update. In the first rounds clients choose similar coordinates.
With error feedback their choices become independent in tens of rounds, and h approaches x/(1 + x); without it, h stays as
calibrated. The hazards of m rounds add up to m^a times the hazard of one, with the exponent a of the calibration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsgd.experiment.builder import Experiment
from fedsgd.experiment.planning.calibration import Calibration
from fedsgd.experiment.planning.cohorts import CohortSequence, PlannedCohort
from fedsgd.experiment.planning.encoded_sizes import (
    SizeCurve,
    make_downlink_trial,
    make_uplink_trial,
    measure_curve,
    measure_sparse_bytes,
)
from fedsgd.federation.buffers import max_buffer_section_bytes
from fedsgd.federation.downlink.frames import encode_full_model
from fedsgd.numerics.arrays import F64
from fedsgd.storage.parquet import read_batches
from fedsgd.storage.run_directory import LEDGER_FILE
from fedsgd.wire import ALL_CLIENTS

MAX_CHANGED_SHARE = 1 - 1e-9
"""Share of changed coordinates that stands for all of them, so that its logarithm is finite."""
RELAXATION_ROUNDS = 10.0
"""Rounds in which the distance of h from its limit shrinks to 37 %."""
DEFAULT_EXPONENT = 0.8
"""Exponent a of the union of changes, if the calibration has one change only."""


@dataclass(frozen=True, eq=False)
class TrafficEstimate:
    """Bytes of each round.

    Attributes:
        uplink, downlink: [R] float64, bytes of all frames of each direction.
    """

    uplink: F64
    downlink: F64


@dataclass(frozen=True, eq=False)
class _MeasuredTraffic:
    """Traffic of the n rounds of a calibration, [n] float64 each.

    Attributes:
        uplink, replies: bytes and number of UPDATE frames.
        models: bytes of MODEL frames.
        others: bytes of all other downlink frames.
        messages: number of messages.
    """

    uplink: F64
    replies: F64
    models: F64
    others: F64
    messages: F64


def estimate_traffic(experiment: Experiment, calibration: Calibration, cohorts: CohortSequence) -> TrafficEstimate:
    """Return the bytes of each round of a run.

    Args:
        experiment: description of the run.
        calibration: its first rounds.
        cohorts: its cohorts.
    """
    measured = _read_ledger(calibration)
    replies = _estimate_replies(experiment, measured)
    messages = _MessageEstimate(experiment, calibration, measured)
    n_rounds, n_measured = experiment.scenario.rounds, calibration.n_rounds
    uplink, downlink = np.zeros(n_rounds), np.zeros(n_rounds)
    uplink[:n_measured], downlink[:n_measured] = measured.uplink, measured.models + measured.others
    drawn = cohorts.cohorts[n_measured:]
    for cohort in drawn:
        uplink[cohort.round - 1] = cohort.n_replies * float(replies[cohort.round - 1])
        downlink[cohort.round - 1] = messages.estimate(cohort)
    n_known = max(len(cohorts.cohorts), n_measured)
    for direction in (uplink, downlink):
        direction[n_known:] = direction[n_known // 2 : n_known].mean()
    return TrafficEstimate(uplink, downlink)


def _read_ledger(calibration: Calibration) -> _MeasuredTraffic:
    n = calibration.n_rounds
    columns: dict[str, list[F64]] = {name: [np.zeros(n)] for name in ("uplink", "replies", "models", "others", "messages")}
    for batch in read_batches(calibration.folder / LEDGER_FILE, ["round", "direction", "kind", "n_bytes"]):
        rows, n_bytes = batch["round"] - 1, batch["n_bytes"].astype(np.float64)
        is_sent = n_bytes > 0
        is_up, is_model, is_task = batch["direction"].isin("up"), batch["kind"].isin("MODEL"), batch["kind"].isin("TASK")
        for name, weights in (
            ("uplink", n_bytes * is_up),
            ("replies", (is_up & is_sent).astype(np.float64)),
            ("models", n_bytes * is_model),
            ("others", n_bytes * ~(is_up | is_model)),
            ("messages", is_task.astype(np.float64)),
        ):
            columns[name].append(np.bincount(rows, weights, minlength=n).astype(np.float64))
    return _MeasuredTraffic(**{name: np.sum(parts, axis=0) for name, parts in columns.items()})


def _estimate_replies(experiment: Experiment, measured: _MeasuredTraffic) -> F64:
    """Return the bytes of a reply by round, [R] float64."""
    curve = measure_curve(make_uplink_trial(experiment.plan), experiment.scenario.rounds)
    trials = np.interp(np.arange(1, experiment.scenario.rounds + 1), curve.rounds, curve.n_bytes)
    buffer_bytes = max_buffer_section_bytes(experiment.plan.buffers)
    # the first reply of a client may differ from later replies, so the first round counts only if it is the only round
    rows = [row for row in range(len(measured.replies)) if measured.replies[row]]
    rows = [row for row in rows if row] or rows
    ratios = [(measured.uplink[row] / measured.replies[row] - buffer_bytes) / trials[row] for row in rows]
    estimate: F64 = buffer_bytes + trials * (float(np.mean(ratios)) if ratios else 1.0)
    return estimate


class _MessageEstimate:
    """Estimate of the downlink of a round."""

    def __init__(self, experiment: Experiment, calibration: Calibration, measured: _MeasuredTraffic) -> None:
        plan, server, n_rounds = experiment.plan, calibration.server, experiment.scenario.rounds
        rows = np.flatnonzero(measured.messages)
        last = int(rows[-1]) if len(rows) else 0
        n_messages = max(measured.messages[last], 1)
        self._other_bytes = float(measured.others[last] / n_messages)
        self._curve = measure_curve(make_downlink_trial(plan, server.public_model.weights), n_rounds)
        self._history: _ModelHistory | None = None
        self._model_ratio = 1.0
        if plan.downlink.clients_keep_model:
            self._history = _ModelHistory(experiment, calibration, self._curve)
        elif len(rows):
            self._model_ratio = float(measured.models[last] / n_messages) / self._curve.interpolate(last + 1).n_bytes

    def estimate(self, cohort: PlannedCohort) -> float:
        """Return the bytes of all messages to a cohort."""
        n_messages = len(cohort.base_rounds)
        if self._history is not None:
            model_bytes = self._history.estimate(cohort)
        else:
            model_bytes = n_messages * self._model_ratio * self._curve.interpolate(cohort.round).n_bytes
        return n_messages * self._other_bytes + model_bytes


class _ModelHistory:
    """Estimate of MODEL frames under the policies that send differences.

    Arrays by round begin with round 0. Round r has the figures of the public model that the clients of round r decode.
    """

    def __init__(self, experiment: Experiment, calibration: Calibration, curve: SizeCurve) -> None:
        plan, weights = experiment.plan, calibration.server.public_model.weights
        self._size = plan.layout.size
        self._is_exact = plan.downlink.policy == "difference"
        context = plan.make_context(calibration.server.round, ALL_CLIENTS)
        self._full_bytes = float(len(encode_full_model(plan.downlink, weights, context)[1].data))
        self._sparse_bytes = measure_sparse_bytes(plan, weights)
        rounds = np.arange(experiment.scenario.rounds + 1)
        densities = self._list_densities(experiment, curve)
        self._exponent = DEFAULT_EXPONENT
        if not calibration.changes:  # the run has one round, which is measured
            self._hazards = self._differences = np.zeros(len(rounds))
            return
        self._hazards = self._extrapolate_hazards(experiment, calibration, densities)
        self._exponent = self._fit_exponent(calibration)
        self._differences = self._estimate_differences(calibration, np.interp(rounds, curve.rounds, curve.n_bytes))
        self._difference_sums = np.cumsum(self._differences)
        self._hazard_sums = np.cumsum(self._hazards)

    def estimate(self, cohort: PlannedCohort) -> float:
        """Return the bytes of the MODEL frames of a cohort."""
        bases, counts = np.unique(cohort.base_rounds, return_counts=True)
        bytes_by_base = [self._estimate_frames(cohort.round, base) for base in bases.tolist()]
        return sum((n_bytes * count for n_bytes, count in zip(bytes_by_base, counts.tolist(), strict=True)), 0.0)

    def _estimate_frames(self, round: int, base: int) -> float:
        """Return the bytes of the frames for a client whose model is of round `base`, 0 for no model."""
        if not base:
            return self._full_bytes
        differences = float(self._difference_sums[round] - self._difference_sums[base])
        hazard = float(self._hazard_sums[round] - self._hazard_sums[base]) * (round - base) ** (self._exponent - 1)
        merged = self._sparse_bytes(self._size * -math.expm1(-hazard))
        return min(self._full_bytes, differences, *([] if self._is_exact and round - base == 1 else [merged]))

    def _list_densities(self, experiment: Experiment, curve: SizeCurve) -> F64:
        """Return h of one encoded vector by round: of the update that changes the model, or of the downlink's difference."""
        n_rounds = experiment.scenario.rounds
        if self._is_exact:  # the model of round r is the result of the updates of round r − 1
            uplink = measure_curve(make_uplink_trial(experiment.plan), n_rounds)
            coordinates = np.interp(np.arange(n_rounds + 1) - 1, uplink.rounds, uplink.n_coordinates)
        else:
            coordinates = np.interp(np.arange(n_rounds + 1), curve.rounds, curve.n_coordinates)
        return _to_hazards(coordinates / self._size)

    def _extrapolate_hazards(self, experiment: Experiment, calibration: Calibration, densities: F64) -> F64:
        """Return h of the change of the public model by round: as calibrated, and in proportion to `densities` later.

        A server optimizer or aggregator with a state also moves coordinates that no update of the round has. Its changes
        are those of all rounds together, by the power law of the second half of the calibration.
        """
        rounds = sorted(calibration.changes)
        measured = {r: float(_to_hazards(np.array([calibration.changes[r].n_changed / self._size]))[0]) for r in rounds}
        if self._is_exact and (calibration.server.optimizer_state or calibration.server.aggregator_state):
            middle, last = rounds[len(rounds) // 2 - 1 if len(rounds) > 1 else 0], rounds[-1]
            growth = max(measured[last] / max(measured[middle], 1e-12), 1.0)
            exponent = math.log(growth) / math.log((last - 1) / (middle - 1)) if last > middle else 0.0
            relative_rounds = np.maximum(np.arange(len(densities)) - 1.0, 0.0) / (last - 1)
            hazards: F64 = measured[last] * relative_rounds ** min(exponent, 1.0)
        else:
            later_rounds = rounds[len(rounds) // 2 :]
            ratio = float(np.mean([measured[r] / densities[min(r, len(densities) - 1)] for r in later_rounds]))
            hazards = self._relax(experiment, calibration, densities * ratio, densities)
        for r in rounds:
            hazards[r : r + 1] = measured[r]
        hazards[:2] = 0.0
        return hazards

    def _relax(self, experiment: Experiment, calibration: Calibration, hazards: F64, densities: F64) -> F64:
        """Return the hazards by round as they approach those of clients whose coordinates are nearly independent."""
        uplink = experiment.plan.uplink
        if not (self._is_exact and uplink.residual_entries and uplink.has_independent_errors):
            return hazards
        independent = densities * float(np.mean([len(record.accepted) for record in calibration.history]))
        limits = np.maximum(hazards, independent / (1 + independent))
        n_later_rounds = np.maximum(np.arange(len(hazards)) - max(calibration.changes), 0)
        relaxed: F64 = limits + (hazards - limits) * np.exp(-n_later_rounds / RELAXATION_ROUNDS)
        return relaxed

    def _fit_exponent(self, calibration: Calibration) -> float:
        """Return the exponent a of the union of changes, between 0 (always the same coordinates) and 1 (independent ones)."""
        public_model, rounds = calibration.server.public_model, sorted(calibration.changes)
        n, hazard_sum = len(rounds), 0.0
        if n < 2 or public_model.change_rounds is None:
            return DEFAULT_EXPONENT
        for r in rounds:
            hazard_sum += float(_to_hazards(np.array([calibration.changes[r].n_changed / self._size]))[0])
        n_changed = np.count_nonzero(public_model.change_rounds > public_model.round - n)
        union = float(_to_hazards(np.array([n_changed / self._size]))[0])
        if not hazard_sum or not union:
            return DEFAULT_EXPONENT
        return float(np.clip(1 + math.log(union / hazard_sum) / math.log(n), 0.0, 1.0))

    def _estimate_differences(self, calibration: Calibration, trials: F64) -> F64:
        """Return the bytes of the difference to the model of each round from the model before."""
        rounds = [r for r in sorted(calibration.changes) if calibration.changes[r].difference_bytes is not None]
        if self._is_exact:
            counts = self._size * -np.expm1(-self._hazards)
            bases = np.array([self._sparse_bytes(count) for count in counts.tolist()])
        else:
            bases = trials
        ratios = [calibration.changes[r].difference_bytes / bases[r] for r in rounds if r < len(bases)]
        later_ratios = ratios[1:] or ratios
        estimate: F64 = bases * (float(np.mean(later_ratios)) if ratios else math.inf)
        if self._is_exact:
            estimate = np.where(counts >= self._size - 0.5, np.inf, estimate)
        for r in rounds:
            estimate[r : r + 1] = calibration.changes[r].difference_bytes
        estimate[:2] = 0.0
        return np.where(np.isfinite(estimate), estimate, 2 * self._full_bytes)


def _to_hazards(shares: F64) -> F64:
    """Return h of shares of changed coordinates."""
    hazards: F64 = -np.log1p(-np.clip(shares, 0.0, MAX_CHANGED_SHARE))
    return hazards
