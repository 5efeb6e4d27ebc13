"""MODEL frames: the policies that say which there are, and how each is encoded. P parameters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fedsgd.compression import CodecContext, CompressionOperator
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.sparsifier import encode_sparse, max_sparse_bytes
from fedsgd.numerics.arrays import F32, I64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import MAX_SECTIONS, Frame, FrameKind, Header, Sections, encode_frame, frame_overhead

DownlinkPolicy = Literal["model", "difference", "plain", "error-feedback", "shift"]
ContextFactory = Callable[[int], CodecContext]
"""What both ends know of a MODEL frame, by its round."""

ASSIGN_CODEC = 40
"""The codec of a MODEL frame that assigns: positions, and the values that stand there now, as float32."""
LOSSLESS_DENSE = Dense(entropy=True)
"""How the whole model is sent where the others of the round get a difference: exactly."""


@dataclass(frozen=True)
class ModelBroadcast:
    """policy: see the module; op: C, or the form of the whole model; remember: for how many rounds a client keeps a model, so
    that it can be told differences (None: for ever)."""

    policy: DownlinkPolicy = "model"
    operator: CompressionOperator = Dense()
    history_rounds: int | None = None

    @property
    def full_model_operator(self) -> CompressionOperator:
        """How the whole model is sent."""
        return self.operator if self.policy == "model" else LOSSLESS_DENSE

    @property
    def clients_keep_model(self) -> bool:
        """Whether clients have to keep the model that they were sent last."""
        return self.policy != "model"

    def assumed_base_round(self, round: int, known_round: int) -> int:
        """The model that a client can be taken to hold in `round`, if the one of round `known_round` (0: none) was the last
        that it
        is known to have had; 0: none."""
        kept = self.clients_keep_model and (self.history_rounds is None or round - known_round <= self.history_rounds)
        return known_round if kept else 0


@dataclass(frozen=True, eq=False)
class EncodedFrame:
    """A frame that was made here. opened: what it decodes to; kept: how many coordinates it carries; seconds: what making it
    took."""

    data: bytes
    decoded: Frame
    n_coordinates: int
    encode_seconds: float


def encode_full_model(downlink: ModelBroadcast, weights: F32, ctx: CodecContext) -> tuple[F32, EncodedFrame]:
    """(what clients decode [P], the frame)."""
    begun = time.perf_counter()
    sections, update = downlink.full_model_operator.encode(weights, ctx)
    frame = make_frame(
        Header(FrameKind.MODEL, ctx.round, downlink.full_model_operator.codec), sections, update.n_coordinates, begun
    )
    return (weights if downlink.full_model_operator.lossless else update.to_dense()), frame


def encode_changes(base_round: int, model: F32, indices: I64, ctx: CodecContext) -> EncodedFrame:
    """The frame that assigns the model's values [P] at these positions."""
    begun = time.perf_counter()
    sections, _ = encode_sparse(indices, model[indices], "float32", ctx)
    return make_frame(Header(FrameKind.MODEL, ctx.round, ASSIGN_CODEC, base=base_round), sections, len(indices), begun)


def make_frame(header: Header, sections: Sections, n_coordinates: int, start_time: float) -> EncodedFrame:
    """A frame of these sections, which carry `n_coordinates` coordinates; making them began at `start_time`."""
    frame = Frame(header, sections)
    return EncodedFrame(encode_frame(frame), frame, n_coordinates, time.perf_counter() - start_time)


def max_model_bytes(downlink: ModelBroadcast, layout: ParameterLayout) -> int:
    """The longest MODEL frame."""
    sections = [downlink.full_model_operator.max_bytes(layout)]
    if downlink.clients_keep_model:
        sections += [downlink.operator.max_bytes(layout), max_sparse_bytes(layout.size, "float32", layout.size)]
    return frame_overhead(MAX_SECTIONS) + max(sections)
