"""Frames and sections of the buffers that training changes.

S' of the S entries are sent, as dense float32; the policies of `[model]` select the entries. Buffers are not gradients, so no
compressor and no optimizer is applied to them.
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
        averaged: [S'] float32, initial values of the buffers that are sent and averaged; None if there are none.
        local: [S - S'] float32, initial values of the buffers that never leave a client; None if there are none.
        local_parameters: [L] float32, initial values of the parameters that never leave a client.
    """

    averaged: F32 | None
    local: F32 | None
    local_parameters: F32

    @property
    def n_averaged(self) -> int:
        """S', the number of buffer entries in each message."""
        return 0 if self.averaged is None else len(self.averaged)

    @property
    def has_local_state(self) -> bool:
        """True if a part of the model never leaves its client, so that clients have different models."""
        return self.local is not None or self.local_parameters.size > 0

    def join(self, averaged: F32 | None, local: F32 | None) -> F32 | None:
        """Return all buffers of a client, [S] float32; None if there are none.

        Args:
            averaged: [S'] float32, buffers that the client was sent; None if none are sent.
            local: [S - S'] float32, buffers that the client stores; None for the initial values.
        """
        parts = [part for part in (averaged, self.local if local is None else local) if part is not None]
        return np.concatenate(parts) if parts else None


def encode_buffer_section(buffers: F32) -> Section:
    """Return the section that carries buffers: the last of an UPDATE frame, the only one of a BUFFERS frame.

    Args:
        buffers: [S'] float32, a client's buffers after local training, or averaged buffers.
    """
    (section,) = encode_values(buffers, "float32", entropy=False)[0]
    return Section(SectionKind.BUFFER, section.data)


def max_buffer_section_bytes(buffer_plan: BufferPlan | None) -> int:
    """Return the maximum number of bytes in a buffer section.

    Args:
        buffer_plan: buffers of the plan; None if there are none.
    """
    return 0 if buffer_plan is None or not buffer_plan.n_averaged else max_value_bytes(buffer_plan.n_averaged, "float32")


class DecodedUpdate(NamedTuple):
    """Decoded UPDATE frame.

    Attributes:
        frame: the frame with all sections.
        sections: sections of the scheme.
        buffers: [S'] float32, the client's buffers; None if the plan averages none.
    """

    frame: Frame
    sections: Sections
    buffers: F32 | None


def split_buffers(frame: Frame, buffer_plan: BufferPlan | None) -> DecodedUpdate:
    """Separate an UPDATE frame's buffers from the scheme's sections. Raise a WireError if the buffer section is not valid.

    Args:
        frame: a decoded UPDATE frame.
        buffer_plan: buffers of the plan; None if there are none.
    """
    if buffer_plan is None or not buffer_plan.n_averaged:
        return DecodedUpdate(frame, frame.sections, None)
    if not frame.sections or frame.sections[-1].kind != SectionKind.BUFFER:
        raise WireError(frame.sections[-1].offset if frame.sections else 0, "the last section is not a buffer section")
    return DecodedUpdate(frame, frame.sections[:-1], _decode_section(frame.sections[-1], buffer_plan.n_averaged))


def encode_buffers_frame(round: int, buffers: F32) -> EncodedFrame:
    """Return the BUFFERS frame that carries the averaged buffers to all clients of a round.

    Args:
        round: round of the message, from 1.
        buffers: [S'] float32, averaged buffers.
    """
    start_time = time.perf_counter()
    frame = Frame(Header(FrameKind.BUFFERS, round), (encode_buffer_section(buffers),))
    return EncodedFrame(encode_frame(frame), frame, 0, time.perf_counter() - start_time)


def decode_buffers_frame(data: bytes, buffer_plan: BufferPlan, round: int) -> F32:
    """Return a BUFFERS frame's buffers, [S'] float32. Raise a WireError if the frame is damaged or of another round.

    Args:
        data: bytes of the frame, as they were received.
        buffer_plan: buffers of the plan.
        round: round of the message.
    """
    frame = decode_frame(data, frame_overhead(1) + max_buffer_section_bytes(buffer_plan))
    expected_fields = {"codec": (0,), "base": (0,), "client": (ALL_CLIENTS,), "acknowledged": (0,), "examples": (0,)}
    require_header(frame.header, kind=(FrameKind.BUFFERS,), round=(round,), **expected_fields)
    if [section.kind for section in frame.sections] != [SectionKind.BUFFER]:
        raise WireError(frame_overhead(0), "expected one section, of buffers")
    return _decode_section(frame.sections[0], buffer_plan.n_averaged)


def average_buffers(buffers: Sequence[F32], aggregation_weights: F64) -> F32:
    """Return the weighted mean of the clients' buffers, [S'] float32. The sum is in float64, in the order of `buffers`.

    Args:
        buffers: for each client, [S'] float32, ascending by client.
        aggregation_weights: [len(buffers)] float64; the weights are divided by their sum.
    """
    total = np.zeros(len(buffers[0]))
    for values, weight in zip(buffers, aggregation_weights / aggregation_weights.sum(), strict=True):
        total += values.astype(np.float64) * weight
    return total.astype(np.float32)


def _decode_section(section: Section, size: int) -> F32:
    return decode_values((Section(SectionKind.VALUE, section.data, section.offset),), size, "float32", entropy=False)
