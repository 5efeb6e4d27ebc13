"""Two codes of the gaps between the positions of an index set: rice(k) and classes(k) of `wire-format-values.md`.

A gap is the number of positions skipped. Positions of sent coordinates are close to a Bernoulli process, whose gaps are
geometric. Rice's code is optimal for a geometric source to within a few per cent (Golomb 1966; Rice 1979). Each block of 128
gaps has its own parameter, because positions of real updates cluster by layer. Where positions cluster more, the bit lengths
of the gaps are far from geometric. An entropy code of the bit lengths, "classes", is then shorter, usually from about
a hundred gaps on, because its frequency table is sent too.
"""

from __future__ import annotations

import numpy as np

from fedsgd.errors import WireError
from fedsgd.numerics.arrays import I64, U8
from fedsgd.numerics.kernels import kernel
from fedsgd.wire import bits, rans
from fedsgd.wire.bits import Bytes

GAPS_PER_BLOCK = 128
PARAMETER_BITS = 5
MAX_BIT_LENGTH = 31


def choose_rice_parameters(gaps: I64) -> tuple[I64, int]:
    """Return the Rice parameters with the shortest code, [⌈k / 128⌉] int64, and the length of the code in bytes.

    Args:
        gaps: [k] int64, non-negative.
    """
    parameters, n_fixed, n_unary = _choose_rice_parameters(gaps)
    return parameters, sum(bits.n_bytes(n) for n in (PARAMETER_BITS * len(parameters), n_fixed, n_unary))


def encode_rice(gaps: I64, parameters: I64) -> bytes:
    """Encode gaps in Rice's code.

    Args:
        gaps: [k] int64, non-negative.
        parameters: [⌈k / 128⌉] int64, from `choose_rice_parameters`.
    """
    widths = _repeat_per_gap(parameters, len(gaps))
    head = bits.pack(parameters, np.full(len(parameters), PARAMETER_BITS, dtype=np.int64))
    return head + bits.pack(gaps, widths) + bits.pack_unary(gaps >> widths)


def decode_rice(body: Bytes, k: int) -> I64:
    """Decode the gaps of `encode_rice`, [k] int64, of any size.

    Args:
        body: bytes of the code alone.
        k: number of gaps.
    """
    n_blocks = (k + GAPS_PER_BLOCK - 1) // GAPS_PER_BLOCK
    head = bits.n_bytes(PARAMETER_BITS * n_blocks)
    if 8 * (len(body) - head) < k:
        raise WireError(0, f"{len(body)} bytes are too few for {k} Rice-coded indices")
    widths = _repeat_per_gap(bits.unpack(body[:head], np.full(n_blocks, PARAMETER_BITS, dtype=np.int64)), k)
    n_fixed = bits.n_bytes(int(widths.sum()))
    if len(body) < head + n_fixed:
        raise WireError(0, f"{len(body) - head} bytes after the Rice parameters, expected at least {n_fixed}")
    quotients = bits.unpack_unary(body[head + n_fixed :], k)
    gaps: I64 = (quotients << widths) | bits.unpack(body[head : head + n_fixed], widths)
    return gaps


def encode_classes(gaps: I64) -> bytes:
    """Encode gaps: an entropy code of their bit lengths, then the bits below the highest bit of each gap.

    Args:
        gaps: [k] int64, non-negative, below 2³¹.
    """
    classes = _bit_lengths(gaps)
    symbols = rans.encode_symbols(classes)
    return bits.pack_varint(len(symbols)) + symbols + bits.pack(gaps, _mantissa_widths(classes))


