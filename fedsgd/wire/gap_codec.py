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
from fedsgd.numerics.kernels import jit_helper, kernel
from fedsgd.wire import bits, rans
from fedsgd.wire.bits import Bytes

GAPS_PER_BLOCK = 128
PARAMETER_BITS = 5
MAX_BIT_LENGTH = 31
MAX_SHORT_GAPS = 4095
"""Largest number of gaps that are coded in one call of a kernel: a call takes longer than a step of a short code."""
MIN_GAPS_FOR_CLASSES = 64
"""Smallest k for which classes are tried. With fewer gaps, their frequency table usually costs more than the code saves."""


def choose_rice_parameters(gaps: I64) -> tuple[I64, int]:
    """Return the Rice parameters with the shortest code, [⌈k / 128⌉] int64, and the length of the code in bytes.

    Args:
        gaps: [k] int64, non-negative.
    """
    parameters, n_fixed, n_unary = _choose_rice_parameters(gaps)
    return parameters, bits.n_bytes(PARAMETER_BITS * len(parameters)) + bits.n_bytes(n_fixed) + bits.n_bytes(n_unary)


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
    if k <= MAX_SHORT_GAPS:
        gaps, is_valid = _decode_rice(np.frombuffer(body, dtype=np.uint8), k)
        if is_valid:
            return gaps
    return _decode_rice_in_steps(body, k)


def _decode_rice_in_steps(body: Bytes, k: int) -> I64:
    """Decode gaps; raise WireError for the first step that finds a fault."""
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
    if k <= MAX_SHORT_GAPS:
        gaps, is_valid = _unpack_mantissas(np.frombuffer(body[end:], dtype=np.uint8), classes)
        if is_valid:
            return gaps
    if k and int(classes.max()) > MAX_BIT_LENGTH:
        raise WireError(start, f"a gap of {int(classes.max())} bits, expected at most {MAX_BIT_LENGTH}")
    widths = _mantissa_widths(classes)
    n_mantissas = bits.n_bytes(int(widths.sum()))
    if len(body) != end + n_mantissas:
        raise WireError(end, f"{len(body) - end} bytes of mantissas, expected {n_mantissas}")
    return _unpack_gaps(body[end:], classes, widths)


def _unpack_gaps(mantissas: Bytes, classes: U8, widths: I64) -> I64:
    leading_bits = np.where(classes > 0, np.int64(1) << widths, 0)
    gaps: I64 = leading_bits | bits.unpack(mantissas, widths)
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


@jit_helper
def _write_bits(out: U8, position: int, value: int, width: int) -> None:
    """Write the lowest `width` bits of a value at a bit position of zeros."""
    while width > 0:
        shift = position & 7
        n = min(8 - shift, width)
        out[position >> 3] |= np.uint8((value & ((1 << n) - 1)) << shift)
        value >>= n
        position += n
        width -= n


@jit_helper
def _read_bits(data: U8, position: int, width: int) -> int:
    """Return the integer of `width` bits at a bit position."""
    value, n_read = 0, 0
    while n_read < width:
        shift = position & 7
        n = min(8 - shift, width - n_read)
        value |= (int(data[position >> 3]) >> shift & ((1 << n) - 1)) << n_read
        position += n
        n_read += n
    return value


_choose_rice_parameters_loop = jit_helper(_choose_rice_parameters.loop)
_bit_lengths_loop = jit_helper(_bit_lengths.loop)
_encode_symbols_loop = jit_helper(rans.encode_short.loop)


def _positions_to_gaps_reference(indices: I64) -> I64:
    return np.diff(indices, prepend=-1) - 1


@kernel(_positions_to_gaps_reference)
def positions_to_gaps(indices: I64) -> I64:
    """Return the gaps, [k] int64: the number of positions between each position and its predecessor; for the first, from 0.

    Args:
        indices: [k] int64, ascending positions.
    """
    gaps = np.empty(indices.size, dtype=np.int64)
    previous = -1
    for i in range(indices.size):
        gaps[i] = indices[i] - previous - 1
        previous = indices[i]
    return gaps


_positions_to_gaps_loop = jit_helper(positions_to_gaps.loop)


def _encode_short_reference(indices: I64) -> tuple[U8, bool]:
    gaps = positions_to_gaps(indices)
    rice = encode_rice(gaps, choose_rice_parameters(gaps)[0])
    classes = encode_classes(gaps) if len(gaps) >= MIN_GAPS_FOR_CLASSES else rice
    is_shorter = len(classes) < len(rice)
    return np.frombuffer(classes if is_shorter else rice, dtype=np.uint8), is_shorter


