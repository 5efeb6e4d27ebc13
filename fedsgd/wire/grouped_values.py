"""Codec of values in few bits, with a scale or four bins for each group of consecutive values.

- 2bit: four bins by sign and magnitude; a value decodes to the mean of its bin, and none is zero.
- ternary: a sign bit; the values of a group have its mean magnitude, and none is zero.
- int8, int4: nearest of 255 or 15 levels up to the largest magnitude of the group.

A group is the values of one chunk, or all values. A VALUE section has the digits of all values, a SCALE section the float32
numbers of each group that has values. `wire-format-values.md` describes the bytes.

A magnitude of "2bit" is large from the mean plus half the standard deviation of the group's magnitudes on. For the largest
0.8 to 10 % of Gaussian and Laplace vectors, the squared error is within 1 % of that of the best threshold. For the largest
1/64 of a Gaussian vector, it is 0.41 % of the energy, against 0.46 % with the mean as threshold, and 1.2 % with ternary values.
The entropy of the bins is then 1.8 bits. SparseLoCo (arXiv 2508.15706) has four bins of equal width, in total six standard
deviations around the mean. So its threshold is 1.5 standard deviations: 1.1 % of the energy for these values, and less for very
heavy tails.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from fedsgd.errors import WireError, shift_offset
from fedsgd.numerics.arrays import F32, F64, I64, U8
from fedsgd.numerics.kernels import kernel
from fedsgd.wire import levels, rans
from fedsgd.wire.frame import Section, SectionKind, Sections

GroupFormat = Literal["2bit", "ternary", "int8", "int4"]
"""Formats with a scale, or with bins."""
GROUP_FORMATS: tuple[str, ...] = get_args(GroupFormat)
N_BINS = 4
BIN_SIGNS = np.array([-1, -1, 1, 1], dtype=np.float32)
"""Sign of each bin: large and small magnitudes below zero, small and large magnitudes above zero."""
_BASES = {"2bit": N_BINS, "ternary": 2, "int8": 255, "int4": 15}
_SCALES = {"2bit": N_BINS, "ternary": 1, "int8": 1, "int4": 1}


def encode_groups(values: F32, counts: I64, group_format: GroupFormat, entropy: bool = True) -> tuple[Sections, F32]:
    """Encode values in groups; return the sections, and the [k] float32 values that the sections decode to.

    Args:
        values: [k] float32, finite; for "2bit" and "ternary" none is zero.
        counts: [G] int64, number of values of each group, in order; they add up to k.
        group_format: name of the format.
        entropy: True to use the entropy code of digits if it is shorter.

    >>> values = np.array([3, -1, 2, 9, 5, 1], dtype=np.float32)
    >>> encode_groups(values, np.array([3, 3]), "ternary")[1].tolist()
    [2.0, -2.0, 2.0, 5.0, 5.0, 5.0]
    >>> encode_groups(values, np.array([6]), "2bit")[1].tolist()
    [2.0, -1.0, 2.0, 7.0, 7.0, 2.0]
    """
    counts = counts[counts > 0]
    if group_format == "2bit":
        digits, scales = _assign_bins(values, counts)
    elif group_format == "ternary":
        digits, scales = np.signbit(values).astype(np.uint8), _mean_magnitudes(values, counts).astype(np.float32)
    else:
        scales = _max_magnitudes(values, counts)
        digits = _round_to_levels(values, scales, counts, _BASES[group_format] // 2)
    sections = (
        Section(SectionKind.VALUE, levels.encode_digits(digits, _BASES[group_format], entropy)),
        Section(SectionKind.SCALE, scales.astype("<f4").tobytes()),
    )
    return sections, _dequantise(digits, scales, counts, group_format)


def decode_groups(sections: Sections, counts: I64, group_format: GroupFormat) -> F32:
    """Decode the values of `encode_groups`, [k] float32, finite.

    Args:
        sections: sections of the values alone.
        counts: [G] int64, number of values of each group.
        group_format: name of the format.
    """
    levels.require_sections(sections, (SectionKind.VALUE, SectionKind.SCALE))
    counts = counts[counts > 0]
    scales = levels.decode_scales(sections[1], _SCALES[group_format] * len(counts))
    with shift_offset(sections[0].offset):
        digits = levels.decode_digits(sections[0].data, int(counts.sum()), _BASES[group_format])
    if group_format in ("2bit", "ternary"):
        used = np.ones(len(counts)) if group_format == "ternary" else _count_bins(digits, counts)
        wrong = (scales > 0) != (used > 0)
        if wrong.any():
            i = int(wrong.argmax())
            expected = f"above 0, for {int(used[i])} values" if used[i] else "0, for no values"
            raise WireError(sections[1].offset + 4 * i, f"scale {i} is {scales[i]}, expected {expected}")
    return _dequantise(digits, scales, counts, group_format)


def max_group_bytes(k: int, n_groups: int, group_format: GroupFormat) -> int:
    """Return the maximum payload of k values in bytes.

    Args:
        k: number of values.
        n_groups: G, number of groups.
        group_format: name of the format.
    """
    digits = levels.digits_per_byte(_BASES[group_format])
    return rans.max_symbol_bytes((k + digits - 1) // digits) + 4 * _SCALES[group_format] * min(k, n_groups)


def _dequantise(digits: U8, scales: F32, counts: I64, group_format: GroupFormat) -> F32:
    """Return the values [k] of digits [k] and of the scales of groups without an empty one."""
    groups = np.repeat(np.arange(len(counts)), counts)
    if group_format == "2bit":
        values: F32 = (scales.reshape(-1, N_BINS) * BIN_SIGNS)[groups, digits]
    elif group_format == "ternary":
        values = np.where(digits == 1, -scales[groups], scales[groups]).astype(np.float32)
    else:
        level = _BASES[group_format] // 2
        values = ((digits.astype(np.int64) - level) * (scales.astype(np.float64) / level)[groups]).astype(np.float32)
    return values


def _count_bins(digits: U8, counts: I64) -> I64:
    """Return the number of values of each bin of each group, [4G] int64."""
    bins = N_BINS * np.repeat(np.arange(len(counts)), counts) + digits
    return np.bincount(bins, minlength=N_BINS * len(counts))


def _mean_magnitudes(values: F32, counts: I64) -> F64:
    groups = np.repeat(np.arange(len(counts)), counts)
    return np.bincount(groups, np.abs(values.astype(np.float64)), minlength=len(counts)) / counts


def _max_magnitudes(values: F32, counts: I64) -> F32:
    starts = np.cumsum(counts) - counts
    return np.maximum.reduceat(np.abs(values), starts) if len(counts) else np.zeros(0, dtype=np.float32)


def _round_to_levels(values: F32, scales: F32, counts: I64, level: int) -> U8:
    """Return the nearest levels plus L, [k] uint8; halves are rounded to even."""
    scale = np.repeat(scales.astype(np.float64), counts)
    quotients = values.astype(np.float64) * np.divide(level, scale, out=np.zeros(len(values)), where=scale > 0)
    return (level + np.clip(np.rint(quotients), -level, level)).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------- the kernels


def _assign_bins_reference(values: F32, counts: I64) -> tuple[U8, F32]:
    groups = np.repeat(np.arange(len(counts)), counts)
    magnitudes = np.abs(values.astype(np.float64))
    means = np.bincount(groups, magnitudes, minlength=len(counts)) / counts
    squares = np.bincount(groups, magnitudes * magnitudes, minlength=len(counts)) / counts
    thresholds = means + 0.5 * np.sqrt(np.maximum(squares - means * means, 0.0))
    is_large = magnitudes >= thresholds[groups]
    digits = np.where(values < 0, 1 - is_large, 2 + is_large).astype(np.uint8)
    bins = N_BINS * groups + digits
    sums = np.bincount(bins, magnitudes, minlength=N_BINS * len(counts))
    numbers = np.bincount(bins, minlength=N_BINS * len(counts))
    return digits, (sums / np.maximum(numbers, 1)).astype(np.float32)


@kernel(_assign_bins_reference, element_ns=50)
def _assign_bins(values: F32, counts: I64) -> tuple[U8, F32]:
    """Return the bin of each value [k], and the mean magnitude of the bins of each group [4G], 0 for a bin without values."""
    digits = np.empty(values.size, dtype=np.uint8)
    scales = np.empty(4 * counts.size, dtype=np.float32)
    start = np.int64(0)
    for g in range(counts.size):
        part = values[start : start + counts[g]]
        target = digits[start : start + counts[g]]
        start += counts[g]
        mean, square = 0.0, 0.0
        for i in range(part.size):
            magnitude = np.float64(abs(part[i]))
            mean += magnitude
            square += magnitude * magnitude
        mean /= part.size
        square /= part.size
        threshold = mean + 0.5 * np.sqrt(max(square - mean * mean, 0.0))
        sums, numbers = np.zeros(4), np.zeros(4)
        for i in range(part.size):
            magnitude = np.float64(abs(part[i]))
            is_large = np.uint8(magnitude >= threshold)
            digit = np.uint8(1) - is_large if part[i] < 0 else np.uint8(2) + is_large
            target[i] = digit
            sums[digit] += magnitude
            numbers[digit] += 1.0
        for b in range(4):
            scales[4 * g + b] = np.float32(sums[b] / max(numbers[b], 1.0))
    return digits, scales
