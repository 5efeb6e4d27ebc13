"""Laws of whole rounds, as checks that hold for every compressor: decoding in any order, aggregation, global generators.

An operator is tried as the scheme without memory that it becomes in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.certification.operator_laws import draw_gaussian, require
from fedsgd.certification.simulate_rounds import (
    SEED,
    as_scheme,
    decode_reference_frame,
    decode_rounds,
    encode_message,
    encode_reference_frame,
    make_context,
    rebuild,
    require_equal_vectors,
    simulate_rounds,
)
from fedsgd.compression.base import AggregationContext, CodecContext, CompressionScheme, Compressor, WeightedUpdate
from fedsgd.compression.updates import StateArrays
from fedsgd.errors import LawError
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import derive_generator
from fedsgd.system.global_generators import isolate_generators, read_generator_states, record_generator_calls
from fedsgd.wire import ALL_CLIENTS, decode_frame

ROUNDS, COHORT_SIZE, N_CLIENTS = 3, 4, 8
LAYOUT = ParameterLayout(("matrix", "vector", "scalar"), ((24, 40), (39,), ()))
WEIGHTS = (0.5, 0.25, 0.125, 0.125)
"""Of unequal clients: powers of two, so that a sum in float64 is the same in every order, and no selection depends on it."""
FLOAT32_TOLERANCE = 1e-5
"""Relative error of an aggregate that is added up in float32."""


def _draw_updates(purpose: str) -> F32:
    """Return Gaussian updates [R, m, P]."""
    rng = derive_generator(0, f"laws/{purpose}")
    return np.array([[draw_gaussian(rng, LAYOUT.size) for _ in range(COHORT_SIZE)] for _ in range(ROUNDS)])


def decodes_in_any_order(compressor: Compressor) -> None:
    """An equal compressor decodes the frames of several rounds, in another order and after all were encoded, to the updates
    that were encoded. It aggregates them to the same updates."""
    rounds = [*simulate_rounds(compressor, _draw_updates("order"), LAYOUT)]
    decoded = decode_rounds(rebuild(compressor), [exchange.frames for exchange in rounds], LAYOUT)
    require_equal_vectors("decodes_in_any_order", compressor, rounds, decoded)


# ---------------------------------------------------------------------------------------------------------- global generators


def global_generators(compressor: Compressor) -> None:
    """The compressor neither draws from the global generators of `random`, numpy and torch nor reads or sets their states,
    even
    if it restores them. Its frames and updates are equal under two states of these generators."""
    law, results = "global_generators", []
    # The first pass is not watched: modules that it imports late must not get hold of a watched function.
    for seed, watch in ((1, nullcontext([])), (2, record_generator_calls())):
        with isolate_generators(seed):
            before = read_generator_states()
            with watch as calls:
                results.append(_run_rounds(rebuild(compressor)))
            after = read_generator_states()
        changed = ", ".join(name for name, state in before.items() if after[name] != state)
        require(not changed, law, compressor, f"draws from the global generator of {changed}, or seeds it")
        require(not calls, law, compressor, f"calls {', '.join(dict.fromkeys(calls))}")
    figures = "frames or updates differ between two states of the global generators"
    require(results[0] == results[1], law, compressor, figures)


def _run_rounds(compressor: Compressor) -> list[bytes]:
    """Return every frame, decoded vector and aggregate of some rounds."""
    rounds = [*simulate_rounds(compressor, _draw_updates("generators"), LAYOUT)]
    frames = [exchange.frames for exchange in rounds]
    results = [frame for reference, replies in frames for frame in (reference, *replies)]
    return results + [vector.tobytes() for vector in decode_rounds(compressor, frames, LAYOUT)]


# ---------------------------------------------------------------------------------------------------------------- aggregation


def aggregation(compressor: Compressor) -> None:
    """The aggregate is Σ weight · decoded update where the server keeps no state, for any weights and for no reply. With a
    server state, two replies of half the weight count as one reply. The order of the replies and a second call change nothing,
    and the server's state is not written to."""
    scheme = as_scheme(compressor)
    states: list[StateArrays] = [{}] * COHORT_SIZE
    server: StateArrays = {}
    of_twins: StateArrays = {}
    for round, of_round in enumerate(_draw_updates("aggregation"), start=1):
        replies = _send_updates(scheme, server, states, of_round, round)
        gathering = AggregationContext(SEED, round, LAYOUT, N_CLIENTS)
        update, after = _aggregate_readonly(compressor, server, replies, gathering)
        again, after_again = _aggregate_readonly(compressor, server, replies, gathering)
        same_states = after.keys() == after_again.keys() and all(_are_equal(after[n], after_again[n]) for n in after)
        figures = f"round {round}: a second call with equal arguments gives another result"
        require(same_states and _are_equal(update, again), "aggregation", compressor, figures)
        reordered, _ = _aggregate_readonly(compressor, server, [*replies[1::2], *replies[::2]], gathering)
        _require_close(compressor, f"round {round}, replies in another order", reordered, update)
        if server or after:
            for few in ([replace(replies[0], weight=1.0)], []):
                _aggregate_readonly(compressor, server, few, gathering)
            clients = 2 * N_CLIENTS if scheme.needs_uniform_weights else N_CLIENTS
            halved, of_twins = _aggregate_readonly(
                compressor, of_twins, _halve(scheme, replies), replace(gathering, clients=clients)
            )
            _require_close(compressor, f"round {round}, replies as two of half the weight", halved, update)
        else:
            _require_sum(compressor, replies, gathering)
        server = after


