"""Laws of an operator's statistics: equal treatment of positions, bias and variance.

Vectors and contexts are drawn from fixed streams, so a verdict is the same in every run. A law rejects at SIGMAS standard
errors. It is tried at P = SMALL with many draws, and at P = LARGE with few, where coordinates are pooled into bins. Faults of
16-bit indices, of blocks and of sampled thresholds show at P = LARGE alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from fedsgd.certification.operator_laws import (
    LARGE_SIZE,
    ROUNDING_TOLERANCE,
    SMALL_SIZE,
    draw_contexts,
    draw_gaussian,
    example_layout,
    require,
    squared_error,
)
from fedsgd.compression.base import CompressionOperator
from fedsgd.errors import LawError
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.reductions import squared_norm
from fedsgd.numerics.rng import derive_generator

MAX_STANDARD_ERRORS = 6.0
DRAWS_BY_SIZE = {SMALL_SIZE: 1500, LARGE_SIZE: 40}
"""P → the number of draws."""
N_DRAWS_PER_VECTOR = 500
"""The number of draws for each of several vectors."""


# ------------------------------------------------------------------------------------------------------------------- positions


def _name_bins(size: int) -> tuple[str, ...]:
    """Return the names of the bins of `_sum_bins`, with braces for the number of a bin and the number of bins."""
    if size <= SMALL_SIZE:
        return ("position {} of {}",)
    return "stretch {} of {}", "stretch {} of {}", "part {} of {} of every block of 4096", "remainder {} of {} of the position"


def _sum_bins(values: F64) -> list[F64]:
    """Return the sums of values [P] over bins of positions, an array for each of `_name_bins`."""
    if len(values) <= SMALL_SIZE:
        return [values]
    padded = np.zeros(-(-len(values) // 64) * 64)
    padded[: len(values)] = values
    rows = padded.reshape(-1, 64)
    row_sums, row = rows.sum(axis=1), np.arange(len(rows))
    return [*(np.bincount(labels, row_sums) for labels in (row // 64, row // 256, row % 64 // 2)), rows.sum(axis=0)]


def position_invariance(op: CompressionOperator) -> None:
    """On vectors with exchangeable coordinates every position keeps the same share of its energy."""
    if not op.position_invariant:
        return
    for size, draws in DRAWS_BY_SIZE.items():
        kept, whole = [], []
        for ctx, rng in draw_contexts("fair", size, draws):
            x = draw_gaussian(rng, size)
            wide = x.astype(np.float64)
            kept.append(_sum_bins(wide * op.encode(x, ctx)[1].to_dense()))
            whole.append(_sum_bins(wide * wide))
        sizes = _sum_bins(np.ones(size))
        for i, name in enumerate(_name_bins(size)):
            table = np.array([(sent[i], energies[i]) for sent, energies in zip(kept, whole, strict=True)])
            _require_equal_shares(op, name, table, sizes[i])


def _require_equal_shares(op: CompressionOperator, name: str, table: F64, sizes: F64) -> None:
    """Raise LawError if a bin keeps another share of its energy than the whole vector.

    Bins of one kind have equal spreads for their sizes. So the spread is estimated from all of them: few draws hit one
    position.

    Args:
        op: the operator.
        name: the name of a bin, with braces for the number of the bin and the number of bins.
        table: [draws, 2, bins], the energy that was kept and the energy of the vector.
        sizes: [bins], the number of coordinates of each bin.
    """
    kept, whole = table[:, 0], table[:, 1]
    shares = kept.sum(axis=1) / whole.sum(axis=1)
    off = (kept - whole * shares[:, None]) / np.sqrt(sizes)
    spread = np.sqrt(np.square(off - off.mean(axis=0)).sum(axis=0).mean() + np.square(off).max())
    rounding = np.sqrt(len(off)) * ROUNDING_TOLERANCE * (whole / np.sqrt(sizes)).mean()
    scores = off.sum(axis=0) / (spread + rounding)
    worst = int(np.abs(scores).argmax())
    of_worst, of_all = kept[:, worst].sum() / whole[:, worst].sum(), kept.sum() / whole.sum()
    figures = f"{name.format(worst, len(sizes))} keeps {of_worst:.3f} of its energy, the mean is {of_all:.3f}"
    figures += f" ({scores[worst]:+.1f} σ) at P = {int(sizes.sum()):,}"
    require(abs(scores[worst]) < MAX_STANDARD_ERRORS, "fair", op, figures)


# ----------------------------------------------------------------------------------------------------------- bias and variance


def mean_error(op: CompressionOperator) -> None:
    """An unbiased operator: E[C(x)] = x. A contractive one that is random: E|x − C(x)|² ≤ (1 − δ)|x|² + A."""
    for size, draws in DRAWS_BY_SIZE.items():
        check_mean_error(op, draw_gaussian(derive_generator(0, "laws/mean"), size), draws)
    for name, x, draws in _build_uneven_vectors():
        try:
            check_mean_error(op, x, draws)
        except LawError as error:
            raise LawError(f"{error}, {name}") from error


def _build_uneven_vectors() -> Iterator[tuple[str, F32, int]]:
    """Yield (description, vector [SMALL], draws). Rounding to few levels is most easily biased at unequal magnitudes.

    Coordinates near 2^-12 of the largest are seldom rounded up: with one level, some twenty times in all draws.
    """
    x = draw_gaussian(derive_generator(0, "laws/mean/uneven"), SMALL_SIZE)
    alone = np.ldexp(x, -12)
    alone[SMALL_SIZE // 3] = 1
    yield "1 among coordinates near 2^-12", alone, DRAWS_BY_SIZE[SMALL_SIZE]
    yield "heavy tails", x**7, N_DRAWS_PER_VECTOR
    for peak in (1.003, 1.3):
        several = x / np.abs(x).max()
        several[::2] = np.copysign(np.float32(peak), x[::2])
        yield f"half of the coordinates ±{peak}", several, N_DRAWS_PER_VECTOR


def check_mean_error(op: CompressionOperator, x: F32, n_draws: int) -> None:
    """Check the law `mean_error` on one vector x [P]."""
    if op.kind == "unbiased":
        norm = math.sqrt(squared_norm(x))
        worst = max(float(np.abs(_compute_scores(samples, norm)).max()) for samples in _project_errors(op, x, n_draws))
        require(worst < MAX_STANDARD_ERRORS, "mean", op, f"E[C(x)] is off x by {worst:.1f} standard errors at P = {len(x):,}")
    elif op.kind == "contractive" and not op.deterministic:
        layout = example_layout(len(x))
        limit = (1 - op.contraction(layout)) * squared_norm(x) + op.absolute_error(layout)
        excess = np.array([squared_error(op, x, ctx) - limit for ctx, _ in draw_contexts("mean", len(x), n_draws)])
        score = _compute_score(excess)
        figures = f"E|x − C(x)|² exceeds (1 − δ)|x|² by {excess.mean():.4g} ({score:.1f} σ) at P = {len(x):,}"
        require(score < MAX_STANDARD_ERRORS or excess.mean() <= _compute_tolerance(limit, x), "mean", op, figures)


def _project_errors(op: CompressionOperator, x: F32, n_draws: int) -> Iterator[F64]:
    """Yield the projections of C(x) − x on unit vectors, [draws, n] each.

    The unit vectors are constant, or proportional to x, over all coordinates or over one bin. Bins are of positions and of
    magnitudes.
    """
    wide = x.astype(np.float64)
    magnitudes = np.argsort(np.argsort(np.abs(x))) * 16 // len(x)

    def sum_over_bins(values: F64) -> list[F64]:
        return [values.sum(keepdims=True), *_sum_bins(values), np.bincount(magnitudes, values)]

    squares = sum_over_bins(np.ones(len(x))) + sum_over_bins(wide * wide)
    rows: list[list[F64]] = []
    for ctx, _ in draw_contexts("mean", len(x), n_draws):
        error = op.encode(x, ctx)[1].to_dense() - wide
        rows.append(sum_over_bins(error) + sum_over_bins(error * wide))
    for products, square in zip(zip(*rows, strict=True), squares, strict=True):
        yield np.array(products) / (np.sqrt(square) + 1e-300)


def variance(op: CompressionOperator) -> None:
    """An unbiased operator that states its variance has it: E|C(x) − x|² = `variance(x)`, neither more nor less."""
    for size, draws in DRAWS_BY_SIZE.items():
        check_variance(op, draw_gaussian(derive_generator(0, "laws/variance"), size), draws)


def check_variance(op: CompressionOperator, x: F32, n_draws: int) -> None:
    """Check the law `variance` on one vector x [P]."""
    stated = op.variance(x)
    if op.kind != "unbiased" or stated is None:
        return
    off = np.array([squared_error(op, x, ctx) - stated for ctx, _ in draw_contexts("variance", len(x), n_draws)])
    score = _compute_score(off)
    figures = f"E|C(x) − x|² is {off.mean() + stated:.6g}, stated is {stated:.6g} ({score:+.1f} σ) at P = {len(x):,}"
    require(abs(score) < MAX_STANDARD_ERRORS or abs(off.mean()) <= _compute_tolerance(stated, x), "variance", op, figures)


def _compute_scores(samples: F64, scale: float) -> F64:
    """Return the standard scores [n] of the column means of samples [draws, n] against zero.

    A rare and large error may be missing from a column by chance. So the spread counts further draws, as far off as the worst
    of all columns: one for every 150, and at least one. A mean of ROUNDING · scale counts as one standard error of one draw.
    """
    missing = max(1, len(samples) // 150) * np.square(samples).max()
    spread = np.sqrt(np.square(samples - samples.mean(axis=0)).sum(axis=0) + missing)
    scores: F64 = samples.sum(axis=0) / (spread + np.sqrt(len(samples)) * ROUNDING_TOLERANCE * scale)
    return scores


def _compute_score(samples: F64) -> float:
    """Return the mean of samples [draws] in standard errors, at most 10¹²."""
    average, spread = float(samples.mean()), float(samples.std(ddof=1))
    return average / (spread / math.sqrt(len(samples)) + 1e-12 * abs(average) + 1e-300)


def _compute_tolerance(stated_energy: float, x: F32) -> float:
    """Return the excess of an energy of errors over the stated one that float32 arithmetic on x [P] explains."""
    return ROUNDING_TOLERANCE * stated_energy + ROUNDING_TOLERANCE**2 * squared_norm(x)
