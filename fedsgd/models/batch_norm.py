"""What becomes of batch norm. Its running statistics are no gradients: sent, they are not what is compressed; kept, they differ
between clients (Hsieh et al. 2020 show what that does). Imports torch, so import it where a module is built."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsgd.models.policies import BatchNormPolicy

CHANNELS_PER_GROUP = 16
"""What Wu and He 2018 found to do as well as 32 groups, and which any width allows."""


def replace_batch_norm(module: nn.Module, policy: BatchNormPolicy) -> None:
    """Replace the batch norms in a module in place as "batch", "group" and "frozen" say; the other policies leave them."""
    replace = {"batch": _without_running_stats, "group": _to_group_norm, "frozen": FrozenBatchNorm}.get(policy)
    if replace is None:
        return
    made: dict[_BatchNorm, nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, _BatchNorm) and child.track_running_stats:
                made[child] = made[child] if child in made else replace(child)
                setattr(parent, name, made[child])


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it is one of torch's, of any number of dimensions."""
    return isinstance(module, _BatchNorm)


def find_affine_parameters(module: nn.Module) -> set[nn.Parameter]:
    """The scales and shifts of its batch norms."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    return {parameter for norm in norms for parameter in norm.parameters(recurse=False)}


def find_running_statistics(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return (name, buffer) of the means and variances that batch norms keep, in the order of the module's layers, each once.

    A counter of batches is among them where the layer uses it: without a momentum it averages over all batches so far.
    """
    kept = {
        id(buffer)
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and norm.track_running_stats
        for buffer in (norm.running_mean, norm.running_var, norm.num_batches_tracked if norm.momentum is None else None)
        if buffer is not None
    }
    return [(name, buffer) for name, buffer in module.named_buffers() if id(buffer) in kept]


class FrozenBatchNorm(nn.Module):
    """Batch norm as a constant: statistics, scale and shift stay as they were made. All are buffers, under the same names."""

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


def _without_running_stats(norm: _BatchNorm) -> _BatchNorm:
    norm.track_running_stats = False
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        norm.register_buffer(name, None)
    return norm


def _to_group_norm(norm: _BatchNorm) -> nn.GroupNorm:
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
