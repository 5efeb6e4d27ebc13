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

from fedsgd.arrays import F32, F64
from fedsgd.downlink import Encoded
from fedsgd.errors import WireError
from fedsgd.wire import (
    ALL,
    Frame,
    Header,
    Kind,
    Part,
    Section,
    Sections,
    decode_frame,
    decode_values,
    encode_frame,
    encode_values,
    expect,
    max_value_bytes,
    overhead,
)


@dataclass(frozen=True, eq=False)
class CarriedBuffers:
    """Buffers that clients carry from round to round, and the parameters that never leave a client (FedBN, Li et al. 2021).

    Attributes:
        sent: [S'] float32, initial values of the buffers that are sent and averaged; None if there are none.
        local: [S - S'] float32, initial values of the buffers that never leave a client; None if there are none.
        parameters: [L] float32, initial values of the parameters that never leave a client.
    """

    sent: F32 | None
    local: F32 | None
    parameters: F32

    @property
    def n_sent(self) -> int:
        """S', how many numbers each message carries for them."""
        return 0 if self.sent is None else len(self.sent)

    @property
    def stay(self) -> bool:
        """True if a part of a model never leaves its client, so that no two clients have the same model."""
        return self.local is not None or self.parameters.size > 0

    def joined(self, sent: F32 | None, local: F32 | None) -> F32 | None:
        """Return all buffers of a client [S], None if there are none: those that were sent [S'] and its own [S - S'].

        Its own are the initial ones where `local` is None.
        """
        parts = [part for part in (sent, self.local if local is None else local) if part is not None]
        return np.concatenate(parts) if parts else None


def section_of(statistics: F32) -> Section:
    """The section of an UPDATE that carries a client's statistics [S]; it is the last one."""
    (coded,) = encode_values(statistics, "float32", entropy=False)[0]
    return Section(Part.BUFFER, coded.data)


def max_section_bytes(carried: CarriedBuffers | None) -> int:
    """The most that such a section weighs."""
    return 0 if carried is None or not carried.n_sent else max_value_bytes(carried.n_sent, "float32")


class Opened(NamedTuple):
    """An UPDATE. sections: the scheme's; statistics: [S], None where there are to be none."""

    frame: Frame
    sections: Sections
    statistics: F32 | None


def taken_off(frame: Frame, carried: CarriedBuffers | None) -> Opened:
    """An UPDATE, with what is the scheme's apart from the statistics."""
    if carried is None or not carried.n_sent:
        return Opened(frame, frame.sections, None)
    if not frame.sections or frame.sections[-1].part != Part.BUFFER:
        raise WireError(frame.sections[-1].offset if frame.sections else 0, "the last section is not that of the statistics")
    return Opened(frame, frame.sections[:-1], _read(frame.sections[-1], carried.n_sent))


def framed(round: int, statistics: F32) -> Encoded:
    """The frame that brings the mean statistics [S] to all clients of a round."""
    begun = time.perf_counter()
    frame = Frame(Header(Kind.BUFFERS, round), (section_of(statistics),))
    return Encoded(encode_frame(frame), frame, 0, time.perf_counter() - begun)


def opened(data: bytes, carried: CarriedBuffers, round: int) -> F32:
    """Inverse of `framed`."""
    frame = decode_frame(data, overhead(1) + max_section_bytes(carried))
    fixed = {"codec": (0,), "base": (0,), "client": (ALL,), "acknowledged": (0,), "examples": (0,)}
    expect(frame.header, kind=(Kind.BUFFERS,), round=(round,), **fixed)
    if [section.part for section in frame.sections] != [Part.BUFFER]:
        raise WireError(overhead(0), "expected one section, of buffers")
    return _read(frame.sections[0], carried.n_sent)


def mean(statistics: Sequence[F32], shares: F64) -> F32:
    """Of the cohort, weighted as clients are, in the order of clients [S]."""
    total = np.zeros(len(statistics[0]))
    for values, share in zip(statistics, shares / shares.sum(), strict=True):
        total += values.astype(np.float64) * share
    return total.astype(np.float32)


def _read(section: Section, size: int) -> F32:
    return decode_values((Section(Part.VALUE, section.data, section.offset),), size, "float32", entropy=False)
