"""Laws of an operator's statistics: equal treatment of positions, bias and variance.

Vectors and contexts are drawn from fixed streams, so the result is equal in every run. A law rejects at MAX_STANDARD_ERRORS.
There are many draws at P = SMALL_SIZE, and few draws at P = LARGE_SIZE, where coordinates are pooled into bins. Faults of
16-bit indices, of blocks and of sampled thresholds show at P = LARGE_SIZE only.
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
"""Number of draws by P."""
N_DRAWS_PER_VECTOR = 500
"""Number of draws for each of several vectors."""


# ------------------------------------------------------------------------------------------------------------------- positions


def _name_bins(size: int) -> tuple[str, ...]:
    """Return the names of the bins of `_sum_bins`, with braces for the number of a bin and the number of bins."""
    if size <= SMALL_SIZE:
        return ("position {} of {}",)
    return "slice {} of {}", "slice {} of {}", "part {} of {} of every block of 4096", "remainder {} of {} of the position"


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
    """On vectors with exchangeable coordinates, every position keeps the same share of its energy."""
    if not op.position_invariant:
        return
    for size, draws in DRAWS_BY_SIZE.items():
        products, energies = [], []
        for ctx, rng in draw_contexts("fair", size, draws):
            x = draw_gaussian(rng, size)
            x64 = x.astype(np.float64)
            products.append(_sum_bins(x64 * op.encode(x, ctx)[1].to_dense()))
            energies.append(_sum_bins(x64 * x64))
        sizes = _sum_bins(np.ones(size))
        for i, name in enumerate(_name_bins(size)):
            table = np.array([(product[i], energy[i]) for product, energy in zip(products, energies, strict=True)])
            _require_equal_shares(op, name, table, sizes[i])


def _require_equal_shares(op: CompressionOperator, name: str, table: F64, sizes: F64) -> None:
    """Raise LawError if a bin keeps another share of its energy than the whole vector.

    Bins of one kind have equal spreads relative to their sizes [bins]. The spread is estimated from all bins, because few draws
    select any one position. `table` [draws, 2, bins] has the energy that the operator keeps, and the vector's energy.
    """
    products, energies = table[:, 0], table[:, 1]
    shares = products.sum(axis=1) / energies.sum(axis=1)
    errors = (products - energies * shares[:, None]) / np.sqrt(sizes)
    spread = np.sqrt(np.square(errors - errors.mean(axis=0)).sum(axis=0).mean() + np.square(errors).max())
    rounding = np.sqrt(len(errors)) * ROUNDING_TOLERANCE * (energies / np.sqrt(sizes)).mean()
    scores = errors.sum(axis=0) / (spread + rounding)
    worst = int(np.abs(scores).argmax())
    share, mean_share = products[:, worst].sum() / energies[:, worst].sum(), products.sum() / energies.sum()
    figures = f"{name.format(worst, len(sizes))} keeps {share:.3f} of its energy, the mean is {mean_share:.3f}"
    figures += f" ({scores[worst]:+.1f} σ) at P = {int(sizes.sum()):,}"
    require(abs(scores[worst]) < MAX_STANDARD_ERRORS, "position_invariance", op, figures)


# ----------------------------------------------------------------------------------------------------------- bias and variance


def mean_error(op: CompressionOperator) -> None:
    """For an unbiased operator, E[C(x)] = x. For a random contractive operator, E|x − C(x)|² ≤ (1 − δ)|x|² + A."""
    for size, draws in DRAWS_BY_SIZE.items():
        check_mean_error(op, draw_gaussian(derive_generator(0, "laws/mean"), size), draws)
    for name, x, draws in _build_uneven_vectors():
        try:
            check_mean_error(op, x, draws)
        except LawError as error:
            raise LawError(f"{error}, {name}") from error


def _build_uneven_vectors() -> Iterator[tuple[str, F32, int]]:
    """Yield descriptions, vectors [SMALL_SIZE] of unequal magnitudes, and numbers of draws.

    Rounding to few levels is most easily biased at unequal magnitudes. Coordinates near 2^-12 of the largest coordinate are
    seldom rounded up: with one level, about twenty times in all draws.
    """
    x = draw_gaussian(derive_generator(0, "laws/mean/uneven"), SMALL_SIZE)
    single_peak = np.ldexp(x, -12)
    single_peak[SMALL_SIZE // 3] = 1
    yield "1 among coordinates near 2^-12", single_peak, DRAWS_BY_SIZE[SMALL_SIZE]
    yield "heavy tails", x**7, N_DRAWS_PER_VECTOR
    for peak in (1.003, 1.3):
        vector = x / np.abs(x).max()
        vector[::2] = np.copysign(np.float32(peak), x[::2])
        yield f"half of the coordinates ±{peak}", vector, N_DRAWS_PER_VECTOR


def check_mean_error(op: CompressionOperator, x: F32, n_draws: int) -> None:
    """Check the law `mean_error` on one vector x [P]."""
    if op.kind == "unbiased":
        norm = math.sqrt(squared_norm(x))
        worst = max(float(np.abs(_compute_scores(samples, norm)).max()) for samples in _project_errors(op, x, n_draws))
        figures = f"E[C(x)] differs from x by {worst:.1f} standard errors at P = {len(x):,}"
        require(worst < MAX_STANDARD_ERRORS, "mean_error", op, figures)
    elif op.kind == "contractive" and not op.deterministic:
        layout = example_layout(len(x))
        limit = (1 - op.contraction(layout)) * squared_norm(x) + op.absolute_error(layout)
        excess = np.array([squared_error(op, x, ctx) - limit for ctx, _ in draw_contexts("mean", len(x), n_draws)])
        score = _compute_score(excess)
        figures = f"E|x − C(x)|² exceeds (1 − δ)|x|² + A by {excess.mean():.4g} ({score:.1f} σ) at P = {len(x):,}"
        require(score < MAX_STANDARD_ERRORS or excess.mean() <= _compute_tolerance(limit, x), "mean_error", op, figures)


def _project_errors(op: CompressionOperator, x: F32, n_draws: int) -> Iterator[F64]:
    """Yield the projections of C(x) − x on unit vectors, [draws, n] each.

    The unit vectors are constant, or proportional to x, over all coordinates or over one bin. There are bins of positions and
    bins of magnitudes.
    """
    x64 = x.astype(np.float64)
    magnitude_bins = np.argsort(np.argsort(np.abs(x))) * 16 // len(x)

    def sum_over_bins(values: F64) -> list[F64]:
        return [values.sum(keepdims=True), *_sum_bins(values), np.bincount(magnitude_bins, values)]

    squares = sum_over_bins(np.ones(len(x))) + sum_over_bins(x64 * x64)
    rows: list[list[F64]] = []
    for ctx, _ in draw_contexts("mean", len(x), n_draws):
        error = op.encode(x, ctx)[1].to_dense() - x64
        rows.append(sum_over_bins(error) + sum_over_bins(error * x64))
    for products, square in zip(zip(*rows, strict=True), squares, strict=True):
        yield np.array(products) / (np.sqrt(square) + 1e-300)


def variance(op: CompressionOperator) -> None:
    """For an unbiased operator that states its variance, E|C(x) − x|² = `variance(x)`."""
    for size, draws in DRAWS_BY_SIZE.items():
        check_variance(op, draw_gaussian(derive_generator(0, "laws/variance"), size), draws)


def check_variance(op: CompressionOperator, x: F32, n_draws: int) -> None:
    """Check the law `variance` on one vector x [P]."""
    stated = op.variance(x)
    if op.kind != "unbiased" or stated is None:
        return
    excess = np.array([squared_error(op, x, ctx) - stated for ctx, _ in draw_contexts("variance", len(x), n_draws)])
    score = _compute_score(excess)
    mean = float(excess.mean())
    figures = f"E|C(x) − x|² is {mean + stated:.6g}, but {stated:.6g} is stated ({score:+.1f} σ) at P = {len(x):,}"
    require(abs(score) < MAX_STANDARD_ERRORS or abs(mean) <= _compute_tolerance(stated, x), "variance", op, figures)


def _compute_scores(samples: F64, scale: float) -> F64:
    """Return the column means of samples [draws, n] in standard errors, [n].

    A rare and large error may be missing from a column by chance. So the spread includes additional draws with the largest
    error of all columns: one for every 150 draws, and at least one. ROUNDING_TOLERANCE · scale is added to the standard error
    of one draw.
    """
    missing_energy = max(1, len(samples) // 150) * np.square(samples).max()
    spread = np.sqrt(np.square(samples - samples.mean(axis=0)).sum(axis=0) + missing_energy)
    scores: F64 = samples.sum(axis=0) / (spread + np.sqrt(len(samples)) * ROUNDING_TOLERANCE * scale)
    return scores


def _compute_score(samples: F64) -> float:
    """Return the mean of samples [draws] in standard errors, at most 10¹²."""
    average, spread = float(samples.mean()), float(samples.std(ddof=1))
    return average / (spread / math.sqrt(len(samples)) + 1e-12 * abs(average) + 1e-300)


def _compute_tolerance(stated_energy: float, x: F32) -> float:
    """Return the excess over a stated energy of errors that float32 arithmetic on x [P] explains."""
    return ROUNDING_TOLERANCE * stated_energy + ROUNDING_TOLERANCE**2 * squared_norm(x)
