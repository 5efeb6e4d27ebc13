"""The public model at the server: how it follows the server's own, and what is remembered of how it did. P parameters."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from fedsgd.arrays import F32, I32, Bools
from fedsgd.compress import Context
from fedsgd.downlink.frames import WHOLE, ContextOf, Downlink, Encoded, changes_of, encoded, whole_of
from fedsgd.errors import NonFiniteError
from fedsgd.layout import Layout
from fedsgd.vectors import all_finite
from fedsgd.wire import MAX_SECTIONS, Header, Kind, overhead


@dataclass(frozen=True, eq=False)
class Published:
    """What the server knows of the public model. round: that which it is for; model: [P]; whole: the model by itself, if it was
    encoded; differences: those that led to it, one a round, the newest last, as far back as they weigh less than the model;
    changed: the round in which each coordinate changed last [P], 0 if never; residual: what the compressor has left out [P]."""

    round: int
    model: F32
    whole: Encoded | None
    differences: tuple[Encoded, ...] = ()
    changed: I32 | None = None
    residual: F32 | None = None


def begin(link: Downlink, weights: F32, context: ContextOf) -> Published:
    """The public model of round 1."""
    model, whole = whole_of(link, weights, context(1))
    if not link.needs_held:
        return Published(1, model, whole)
    return Published(1, model, whole, (), np.zeros(len(weights), dtype=np.int32))


def advance(link: Downlink, last: Published, weights: F32, step: F32, context: ContextOf) -> tuple[F32, Published]:
    """(the model that the server goes on from [P], the public model of the coming round). weights: the server's own, after its
    optimiser's step [P]; step: that step [P]. NonFiniteError if the public model leaves float32's range."""
    round = last.round + 1
    ctx = context(round)
    if last.changed is None:
        model, whole = whole_of(link, weights, ctx)
        return weights, Published(round, model, whole)
    if link.policy == "difference":
        return weights, _exactly(link, last, weights, ctx)
    begun = time.perf_counter()
    with np.errstate(over="ignore", invalid="ignore"):  # what leaves float32's range is found below
        wanted = weights - last.model if link.policy == "shift" else step
        if last.residual is not None:
            wanted = wanted + last.residual
        if not all_finite(wanted):
            raise NonFiniteError(last.round, None, "what the downlink is to send leaves float32's range")
        sections, update = link.op.encode(wanted, ctx)
        difference = encoded(Header(Kind.MODEL, round, link.op.codec, base=last.round), sections, update.kept, begun)
        model, residual = last.model.copy(), None
        update.add_to(model, 1.0)
        if link.policy == "error-feedback":
            residual = wanted.copy()
            update.add_to(residual, -1.0)
    for what, vector in (("the public model", model), ("what the downlink has held back", residual)):
        if vector is not None and not all_finite(vector):
            raise NonFiniteError(last.round, None, f"{what} leaves float32's range")
    changed = np.where(_differ(model, last.model), np.int32(round), last.changed)
    history = _worth_keeping((*last.differences, difference), len(model))
    return weights if link.policy == "shift" else model, Published(round, model, None, history, changed, residual)


def _exactly(link: Downlink, last: Published, weights: F32, ctx: Context) -> Published:
    """The server's own model as the public one. Where every coordinate changed there is no difference worth its name."""
    assert last.changed is not None
    differ = _differ(weights, last.model)
    indices = np.flatnonzero(differ)
    if len(indices) == len(weights):
        everywhere = np.full(len(weights), ctx.round, dtype=np.int32)
        return Published(ctx.round, weights, whole_of(link, weights, ctx)[1], (), everywhere)
    difference = changes_of(last.round, weights, indices, ctx)
    changed = np.where(differ, np.int32(ctx.round), last.changed)
    return Published(ctx.round, weights, None, _worth_keeping((*last.differences, difference), len(weights)), changed)


def _worth_keeping(differences: tuple[Encoded, ...], size: int) -> tuple[Encoded, ...]:
    """The newest of them that together weigh less than any model does; the last one in any case."""
    n_bytes, at = len(differences[-1].data), len(differences) - 1
    while at and n_bytes + len(differences[at - 1].data) <= _max_whole_bytes(size):
        at -= 1
        n_bytes += len(differences[at].data)
    return differences[at:]


def _max_whole_bytes(size: int) -> int:
    """The most that a frame with the whole model weighs. size: P."""
    return overhead(MAX_SECTIONS) + WHOLE.max_bytes(Layout.flat(size))


def _differ(a: F32, b: F32) -> Bools:
    """Where two vectors differ in any bit, the sign of a zero included [P]."""
    differ: Bools = a.view(np.uint32) != b.view(np.uint32)
    return differ
