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

from fedsgd.compression.base import (
    AggregationContext,
    CodecContext,
    CompressionOperator,
    CompressionScheme,
    Compressor,
    EncodedUpdate,
    WeightedUpdate,
)
from fedsgd.compression.schemes.plain import MemorylessScheme
from fedsgd.compression.updates import StateArrays, Update
from fedsgd.errors import LawError, describe_error
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import derive_generator
from fedsgd.wire import ALL_CLIENTS, Frame, FrameKind, Header, Sections, decode_frame, encode_frame

SEED = 0
RoundFrames = tuple[bytes, Sequence[bytes]]
"""(the reference frame, empty if there is none; the frame of each client) of one round."""


@dataclass(frozen=True, eq=False)
class SimulatedReply:
    """One client's reply in one round.

    Attributes:
        ctx: context of the server: without the reference that a client has.
        frame: bytes of the reply.
        sections: sections that are read back from the frame.
        state: the client's state if the reply is acknowledged.
        update: update that an operator's `encode` returned, or that a scheme decoded from the frame.
    """

    ctx: CodecContext
    frame: bytes
    sections: Sections
    state: StateArrays
    update: Update


@dataclass(frozen=True, eq=False)
class SimulatedRound:
    """One round.

    Attributes:
        messages: one for each client.
        reference: the frame that is sent along with the model, empty if there is none.
        decoded_reference: [P], the vector that clients decode from `reference`, None if there is none.
        update: [P], the aggregate.
    """

    replies: Sequence[SimulatedReply]
    reference_frame: bytes
    decoded_reference: F32 | None
    aggregate: F32

    @property
    def frames(self) -> RoundFrames:
        """All bytes of the round."""
        return self.reference_frame, [message.frame for message in self.replies]


def as_scheme(compressor: Compressor) -> CompressionScheme:
    """Return the compressor as rounds use it: an operator becomes a scheme without memory."""
    if isinstance(compressor, CompressionScheme):
        return compressor
    assert isinstance(compressor, CompressionOperator)
    return MemorylessScheme(compressor)


