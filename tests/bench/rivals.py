"""What others do with the same vector: torch, the selection of DGC, FedLab."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch

SAMPLED = 0.01
TOO_MANY = 1.3


def torch_top_k(x: torch.Tensor, k: int) -> torch.Tensor:
    """The positions of the k largest |x|, in any order: the way of most simulators. x: [P]."""
    return torch.topk(x.abs(), k, sorted=False).indices


def dgc_selection(x: torch.Tensor, k: int) -> torch.Tensor:
    """The positions of about k large |x|. It is not exact: the threshold is an estimate, and how many pass it is chance.

    Lin et al. 2018, "Deep Gradient Compression", section 3.1 and its public implementations: the k-th largest share of a sample
    of 1 % of the coordinates is the threshold; what reaches it is sent; if far too many do (here 1.3 times k), an exact top-k
    among them. The sample is strided, which is quicker than a random one, and at least two of it are expected to pass. The loop
    that lowers a threshold that too few reach is left out, in favour of the rival. x: [P].
    """
    importance = x.abs()
    wanted = max(math.ceil(SAMPLED * len(x)), math.ceil(2 * len(x) / k))
    sample = importance[:: max(1, len(x) // wanted)]
    threshold = torch.topk(sample, max(1, round(len(sample) * k / len(x))), sorted=False).values.min()
    found = torch.where(importance >= threshold)[0]
    if len(found) > TOO_MANY * k:
        found = found[torch.topk(importance[found], k, sorted=False).indices]
    return found


def fedlab_compressors() -> Any:
    """FedLab's module of compressors, None where it is not installed.

    Install it with `pip install --no-deps fedlab`. It declares torchvision, pynvml and any torch: pip then replaces torch, or
    puts a torchvision for CUDA beside a torch without it. The compressors need torch alone.
    """
    try:
        return importlib.import_module("fedlab.contrib.compressor")
    except ImportError:
        return None


def n_bytes(tensors: Any) -> int:
    """What tensors weigh as they are: what would be sent by who pickles them, without the pickle's own bytes."""
    return sum(tensor.nbytes for tensor in tensors)