@kernel(_encode_short_reference, element_ns=0)
def encode_short(indices: I64) -> tuple[U8, bool]:
    """Return the shorter code of the gaps between positions, and True for classes; Rice's code if the lengths are equal.

    Classes are tried from `MIN_GAPS_FOR_CLASSES` positions on.

    Args:
        indices: [k] int64, ascending positions, at most `MAX_SHORT_GAPS`.
    """
    gaps = _positions_to_gaps_loop(indices)
    parameters, n_fixed, n_unary = _choose_rice_parameters_loop(gaps)
    fixed_start = (5 * parameters.size + 7) >> 3
    unary_start = fixed_start + ((n_fixed + 7) >> 3)
    n_rice = unary_start + ((n_unary + 7) >> 3)
    if gaps.size >= 64:
        classes = _bit_lengths_loop(gaps)
        symbols = _encode_symbols_loop(classes)
        n_symbols = symbols.size if symbols.size else 1 + classes.size
        start = n_symbols + (1 if n_symbols < 128 else 2)
        n_bits = 0
        for i in range(classes.size):
            n_bits += max(0, int(classes[i]) - 1)
        if start + ((n_bits + 7) >> 3) < n_rice:
            out = np.zeros(start + ((n_bits + 7) >> 3), dtype=np.uint8)
            if n_symbols < 128:
                out[0] = np.uint8(n_symbols)
            else:
                out[0], out[1] = np.uint8(n_symbols & 127 | 128), np.uint8(n_symbols >> 7)
            if symbols.size:
                out[start - n_symbols : start] = symbols
            else:
                out[start - n_symbols + 1 : start] = classes
            position = 8 * start
            for i in range(classes.size):
                width = max(0, int(classes[i]) - 1)
                _write_bits(out, position, int(gaps[i]), width)
                position += width
            return out, True
    out = np.zeros(n_rice, dtype=np.uint8)
    for block in range(parameters.size):
        _write_bits(out, 5 * block, int(parameters[block]), 5)
    position, end = 8 * fixed_start, 8 * unary_start - 1
    for i in range(gaps.size):
        width = int(parameters[i >> 7])
        _write_bits(out, position, int(gaps[i]), width)
        position += width
        end += int(gaps[i] >> width) + 1
        out[end >> 3] |= np.uint8(1 << (end & 7))
    return out, False


def _decode_rice_reference(body: U8, k: int) -> tuple[I64, bool]:
    try:
        return _decode_rice_in_steps(body.tobytes(), k), True
    except WireError:
        return np.zeros(0, dtype=np.int64), False


@kernel(_decode_rice_reference, lambda body, k: k, element_ns=0)
def _decode_rice(body: U8, k: int) -> tuple[I64, bool]:
    """Return the gaps of Rice's code [k], and True if the code is valid; else no gaps, and False."""
    invalid = np.zeros(0, dtype=np.int64), False
    n_blocks = (k + 127) // 128
    fixed_start = (5 * n_blocks + 7) >> 3
    if 8 * (body.size - fixed_start) < k:
        return invalid
    gaps = np.empty(k, dtype=np.int64)
    n_fixed = 0
    for block in range(n_blocks):
        n_fixed += _read_bits(body, 5 * block, 5) * min(128, k - 128 * block)
    unary_start = fixed_start + ((n_fixed + 7) >> 3)
    if body.size < unary_start:
        return invalid
    position, bit, previous = 8 * fixed_start, 8 * unary_start, 8 * unary_start - 1
    for i in range(k):
        while bit < 8 * body.size and not (int(body[bit >> 3]) >> (bit & 7)) & 1:
            bit += 1
        if bit >= 8 * body.size:
            return invalid
        width = _read_bits(body, 5 * (i >> 7), 5)
        gaps[i] = (bit - previous - 1) << width | _read_bits(body, position, width)
        position += width
        previous = bit
        bit += 1
    for part_end, n_used in ((fixed_start, 5 * n_blocks), (unary_start, 8 * fixed_start + n_fixed), (body.size, bit)):
        if n_used <= 8 * part_end - 8 or (n_used < 8 * part_end and int(body[part_end - 1]) >> (n_used & 7)):
            return invalid  # a byte that is not needed, or padding that is not zero
    return gaps, True


def _unpack_mantissas_reference(body: U8, classes: U8) -> tuple[I64, bool]:
    widths = _mantissa_widths(classes)
    try:
        if not (classes <= MAX_BIT_LENGTH).all() or len(body) != bits.n_bytes(int(widths.sum())):
            return np.zeros(0, dtype=np.int64), False
        return _unpack_gaps(body.tobytes(), classes, widths), True
    except WireError:
        return np.zeros(0, dtype=np.int64), False


@kernel(_unpack_mantissas_reference, element_ns=0)
def _unpack_mantissas(body: U8, classes: U8) -> tuple[I64, bool]:
    """Return the gaps [k], and True if the bits below their highest bits are valid; else no gaps, and False."""
    invalid = np.zeros(0, dtype=np.int64), False
    n_bits = 0
    for i in range(classes.size):
        if classes[i] > 31:
            return invalid
        n_bits += max(0, int(classes[i]) - 1)
    if body.size != (n_bits + 7) >> 3 or (n_bits & 7 and int(body[body.size - 1]) >> (n_bits & 7)):
        return invalid
    gaps = np.zeros(classes.size, dtype=np.int64)
    position = 0
    for i in range(classes.size):
        if classes[i] > 0:
            width = int(classes[i]) - 1
            gaps[i] = 1 << width | _read_bits(body, position, width)
            position += width
    return gaps, True
