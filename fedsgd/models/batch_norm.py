"""Replacement of batch norm, and access to its running statistics, which are not gradients.

Statistics that are sent are not compressed. Statistics that stay at the clients differ between clients, with the effects that
Hsieh et al. 2020 show. This module imports torch: import it only where a module is built.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsgd.models.policies import BatchNormPolicy

CHANNELS_PER_GROUP = 16
"""Channels in a group, as accurate as 32 groups in Wu and He 2018. A layer whose width 16 does not divide gets one group."""


def replace_batch_norm(module: nn.Module, policy: BatchNormPolicy) -> None:
    """Replace batch norms inside a module under the policies "batch", "group" and "frozen"; other policies change nothing."""
    replace = {"batch": _remove_running_stats, "group": _convert_to_group_norm, "frozen": FrozenBatchNorm}.get(policy)
    if replace is None:
        return
    replacements: dict[_BatchNorm, nn.Module] = {}  # a layer under several names has one replacement
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, _BatchNorm) and child.track_running_stats:
                replacements[child] = replacements[child] if child in replacements else replace(child)
                setattr(parent, name, replacements[child])


def is_batch_norm(module: nn.Module) -> bool:
    """Return True for a batch norm of torch with any number of dimensions."""
    return isinstance(module, _BatchNorm)


def find_affine_parameters(module: nn.Module) -> set[nn.Parameter]:
    """Return the scales and shifts of the batch norms of a module."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    return {parameter for norm in norms for parameter in norm.parameters(recurse=False)}


def find_running_statistics(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return (name, buffer) of batch norms' running means and variances, each once, in the order of the layers.

    A layer without momentum averages over all batches so far, so its counter of batches is included.
    """
    ids = {
        id(buffer)
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and norm.track_running_stats
        for buffer in (norm.running_mean, norm.running_var, norm.num_batches_tracked if norm.momentum is None else None)
        if buffer is not None
    }
    return [(name, buffer) for name, buffer in module.named_buffers() if id(buffer) in ids]


class FrozenBatchNorm(nn.Module):
    """Batch norm as a constant: statistics, scale and shift are buffers of the same names and keep their initial values."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            value = getattr(norm, name)
            self.register_buffer(name, None if value is None else value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def _remove_running_stats(norm: _BatchNorm) -> _BatchNorm:
    norm.track_running_stats = False
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        norm.register_buffer(name, None)
    return norm


def _convert_to_group_norm(norm: _BatchNorm) -> nn.GroupNorm:
    channels = norm.num_features
    groups = channels // CHANNELS_PER_GROUP if channels % CHANNELS_PER_GROUP == 0 else 1
    group_norm = nn.GroupNorm(groups, channels, norm.eps, norm.affine)
    if norm.affine:
        with torch.no_grad():
            group_norm.weight.copy_(norm.weight)
            group_norm.bias.copy_(norm.bias)
        group_norm.weight.requires_grad_(norm.weight.requires_grad)
        group_norm.bias.requires_grad_(norm.bias.requires_grad)
    return group_norm.train(norm.training)
