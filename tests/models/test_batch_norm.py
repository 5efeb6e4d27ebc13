"""Policies for batch norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedsgd.data import Dataset
from fedsgd.errors import ModelError
from fedsgd.models import Mlp
from fedsgd.models.builder import build_task


def build_normalised(policy: str, blobs: Dataset) -> nn.Module:
    """Return a module with two batch norms under a policy."""
    module = nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Sequential(nn.Linear(32, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    )
    with torch.no_grad():
        module[1].weight.mul_(3)
        module[2][1].bias.add_(1)
    return build_task(Mlp(batch_norm=policy), blobs, 0, module=module).module


def test_batch_norm_policy_batch_has_no_running_statistics(blobs: Dataset) -> None:
    module = build_normalised("batch", blobs)
    assert not dict(module.named_buffers())
    x = torch.from_numpy(blobs.train.x)
    with torch.no_grad():
        assert torch.equal(module.train()(x), module.eval()(x))
        hidden = module[1](module[0](x))
    assert hidden.mean(0).numpy() == pytest.approx(0, abs=1e-5)
    assert hidden.std(0).numpy() == pytest.approx(3, rel=0.01)


def test_batch_norm_policy_group_keeps_scale_and_shift(blobs: Dataset) -> None:
    module = build_normalised("group", blobs)
    assert [(n.num_groups, n.num_channels) for n in module.modules() if isinstance(n, nn.GroupNorm)] == [(2, 32), (1, 6)]
    assert module[1].weight.detach().tolist() == [3.0] * 32
    assert module[2][1].bias.detach().tolist() == [1.0] * 6
    x = torch.from_numpy(blobs.train.x)
    with torch.no_grad():
        assert module(x)[:1].numpy() == pytest.approx(module(x[:1]).numpy(), abs=1e-5)


def test_batch_norm_policy_refuse_raises_error(blobs: Dataset) -> None:
    with pytest.raises(ModelError, match=r'set model.batch_norm to "group", "batch", "mean", "local" or "frozen"'):
        build_normalised("refuse", blobs)
