"""Law of independent errors: errors of different clients, rounds and seeds average out.

One vector is encoded in a grid of contexts. The mean error over all contexts is the bias, and is subtracted. Then the inner
product of two errors has the expected value zero, unless their contexts share random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np

from fedsgd.certification.operator_laws import ROUNDING_TOLERANCE, decode_through_frame, draw_gaussian, example_layout, require
from fedsgd.certification.statistical_laws import MAX_STANDARD_ERRORS
from fedsgd.compression.base import CodecContext, CompressionOperator, CompressionScheme, Compressor
from fedsgd.numerics.arrays import F32, F64, I64
from fedsgd.numerics.reductions import squared_norm
from fedsgd.numerics.rng import derive_generator

SIZE = 1000
SEEDS = (0, 1)
ROUNDS = tuple(100_000 + r for r in (0, 1, 2, 3, 4, 5, 100, 200, 256, 512))
"""Late rounds, after the end of any schedule over the rounds."""
CLIENTS = (*range(12), 64, 100, 256, 1000, 1024, 10_000, 20_000, 30_000, 65_536, 131_072, 2**20, 2**21, 2**24, 2**25, 3 * 2**24)
"""Adjacent ids, and ids with equal low bits or digits. A correlation at one lag shows if two or more pairs have this lag."""
PAIR_CLASSES = {
    (False, False, True): "clients of one round",
    (False, True, False): "rounds of one client",
    (True, False, False): "seeds",
    (False, True, True): "different clients in different rounds",
    (True, False, True): "different clients with different seeds",
    (True, True, False): "different rounds with different seeds",
}
"""Names of pairs of contexts, by three flags: seeds, rounds and clients differ."""


class _ContextPairs(NamedTuple):
    """All pairs of contexts: the indices [pairs] of both in the grid, and the row of `lags` with their lag.

    `lags` [n, 3] has the distinct differences in seed, round and client.
    """

    first_index: I64
    second_index: I64
    lag_index: I64
    lags: I64


class _PairClass(NamedTuple):
    """Set of pairs of contexts, with their mean correlation; `score` is the mean in standard errors."""

    name: str
    mean: float
    score: float


@cache
def _list_pairs() -> _ContextPairs:
    """Return all pairs of contexts of the grid."""
    grid = np.array([*product(SEEDS, ROUNDS, CLIENTS)])
    first, second = np.triu_indices(len(grid), 1)
    lags, lag = np.unique(grid[second] - grid[first], axis=0, return_inverse=True)
    return _ContextPairs(first, second, lag.reshape(-1), lags)


def independence(compressor: Compressor) -> None:
    """Errors of one vector at different clients, in different rounds or with different seeds have no positive correlation.

    So the mean of m errors has at most 1/m of an error's variance. Negative correlation (antithetic or stratified draws) is
    legal. A scheme is tried on clients without state.
    """
    if not compressor.has_independent_errors:
        return
    x, layout = draw_gaussian(derive_generator(0, "laws/independence"), SIZE), example_layout(SIZE)
    grid = (CodecContext(seed, round, client, layout) for seed, round, client in product(SEEDS, ROUNDS, CLIENTS))
    errors = np.array([_encode_and_decode(compressor, x, ctx) for ctx in grid]) - x.astype(np.float64)
    errors -= errors.mean(axis=0)
    energy = float(np.square(errors).sum()) / (len(errors) - 1)
    if energy <= ROUNDING_TOLERANCE**2 * squared_norm(x):  # the compressor is deterministic
        return
    pairs = _list_pairs()
    # Subtracting the mean of n errors reduces each correlation by 1/n.
    correlations = (errors @ errors.T)[pairs.first_index, pairs.second_index] / energy + 1 / len(errors)
    worst = max(_score_pair_classes(pairs, correlations), key=lambda pair_class: pair_class.score)
    figures = f"errors of {worst.name} correlate by {worst.mean:.3f}, expected at most 0 ({worst.score:+.1f} σ)"
    effect = f"the mean of 100 errors has {1 + 99 * worst.mean:.3g} · variance / 100"
    require(worst.score < MAX_STANDARD_ERRORS, "independence", compressor, f"{figures}: {effect}")


def _encode_and_decode(compressor: Compressor, x: F32, ctx: CodecContext) -> F32:
    """Return the vector [P] that the server decodes from a client without state."""
    if isinstance(compressor, CompressionOperator):
        return compressor.encode(x, ctx)[1].to_dense()
    assert isinstance(compressor, CompressionScheme)
    return decode_through_frame(compressor, compressor.send(x, {}, ctx).sections, ctx).to_dense()


def _score_pair_classes(pairs: _ContextPairs, correlations: F64) -> Iterator[_PairClass]:
    """Yield each class of PAIR_CLASSES, and the pairs of the lag with the highest score.

    Random numbers that contexts share with alternating signs cancel in a class, but not in a lag. The spread includes one more
    pair, with the largest product of all: a rare and large product may be missing by chance.
    """
    counts, sums = np.bincount(pairs.lag_index), np.bincount(pairs.lag_index, correlations)
    squares, largest = np.bincount(pairs.lag_index, np.square(correlations)), np.square(correlations).max()
    differs = pairs.lags != 0
    for pattern, name in PAIR_CLASSES.items():
        mask = (differs == pattern).all(axis=1)
        total = sums[mask].sum()
        yield _PairClass(name, total / counts[mask].sum(), total / np.sqrt(squares[mask].sum() + largest))
    scores = sums / np.sqrt(squares + largest)
    worst = int(scores.argmax())
    seed, round, client = pairs.lags[worst].tolist()
    name = f"contexts that differ by {seed} in seed, {round} in round and {client} in client"
    yield _PairClass(name, sums[worst] / counts[worst], scores[worst])
