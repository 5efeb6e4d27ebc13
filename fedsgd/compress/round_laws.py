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

from fedsgd.arrays import F32, F64
from fedsgd.compress.base import Compressor, Context, Gathering, Received, Scheme
from fedsgd.compress.exchange import (
    SEED,
    as_scheme,
    decode_reference,
    decode_rounds,
    encode_message,
    encode_reference,
    exchanges,
    make_context,
    rebuild,
    require_decoded,
)
from fedsgd.compress.laws import gaussian, require
from fedsgd.compress.update import State
from fedsgd.errors import LawError
from fedsgd.generators import global_states, seeded_generators, watch_generators
from fedsgd.layout import Layout
from fedsgd.rng import stream
from fedsgd.wire import ALL, decode_frame

ROUNDS, CLIENTS, POPULATION = 3, 4, 8
LAYOUT = Layout(("matrix", "vector", "scalar"), ((24, 40), (39,), ()))
WEIGHTS = (0.5, 0.25, 0.125, 0.125)
"""Of unequal clients: powers of two, so that a sum in float64 is the same in every order, and no selection depends on it."""
CLOSE = 1e-5
"""Relative error of an aggregate that is added up in float32."""


def _draw_updates(purpose: str) -> F32:
    """Return Gaussian updates [R, m, P]."""
    rng = stream(0, f"laws/{purpose}")
    return np.array([[gaussian(rng, LAYOUT.size) for _ in range(CLIENTS)] for _ in range(ROUNDS)])


def decodes_in_any_order(compressor: Compressor) -> None:
    """An equal compressor decodes the frames of several rounds, in another order and after all were encoded, to the updates
    that were encoded. It aggregates them to the same updates."""
    rounds = [*exchanges(compressor, _draw_updates("order"), LAYOUT)]
    decoded = decode_rounds(rebuild(compressor), [exchange.frames for exchange in rounds], LAYOUT)
    require_decoded("decodes_in_any_order", compressor, rounds, decoded)


# ---------------------------------------------------------------------------------------------------------- global generators


def global_generators(compressor: Compressor) -> None:
    """The compressor neither draws from the global generators of `random`, numpy and torch nor reads or sets their states, even
    if it restores them. Its frames and updates are equal under two states of these generators."""
    law, results = "global_generators", []
    # The first pass is not watched: modules that it imports late must not get hold of a watched function.
    for seed, watch in ((1, nullcontext([])), (2, watch_generators())):
        with seeded_generators(seed):
            before = global_states()
            with watch as calls:
                results.append(_run_rounds(rebuild(compressor)))
            after = global_states()
        changed = ", ".join(name for name, state in before.items() if after[name] != state)
        require(not changed, law, compressor, f"draws from the global generator of {changed}, or seeds it")
        require(not calls, law, compressor, f"calls {', '.join(dict.fromkeys(calls))}")
    figures = "frames or updates differ between two states of the global generators"
    require(results[0] == results[1], law, compressor, figures)


def _run_rounds(compressor: Compressor) -> list[bytes]:
    """Return every frame, decoded vector and aggregate of some rounds."""
    rounds = [*exchanges(compressor, _draw_updates("generators"), LAYOUT)]
    frames = [exchange.frames for exchange in rounds]
    results = [frame for reference, replies in frames for frame in (reference, *replies)]
    return results + [vector.tobytes() for vector in decode_rounds(compressor, frames, LAYOUT)]


# ---------------------------------------------------------------------------------------------------------------- aggregation


def aggregation(compressor: Compressor) -> None:
    """The aggregate is Σ weight · decoded update where the server keeps no state, for any weights and for no reply. With a
    server state, two replies of half the weight count as one reply. The order of the replies and a second call change nothing,
    and the server's state is not written to."""
    scheme = as_scheme(compressor)
    states: list[State] = [{}] * CLIENTS
    server: State = {}
    of_twins: State = {}
    for round, of_round in enumerate(_draw_updates("aggregation"), start=1):
        replies = _send_updates(scheme, server, states, of_round, round)
        gathering = Gathering(SEED, round, LAYOUT, POPULATION)
        update, after = _fold(compressor, server, replies, gathering)
        again, after_again = _fold(compressor, server, replies, gathering)
        same_states = after.keys() == after_again.keys() and all(_are_equal(after[n], after_again[n]) for n in after)
        figures = f"round {round}: a second call with equal arguments gives another result"
        require(same_states and _are_equal(update, again), "aggregation", compressor, figures)
        reordered, _ = _fold(compressor, server, [*replies[1::2], *replies[::2]], gathering)
        _require_close(compressor, f"round {round}, replies in another order", reordered, update)
        if server or after:
            for few in ([replace(replies[0], weight=1.0)], []):
                _fold(compressor, server, few, gathering)
            clients = 2 * POPULATION if scheme.uniform else POPULATION
            halved, of_twins = _fold(compressor, of_twins, _halve(scheme, replies), replace(gathering, clients=clients))
            _require_close(compressor, f"round {round}, replies as two of half the weight", halved, update)
        else:
            _require_sum(compressor, replies, gathering)
        server = after


