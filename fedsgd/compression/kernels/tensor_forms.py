"""Kernels of compressors for torch tensors on any device, with the results of the kernels for arrays, bit for bit.

Only positions and values that are sent, or code words, are copied to the host. Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedsgd.numerics.arrays import F32, F64, I64, U8

if TYPE_CHECKING:
    from torch import Tensor

MAGNITUDE = 0x7FFFFFFF
"""Bits of a float32 without its sign: as integers they have the order of the magnitudes."""


def top_k(x: Tensor, k: int) -> tuple[I64, F32]:
    """Return positions and values of the k largest |x| of a tensor: `fedsgd.compression.kernels.top_k.top_k`."""
    import torch

    magnitudes = _read_magnitudes(x)
    limit = torch.topk(magnitudes, min(k, len(x)), sorted=False).values.min().clamp_(min=1)
    above, ties = magnitudes > limit, magnitudes == limit
    keeps_tie = ties & (ties.cumsum(0) <= k - above.sum())
    return _gather(x, above | keeps_tie)


def select_above(x: Tensor, bound: int) -> tuple[I64, F32]:
    """Return positions and values of all |x| whose bits are at least `bound`, from 1."""
    return _gather(x, _read_magnitudes(x) >= bound)


def chunk_top_k(x: Tensor, length: int, limits: I64) -> tuple[I64, F32, I64]:
    """Return positions, values and counts of the largest |x| of each chunk: `kernels.top_k.chunk_top_k`."""
    import torch

    n_chunks = len(limits)
    magnitudes = torch.zeros(n_chunks * length, dtype=torch.int32, device=x.device)
    magnitudes[: len(x)] = _read_magnitudes(x)
    rows = magnitudes.view(n_chunks, length)
    order = torch.sort(rows, dim=1, descending=True, stable=True).indices  # of equal magnitudes the first positions first
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(length, device=x.device).expand(n_chunks, length))
    kept = (ranks < torch.from_numpy(limits).to(x.device)[:, None]) & (rows > 0)
    positions, values = _gather(x, kept.view(-1)[: len(x)])
    counts: I64 = kept.sum(1).cpu().numpy()
    return positions, values, counts


def accumulate(
    x: Tensor, u: Tensor, v: Tensor, momentum: np.float32, factor: np.float32, nesterov: bool, smallest: np.float32
) -> tuple[Tensor, Tensor]:
    """Return the next u and v of DGC: `fedsgd.compression.schemes.dgc`. A momentum below `smallest` becomes 0."""
    import torch

    g = x * float(factor)
    next_u = float(momentum) * (u + g) if nesterov else float(momentum) * u + g
    next_u = torch.where(next_u.abs() < float(smallest), 0.0, next_u)
    return next_u, v + next_u + g if nesterov else v + next_u


def _read_magnitudes(x: Tensor) -> Tensor:
    """Return the bits of a contiguous float32 tensor without the signs, as int32."""
    import torch

    return x.view(torch.int32) & MAGNITUDE


def _gather(x: Tensor, kept: Tensor) -> tuple[I64, F32]:
    """Return ascending positions and values of the marked coordinates, as arrays of the host."""
    positions = kept.nonzero().squeeze(1)
    return positions.cpu().numpy(), x[positions].cpu().numpy()


# ----------------------------------------------------------------------------------------------------------------- quantisation

LANES = 64
"""Running sums of `fedsgd.numerics.reductions`, in whose order sums are computed here too."""
MAX_SUMMED = 4096
"""Largest bucket whose sum is computed on the device: the order of the sums makes an operation for each 64 numbers."""
_GOLDEN, _MIX1, _MIX2 = (
    word - 2**64  # as int64
    for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def counter_hash(key: int, counters: Tensor) -> Tensor:
    """Return 64 random bits for each counter, as int64: `fedsgd.numerics.rng.counter_hash`. Products wrap around."""
    z = (counters + 1) * _GOLDEN + (key - 2**64 if key >= 2**63 else key)
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, n: int) -> Tensor:
    """Shift without the sign."""
    return (z >> n) & ((1 << (64 - n)) - 1)


def _split(x: Tensor, bucket: int) -> Tensor:
    """Return a copy of x as rows of a bucket each, with zeros at the end."""
    n = -(-len(x) // bucket)
    rows = x.new_zeros(n * bucket)
    rows[: len(x)] = x
    return rows.view(n, bucket)


def _sum_in_lanes(terms: Tensor) -> F64:
    """Return the sums of rows of float64 terms [n, 64·r], in the order of `fedsgd.numerics.reductions`."""
    lanes = terms.new_zeros(len(terms), LANES)
    for row in terms.view(len(terms), -1, LANES).unbind(1):
        lanes = lanes + row
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    sums: F64 = lanes[:, 0].cpu().numpy()
    return sums


def bucket_sums_of_squares(x: Tensor, bucket: int) -> F64:
    """Return Σ x_i² over each bucket of at most MAX_SUMMED coordinates: `fedsgd.numerics.reductions.bucket_sums`."""
    import torch

    rows = _split(x, bucket).double()
    padded = torch.nn.functional.pad(rows, (0, -bucket % LANES))
    return _sum_in_lanes(padded * padded)


def bucket_max_magnitudes(x: Tensor, bucket: int) -> F32:
    """Return the largest magnitude of each bucket: `fedsgd.numerics.reductions.bucket_max_magnitudes`."""
    peaks: F32 = _split(x, bucket).abs().amax(1).cpu().numpy()
    return peaks


def quantise(x: Tensor, scales: F32, level: int, bucket: int, key: int | None) -> U8:
    """Return the levels plus L of each coordinate: `fedsgd.wire.levels.quantise`."""
    import torch

    wide = scales.astype(np.float64)
    factors = np.divide(level, wide, out=np.zeros(len(wide)), where=wide > 0)
    rows = _split(x, bucket)
    quotients = rows.abs().double() * torch.from_numpy(factors).to(x.device)[:, None]
    if key is None:
        integers = quotients.round()
    else:
        buckets, words = (torch.arange(n, device=x.device) for n in (len(rows), -(-bucket // 2)))
        bits = counter_hash(key, (buckets << 32)[:, None] + words)
        halves = torch.stack([bits & 0xFFFFFFFF, _shift_right(bits, 32)], dim=2).view(len(rows), -1)[:, :bucket]
        integers = (quotients + halves.double() * 2.0**-32).floor()
    magnitudes = integers.clamp(max=level)
    levels = level + torch.where(rows < 0, -magnitudes, magnitudes)
    array: U8 = levels.to(torch.uint8).view(-1)[: len(x)].cpu().numpy()
    return array


# --------------------------------------------------------------------------------------------------------------------- rotation


def quantise_rotated(x: Tensor, ends: I64, key: int, centroids: F64, unbiased: bool) -> tuple[U8, F64]:
    """Return digits and scales of the rotated blocks of x [P]: `_quantise` of `fedsgd.compression.operators.eden`.

    `ends` = `compute_block_ends(P)`: blocks of equal length come first, and are transformed together.
    """
    import torch

    padded = x.new_zeros(int(ends[-1]))
    padded[: len(x)] = x
    words = counter_hash(key, torch.arange(len(padded) // 64, device=x.device))
    is_negative = ((words[:, None] >> torch.arange(64, device=x.device)) & 1).view(-1).bool()
    flipped = torch.where(is_negative, -padded, padded)
    sizes = np.diff(ends, prepend=0)
    digits, scales, start = [], [], 0
    for size in dict.fromkeys(sizes.tolist()):
        n = int((sizes == size).sum())
        part = flipped[start : start + n * size].view(n, size)
        part_digits, part_scales = _quantise_blocks(_apply_hadamard(part), centroids, unbiased)
        digits.append(part_digits)
        scales.append(part_scales)
        start += n * size
    return np.concatenate(digits), np.concatenate(scales)


def _apply_hadamard(blocks: Tensor) -> Tensor:
    """Apply the Hadamard transform divided by √d to rows [n, d], by butterflies from distant pairs to adjacent pairs."""
    import torch

    n, size = blocks.shape
    half = size // 2
    while half:
        pairs = blocks.reshape(n, -1, 2, half)
        blocks = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], dim=2).view(n, size)
        half //= 2
    return blocks * float(np.float32(1 / np.sqrt(size)))


def _quantise_blocks(blocks: Tensor, centroids: F64, unbiased: bool) -> tuple[U8, F64]:
    import torch

    magnitudes, size = blocks.abs().double(), blocks.shape[1]
    norms = np.sqrt(_sum_in_lanes(magnitudes * magnitudes))
    units = np.divide(np.sqrt(size), norms, out=np.zeros(len(norms)), where=norms > 0)
    scaled = magnitudes * torch.from_numpy(units).to(blocks.device)[:, None]
    levels = torch.zeros_like(scaled, dtype=torch.int64)
    for bound in (centroids[1:] + centroids[:-1]) / 2:
        levels += scaled > bound
    n = len(centroids)
    digits = torch.where(blocks < 0, n - 1 - levels, n + levels).to(torch.uint8).view(-1).cpu().numpy()
    q = torch.from_numpy(centroids).to(blocks.device)[levels]
    products, squares = _sum_in_lanes(q * magnitudes), _sum_in_lanes(q * q)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scales = norms * norms / products if unbiased else products / squares
    return digits, np.where(norms == 0, 0.0, scales)
