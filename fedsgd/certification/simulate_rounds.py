"""Rounds of a small federation with given updates instead of training, to examine the frames.

R: rounds; m: clients; P: parameters. All clients have the same aggregation weight and take part in each round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.aggregation import AggregationContext, WeightedUpdate, select_aggregator
from fedsgd.compression.base import CodecContext, CompressionOperator, CompressionScheme, Compressor, EncodedUpdate
from fedsgd.compression.schemes.plain import MemorylessScheme
from fedsgd.compression.updates import StateArrays, Update
from fedsgd.errors import LawError, describe_error
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import derive_generator
from fedsgd.wire import ALL_CLIENTS, Frame, FrameKind, Header, Sections, decode_frame, encode_frame

SEED = 0
RoundFrames = tuple[bytes, Sequence[bytes]]
"""Bytes of one round: the reference frame, empty if there is none, and the frame of each client."""


@dataclass(frozen=True, eq=False)
class SimulatedReply:
    """Reply of one client in one round.

    Attributes:
        ctx: context at the server, without the reference that a client has.
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
    """Frames and vectors [P] of one round. The reference frame, sent along with the model, is empty if the scheme has none."""

    replies: Sequence[SimulatedReply]
    reference_frame: bytes
    decoded_reference: F32 | None
    aggregate: F32

    @property
    def frames(self) -> RoundFrames:
        """All bytes of the round."""
        return self.reference_frame, [reply.frame for reply in self.replies]


def as_scheme(compressor: Compressor) -> CompressionScheme:
    """Return the scheme itself, or a scheme without memory that sends an operator's updates, as in a run."""
    if isinstance(compressor, CompressionScheme):
        return compressor
    assert isinstance(compressor, CompressionOperator)
    return MemorylessScheme(compressor)


