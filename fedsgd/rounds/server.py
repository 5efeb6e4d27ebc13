"""The server's side of a round: what is sent, and what becomes of the replies.

P parameters, N clients in all, m of them in the cohort.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from fedsgd.arrays import F32, F64
from fedsgd.clients import NOBODY, ByClient
from fedsgd.compress import ClientId, Gathering, Received, State
from fedsgd.downlink import Encoded, Post, Published, advance, begin
from fedsgd.errors import NonFiniteError, RunError, WireError
from fedsgd.optim import server_step
from fedsgd.profiling import phased
from fedsgd.rounds.plan import Message, Plan, Reply, first_bad
from fedsgd.rounds.statistics import Opened, framed, mean, taken_off
from fedsgd.user_code import user_code
from fedsgd.vectors import all_finite
from fedsgd.wire import ALL, HEADER_OFFSETS, Frame, Header, Kind, Sections, decode_frame, encode_frame, expect, overhead


@dataclass(frozen=True, eq=False)
class Server:
    """The server between two rounds. round: the one to come, from 1; weights: the model that its optimiser works on [P];
    public: the model that clients of that round will decode, and how it is sent; statistics: what they start their batch norm
    from [S], if it is averaged; beside: the BUFFERS and the REFERENCE frame, where there are such; velocity, uplink: what the
    optimiser and the scheme remember; acknowledged: the last round in which each client's reply was accepted; sent: the frames
    of this round that several clients share, by what they are."""

    round: int
    weights: F32
    public: Published
    statistics: F32 | None = None
    beside: tuple[Encoded, ...] = ()
    velocity: State = field(default_factory=dict)
    uplink: State = field(default_factory=dict)
    acknowledged: ByClient = NOBODY
    sent: tuple[Encoded, ...] = ()


class Folded(NamedTuple):
    """A reply that is part of the next model. frame: decoded; sections: those in it that are the scheme's; seconds: what
    decoding and adding these took."""

    frame: Frame
    sections: Sections
    seconds: float


def start(plan: Plan, weights: F32) -> Server:
    """The server before round 1, with initial weights [P]."""
    with user_code("downlink.compressor", plan.downlink):
        public = begin(plan.downlink, weights, lambda round: plan.context(round, ALL))
    initial = None if plan.buffers is None else plan.buffers.sent
    return Server(1, weights, public, initial, () if initial is None else (framed(1, initial),))


def broadcast(plan: Plan, server: Server, cohort: Sequence[ClientId]) -> tuple[dict[ClientId, Message], Server]:
    """(each client's message, the server): a TASK frame of its own and the frames that bring it to the present model."""
    known = {client: server.acknowledged.get(client) for client in cohort}
    return _addressed(plan, server, {client: (round, round) for client, round in known.items()})


def again(plan: Plan, server: Server, asked: Mapping[ClientId, Frame]) -> tuple[dict[ClientId, Message], Server]:
    """The same for clients that answered with a RESYNC: from the model that each says it has, and with what it still knows of
    its replies."""
    known = {}
    for client, frame in asked.items():
        accepted = server.acknowledged.get(client)
        known[client] = frame.header.base, accepted if accepted <= frame.header.acknowledged else 0
    return _addressed(plan, server, known)


def _addressed(plan: Plan, server: Server, known: Mapping[ClientId, tuple[int, int]]) -> tuple[dict[ClientId, Message], Server]:
    """known: the round of the model that each client holds at least, and that of its last reply that was accepted, 0 for
    none."""
    post = Post(plan.downlink, server.public, lambda round: plan.context(round, ALL))
    messages: dict[ClientId, Message] = {}
    sent = {id(frame): frame for frame in server.sent}
    for client, (held, accepted) in known.items():
        with user_code("downlink.compressor", plan.downlink, server.round):
            frames = post.frames(plan.downlink.base_of(server.round, held))
        base = frames[0].opened.header.base
        task = Header(Kind.TASK, server.round, base=base, acknowledged=accepted, client=client)
        messages[client] = (encode_frame(Frame(task)), *(frame.data for frame in (*frames, *server.beside)))
        sent.update({id(frame): frame for frame in (*frames, *server.beside)})
    return messages, replace(server, sent=tuple(sent.values()))


@phased("aggregate")
def aggregate(
    plan: Plan, server: Server, replies: Sequence[Reply], chances: Mapping[ClientId, float] | None = None
) -> tuple[Server, Mapping[ClientId, Folded]]:
    """(the server of the next round, what became of each client's reply).

    The replies are folded in ascending client order whatever order they came in, weighted by examples (for whose number the
    client's word is taken) or uniformly. chances: each one's probability of being among these replies, where the mean is to be
    corrected for it (Horvitz and Thompson 1952): then it is the mean over all clients that is estimated, without bias. A bad
    frame raises WireError, with its client, before anything has changed.

    Without any reply the model stays as it is, and so do the states of the scheme and the optimizer. A scheme that
    `steps_without_replies` folds nothing instead, and the optimizer steps with the update that `fold` returns.
    """
    ordered = sorted(replies, key=lambda reply: reply.client)
    if len({reply.client for reply in ordered}) != len(ordered):
        raise RunError(server.round, None, "two replies of one client")
    if not ordered and not plan.uplink.steps_without_replies:
        return _next(plan, server, server.weights, np.zeros_like(server.weights)), {}
    opened = [open_update(plan, reply, server.round) for reply in ordered]
    shares = _shares(plan, server.round, [update.frame for update in opened], chances)
    update, uplink, seconds = _fold(plan, server, opened, _normalised(plan, server.round, opened, shares))
    folded = {u.frame.header.client: Folded(u.frame, u.sections, s) for u, s in zip(opened, seconds, strict=True)}
    sent = [update.statistics for update in opened if update.statistics is not None]
    statistics = mean(sent, shares) if sent else server.statistics
    weights, step, velocity = server_step(plan.optimizer, server.weights, update, server.velocity, server.round)
    if not np.isfinite(weights).all():
        raise NonFiniteError(server.round, None, f"after the server's step {first_bad(weights, plan.layout)}")
    acknowledged = server.acknowledged.having([reply.client for reply in ordered], server.round)
    after = replace(server, statistics=statistics, velocity=velocity, uplink=uplink, acknowledged=acknowledged)
    return _next(plan, after, weights, step), folded


def moved_to(plan: Plan, server: Server, weights: F32, accepted: Sequence[ClientId]) -> Server:
    """The server of the next round where something else than `aggregate` made its model of the replies, as somebody's own
    strategy does. weights: that model [P]; accepted: whose replies are in it. NonFiniteError if it is not finite."""
    if not all_finite(weights):
        raise NonFiniteError(server.round, None, f"after the server's step {first_bad(weights, plan.layout)}")
    acknowledged = server.acknowledged.having(accepted, server.round)
    return _next(plan, replace(server, acknowledged=acknowledged), weights, weights - server.weights)


def _fold(plan: Plan, server: Server, updates: Sequence[Opened], shares: F64) -> tuple[F32, State, list[float]]:
    """(the cohort's update [P], what the scheme remembers at the server, the seconds that each reply took)."""
    seconds: list[float] = []
    at: ClientId | None = None

    def timed() -> Iterator[Received]:
        nonlocal at
        for update, share in zip(updates, shares, strict=True):
            at, begun = update.frame.header.client, time.perf_counter()
            yield Received(update.sections, float(share), plan.context(server.round, at))
            seconds.append(time.perf_counter() - begun)
        at = None

    gathering = Gathering(plan.seed, server.round, plan.layout, plan.clients)
    try:
        with (
            np.errstate(over="ignore", invalid="ignore"),  # finite replies may still add up to what is not, round after round
            user_code("uplink.compressor", plan.uplink, server.round),
        ):
            update, uplink = plan.uplink.fold(server.uplink, timed(), gathering)
    except WireError as error:
        raise _placed(error, server.round, at) from None
    if not all_finite(update):
        raise NonFiniteError(server.round, None, f"the cohort's update {first_bad(update, plan.layout)}")
    return update, uplink, seconds


def _shares(plan: Plan, round: int, frames: Sequence[Frame], chances: Mapping[ClientId, float] | None) -> F64:
    """What each reply counts [m]. They add up to 1, but for chances."""
    if not frames:
        return np.zeros(0)
    examples = np.array([frame.header.examples for frame in frames], dtype=np.float64)
    counts = examples if plan.weighting == "examples" else np.ones(len(frames))
    if not counts.sum() > 0:
        raise RunError(round, None, "no client of the cohort has any examples: there is nothing to average")
    shares: F64 = counts / counts.sum()
    if chances is not None:
        everybody = plan.examples if plan.weighting == "examples" else plan.clients
        shares = counts / np.array([chances[frame.header.client] for frame in frames]) / everybody
    return shares


def _normalised(plan: Plan, round: int, updates: Sequence[Opened], shares: F64) -> F64:
    """What each update counts [m]: its share, or with FedNova by how far its steps go. Statistics do not grow with steps."""
    if not plan.normalised or not updates:
        return shares
    went = np.array([plan.recipe.displacement(update.frame.header.examples, round) for update in updates])
    effective = float((shares * went).sum() / shares.sum())
    counts: F64 = np.divide(shares * effective, went, out=np.zeros_like(shares), where=went > 0)
    return counts


def _next(plan: Plan, server: Server, weights: F32, step: F32) -> Server:
    """The server of the coming round, with what its clients will get."""
    with user_code("downlink.compressor", plan.downlink, server.round):
        weights, public = advance(plan.downlink, server.public, weights, step, lambda round: plan.context(round, ALL))
    round, begun = server.round + 1, time.perf_counter()
    beside = [] if server.statistics is None else [framed(round, server.statistics)]
    with user_code("uplink.compressor", plan.uplink, server.round):
        sections = plan.uplink.downlink(server.uplink, plan.context(round, ALL))
    if sections:
        frame = Frame(Header(Kind.REFERENCE, round, plan.uplink.codec), sections)
        beside.append(Encoded(encode_frame(frame), frame, 0, time.perf_counter() - begun))
    return replace(server, round=round, weights=weights, public=public, beside=tuple(beside), sent=())


def open_update(plan: Plan, reply: Reply, round: int) -> Opened:
    """What a reply says; WireError, with its client, if that is not an UPDATE of this round."""
    try:
        if len(reply.frames) != 1:
            raise WireError(0, f"{len(reply.frames)} frames, expected one UPDATE")
        frame = decode_frame(reply.frames[0], plan.max_update)
        codec, client = (plan.uplink.codec,), (reply.client,)
        expect(frame.header, kind=(Kind.UPDATE,), codec=codec, round=(round,), base=(round,), client=client, acknowledged=(0,))
        return taken_off(frame, plan.buffers)
    except WireError as error:
        raise _placed(error, round, reply.client) from None


def open_resync(reply: Reply, round: int) -> Frame:
    """What a client that could not follow says; WireError if it cannot be read."""
    if len(reply.frames) != 1:
        raise WireError(0, f"{len(reply.frames)} frames, expected one RESYNC")
    frame = decode_frame(reply.frames[0], overhead(0))
    expect(frame.header, kind=(Kind.RESYNC,), codec=(0,), round=(round,), client=(reply.client,), examples=(0,))
    if frame.header.base >= round:
        raise WireError(HEADER_OFFSETS["base"], f"base is {frame.header.base}, expected a round before {round}")
    return frame


def _placed(error: WireError, round: int, client: ClientId | None) -> WireError:
    """The same error with whose frame it is in front, where that is known."""
    where = f"round {round}: " if client is None else f"round {round}, client {client}: "
    return WireError(error.offset, error.cause, where, client)