def rebuild(value: Any) -> Any:
    """Build an equal component from its fields alone, and the components in them too; return other values as they are."""
    if type(value) is tuple:
        return tuple(map(rebuild, value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{f.name: rebuild(getattr(value, f.name)) for f in fields(value) if f.init})


def encode_message(scheme: CompressionScheme, x: F32, state: StateArrays, ctx: CodecContext) -> tuple[bytes, StateArrays]:
    """Return the frame of one update x [P], and the client's state if it is acknowledged."""
    sent = scheme.send(x, state, ctx)
    return _encode_update(scheme, sent, ctx), sent.state


def _encode_update(compressor: Compressor, update: EncodedUpdate, ctx: CodecContext) -> bytes:
    header = Header(FrameKind.UPDATE, ctx.round, compressor.codec, base=ctx.round, client=ctx.client, examples=1)
    return encode_frame(Frame(header, update.sections))


def simulate_rounds(compressor: Compressor, updates: F32, layout: ParameterLayout) -> Iterator[SimulatedRound]:
    """Yield one round after the other. updates: [R, m, P]."""
    scheme, cohort = as_scheme(compressor), updates.shape[1]
    states: list[StateArrays] = [{}] * cohort
    server: StateArrays = {}
    for round, of_round in enumerate(updates, start=1):
        reference = encode_reference_frame(scheme, server, make_context(round, ALL_CLIENTS, layout, cohort))
        decoded = decode_reference_frame(scheme, reference, make_context(round, ALL_CLIENTS, layout, cohort))
        messages = _send_round(compressor, of_round, states, round, layout, decoded)
        received = (WeightedUpdate(message.sections, 1 / cohort, message.ctx) for message in messages)
        update, server = scheme.aggregate(server, received, AggregationContext(SEED, round, layout, cohort))
        yield SimulatedRound(messages, reference, decoded, update)


def encode_rounds(
    compressor: Compressor, updates: F32, layout: ParameterLayout, references: Sequence[bytes]
) -> Iterator[RoundFrames]:
    """Encode the clients' frames of one round after the other, as a client does that aggregates nothing.

    Args:
        compressor: the compressor.
        updates: [R, m, P].
        layout: of the updates.
        references: the reference frame of each round, empty where there is none.
    """
    scheme, cohort = as_scheme(compressor), updates.shape[1]
    states: list[StateArrays] = [{}] * cohort
    for round, (of_round, reference) in enumerate(zip(updates, references, strict=True), start=1):
        decoded = decode_reference_frame(scheme, reference, make_context(round, ALL_CLIENTS, layout, cohort))
        messages = _send_round(compressor, of_round, states, round, layout, decoded)
        yield reference, [message.frame for message in messages]


def _send_round(
    compressor: Compressor, updates: F32, states: list[StateArrays], round: int, layout: ParameterLayout, reference: F32 | None
) -> list[SimulatedReply]:
    """Send updates [m, P] of one round, and replace the states of the clients."""
    messages = []
    for client, x in enumerate(updates):
        ctx = make_context(round, client, layout, len(updates))
        messages.append(_send_message(compressor, x, states[client], ctx, reference))
        states[client] = messages[-1].state
    return messages


def make_context(round: int, client: int, layout: ParameterLayout, cohort: int) -> CodecContext:
    """Return the context of the server."""
    return CodecContext(SEED, round, client, layout, None, cohort)


def _send_message(
    compressor: Compressor, x: F32, state: StateArrays, ctx: CodecContext, reference: F32 | None
) -> SimulatedReply:
    at_client = replace(ctx, reference=reference)
    if isinstance(compressor, CompressionOperator):
        sections, update = compressor.encode(x, at_client)
        sent = EncodedUpdate(sections, {}, {})
        frame = _encode_update(compressor, sent, ctx)
        return SimulatedReply(ctx, frame, decode_frame(frame).sections, sent.state, update)
    assert isinstance(compressor, CompressionScheme)
    frame, after = encode_message(compressor, x, state, at_client)
    sections = decode_frame(frame).sections
    return SimulatedReply(ctx, frame, sections, after, compressor.decode(sections, ctx))


def encode_reference_frame(scheme: CompressionScheme, server_state: StateArrays, ctx: CodecContext) -> bytes:
    """Return the frame that is sent along with the model, empty if the scheme sends none."""
    sections = scheme.encode_reference(server_state, ctx)
    return encode_frame(Frame(Header(FrameKind.REFERENCE, ctx.round, scheme.codec), sections)) if sections else b""


def decode_reference_frame(scheme: CompressionScheme, frame: bytes, ctx: CodecContext) -> F32 | None:
    """Return the vector [P] that clients decode from the reference frame, None if there is no frame."""
    return scheme.decode_reference(decode_frame(frame).sections, ctx) if frame else None


def hash_frames(rounds: Iterable[RoundFrames]) -> str:
    """Return the SHA-256 of every frame, in the order in which they are sent."""
    sha = hashlib.sha256()
    for reference, replies in rounds:
        for frame in (reference, *replies):
            sha.update(frame)
    return sha.hexdigest()


# ------------------------------------------------------------------------------------------------------- from the bytes alone


def decode_rounds(compressor: Compressor, rounds: Sequence[RoundFrames], layout: ParameterLayout) -> Iterator[NDArray[Any]]:
    """Decode frames in a shuffled order, from their bytes and contexts alone; then aggregate round after round.

    Yields:
        Each decoded vector [P]; then, for each round, the bytes of the reference frame, and the aggregate [P].
    """
    scheme, cohort = as_scheme(compressor), len(rounds[0][1])
    for round, client in _shuffle(rounds):
        reference, replies = rounds[round - 1]
        ctx = make_context(round, client, layout, cohort)
        if client == ALL_CLIENTS:
            yield _as_vector(decode_reference_frame(scheme, reference, ctx))
        else:
            yield scheme.decode(decode_frame(replies[client]).sections, ctx).to_dense()
    server: StateArrays = {}
    for round, (_, replies) in enumerate(rounds, start=1):
        yield _as_byte_array(encode_reference_frame(scheme, server, make_context(round, ALL_CLIENTS, layout, cohort)))
        contexts = (make_context(round, client, layout, cohort) for client in range(cohort))
        received = (WeightedUpdate(decode_frame(f).sections, 1 / cohort, ctx) for f, ctx in zip(replies, contexts, strict=True))
        update, server = scheme.aggregate(server, received, AggregationContext(SEED, round, layout, cohort))
        yield update


def require_equal_vectors(
    law: str, compressor: Compressor, rounds: Sequence[SimulatedRound], vectors: Iterator[NDArray[Any]]
) -> None:
    """Compare the vectors of `decode_rounds` with those of the exchanges; LawError with the first difference.

    Args:
        law: name of the law.
        compressor: the compressor that encoded.
        rounds: the exchanges of which the frames were decoded.
        decoded: vectors as `decode_rounds` yields them.
    """
    for where, expected in _list_vectors(rounds):
        try:
            got = next(vectors)
        except Exception as error:  # the user's own code, here or in another process
            raise LawError(f"{law}: {compressor}: {where}: {describe_error(error)}") from error
        if got.shape != expected.shape:
            raise LawError(f"{law}: {compressor}: {where}: got {got.shape} values, expected {expected.shape}")
        wrong = np.flatnonzero(got != expected)
        if len(wrong):
            figures = f"coordinate {wrong[0]} is {got[wrong[0]]:.6g}, expected {expected[wrong[0]]:.6g}"
            raise LawError(f"{law}: {compressor}: {where}: {figures}; {len(wrong)} of {len(got)} differ")


def _list_vectors(rounds: Sequence[SimulatedRound]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the name and the value of each vector that `decode_rounds` should yield."""
    for round, client in _shuffle([exchange.frames for exchange in rounds]):
        exchange = rounds[round - 1]
        if client == ALL_CLIENTS:
            yield f"round {round}, decoded reference", _as_vector(exchange.decoded_reference)
        else:
            yield f"round {round}, client {client}", exchange.replies[client].update.to_dense()
    for round, exchange in enumerate(rounds, start=1):
        yield f"round {round}, reference frame", _as_byte_array(exchange.reference_frame)
        yield f"round {round}, aggregate", exchange.aggregate


def _shuffle(rounds: Sequence[RoundFrames]) -> list[tuple[int, int]]:
    """Return the round and the client of each frame, ALL for the reference frame, in an order that is always the same."""
    places = [(round, ALL_CLIENTS) for round, (reference, _) in enumerate(rounds, start=1) if reference]
    places += [(round, client) for round, (_, replies) in enumerate(rounds, start=1) for client in range(len(replies))]
    return [places[i] for i in derive_generator(SEED, "laws/order").permutation(len(places))]


def _as_vector(reference: F32 | None) -> F32:
    return np.zeros(0, dtype=np.float32) if reference is None else reference


def _as_byte_array(frame: bytes) -> NDArray[Any]:
    return np.frombuffer(frame, dtype=np.uint8)
