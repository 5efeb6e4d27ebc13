"""Buffers that training changes on the wire: dense float32 means, counted like everything else.

S numbers, of which S' are sent: batch norm's running statistics, and other buffers by `[model] buffers`. They are no gradients,
so no compressor and no optimizer sees them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedsgd.errors import WireError
from fedsgd.federation.downlink import EncodedFrame
from fedsgd.numerics.arrays import F32, F64
from fedsgd.wire import (
    ALL_CLIENTS,
    Frame,
    FrameKind,
    Header,
    Section,
    SectionKind,
    Sections,
    decode_frame,
    decode_values,
    encode_frame,
    encode_values,
    frame_overhead,
    max_value_bytes,
    require_header,
)


@dataclass(frozen=True, eq=False)
class BufferPlan:
    """Buffers that clients carry from round to round, and the parameters that never leave a client (FedBN, Li et al. 2021).

    Attributes:
        sent: [S'] float32, initial values of the buffers that are sent and averaged; None if there are none.
        local: [S - S'] float32, initial values of the buffers that never leave a client; None if there are none.
        parameters: [L] float32, initial values of the parameters that never leave a client.
    """

    averaged: F32 | None
    local: F32 | None
    local_parameters: F32

    @property
    def n_averaged(self) -> int:
        """S', how many numbers each message carries for them."""
        return 0 if self.averaged is None else len(self.averaged)

    @property
    def has_local_state(self) -> bool:
        """True if a part of a model never leaves its client, so that no two clients have the same model."""
        return self.local is not None or self.local_parameters.size > 0

    def join(self, averaged: F32 | None, local: F32 | None) -> F32 | None:
        """Return all buffers of a client [S], None if there are none: those that were sent [S'] and its own [S - S'].

        Its own are the initial ones where `local` is None.
        """
        parts = [part for part in (averaged, self.local if local is None else local) if part is not None]
        return np.concatenate(parts) if parts else None


def encode_buffer_section(buffers: F32) -> Section:
    """The section of an UPDATE that carries a client's statistics [S]; it is the last one."""
    (coded,) = encode_values(buffers, "float32", entropy=False)[0]
    return Section(SectionKind.BUFFER, coded.data)


def max_buffer_section_bytes(buffer_plan: BufferPlan | None) -> int:
    """The most that such a section weighs."""
    return 0 if buffer_plan is None or not buffer_plan.n_averaged else max_value_bytes(buffer_plan.n_averaged, "float32")


class DecodedUpdate(NamedTuple):
    """An UPDATE. sections: the scheme's; statistics: [S], None where there are to be none."""

    frame: Frame
    sections: Sections
    buffers: F32 | None


def split_buffers(frame: Frame, buffer_plan: BufferPlan | None) -> DecodedUpdate:
    """An UPDATE, with what is the scheme's apart from the statistics."""
    if buffer_plan is None or not buffer_plan.n_averaged:
        return DecodedUpdate(frame, frame.sections, None)
    if not frame.sections or frame.sections[-1].kind != SectionKind.BUFFER:
        raise WireError(frame.sections[-1].offset if frame.sections else 0, "the last section is not that of the statistics")
    return DecodedUpdate(frame, frame.sections[:-1], _decode_section(frame.sections[-1], buffer_plan.n_averaged))


def encode_buffers_frame(round: int, buffers: F32) -> EncodedFrame:
    """The frame that brings the mean statistics [S] to all clients of a round."""
    begun = time.perf_counter()
    frame = Frame(Header(FrameKind.BUFFERS, round), (encode_buffer_section(buffers),))
    return EncodedFrame(encode_frame(frame), frame, 0, time.perf_counter() - begun)


def decode_buffers_frame(data: bytes, buffer_plan: BufferPlan, round: int) -> F32:
    """Inverse of `encode_buffers_frame`."""
    frame = decode_frame(data, frame_overhead(1) + max_buffer_section_bytes(buffer_plan))
    fixed = {"codec": (0,), "base": (0,), "client": (ALL_CLIENTS,), "acknowledged": (0,), "examples": (0,)}
    require_header(frame.header, kind=(FrameKind.BUFFERS,), round=(round,), **fixed)
    if [section.kind for section in frame.sections] != [SectionKind.BUFFER]:
        raise WireError(frame_overhead(0), "expected one section, of buffers")
    return _decode_section(frame.sections[0], buffer_plan.n_averaged)


def average_buffers(buffers: Sequence[F32], aggregation_weights: F64) -> F32:
    """Of the cohort, weighted as clients are, in the order of clients [S]."""
    total = np.zeros(len(buffers[0]))
    for values, share in zip(buffers, aggregation_weights / aggregation_weights.sum(), strict=True):
        total += values.astype(np.float64) * share
    return total.astype(np.float32)


def _decode_section(section: Section, size: int) -> F32:
    return decode_values((Section(SectionKind.VALUE, section.data, section.offset),), size, "float32", entropy=False)
