"""Rounds of a small federation without training: the clients' updates are given, the frames are examined.

R rounds, m clients, P parameters. Clients weigh the same, and all of them take part in each round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F32
from fedsgd.compress.base import Compressor, Context, Gathering, Operator, Received, Scheme, Sent
from fedsgd.compress.plain import Plain
from fedsgd.compress.update import State, Update
from fedsgd.errors import LawError, error_text
from fedsgd.layout import Layout
from fedsgd.rng import stream
from fedsgd.wire import ALL, Frame, Header, Kind, Sections, decode_frame, encode_frame

SEED = 0
Frames = tuple[bytes, Sequence[bytes]]
"""(the reference frame, empty if there is none; the frame of each client) of one round."""


@dataclass(frozen=True, eq=False)
class Message:
    """One client's reply in one round.

    Attributes:
        ctx: context of the server: without the reference that a client has.
        frame: bytes of the reply.
        sections: sections that are read back from the frame.
        state: the client's state if the reply is acknowledged.
        update: update that an operator's `encode` returned, or that a scheme decoded from the frame.
    """

    ctx: Context
    frame: bytes
    sections: Sections
    state: State
    update: Update


@dataclass(frozen=True, eq=False)
class Exchange:
    """One round.

    Attributes:
        messages: one for each client.
        reference: the frame that is sent along with the model, empty if there is none.
        decoded_reference: [P], the vector that clients decode from `reference`, None if there is none.
        update: [P], the aggregate.
    """

    messages: Sequence[Message]
    reference: bytes
    decoded_reference: F32 | None
    update: F32

    @property
    def frames(self) -> Frames:
        """All bytes of the round."""
        return self.reference, [message.frame for message in self.messages]


def as_scheme(compressor: Compressor) -> Scheme:
    """Return the compressor as rounds use it: an operator becomes a scheme without memory."""
    if isinstance(compressor, Scheme):
        return compressor
    assert isinstance(compressor, Operator)
    return Plain(compressor)


def rebuild(value: Any) -> Any:
    """Build an equal component from its fields alone, and the components in them too; return other values as they are."""
    if type(value) is tuple:
        return tuple(map(rebuild, value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{f.name: rebuild(getattr(value, f.name)) for f in fields(value) if f.init})


def encode_message(scheme: Scheme, x: F32, state: State, ctx: Context) -> tuple[bytes, State]:
    """Return the frame of one update x [P], and the client's state if it is acknowledged."""
    sent = scheme.send(x, state, ctx)
    return _encode_update(scheme, sent, ctx), sent.state


def _encode_update(compressor: Compressor, sent: Sent, ctx: Context) -> bytes:
    header = Header(Kind.UPDATE, ctx.round, compressor.codec, base=ctx.round, client=ctx.client, examples=1)
    return encode_frame(Frame(header, sent.sections))


def exchanges(compressor: Compressor, updates: F32, layout: Layout) -> Iterator[Exchange]:
    """Yield one round after the other. updates: [R, m, P]."""
    scheme, cohort = as_scheme(compressor), updates.shape[1]
    states: list[State] = [{}] * cohort
    server: State = {}
    for round, of_round in enumerate(updates, start=1):
        reference = encode_reference(scheme, server, make_context(round, ALL, layout, cohort))
        decoded = decode_reference(scheme, reference, make_context(round, ALL, layout, cohort))
        messages = _send_round(compressor, of_round, states, round, layout, decoded)
        received = (Received(message.sections, 1 / cohort, message.ctx) for message in messages)
        update, server = scheme.fold(server, received, Gathering(SEED, round, layout, cohort))
        yield Exchange(messages, reference, decoded, update)


def encode_rounds(compressor: Compressor, updates: F32, layout: Layout, references: Sequence[bytes]) -> Iterator[Frames]:
    """Encode the clients' frames of one round after the other, as a client does that aggregates nothing.

    Args:
        compressor: the compressor.
        updates: [R, m, P].
        layout: of the updates.
        references: the reference frame of each round, empty where there is none.
    """
    scheme, cohort = as_scheme(compressor), updates.shape[1]
    states: list[State] = [{}] * cohort
    for round, (of_round, reference) in enumerate(zip(updates, references, strict=True), start=1):
        decoded = decode_reference(scheme, reference, make_context(round, ALL, layout, cohort))
        messages = _send_round(compressor, of_round, states, round, layout, decoded)
        yield reference, [message.frame for message in messages]


def _send_round(
    compressor: Compressor, updates: F32, states: list[State], round: int, layout: Layout, reference: F32 | None
) -> list[Message]:
    """Send updates [m, P] of one round, and replace the states of the clients."""
    messages = []
    for client, x in enumerate(updates):
        ctx = make_context(round, client, layout, len(updates))
        messages.append(_send_message(compressor, x, states[client], ctx, reference))
        states[client] = messages[-1].state
    return messages


def make_context(round: int, client: int, layout: Layout, cohort: int) -> Context:
    """Return the context of the server."""
    return Context(SEED, round, client, layout, None, cohort)


