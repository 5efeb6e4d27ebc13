"""The rounds of a small federation without training: the clients' updates are given, the frames are what is looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fedsgd.arrays import F32
from fedsgd.certificate.base import Subject
from fedsgd.compress import Context, Gathering, Plain, Received, Scheme, State
from fedsgd.layout import Layout
from fedsgd.wire import ALL, Frame, Header, Kind, Sections, decode_frame, encode_frame

SEED = 0


@dataclass(frozen=True, eq=False)
class Message:
    """One client's answer in one round. frame: its bytes; sections: what is read back from them; state: what the client
    remembers afterwards."""

    ctx: Context
    frame: bytes
    sections: Sections
    state: State


@dataclass(frozen=True, eq=False)
class Exchange:
    """One round. messages: one for each client; reference: the frame beside the model, empty if there is none; update: what the
    server makes of it all [P]."""

    messages: list[Message]
    reference: bytes
    update: F32


def as_scheme(compressor: Subject) -> Scheme:
    """The compressor as rounds use it: an operator alone remembers nothing."""
    return compressor if isinstance(compressor, Scheme) else Plain(compressor)


def post(scheme: Scheme, x: F32, state: State, ctx: Context) -> tuple[bytes, State]:
    """(the frame of one update x [P], what the client remembers when it is acknowledged)."""
    sent = scheme.send(x, state, ctx)
    header = Header(Kind.UPDATE, ctx.round, scheme.codec, base=ctx.round, client=ctx.client, examples=1)
    return encode_frame(Frame(header, sent.sections)), sent.state


def exchanges(compressor: Subject, updates: F32, layout: Layout) -> Iterator[Exchange]:
    """One exchange after the other. updates: [R, m, P]; every client weighs the same."""
    scheme, cohort = as_scheme(compressor), updates.shape[1]
    states: list[State] = [{}] * cohort
    server: State = {}
    for round, of_round in enumerate(updates, start=1):
        reference, beside = _reference(scheme, server, Context(SEED, round, ALL, layout, None, cohort))
        messages = []
        for client, x in enumerate(of_round):
            ctx = Context(SEED, round, client, layout, beside, cohort)
            frame, states[client] = post(scheme, x, states[client], ctx)
            messages.append(Message(ctx, frame, decode_frame(frame).sections, states[client]))
        received = [Received(message.sections, 1 / cohort, message.ctx) for message in messages]
        update, server = scheme.fold(server, received, Gathering(SEED, round, layout, cohort))
        yield Exchange(messages, reference, update)


def _reference(scheme: Scheme, server: State, ctx: Context) -> tuple[bytes, F32 | None]:
    """(the frame beside the model, what clients read in it [P]), if the scheme has one."""
    sections = scheme.downlink(server, ctx)
    if not sections:
        return b"", None
    frame = encode_frame(Frame(Header(Kind.REFERENCE, ctx.round, scheme.codec), sections))
    return frame, scheme.read_downlink(decode_frame(frame).sections, ctx)


def digest(rounds: Iterable[Exchange]) -> str:
    """SHA-256 of every frame, in the order in which they cross."""
    sha = hashlib.sha256()
    for exchange in rounds:
        for frame in (exchange.reference, *(message.frame for message in exchange.messages)):
            sha.update(frame)
    return sha.hexdigest()
