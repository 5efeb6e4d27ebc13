"""Detection of diverged runs, which gives a warning and changes neither results nor the exit status."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

EvaluationHistory = Sequence[tuple[int, Mapping[str, float]]]
"""(round, metrics) of each evaluation, by ascending round; the metrics include "loss"."""

MIN_EVALUATIONS_FOR_TIGHT_MARGIN = 8
"""Minimum number of evaluations for a margin of 1 % above the start; with fewer, the loss must double."""
MIN_EVALUATIONS = 3
"""Minimum number of evaluations for a verdict on a loss below twice its start."""
MIN_ROUNDS_FOR_RESIDUALS = 16
"""Minimum number of rounds with residuals for a verdict on the residuals, which grow in the first rounds of every run."""
PRETRAINED_ACCURACY = 0.6
"""Minimum accuracy of an initial model that counts as pretrained: any rise of its accuracy is learning."""
LEARNING_RATE_HINT = "try a smaller client.optimizer.lr"
"""Remedy that messages about a diverged run name."""


def detect_divergence(
    evaluations: EvaluationHistory, residual_norms: Sequence[float] = (), initial_metrics: Mapping[str, float] | None = None
) -> str | None:
    """Return the evidence that a run diverged, None without evidence.

    A level is the median over the last quarter of the evaluations, at least one. The start is the initial model, or the first
    evaluation where the initial model's metrics are unknown. If the loss at the start is not finite, rules 2 and 3 do not hold.
    A run diverged if one of these rules holds:

    1. The last test loss is not finite.
    2. The level of the test loss and the last test loss are above the start: by more than 1 % with at least
       `MIN_EVALUATIONS_FOR_TIGHT_MARGIN` evaluations, else by more than the start itself. A model that learned is excepted,
       since its rising loss means overfitting: its accuracy rose by a quarter of the way from the start to 1, or rose from
       `PRETRAINED_ACCURACY` or more.
    3. The accuracy did not rise or was not measured, the last loss is above the start, and losses do not fall throughout. In
       addition the median of all losses is above the start by more than the start itself, so that a late dip does not hide the
       divergence. A margin of 1 % suffices, for median and last loss, with `MIN_EVALUATIONS` or more evaluations, fewer than
       `MIN_EVALUATIONS_FOR_TIGHT_MARGIN`, and an accuracy below the start.
    4. Residual norms grow faster than in proportion to the rounds, over at least `MIN_ROUNDS_FOR_RESIDUALS` norms and four
       evaluations: the median of the last quarter is more than 7/3 of the second quarter's, and more than 7/5 of the third
       quarter's, which are the ratios of proportional growth. At the same time the level of the test loss is not below the
       median of the losses' second quarter. Residuals that grow to a plateau, as with a low density, do not count.

    `residual_norms` has the mean residual norm of a cohort's clients, for each round in which a client has a residual.
    """
    if not evaluations:
        return None
    last_round, last = evaluations[-1]
    if not math.isfinite(last["loss"]):
        return f"test loss is not finite after round {last_round}"
    start, where = (
        (evaluations[0][1], f"after round {evaluations[0][0]}")
        if initial_metrics is None
        else (initial_metrics, "before round 1")
    )
    if _is_above(evaluations, start) and not _has_learned(evaluations, start):
        return f"test loss {last['loss']:.3g} after round {last_round}, {start['loss']:.3g} {where}"
    if _is_mostly_above(evaluations, start):
        median = statistics.median(_extract_losses(evaluations))
        return f"median test loss {median:.3g} over {len(evaluations)} evaluations, {start['loss']:.3g} {where}"
    return _detect_residual_growth(evaluations, residual_norms)


def _is_above(evaluations: EvaluationHistory, start: Mapping[str, float]) -> bool:
    """Return True if the losses at the end are above the start, by the margin of rule 2."""
    if not math.isfinite(start["loss"]):
        return False
    losses = _extract_losses(evaluations)
    share = 1.0 if len(losses) < MIN_EVALUATIONS_FOR_TIGHT_MARGIN else 0.01
    limit = start["loss"] + share * abs(start["loss"])
    return min(_quarter_median(losses, 4), losses[-1]) > limit


def _is_mostly_above(evaluations: EvaluationHistory, start: Mapping[str, float]) -> bool:
    """Return True if rule 3 holds."""
    losses, start_loss = _extract_losses(evaluations), start["loss"]
    rise = _compute_accuracy_rise(evaluations, start)
    is_falling = all(later < earlier for earlier, later in itertools.pairwise(losses))
    if is_falling or not math.isfinite(start_loss) or losses[-1] <= start_loss or (rise is not None and rise > 0):
        return False
    median, margin = statistics.median(losses), 0.01 * abs(start_loss)
    if median > start_loss + abs(start_loss):
        return True
    is_worse = rise is not None and rise < 0 and MIN_EVALUATIONS <= len(losses) < MIN_EVALUATIONS_FOR_TIGHT_MARGIN
    return is_worse and min(median, losses[-1]) > start_loss + margin


def _has_learned(evaluations: EvaluationHistory, start: Mapping[str, float]) -> bool:
    """Return True if accuracy was measured, and rose by the amount of rule 2."""
    rise = _compute_accuracy_rise(evaluations, start)
    if rise is None:
        return False
    start_accuracy = start["accuracy"]
    return rise >= (1 - start_accuracy) / 4 or (start_accuracy >= PRETRAINED_ACCURACY and rise > 0)


def _compute_accuracy_rise(evaluations: EvaluationHistory, start: Mapping[str, float]) -> float | None:
    """Return the level of the accuracy minus the accuracy at the start; None where either is unknown."""
    accuracies = [metrics["accuracy"] for _, metrics in evaluations if math.isfinite(metrics.get("accuracy", math.nan))]
    start_accuracy = start.get("accuracy", math.nan)
    return _quarter_median(accuracies, 4) - start_accuracy if accuracies and math.isfinite(start_accuracy) else None


def _extract_losses(evaluations: EvaluationHistory) -> list[float]:
    return [_nan_to_inf(metrics["loss"]) for _, metrics in evaluations]


def _detect_residual_growth(evaluations: EvaluationHistory, residual_norms: Sequence[float]) -> str | None:
    """Return the evidence of rule 4, None without any."""
    norms = [_nan_to_inf(norm) for norm in residual_norms]
    if len(norms) < MIN_ROUNDS_FOR_RESIDUALS or len(evaluations) < 4:
        return None
    second, third, fourth = (_quarter_median(norms, n) for n in (2, 3, 4))
    losses = _extract_losses(evaluations)
    if fourth > 7 / 3 * second and fourth > 7 / 5 * third and _quarter_median(losses, 4) >= _quarter_median(losses, 2):
        figures = f"{fourth:.3g} in the last quarter of the rounds, {second:.3g} in the second"
        return f"residual norm {figures}, while the test loss no longer falls"
    return None


def _quarter_median(values: Sequence[float], n: int) -> float:
    """Return the median of the n-th quarter of at least four values, or of the fourth quarter of any number."""
    return statistics.median(values[(n - 1) * len(values) // 4 : n * len(values) // 4])


def _nan_to_inf(value: float) -> float:
    """Return the value, infinity for NaN."""
    return math.inf if math.isnan(value) else value