def _send_message(compressor: Compressor, x: F32, state: State, ctx: Context, reference: F32 | None) -> Message:
    at_client = replace(ctx, reference=reference)
    if isinstance(compressor, Operator):
        sections, update = compressor.encode(x, at_client)
        sent = Sent(sections, {}, {})
        frame = _encode_update(compressor, sent, ctx)
        return Message(ctx, frame, decode_frame(frame).sections, sent.state, update)
    assert isinstance(compressor, Scheme)
    frame, after = encode_message(compressor, x, state, at_client)
    sections = decode_frame(frame).sections
    return Message(ctx, frame, sections, after, compressor.decode(sections, ctx))


def encode_reference(scheme: Scheme, server: State, ctx: Context) -> bytes:
    """Return the frame that is sent along with the model, empty if the scheme sends none."""
    sections = scheme.downlink(server, ctx)
    return encode_frame(Frame(Header(Kind.REFERENCE, ctx.round, scheme.codec), sections)) if sections else b""


def decode_reference(scheme: Scheme, reference: bytes, ctx: Context) -> F32 | None:
    """Return the vector [P] that clients decode from the reference frame, None if there is no frame."""
    return scheme.read_downlink(decode_frame(reference).sections, ctx) if reference else None


def digest(rounds: Iterable[Frames]) -> str:
    """Return the SHA-256 of every frame, in the order in which they are sent."""
    sha = hashlib.sha256()
    for reference, replies in rounds:
        for frame in (reference, *replies):
            sha.update(frame)
    return sha.hexdigest()


# ------------------------------------------------------------------------------------------------------- from the bytes alone


def decode_rounds(compressor: Compressor, rounds: Sequence[Frames], layout: Layout) -> Iterator[NDArray[Any]]:
    """Decode frames in a shuffled order, from their bytes and contexts alone; then aggregate round after round.

    Yields:
        Each decoded vector [P]; then, for each round, the bytes of the reference frame, and the aggregate [P].
    """
    scheme, cohort = as_scheme(compressor), len(rounds[0][1])
    for round, client in _shuffle(rounds):
        reference, replies = rounds[round - 1]
        ctx = make_context(round, client, layout, cohort)
        if client == ALL:
            yield _vector(decode_reference(scheme, reference, ctx))
        else:
            yield scheme.decode(decode_frame(replies[client]).sections, ctx).to_dense()
    server: State = {}
    for round, (_, replies) in enumerate(rounds, start=1):
        yield _bytes(encode_reference(scheme, server, make_context(round, ALL, layout, cohort)))
        contexts = (make_context(round, client, layout, cohort) for client in range(cohort))
        received = (Received(decode_frame(f).sections, 1 / cohort, ctx) for f, ctx in zip(replies, contexts, strict=True))
        update, server = scheme.fold(server, received, Gathering(SEED, round, layout, cohort))
        yield update


def require_decoded(law: str, compressor: Compressor, rounds: Sequence[Exchange], decoded: Iterator[NDArray[Any]]) -> None:
    """Compare the vectors of `decode_rounds` with those of the exchanges; LawError with the first difference.

    Args:
        law: name of the law.
        compressor: the compressor that encoded.
        rounds: the exchanges of which the frames were decoded.
        decoded: vectors as `decode_rounds` yields them.
    """
    for where, expected in _list_vectors(rounds):
        try:
            got = next(decoded)
        except Exception as error:  # the user's own code, here or in another process
            raise LawError(f"{law}: {compressor}: {where}: {error_text(error)}") from error
        if got.shape != expected.shape:
            raise LawError(f"{law}: {compressor}: {where}: got {got.shape} values, expected {expected.shape}")
        wrong = np.flatnonzero(got != expected)
        if len(wrong):
            figures = f"coordinate {wrong[0]} is {got[wrong[0]]:.6g}, expected {expected[wrong[0]]:.6g}"
            raise LawError(f"{law}: {compressor}: {where}: {figures}; {len(wrong)} of {len(got)} differ")


def _list_vectors(rounds: Sequence[Exchange]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the name and the value of each vector that `decode_rounds` should yield."""
    for round, client in _shuffle([exchange.frames for exchange in rounds]):
        exchange = rounds[round - 1]
        if client == ALL:
            yield f"round {round}, decoded reference", _vector(exchange.decoded_reference)
        else:
            yield f"round {round}, client {client}", exchange.messages[client].update.to_dense()
    for round, exchange in enumerate(rounds, start=1):
        yield f"round {round}, reference frame", _bytes(exchange.reference)
        yield f"round {round}, aggregate", exchange.update


def _shuffle(rounds: Sequence[Frames]) -> list[tuple[int, int]]:
    """Return the round and the client of each frame, ALL for the reference frame, in an order that is always the same."""
    places = [(round, ALL) for round, (reference, _) in enumerate(rounds, start=1) if reference]
    places += [(round, client) for round, (_, replies) in enumerate(rounds, start=1) for client in range(len(replies))]
    return [places[i] for i in stream(SEED, "laws/order").permutation(len(places))]


def _vector(reference: F32 | None) -> F32:
    return np.zeros(0, dtype=np.float32) if reference is None else reference


def _bytes(frame: bytes) -> NDArray[Any]:
    return np.frombuffer(frame, dtype=np.uint8)
