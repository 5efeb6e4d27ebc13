"""Laws of whole rounds for every compressor: decoding in any order, aggregation, global generators.

An operator is tried as the scheme without memory that it becomes in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TypeVar

import numpy as np

from fedsgd.aggregation import AggregationContext, Aggregator, WeightedUpdate, select_aggregator
from fedsgd.certification.operator_laws import are_equal, draw_gaussian, require
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
from fedsgd.compression.base import CodecContext, CompressionScheme, Compressor
from fedsgd.compression.updates import StateArrays
from fedsgd.errors import LawError
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import derive_generator
from fedsgd.system.global_generators import isolate_generators, read_generator_states, record_generator_calls
from fedsgd.wire import ALL_CLIENTS, decode_frame

T = TypeVar("T")
ROUNDS, COHORT_SIZE, N_CLIENTS = 3, 4, 8
LAYOUT = ParameterLayout(("matrix", "vector", "scalar"), ((24, 40), (39,), ()))
WEIGHTS = (0.5, 0.25, 0.125, 0.125)
"""Aggregation weights of the replies. With powers of two, a float64 sum does not depend on the order of the replies."""
FLOAT32_TOLERANCE = 1e-5
"""Allowed relative error of an aggregate that is summed in float32."""


def _draw_updates(purpose: str) -> F32:
    """Return Gaussian updates [R, m, P]."""
    rng = derive_generator(0, f"laws/{purpose}")
    return np.array([[draw_gaussian(rng, LAYOUT.size) for _ in range(COHORT_SIZE)] for _ in range(ROUNDS)])


def decodes_in_any_order(compressor: Compressor) -> None:
    """An equal compressor decodes and aggregates the frames of several rounds, in another order, to equal updates.

    All frames are encoded before the first one is decoded.
    """
    rounds = [*simulate_rounds(compressor, _draw_updates("order"), LAYOUT)]
    vectors = decode_rounds(rebuild(compressor), [simulated.frames for simulated in rounds], LAYOUT)
    require_equal_vectors("decodes_in_any_order", compressor, rounds, vectors)


# ---------------------------------------------------------------------------------------------------------- global generators


def global_generators(compressor: Compressor) -> None:
    """The compressor does not use the global generators of `random`, numpy and torch.

    The compressor neither draws from these generators nor reads or sets their states, even if it restores the states. Frames
    and updates are equal under two states of the generators.
    """
    first, second = run_under_two_states(compressor, lambda: _run_rounds(rebuild(compressor)))
    figures = "frames or updates differ between two states of the global generators"
    require(first == second, "global_generators", compressor, figures)


def run_under_two_states(component: object, run: Callable[[], T]) -> list[T]:
    """Return the results of two runs of a component; raise LawError if a run draws from, reads or sets a global generator."""
    law, results = "global_generators", []
    # Calls are recorded in the second pass only: a module imported in the first pass must not store a recording function.
    for seed, recorder in ((1, nullcontext([])), (2, record_generator_calls())):
        with isolate_generators(seed):
            states = read_generator_states()
            with recorder as calls:
                results.append(run())
            new_states = read_generator_states()
        changed = ", ".join(name for name, state in states.items() if new_states[name] != state)
        require(not changed, law, component, f"draws from the global generator of {changed}, or seeds it")
        require(not calls, law, component, f"calls {', '.join(dict.fromkeys(calls))}")
    return results


def _run_rounds(compressor: Compressor) -> list[bytes]:
    """Return every frame, decoded vector and aggregate of some rounds."""
    rounds = [*simulate_rounds(compressor, _draw_updates("generators"), LAYOUT)]
    frames = [simulated.frames for simulated in rounds]
    results = [frame for reference, replies in frames for frame in (reference, *replies)]
    return results + [vector.tobytes() for vector in decode_rounds(compressor, frames, LAYOUT)]


# ---------------------------------------------------------------------------------------------------------------- aggregation


def aggregation(compressor: Compressor) -> None:
    """Without a server state, the aggregate is Σ weight · decoded update, for any weights and for no reply.

    With a server state, two replies of half the weight count as one reply. The order of the replies and a second call change
    nothing. The call does not write to the server's state.
    """
    scheme = as_scheme(compressor)
    aggregator = select_aggregator(None, scheme)
    states: list[StateArrays] = [{}] * COHORT_SIZE
    server_state = halved_state = aggregator.init_state(LAYOUT)
    for round, updates in enumerate(_draw_updates("aggregation"), start=1):
        replies = _send_updates(scheme, server_state, states, updates, round)
        ctx = AggregationContext(SEED, round, LAYOUT, N_CLIENTS, scheme)
        update, new_state = _aggregate_readonly(compressor, aggregator, server_state, replies, ctx)
        second_update, second_state = _aggregate_readonly(compressor, aggregator, server_state, replies, ctx)
        equal_names = new_state.keys() == second_state.keys()
        equal_states = equal_names and all(are_equal(new_state[n], second_state[n]) for n in new_state)
        figures = f"round {round}: a second call with equal arguments gives another result"
        require(equal_states and are_equal(update, second_update), "aggregation", compressor, figures)
        reordered_update, _ = _aggregate_readonly(compressor, aggregator, server_state, [*replies[1::2], *replies[::2]], ctx)
        _require_close(compressor, f"round {round}, replies in another order", reordered_update, update)
        if server_state or new_state:
            for subset in ([replace(replies[0], weight=1.0)], []):
                _aggregate_readonly(compressor, aggregator, server_state, subset, ctx)
            n_clients = 2 * N_CLIENTS if aggregator.accepted_weights == "equal" else N_CLIENTS
            halved_update, halved_state = _aggregate_readonly(
                compressor, aggregator, halved_state, _halve(scheme, replies), replace(ctx, n_clients=n_clients)
            )
            _require_close(compressor, f"round {round}, replies as two of half the weight", halved_update, update)
        else:
            _require_sum(compressor, aggregator, replies, ctx)
        server_state = new_state


def _send_updates(
    scheme: CompressionScheme, server_state: StateArrays, states: list[StateArrays], updates: F32, round: int
) -> list[WeightedUpdate]:
    """Return the replies that carry one round's updates [m, P], and replace the clients' states."""
    frame = encode_reference_frame(scheme, server_state, make_context(round, ALL_CLIENTS, LAYOUT, COHORT_SIZE))
    reference = decode_reference_frame(scheme, frame, make_context(round, ALL_CLIENTS, LAYOUT, COHORT_SIZE))
    weights = [1 / COHORT_SIZE] * COHORT_SIZE if _needs_equal_weights(scheme) else np.roll(WEIGHTS, round - 1).tolist()
    replies = []
    for i, (x, weight) in enumerate(zip(updates, weights, strict=True)):
        ctx = make_context(round, i * N_CLIENTS // COHORT_SIZE, LAYOUT, COHORT_SIZE)
        frame, states[i] = encode_message(scheme, x, states[i], replace(ctx, reference=reference))
        replies.append(WeightedUpdate(decode_frame(frame).sections, weight, ctx))
    return replies


def _aggregate_readonly(
    compressor: Compressor,
    aggregator: Aggregator,
    server_state: StateArrays,
    replies: Sequence[WeightedUpdate],
    ctx: AggregationContext,
) -> tuple[F32, StateArrays]:
    """Aggregate replies that can be iterated over once, as in a run, with a read-only server state."""
    argument = dict(server_state)
    try:
        update, new_state = aggregator.aggregate(argument, iter(replies), ctx)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise LawError(f"aggregation: {compressor}: writes to the server's state: {error}") from error
    equal_names = argument.keys() == server_state.keys()
    is_unchanged = equal_names and all(argument[name] is value for name, value in server_state.items())
    require(is_unchanged, "aggregation", compressor, "writes to the server's state")
    figures = f"the aggregate of {len(replies)} replies has shape {update.shape}, expected {(LAYOUT.size,)}"
    require(update.shape == (LAYOUT.size,), "aggregation", compressor, figures)
    is_finite = bool(np.isfinite(update).all())
    require(is_finite, "aggregation", compressor, f"the aggregate of {len(replies)} replies is not finite")
    for array in new_state.values():
        array.flags.writeable = False
    return update, new_state


def _require_sum(
    compressor: Compressor, aggregator: Aggregator, replies: Sequence[WeightedUpdate], ctx: AggregationContext
) -> None:
    """Raise LawError unless the aggregate is Σ weight · decoded update."""
    cases = {"": replies, "one reply": [replace(replies[0], weight=1.0)], "no reply": []}
    if aggregator.accepted_weights == "any":
        hint = 'weights that add up to 3 (set accepted_weights = "normalized" where they must add up to 1)'
        cases[hint] = [replace(reply, weight=3 * reply.weight) for reply in replies]
    for description, subset in cases.items():
        expected, scale = np.zeros(LAYOUT.size), 0.0
        for reply in subset:
            dense = ctx.scheme.decode(reply.sections, reply.ctx).to_dense()
            expected += reply.weight * dense.astype(np.float64)
            scale += reply.weight * float(np.abs(dense).max())
        case = f"round {ctx.round}, {description or f'{len(replies)} replies'}, compared with Σ weight · decoded update"
        _require_close(compressor, case, _aggregate_readonly(compressor, aggregator, {}, subset, ctx)[0], expected, scale)


def _halve(scheme: CompressionScheme, replies: Sequence[WeightedUpdate]) -> list[WeightedUpdate]:
    """Replace the reply with the largest weight by two replies of half its weight; with uniform weights, each reply."""
    heaviest = max(replies, key=lambda reply: reply.weight)
    halved_replies: list[WeightedUpdate] = []
    for reply in replies:
        if reply is heaviest or _needs_equal_weights(scheme):
            half = replace(reply, weight=reply.weight / 2)
            halved_replies += [half, replace(half, ctx=_choose_twin(scheme, reply))]
        else:
            halved_replies.append(reply)
    return halved_replies


def _needs_equal_weights(scheme: CompressionScheme) -> bool:
    return select_aggregator(None, scheme).accepted_weights == "equal"


def _choose_twin(scheme: CompressionScheme, reply: WeightedUpdate) -> CodecContext:
    """Return the context of a client without a reply if the sections decode there to an equal update, else the reply's."""
    twin = replace(reply.ctx, client=reply.ctx.client + 1)
    try:
        twin_update = scheme.decode(reply.sections, twin).to_dense()
    except Exception:  # the user's own code may raise any error for the sections of another client
        return reply.ctx
    return twin if are_equal(scheme.decode(reply.sections, reply.ctx).to_dense(), twin_update) else reply.ctx


def _require_close(compressor: Compressor, case: str, actual: F32, expected: F32 | F64, scale: float | None = None) -> None:
    """Raise LawError unless two aggregates are equal up to rounding of numbers as large as `scale` (default: `expected`)."""
    errors = np.abs(actual.astype(np.float64) - expected)
    worst = int(errors.argmax())
    limit = FLOAT32_TOLERANCE * (float(np.abs(expected).max()) if scale is None else scale)
    figures = f"{case}: coordinate {worst} is {actual[worst]:.6g}, expected {expected[worst]:.6g}"
    require(float(errors[worst]) <= limit, "aggregation", compressor, figures)


ROUND_LAWS: Sequence[Callable[[Compressor], None]] = (global_generators, decodes_in_any_order, aggregation)
