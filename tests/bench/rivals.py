"""Other implementations on the same vector: torch, the sampled selection of DGC, FedLab."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch

SAMPLE_SHARE = 0.01
MAX_SELECTED = 1.3
"""Largest number of selected coordinates, as a multiple of k; beyond it an exact top-k follows."""


def torch_top_k(x: torch.Tensor, k: int) -> torch.Tensor:
    """Return the positions of the k largest |x| in any order, as most simulators do. x: [P]."""
    return torch.topk(x.abs(), k, sorted=False).indices


def dgc_selection(x: torch.Tensor, k: int) -> torch.Tensor:
    """Return the positions of about k large |x|, by an estimated threshold. x: [P].

    Lin et al. 2018, "Deep Gradient Compression", section 3.1, and its public implementations. The threshold is the value that a
    share of k / P of a sample of 1 % of the coordinates reaches. Coordinates that reach the threshold are selected, so their
    number is random. If more than 1.3 k coordinates reach it, an exact top-k among them follows.

    The sample is strided, which is faster than a random sample. It is large enough that two of its coordinates are expected to
    reach the threshold. The loop of the implementations that lowers a threshold which too few coordinates reach is omitted,
    which makes this selection faster.
    """
    importance = x.abs()
    sample_size = max(math.ceil(SAMPLE_SHARE * len(x)), math.ceil(2 * len(x) / k))
    sample = importance[:: max(1, len(x) // sample_size)]
    threshold = torch.topk(sample, max(1, round(len(sample) * k / len(x))), sorted=False).values.min()
    positions = torch.where(importance >= threshold)[0]
    if len(positions) > MAX_SELECTED * k:
        positions = positions[torch.topk(importance[positions], k, sorted=False).indices]
    return positions


def fedlab_compressors() -> Any:
    """Return FedLab's module of compressors, None if FedLab is not installed.

    Install it with `pip install --no-deps fedlab`. FedLab requires torchvision, pynvml and any torch. With these requirements
    pip replaces torch, or installs a torchvision for CUDA with a torch without CUDA. The compressors need only torch.
    """
    try:
        return importlib.import_module("fedlab.contrib.compressor")
    except ImportError:
        return None


def n_bytes(tensors: Any) -> int:
    """Return the bytes of the tensors' data: a pickle of them without the pickle's own bytes."""
    return sum(tensor.nbytes for tensor in tensors)
