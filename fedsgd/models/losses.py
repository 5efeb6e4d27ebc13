"""Recognition of PyTorch's losses and their reduction from slices to a set of examples. Imports torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fedsgd.models.base import Loss
from fedsgd.models.loss_reduction import Reduction

DEFAULT_IGNORE_INDEX = -100
"""Default of `ignore_index` in PyTorch."""
COUNTED_LOSSES = ("cross_entropy", "nll_loss")
"""Losses whose mean is over the targets that are not ignored, with class weights."""
LOSS_MODULES: Mapping[type[nn.Module], str] = {
    nn.CrossEntropyLoss: "cross_entropy",
    nn.NLLLoss: "nll_loss",
    nn.MSELoss: "mse_loss",
    nn.L1Loss: "l1_loss",
    nn.SmoothL1Loss: "smooth_l1_loss",
    nn.HuberLoss: "huber_loss",
    nn.BCELoss: "binary_cross_entropy",
    nn.BCEWithLogitsLoss: "binary_cross_entropy_with_logits",
    nn.SoftMarginLoss: "soft_margin_loss",
    nn.PoissonNLLLoss: "poisson_nll_loss",
    nn.KLDivLoss: "kl_div",
    nn.HingeEmbeddingLoss: "hinge_embedding_loss",
    nn.MultiMarginLoss: "multi_margin_loss",
    nn.MultiLabelMarginLoss: "multilabel_margin_loss",
    nn.MultiLabelSoftMarginLoss: "multilabel_soft_margin_loss",
}
LOSS_FUNCTIONS: Mapping[Any, str] = {getattr(functional, name): name for name in LOSS_MODULES.values()}
REDUCTION_OPTIONS = ("reduction", "weight", "ignore_index")
LEGACY_OPTIONS = ("size_average", "reduce")
"""Deprecated options that change the reduction; a loss with such an option is not recognised."""


def recognise_loss(loss: Loss) -> tuple[str, dict[str, Any]] | None:
    """Return (name, `REDUCTION_OPTIONS`) of PyTorch's loss or its partial; None for any other loss, a subclass or hooks."""
    if isinstance(loss, functools.partial):
        name = _find_function_name(loss.func)
        if name is None or loss.args or any(key in loss.keywords for key in LEGACY_OPTIONS):
            return None
        return name, {key: loss.keywords[key] for key in REDUCTION_OPTIONS if key in loss.keywords}
    if isinstance(loss, nn.Module):
        is_modified = loss._forward_hooks or loss._forward_pre_hooks or "forward" in vars(loss)
        name = None if is_modified else LOSS_MODULES.get(type(loss))
        return None if name is None else (name, {key: getattr(loss, key) for key in REDUCTION_OPTIONS if hasattr(loss, key)})
    name = _find_function_name(loss)
    return None if name is None else (name, {})


def flatten_positions(loss: Loss, output: Any, target: Tensor) -> tuple[Any, Tensor]:
    """Return output [B, K, ...] and target [B, ...] of a recognised loss over classes as [n, K] and [n], unless on the CPU.

    The mean and the sum are the same. On a GPU, torch has a deterministic form of these losses for two axes only.
    """
    if not isinstance(output, Tensor) or output.device.type == "cpu" or output.dim() < 3 or target.dim() != output.dim() - 1:
        return output, target
    name = recognise_loss(loss)
    if name is None or name[0] not in COUNTED_LOSSES or target.is_floating_point():
        return output, target
    return output.movedim(1, -1).reshape(-1, output.shape[1]), target.reshape(-1)


def _find_function_name(function: Callable[..., Any]) -> str | None:
    try:
        return LOSS_FUNCTIONS.get(function)
    except TypeError:  # the callable cannot be hashed
        return None


def find_reduction(loss: Loss) -> Reduction:
    """Return the reduction of the losses of slices that the loss implies; "whole" for a loss that is not recognised.

    >>> find_reduction(nn.MSELoss()), find_reduction(nn.CrossEntropyLoss()), find_reduction(lambda output, target: output.sum())
    ('mean', 'counted', 'whole')
    """
    name_and_options = recognise_loss(loss)
    if name_and_options is None:
        return "whole"
    name, options = name_and_options
    reduction = options.get("reduction", "mean")
    if name not in COUNTED_LOSSES and options.get("weight") is not None:  # the weight may have an entry for each example
        return "whole"
    if reduction == "sum":
        return "sum"
    if reduction not in ("mean", "batchmean"):
        return "whole"
    return "counted" if name in COUNTED_LOSSES else "mean"


def is_cross_entropy(loss: Loss) -> bool:
    """Return True for PyTorch's cross-entropy or negative log-likelihood, whose second axis has the classes."""
    name, _ = recognise_loss(loss) or ("", {})
    return name in COUNTED_LOSSES


def find_ignored_label(loss: Loss) -> int | None:
    """Return the label that PyTorch's cross-entropy or negative log-likelihood ignores; None for any other loss."""
    name, options = recognise_loss(loss) or ("", {})
    return int(options.get("ignore_index", DEFAULT_IGNORE_INDEX)) if name in COUNTED_LOSSES else None


def count_targets(loss: Loss, target: Tensor) -> float:
    """Return the weight of a slice in PyTorch's mean cross-entropy, from [B, ...] class labels or probabilities of classes.

    The weight counts the targets that are not ignored, in units of examples, or adds up the class weights of these targets.
    """
    if target.is_floating_point():  # probabilities: PyTorch divides by the number of examples and ignores weights
        return float(len(target))
    _, options = recognise_loss(loss) or ("", {})
    labels = target[target != options.get("ignore_index", DEFAULT_IGNORE_INDEX)]
    weight = options.get("weight")
    if weight is not None:
        return float(weight.detach().double()[labels].sum())
    return labels.numel() * len(target) / max(target.numel(), 1)


def count_summed_targets(loss: Loss, target: Tensor) -> float | None:
    """Return the number of terms, or the sum of class weights, in PyTorch's summed cross-entropy; None for any other loss."""
    name, options = recognise_loss(loss) or ("", {})
    if name not in COUNTED_LOSSES:
        return None
    if target.is_floating_point():  # probabilities of classes [B, K, ...]
        return float(target.numel() // target.shape[1])
    return count_targets(loss, target) * (1 if options.get("weight") is not None else target.numel() / len(target))


def weigh_slice(reduction: Reduction, loss: Loss, target: Tensor) -> float:
    """Return the factor of the loss of one slice in the sum over slices."""
    if reduction == "sum":
        return 1.0
    return count_targets(loss, target) if reduction == "counted" else float(len(target))