def decode_classes(body: Bytes, k: int) -> I64:
    """Decode the gaps of `encode_classes`, [k] int64, below 2³¹.

    Args:
        body: bytes of the code alone.
        k: number of gaps.
    """
    length, start = bits.unpack_varint(body, 0)
    if length > len(body) - start:
        raise WireError(0, f"{length} bytes of bit lengths, but the section has only {len(body) - start} more")
    end = start + length
    classes = rans.decode_symbols(body[start:end], k)
    if k and int(classes.max()) > MAX_BIT_LENGTH:
        raise WireError(start, f"a gap of {int(classes.max())} bits, expected at most {MAX_BIT_LENGTH}")
    widths = _mantissa_widths(classes)
    n_mantissas = bits.n_bytes(int(widths.sum()))
    if len(body) != end + n_mantissas:
        raise WireError(end, f"{len(body) - end} bytes of mantissas, expected {n_mantissas}")
    leading_bits = np.where(classes > 0, np.int64(1) << widths, 0)
    gaps: I64 = leading_bits | bits.unpack(body[end:], widths)
    return gaps


def _mantissa_widths(classes: U8) -> I64:
    """Return the number of bits of each gap below its highest bit."""
    widths: I64 = np.maximum(classes.astype(np.int64) - 1, 0)
    return widths


def _repeat_per_gap(parameters: I64, k: int) -> I64:
    """Return the parameter of each gap's block, [k]."""
    return np.repeat(parameters, GAPS_PER_BLOCK)[:k]


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _choose_rice_parameters_reference(gaps: I64) -> tuple[I64, int, int]:
    starts = np.arange(0, len(gaps), GAPS_PER_BLOCK)
    if not len(starts):
        return starts, 0, 0
    counts = np.diff(starts, append=len(gaps))
    n_useful = min(32, int(gaps.max()).bit_length() + 1)  # from there on, a larger parameter only costs
    costs = [counts * (1 + b) + np.add.reduceat(gaps >> b, starts) for b in range(n_useful)]
    parameters = np.argmin(costs, axis=0)
    n_fixed = int((counts * parameters).sum())
    return parameters, n_fixed, int(np.min(costs, axis=0).sum()) - n_fixed


@kernel(_choose_rice_parameters_reference, element_ns=50)
def _choose_rice_parameters(gaps: I64) -> tuple[I64, int, int]:
    """Return the parameters, the number of fixed bits and the number of unary bits. Ties go to the lowest parameter.

    Only four parameters need to be tried. A block of n gaps with mean m costs n(1 + b) + Σ⌊gap / 2^b⌋. With
    h(b) = b + m / 2^b, this cost is more than n·h and at most n(h + 1). The minimum of h is at 2^b = m ln 2. Where h is less
    than 1 above its minimum, b is from log₂ m − 1.96 to log₂ m + 1.59. With L the bit length of ⌊m⌋, b is L − 2 to L + 1.
    """
    parameters = np.empty((gaps.size + 127) // 128, dtype=np.int64)
    n_fixed, n_unary = 0, 0
    for block in range(parameters.size):
        start, end = 128 * block, min(128 * block + 128, gaps.size)
        total = 0
        for i in range(start, end):
            total += int(gaps[i])
        length = 0
        while total // (end - start) >> length > 0:
            length += 1
        parameter, min_cost, unary = 0, 1 << 62, 0
        for b in range(max(0, length - 2), length + 2):
            quotients = 0
            for i in range(start, end):
                quotients += int(gaps[i] >> b)
            cost = quotients + (1 + b) * (end - start)
            if cost < min_cost:
                parameter, min_cost, unary = b, cost, quotients + end - start
        parameters[block] = parameter
        n_fixed += parameter * (end - start)
        n_unary += unary
    return parameters, n_fixed, n_unary


def _bit_lengths_reference(gaps: I64) -> U8:
    return np.frexp(gaps.astype(np.float64))[1].astype(np.uint8)


@kernel(_bit_lengths_reference)
def _bit_lengths(gaps: I64) -> U8:
    """Return the number of bits of each gap, 0 for a gap of 0."""
    out = np.empty(gaps.size, dtype=np.uint8)
    for i in range(gaps.size):
        length = 0
        for bit in range(31):
            length += int(gaps[i] >= (1 << bit))
        out[i] = length
    return out
