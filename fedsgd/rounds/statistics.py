"""The running statistics of batch norm on the wire: dense float32 means, counted like everything else.

S statistics: each layer's mean and variance. They are no gradients, so no compressor and no optimiser sees them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

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
class BatchNorm:
    """What becomes of batch norm. policy: its running statistics are sent and averaged ("mean"), or they and its affine
    parameters never leave a client ("local": FedBN, Li et al. 2021). initial: the statistics of a client that has none yet [S],
    None if none are kept; local: the parameters that stay, as they are at first [L]; none under "mean"."""

    policy: Literal["mean", "local"]
    initial: F32 | None
    local: F32

    @property
    def sent(self) -> F32 | None:
        """What the first message carries for it [S], None if messages carry nothing."""
        return self.initial if self.policy == "mean" else None

    @property
    def n_sent(self) -> int:
        """How many numbers each message carries for it."""
        return 0 if self.sent is None else len(self.sent)


def section_of(statistics: F32) -> Section:
    """The section of an UPDATE that carries a client's statistics [S]; it is the last one."""
    (coded,) = encode_values(statistics, "float32", entropy=False)[0]
    return Section(Part.BUFFER, coded.data)


def max_section_bytes(norm: BatchNorm | None) -> int:
    """The most that such a section weighs."""
    return 0 if norm is None or not norm.n_sent else max_value_bytes(norm.n_sent, "float32")


class Opened(NamedTuple):
    """An UPDATE. sections: the scheme's; statistics: [S], None where there are to be none."""

    frame: Frame
    sections: Sections
    statistics: F32 | None


def taken_off(frame: Frame, norm: BatchNorm | None) -> Opened:
    """An UPDATE, with what is the scheme's apart from the statistics."""
    if norm is None or not norm.n_sent:
        return Opened(frame, frame.sections, None)
    if not frame.sections or frame.sections[-1].part != Part.BUFFER:
        raise WireError(frame.sections[-1].offset if frame.sections else 0, "the last section is not that of the statistics")
    return Opened(frame, frame.sections[:-1], _read(frame.sections[-1], norm.n_sent))


def framed(round: int, statistics: F32) -> Encoded:
    """The frame that brings the mean statistics [S] to all clients of a round."""
    begun = time.perf_counter()
    frame = Frame(Header(Kind.BUFFERS, round), (section_of(statistics),))
    return Encoded(encode_frame(frame), frame, 0, time.perf_counter() - begun)


def opened(data: bytes, norm: BatchNorm, round: int) -> F32:
    """Inverse of `framed`."""
    frame = decode_frame(data, overhead(1) + max_section_bytes(norm))
    fixed = {"codec": (0,), "base": (0,), "client": (ALL,), "acknowledged": (0,), "examples": (0,)}
    expect(frame.header, kind=(Kind.BUFFERS,), round=(round,), **fixed)
    if [section.part for section in frame.sections] != [Part.BUFFER]:
        raise WireError(overhead(0), "expected one section, of buffers")
    return _read(frame.sections[0], norm.n_sent)


def mean(statistics: Sequence[F32], shares: F64) -> F32:
    """Of the cohort, weighted as clients are, in the order of clients [S]."""
    total = np.zeros(len(statistics[0]))
    for values, share in zip(statistics, shares / shares.sum(), strict=True):
        total += values.astype(np.float64) * share
    return total.astype(np.float32)


def _read(section: Section, size: int) -> F32:
    return decode_values((Section(Part.VALUE, section.data, section.offset),), size, "float32", entropy=False)