def _send_updates(
    scheme: CompressionScheme, server_state: StateArrays, states: list[StateArrays], updates: F32, round: int
) -> list[WeightedUpdate]:
    """Send updates [m, P] of one round, and replace the states of the clients."""
    reference = encode_reference_frame(scheme, server_state, make_context(round, ALL_CLIENTS, LAYOUT, COHORT_SIZE))
    decoded = decode_reference_frame(scheme, reference, make_context(round, ALL_CLIENTS, LAYOUT, COHORT_SIZE))
    weights = [1 / COHORT_SIZE] * COHORT_SIZE if scheme.needs_uniform_weights else np.roll(WEIGHTS, round - 1).tolist()
    replies = []
    for i, (x, weight) in enumerate(zip(updates, weights, strict=True)):
        ctx = make_context(round, i * N_CLIENTS // COHORT_SIZE, LAYOUT, COHORT_SIZE)
        frame, states[i] = encode_message(scheme, x, states[i], replace(ctx, reference=decoded))
        replies.append(WeightedUpdate(decode_frame(frame).sections, weight, ctx))
    return replies


def _aggregate_readonly(
    compressor: Compressor, server_state: StateArrays, replies: Sequence[WeightedUpdate], ctx: AggregationContext
) -> tuple[F32, StateArrays]:
    """Aggregate replies that can be iterated over once, as in a run, with a server's state that cannot be written to."""
    given = dict(server_state)
    try:
        update, after = as_scheme(compressor).aggregate(given, iter(replies), ctx)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise LawError(f"aggregation: {compressor}: writes to the server's state: {error}") from error
    same = given.keys() == server_state.keys() and all(given[name] is value for name, value in server_state.items())
    require(same, "aggregation", compressor, "writes to the server's state")
    figures = f"the aggregate of {len(replies)} replies has shape {update.shape}, expected {(LAYOUT.size,)}"
    require(update.shape == (LAYOUT.size,), "aggregation", compressor, figures)
    finite = bool(np.isfinite(update).all())
    require(finite, "aggregation", compressor, f"the aggregate of {len(replies)} replies is not finite")
    for array in after.values():
        array.flags.writeable = False
    return update, after


def _require_sum(compressor: Compressor, replies: Sequence[WeightedUpdate], ctx: AggregationContext) -> None:
    """Raise LawError unless the aggregate is Σ weight · decoded update."""
    scheme = as_scheme(compressor)
    cases = {"": replies, "one reply": [replace(replies[0], weight=1.0)], "no reply": []}
    if not scheme.needs_normalized_weights:
        hint = "weights that add up to 3 (set convex = True where they must add up to 1)"
        cases[hint] = [replace(reply, weight=3 * reply.weight) for reply in replies]
    for case, received in cases.items():
        expected, scale = np.zeros(LAYOUT.size), 0.0
        for reply in received:
            decoded = scheme.decode(reply.sections, reply.ctx).to_dense()
            expected += reply.weight * decoded.astype(np.float64)
            scale += reply.weight * float(np.abs(decoded).max())
        where = f"round {ctx.round}, {case or f'{len(replies)} replies'}, against Σ weight · decoded update"
        _require_close(compressor, where, _aggregate_readonly(compressor, {}, received, ctx)[0], expected, scale)


def _halve(scheme: CompressionScheme, replies: Sequence[WeightedUpdate]) -> list[WeightedUpdate]:
    """Replace the heaviest reply by two of half its weight; where all clients weigh the same, each reply."""
    heaviest = max(replies, key=lambda reply: reply.weight)
    halved: list[WeightedUpdate] = []
    for reply in replies:
        if reply is heaviest or scheme.needs_uniform_weights:
            half = replace(reply, weight=reply.weight / 2)
            halved += [half, replace(half, ctx=_choose_twin(scheme, reply))]
        else:
            halved.append(reply)
    return halved


def _choose_twin(scheme: CompressionScheme, reply: WeightedUpdate) -> CodecContext:
    """Return the context of a client without a reply, if the sections decode to an equal update in it; else the reply's own."""
    other = replace(reply.ctx, client=reply.ctx.client + 1)
    try:
        decoded = scheme.decode(reply.sections, other).to_dense()
    except Exception:  # the user's own code; it may refuse another client's sections in any way
        return reply.ctx
    return other if _are_equal(scheme.decode(reply.sections, reply.ctx).to_dense(), decoded) else reply.ctx


def _are_equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _require_close(compressor: Compressor, case: str, actual: F32, expected: F32 | F64, scale: float | None = None) -> None:
    """Raise LawError unless two aggregates are equal up to rounding. scale: of the sum's terms; by default of `expected`."""
    off = np.abs(actual.astype(np.float64) - expected)
    worst = int(off.argmax())
    limit = FLOAT32_TOLERANCE * (float(np.abs(expected).max()) if scale is None else scale)
    figures = f"{case}: coordinate {worst} is {actual[worst]:.6g}, expected {expected[worst]:.6g}"
    require(float(off[worst]) <= limit, "aggregation", compressor, figures)


ROUND_LAWS: Sequence[Callable[[Compressor], None]] = (global_generators, decodes_in_any_order, aggregation)