def rebuild(value: Any) -> Any:
    """Build an equal component from its fields, recursively; return any other value unchanged."""
    if type(value) is tuple:
        return tuple(map(rebuild, value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{f.name: rebuild(getattr(value, f.name)) for f in fields(value) if f.init})


def encode_message(scheme: CompressionScheme, x: F32, state: StateArrays, ctx: CodecContext) -> tuple[bytes, StateArrays]:
    """Return the frame of one update x [P], and the client's state if the update is acknowledged."""
    encoded_update = scheme.send(x, state, ctx)
    return _encode_update(scheme, encoded_update, ctx), encoded_update.state


def _encode_update(compressor: Compressor, update: EncodedUpdate, ctx: CodecContext) -> bytes:
    header = Header(FrameKind.UPDATE, ctx.round, compressor.codec, base=ctx.round, client=ctx.client, examples=1)
    return encode_frame(Frame(header, update.sections))


def simulate_rounds(compressor: Compressor, updates: F32, layout: ParameterLayout) -> Iterator[SimulatedRound]:
    """Simulate and yield the rounds in which m clients send updates [R, m, P]."""
    scheme, cohort = as_scheme(compressor), updates.shape[1]
    states: list[StateArrays] = [{}] * cohort
    aggregator = select_aggregator(None, scheme)
    server_state = aggregator.init_state(layout)
    for round, round_updates in enumerate(updates, start=1):
        frame = encode_reference_frame(scheme, server_state, make_context(round, ALL_CLIENTS, layout, cohort))
        reference = decode_reference_frame(scheme, frame, make_context(round, ALL_CLIENTS, layout, cohort))
        replies = _send_round(compressor, round_updates, states, round, layout, reference)
        messages = (WeightedUpdate(reply.sections, 1 / cohort, reply.ctx) for reply in replies)
        aggregation_ctx = AggregationContext(SEED, round, layout, cohort, scheme)
        aggregate, server_state = aggregator.aggregate(server_state, messages, aggregation_ctx)
        yield SimulatedRound(replies, frame, reference, aggregate)


def encode_rounds(
    compressor: Compressor, updates: F32, layout: ParameterLayout, references: Sequence[bytes]
) -> Iterator[RoundFrames]:
    """Yield the frames of updates [R, m, P] without aggregation. `references` has each round's reference frame, or b""."""
    scheme, cohort = as_scheme(compressor), updates.shape[1]
    states: list[StateArrays] = [{}] * cohort
    for round, (round_updates, frame) in enumerate(zip(updates, references, strict=True), start=1):
        reference = decode_reference_frame(scheme, frame, make_context(round, ALL_CLIENTS, layout, cohort))
        replies = _send_round(compressor, round_updates, states, round, layout, reference)
        yield frame, [reply.frame for reply in replies]


def _send_round(
    compressor: Compressor, updates: F32, states: list[StateArrays], round: int, layout: ParameterLayout, reference: F32 | None
) -> list[SimulatedReply]:
    """Return the replies that carry one round's updates [m, P], and replace the clients' states."""
    replies = []
    for client, x in enumerate(updates):
        ctx = make_context(round, client, layout, len(updates))
        replies.append(_send_message(compressor, x, states[client], ctx, reference))
        states[client] = replies[-1].state
    return replies


def make_context(round: int, client: int, layout: ParameterLayout, cohort: int) -> CodecContext:
    """Return the context at the server."""
    return CodecContext(SEED, round, client, layout, None, cohort)


def _send_message(
    compressor: Compressor, x: F32, state: StateArrays, ctx: CodecContext, reference: F32 | None
) -> SimulatedReply:
    client_ctx = replace(ctx, reference=reference)
    if isinstance(compressor, CompressionOperator):
        sections, update = compressor.encode(x, client_ctx)
        encoded_update = EncodedUpdate(sections, {}, {})
        frame = _encode_update(compressor, encoded_update, ctx)
        return SimulatedReply(ctx, frame, decode_frame(frame).sections, encoded_update.state, update)
    assert isinstance(compressor, CompressionScheme)
    frame, new_state = encode_message(compressor, x, state, client_ctx)
    sections = decode_frame(frame).sections
    return SimulatedReply(ctx, frame, sections, new_state, compressor.decode(sections, ctx))


def encode_reference_frame(scheme: CompressionScheme, server_state: StateArrays, ctx: CodecContext) -> bytes:
    """Return the reference frame, which is sent along with the model; empty if the scheme has none."""
    sections = scheme.encode_reference(server_state, ctx)
    return encode_frame(Frame(Header(FrameKind.REFERENCE, ctx.round, scheme.codec), sections)) if sections else b""


def decode_reference_frame(scheme: CompressionScheme, frame: bytes, ctx: CodecContext) -> F32 | None:
    """Return the vector [P] that clients decode from the reference frame; None if there is no frame."""
    return scheme.decode_reference(decode_frame(frame).sections, ctx) if frame else None


def hash_frames(rounds: Iterable[RoundFrames]) -> str:
    """Return the SHA-256 digest of all frames, in the order in which they are sent."""
    digest = hashlib.sha256()
    for reference, replies in rounds:
        for frame in (reference, *replies):
            digest.update(frame)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------------- decoding


def decode_rounds(compressor: Compressor, rounds: Sequence[RoundFrames], layout: ParameterLayout) -> Iterator[NDArray[Any]]:
    """Decode frames in a shuffled order, from their bytes and contexts alone; then aggregate the rounds in order.

    Yields each decoded vector [P]; then, for each round, the bytes of the reference frame and the aggregate [P].
    """
    scheme, cohort = as_scheme(compressor), len(rounds[0][1])
    for round, client in _shuffle(rounds):
        reference, replies = rounds[round - 1]
        ctx = make_context(round, client, layout, cohort)
        if client == ALL_CLIENTS:
            yield _as_vector(decode_reference_frame(scheme, reference, ctx))
        else:
            yield scheme.decode(decode_frame(replies[client]).sections, ctx).to_dense()
    aggregator = select_aggregator(None, scheme)
    server_state = aggregator.init_state(layout)
    for round, (_, replies) in enumerate(rounds, start=1):
        yield _as_byte_array(encode_reference_frame(scheme, server_state, make_context(round, ALL_CLIENTS, layout, cohort)))
        contexts = (make_context(round, client, layout, cohort) for client in range(cohort))
        messages = (WeightedUpdate(decode_frame(f).sections, 1 / cohort, ctx) for f, ctx in zip(replies, contexts, strict=True))
        aggregation_ctx = AggregationContext(SEED, round, layout, cohort, scheme)
        aggregate, server_state = aggregator.aggregate(server_state, messages, aggregation_ctx)
        yield aggregate


def require_equal_vectors(
    law: str, compressor: Compressor, rounds: Sequence[SimulatedRound], vectors: Iterator[NDArray[Any]]
) -> None:
    """Raise LawError if a vector of `decode_rounds` differs from the simulated vector, or if decoding it raises an error."""
    for name, expected in _list_vectors(rounds):
        try:
            vector = next(vectors)
        except Exception as error:  # the user's own code, here or in another process
            raise LawError(f"{law}: {compressor}: {name}: {describe_error(error)}") from error
        if vector.shape != expected.shape:
            raise LawError(f"{law}: {compressor}: {name}: got {vector.shape} values, expected {expected.shape}")
        positions = np.flatnonzero(vector != expected)
        if len(positions):
            first = positions[0]
            figures = f"coordinate {first} is {vector[first]:.6g}, expected {expected[first]:.6g}"
            raise LawError(f"{law}: {compressor}: {name}: {figures}; {len(positions)} of {len(vector)} differ")


def _list_vectors(rounds: Sequence[SimulatedRound]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the name and the value of each vector that `decode_rounds` should yield."""
    for round, client in _shuffle([simulated.frames for simulated in rounds]):
        simulated = rounds[round - 1]
        if client == ALL_CLIENTS:
            yield f"round {round}, decoded reference", _as_vector(simulated.decoded_reference)
        else:
            yield f"round {round}, client {client}", simulated.replies[client].update.to_dense()
    for round, simulated in enumerate(rounds, start=1):
        yield f"round {round}, reference frame", _as_byte_array(simulated.reference_frame)
        yield f"round {round}, aggregate", simulated.aggregate


def _shuffle(rounds: Sequence[RoundFrames]) -> list[tuple[int, int]]:
    """Return the round and client of each frame (ALL_CLIENTS for a reference frame), shuffled equally in every run."""
    frames = [(round, ALL_CLIENTS) for round, (reference, _) in enumerate(rounds, start=1) if reference]
    frames += [(round, client) for round, (_, replies) in enumerate(rounds, start=1) for client in range(len(replies))]
    return [frames[i] for i in derive_generator(SEED, "laws/order").permutation(len(frames))]


def _as_vector(reference: F32 | None) -> F32:
    return np.zeros(0, dtype=np.float32) if reference is None else reference


def _as_byte_array(frame: bytes) -> NDArray[Any]:
    return np.frombuffer(frame, dtype=np.uint8)