def _send_updates(scheme: Scheme, server: State, states: list[State], updates: F32, round: int) -> list[Received]:
    """Send updates [m, P] of one round, and replace the states of the clients."""
    reference = encode_reference(scheme, server, make_context(round, ALL, LAYOUT, CLIENTS))
    decoded = decode_reference(scheme, reference, make_context(round, ALL, LAYOUT, CLIENTS))
    weights = [1 / CLIENTS] * CLIENTS if scheme.uniform else np.roll(WEIGHTS, round - 1).tolist()
    replies = []
    for i, (x, weight) in enumerate(zip(updates, weights, strict=True)):
        ctx = make_context(round, i * POPULATION // CLIENTS, LAYOUT, CLIENTS)
        frame, states[i] = encode_message(scheme, x, states[i], replace(ctx, reference=decoded))
        replies.append(Received(decode_frame(frame).sections, weight, ctx))
    return replies


def _fold(compressor: Compressor, server: State, replies: Sequence[Received], gathering: Gathering) -> tuple[F32, State]:
    """Aggregate replies that can be iterated over once, as in a run, with a server's state that cannot be written to."""
    given = dict(server)
    try:
        update, after = as_scheme(compressor).fold(given, iter(replies), gathering)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise LawError(f"aggregation: {compressor}: writes to the server's state: {error}") from error
    same = given.keys() == server.keys() and all(given[name] is value for name, value in server.items())
    require(same, "aggregation", compressor, "writes to the server's state")
    figures = f"the aggregate of {len(replies)} replies has shape {update.shape}, expected {(LAYOUT.size,)}"
    require(update.shape == (LAYOUT.size,), "aggregation", compressor, figures)
    finite = bool(np.isfinite(update).all())
    require(finite, "aggregation", compressor, f"the aggregate of {len(replies)} replies is not finite")
    for array in after.values():
        array.flags.writeable = False
    return update, after


def _require_sum(compressor: Compressor, replies: Sequence[Received], gathering: Gathering) -> None:
    """Raise LawError unless the aggregate is Σ weight · decoded update."""
    scheme = as_scheme(compressor)
    cases = {"": replies, "one reply": [replace(replies[0], weight=1.0)], "no reply": []}
    if not scheme.convex:
        hint = "weights that add up to 3 (set convex = True where they must add up to 1)"
        cases[hint] = [replace(reply, weight=3 * reply.weight) for reply in replies]
    for case, received in cases.items():
        expected, scale = np.zeros(LAYOUT.size), 0.0
        for reply in received:
            decoded = scheme.decode(reply.sections, reply.ctx).to_dense()
            expected += reply.weight * decoded.astype(np.float64)
            scale += reply.weight * float(np.abs(decoded).max())
        where = f"round {gathering.round}, {case or f'{len(replies)} replies'}, against Σ weight · decoded update"
        _require_close(compressor, where, _fold(compressor, {}, received, gathering)[0], expected, scale)


def _halve(scheme: Scheme, replies: Sequence[Received]) -> list[Received]:
    """Replace the heaviest reply by two of half its weight; where all clients weigh the same, each reply."""
    heaviest = max(replies, key=lambda reply: reply.weight)
    halved: list[Received] = []
    for reply in replies:
        if reply is heaviest or scheme.uniform:
            half = replace(reply, weight=reply.weight / 2)
            halved += [half, replace(half, ctx=_choose_twin(scheme, reply))]
        else:
            halved.append(reply)
    return halved


def _choose_twin(scheme: Scheme, reply: Received) -> Context:
    """Return the context of a client without a reply, if the sections decode to an equal update in it; else the reply's own."""
    other = replace(reply.ctx, client=reply.ctx.client + 1)
    try:
        decoded = scheme.decode(reply.sections, other).to_dense()
    except Exception:  # the user's own code; it may refuse another client's sections in any way
        return reply.ctx
    return other if _are_equal(scheme.decode(reply.sections, reply.ctx).to_dense(), decoded) else reply.ctx


def _are_equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _require_close(compressor: Compressor, where: str, got: F32, expected: F32 | F64, scale: float | None = None) -> None:
    """Raise LawError unless two aggregates are equal up to rounding. scale: of the sum's terms; by default of `expected`."""
    off = np.abs(got.astype(np.float64) - expected)
    worst = int(off.argmax())
    limit = CLOSE * (float(np.abs(expected).max()) if scale is None else scale)
    figures = f"{where}: coordinate {worst} is {got[worst]:.6g}, expected {expected[worst]:.6g}"
    require(float(off[worst]) <= limit, "aggregation", compressor, figures)


ROUND_LAWS: Sequence[Callable[[Compressor], None]] = (global_generators, decodes_in_any_order, aggregation)
