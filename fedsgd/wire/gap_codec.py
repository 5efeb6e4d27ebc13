"""Gaps between kept positions, as non-negative integers: two codes for them.

    rice     a 5-bit parameter b for each block of 128 gaps; the low b bits of each gap; the rest of each gap in unary
    classes  the bit length of each gap as symbols of `rans`, after their number of bytes as a varint; then the bits of each gap
             below its highest

A gap is the number of positions skipped. Positions of kept coordinates are close to a Bernoulli process, whose gaps are
geometric, and Rice's code is the optimal code of a geometric source to within a few per cent (Golomb 1966; Rice 1979). A
parameter a block, because real supports cluster by layer. Where they cluster more than that, bit lengths are far from
geometric, and coding them by how often they occur takes what there is to gain; it needs some hundred gaps to pay for its table.
"""

from __future__ import annotations

import numpy as np

from fedsgd.errors import WireError
from fedsgd.numerics.arrays import I64, U8
from fedsgd.numerics.kernels import kernel
from fedsgd.wire import bits, rans

Bytes = bytes | memoryview

GAPS_PER_BLOCK = 128
PARAMETER_BITS = 5
MAX_BIT_LENGTH = 31


def choose_rice_parameters(gaps: I64) -> tuple[I64, int]:
    """(the parameter of each block that makes it shortest, the lowest of equals; bytes of the code). gaps: [k]."""
    parameters, n_fixed, n_unary = _choose_rice_parameters(gaps)
    return parameters, sum(bits.n_bytes(n) for n in (PARAMETER_BITS * len(parameters), n_fixed, n_unary))


def encode_rice(gaps: I64, parameters: I64) -> bytes:
    """gaps: [k]; parameters: those of `choose_rice_parameters`."""
    widths = _repeat_per_gap(parameters, len(gaps))
    head = bits.pack(parameters, np.full(len(parameters), PARAMETER_BITS, dtype=np.int64))
    return head + bits.pack(gaps, widths) + bits.pack_unary(gaps >> widths)


def decode_rice(body: Bytes, k: int) -> I64:
    """The k gaps [k], of any size."""
    n_blocks = (k + GAPS_PER_BLOCK - 1) // GAPS_PER_BLOCK
    head = bits.n_bytes(PARAMETER_BITS * n_blocks)
    if 8 * (len(body) - head) < k:
        raise WireError(0, f"{k} Rice-coded indices cannot stand in {len(body)} bytes")
    widths = _repeat_per_gap(bits.unpack(body[:head], np.full(n_blocks, PARAMETER_BITS, dtype=np.int64)), k)
    fixed = bits.n_bytes(int(widths.sum()))
    if len(body) < head + fixed:
        raise WireError(0, f"the fixed bits need {fixed} bytes, {len(body) - head} are left")
    quotients = bits.unpack_unary(body[head + fixed :], k)
    gaps: I64 = (quotients << widths) | bits.unpack(body[head : head + fixed], widths)
    return gaps


def encode_classes(gaps: I64) -> bytes:
    """gaps: [k], below 2³¹."""
    classes = _bit_lengths(gaps)
    symbols = rans.encode_symbols(classes)
    return bits.pack_varint(len(symbols)) + symbols + bits.pack(gaps, _mantissa_widths(classes))


def decode_classes(body: Bytes, k: int) -> I64:
    """The k gaps [k], below 2³¹."""
    length, at = bits.unpack_varint(body, 0)
    if length > len(body) - at:
        raise WireError(0, f"{length} bytes of classes, {len(body) - at} are left")
    classes = rans.decode_symbols(body[at : at + length], k)
    if k and int(classes.max()) > MAX_BIT_LENGTH:
        raise WireError(at, f"a gap of {int(classes.max())} bits, at most {MAX_BIT_LENGTH} expected")
    widths = _mantissa_widths(classes)
    n_mantissas = bits.n_bytes(int(widths.sum()))
    if len(body) != at + length + n_mantissas:
        raise WireError(at + length, f"{len(body) - at - length} bytes of mantissas, expected {n_mantissas}")
    leading = np.where(classes > 0, np.int64(1) << widths, 0)
    gaps: I64 = leading | bits.unpack(body[at + length :], widths)
    return gaps


def _mantissa_widths(classes: U8) -> I64:
    """The bits of a gap below its highest."""
    widths: I64 = np.maximum(classes.astype(np.int64) - 1, 0)
    return widths


def _repeat_per_gap(parameters: I64, k: int) -> I64:
    """Each block's parameter for each of its gaps."""
    return np.repeat(parameters, GAPS_PER_BLOCK)[:k]


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _choose_rice_parameters_reference(gaps: I64) -> tuple[I64, int, int]:
    starts = np.arange(0, len(gaps), GAPS_PER_BLOCK)
    if not len(starts):
        return starts, 0, 0
    counts = np.diff(starts, append=len(gaps))
    costs = [counts * (1 + b) + np.add.reduceat(gaps >> b, starts) for b in range(32)]
    parameters = np.argmin(costs, axis=0)
    fixed = int((counts * parameters).sum())
    return parameters, fixed, int(np.min(costs, axis=0).sum()) - fixed


@kernel(_choose_rice_parameters_reference)
def _choose_rice_parameters(gaps: I64) -> tuple[I64, int, int]:
    """(parameters, their fixed bits, their unary bits).

    Only four parameters need be tried. A block of n gaps with mean m costs n(1 + b) + Σ⌊gap / 2^b⌋, which is more than n·h and
    at most n(h + 1) with h(b) = b + m / 2^b. h is least at 2^b = m ln 2, and where it is less than 1 above that, b is between
    log₂ m − 1.96 and log₂ m + 1.59: with L the bit length of ⌊m⌋, from L − 2 to L + 1.
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
        best, least, unary = 0, 1 << 62, 0
        for b in range(max(0, length - 2), length + 2):
            quotients = 0
            for i in range(start, end):
                quotients += int(gaps[i] >> b)
            cost = quotients + (1 + b) * (end - start)
            if cost < least:
                best, least, unary = b, cost, quotients + end - start
        parameters[block] = best
        n_fixed += best * (end - start)
        n_unary += unary
    return parameters, n_fixed, n_unary


def _bit_lengths_reference(gaps: I64) -> U8:
    return np.frexp(gaps.astype(np.float64))[1].astype(np.uint8)


@kernel(_bit_lengths_reference)
def _bit_lengths(gaps: I64) -> U8:
    """The number of bits of each gap, 0 for 0."""
    out = np.empty(gaps.size, dtype=np.uint8)
    for i in range(gaps.size):
        length = 0
        for bit in range(31):
            length += int(gaps[i] >= (1 << bit))
        out[i] = length
    return out
