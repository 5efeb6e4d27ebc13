"""MODEL frames: policies of the downlink, and the encoders of the frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from fedsgd.compression import CodecContext, CompressionOperator
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.sparsifier import encode_sparse, max_sparse_bytes
from fedsgd.numerics.arrays import F32, I64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import MAX_SECTIONS, Frame, FrameKind, Header, Sections, encode_frame, frame_overhead

DownlinkPolicy = Literal["model", "difference", "unbiased", "error-feedback", "ef21-p"]
"""Policies of the downlink, described in `fedsgd.federation.downlink`."""
POLICY_ALIASES: Mapping[str, DownlinkPolicy] = {"plain": "unbiased", "shift": "ef21-p"}
"""Earlier names of policies, which scenarios may still use."""
ContextFactory = Callable[[int], CodecContext]
"""Function of a round to the codec context of the round's MODEL frame, which server and clients derive independently."""

ASSIGN_CODEC = 40
"""Codec of a MODEL frame that assigns float32 values to the coordinates at given positions."""
LOSSLESS_DENSE = Dense(entropy=True)
"""Operator that encodes the full model exactly, under all policies but "model"."""


@dataclass(frozen=True)
class ModelBroadcast:
    """Downlink settings of a federation.

    Attributes:
        policy: policy of the public model, described in `fedsgd.federation.downlink`.
        operator: operator C of the policy, which encodes the full model under "model"; not used under "difference".
        history_rounds: rounds for which a stored model can be the base of differences; None for no limit.

    >>> ModelBroadcast("ef21-p").assumed_base_round(7, known_round=3)  # differences since round 3
    3
    >>> ModelBroadcast("ef21-p", history_rounds=2).assumed_base_round(7, known_round=3)  # the full model
    0
    """

    policy: DownlinkPolicy = "model"
    operator: CompressionOperator = Dense()
    history_rounds: int | None = None

    @property
    def full_model_operator(self) -> CompressionOperator:
        """Operator that encodes the full model."""
        return self.operator if self.policy == "model" else LOSSLESS_DENSE

    @property
    def clients_keep_model(self) -> bool:
        """True if clients store the last model that they decoded."""
        return self.policy != "model"

    @property
    def uses_server_step(self) -> bool:
        """True if the public model follows the step of the server's optimizer, and not the server's model."""
        return self.policy in ("unbiased", "error-feedback")

    def assumed_base_round(self, round: int, known_round: int) -> int:
        """Return the round of the model that the server assumes a client to have stored; 0 for none.

        Args:
            round: round of the message.
            known_round: last round in which the client has decoded a model, as far as the server knows; 0 for none.
        """
        is_stored = self.clients_keep_model and (self.history_rounds is None or round - known_round <= self.history_rounds)
        return known_round if is_stored else 0


@dataclass(frozen=True, eq=False)
class EncodedFrame:
    """Frame that this process encoded.

    Attributes:
        data, decoded: the frame's bytes, and the frame that the bytes decode to.
        n_coordinates: coordinates of a MODEL frame; 0 for other kinds.
        encode_seconds: seconds that encoding took.
    """

    data: bytes
    decoded: Frame
    n_coordinates: int
    encode_seconds: float


def encode_full_model(downlink: ModelBroadcast, weights: F32, ctx: CodecContext) -> tuple[F32, EncodedFrame]:
    """Return the model that clients decode, [P] float32, and the frame that carries the model.

    Args:
        downlink: settings of the downlink.
        weights: [P] float32, the model before encoding.
        ctx: codec context of the round.
    """
    start_time, operator = time.perf_counter(), downlink.full_model_operator
    sections, update = operator.encode(weights, ctx)
    frame = make_frame(Header(FrameKind.MODEL, ctx.round, operator.codec), sections, update.n_coordinates, start_time)
    return (weights if operator.lossless else update.to_dense()), frame


def encode_changes(base_round: int, model: F32, indices: I64, ctx: CodecContext) -> EncodedFrame:
    """Return the frame that assigns a model's values at some positions.

    Args:
        base_round: earliest round whose model the frame can be applied to.
        model: [P] float32, the present model.
        indices: [k] int64, ascending positions.
        ctx: codec context of the round.
    """
    start_time = time.perf_counter()
    sections, _ = encode_sparse(indices, model[indices], "float32", ctx)
    return make_frame(Header(FrameKind.MODEL, ctx.round, ASSIGN_CODEC, base=base_round), sections, len(indices), start_time)


def make_frame(header: Header, sections: Sections, n_coordinates: int, start_time: float) -> EncodedFrame:
    """Encode a frame, and measure the seconds since `start_time`.

    Args:
        header: header of the frame.
        sections: encoded sections of the frame.
        n_coordinates: coordinates that the sections carry.
        start_time: `time.perf_counter()` before the sections were encoded.
    """
    frame = Frame(header, sections)
    return EncodedFrame(encode_frame(frame), frame, n_coordinates, time.perf_counter() - start_time)


def max_model_bytes(downlink: ModelBroadcast, layout: ParameterLayout) -> int:
    """Return the maximum number of bytes in a MODEL frame.

    Args:
        downlink: settings of the downlink.
        layout: names and shapes of the P parameters.
    """
    section_bytes = [downlink.full_model_operator.max_bytes(layout)]
    if downlink.clients_keep_model:
        section_bytes += [downlink.operator.max_bytes(layout), max_sparse_bytes(layout.size, "float32", layout.size)]
    return frame_overhead(MAX_SECTIONS) + max(section_bytes)
