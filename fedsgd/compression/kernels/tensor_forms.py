"""Kernels of compressors for torch tensors on any device, with the results of the kernels for arrays, bit for bit.

Only positions and values that are sent, or code words, are copied to the host. Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedsgd.numerics.arrays import F32, I64

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
