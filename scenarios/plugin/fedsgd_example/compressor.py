"""A compressor: the largest coordinate of each chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.compression import CodecContext, CompressionOperator, SparseUpdate, Update
from fedsgd.compression.base import OperatorKind
from fedsgd.config.component import PositiveInt
from fedsgd.errors import WireError
from fedsgd.numerics.arrays import F32, I64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Section, SectionKind, Sections, bits, decode_values, encode_values, max_value_bytes


@dataclass(frozen=True)
class ChunkMax(CompressionOperator):
    """The coordinate of largest magnitude in each chunk of consecutive coordinates.

    Positions are offsets in a chunk, of ⌈log₂ chunk⌉ bits. Contractive: the largest of c squares is at least their mean, so
    δ = 1/c. Ties go to the lowest position.

    Attributes:
        chunk: c, coordinates in a chunk; the last chunk may be shorter.
    """

    name: ClassVar[str] = "chunk-max"
    kind: ClassVar[OperatorKind] = "contractive"

    chunk: PositiveInt = 64

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        starts = np.arange(0, len(x), self.chunk)
        padded = np.zeros(len(starts) * self.chunk, dtype=np.float32)
        padded[: len(x)] = np.abs(x)
        offsets = padded.reshape(-1, self.chunk).argmax(axis=1)
        indices = starts + offsets
        value_sections, values = encode_values(x[indices], "float32", ctx.derive_key("values"))
        index_section = Section(SectionKind.INDEX, bits.pack(offsets, self._offset_widths(len(x))))
        return (index_section, *value_sections), SparseUpdate(indices, values, len(x))

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        size = ctx.layout.size
        widths = self._offset_widths(size)
        n_index_bytes = bits.n_bytes(int(widths.sum()))
        if not sections or sections[0].kind != SectionKind.INDEX or len(sections[0].data) != n_index_bytes:
            offset = sections[0].offset if sections else 0
            raise WireError(offset, f"expected an INDEX section of {n_index_bytes} bytes first")
        offsets = bits.unpack(sections[0].data, widths)
        indices = np.arange(0, size, self.chunk) + offsets
        lengths = np.minimum(self.chunk, size - np.arange(0, size, self.chunk))
        if (offsets >= lengths).any():
            raise WireError(sections[0].offset, "an offset is outside its chunk")
        return SparseUpdate(indices, decode_values(sections[1:], len(indices), "float32"), size)

    def _offset_widths(self, size: int) -> I64:
        """Return the number of bits of each chunk's offset."""
        return np.full(-(-size // self.chunk), (min(self.chunk, size) - 1).bit_length(), dtype=np.int64)

    def max_bytes(self, layout: ParameterLayout) -> int:
        widths = self._offset_widths(layout.size)
        return bits.n_bytes(int(widths.sum())) + max_value_bytes(len(widths), "float32")

    def contraction(self, layout: ParameterLayout) -> float:
        return 1 / min(self.chunk, layout.size)
