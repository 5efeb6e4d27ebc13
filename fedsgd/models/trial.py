"""Trial of a module and its loss on copies, before a task is described: what training changes, and whether it can be repeated.

Imports torch, so import it where a module is built.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedsgd.data import Dataset, Examples
from fedsgd.errors import ModelError
from fedsgd.models.base import Loss
from fedsgd.models.buffers import Parts, find_unused_counters, list_parts, named_fixed_tensors, named_parameters
from fedsgd.models.equality import is_same
from fedsgd.models.python_state import PythonState, copy_pair
from fedsgd.models.task import ModuleSource
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_threads import use_single_thread

BATCH_SIZE = 8
"""Examples in each of the two batches."""
LEARNING_RATE = 1e-3
"""Step size: enough that an average over the weights changes."""
SHAPE_WARNING_PREFIX = "Using a target size"
"""Beginning of PyTorch's warning that output and target differ in shape."""
MAX_GRADIENT_DIFFERENCE = 1e-3
"""Largest difference of two gradients that should be equal, as a share of their norm."""


@dataclass(frozen=True)
class ModuleTrialResult:
    """Result of two training steps.

    Attributes:
        changed: names of the buffers and frozen parameters that the steps changed.
        attribute: label of Python state that they changed; None if there was none.
    """

    changed_tensors: frozenset[str]
    changed_attribute: str | None


@dataclass(frozen=True, eq=False)
class _CopyResult:
    """Result of two training steps and an evaluation on one copy."""

    parts: Parts
    gradients: list[Tensor]
    leaves: tuple[list[Tensor], list[Tensor]]
    changed_tensors: frozenset[str]
    evaluation_changes: frozenset[str]
    changed_attribute: str | None


def try_module(module: nn.Module, loss: Loss, dataset: Dataset, source: ModuleSource | None) -> ModuleTrialResult | None:
    """Make two training steps and an evaluation on each of two copies.

    Args:
        module: module to copy.
        loss: its loss.
        dataset: examples to train and evaluate on.
        source: how the module was made, for one that cannot be copied; None if it was given.

    Returns:
        None if there are no copies, or a step fails: that is named by the trial of a step of each batch size.

    Raises:
        ModelError: nothing would train a tensor that requires a gradient; equal steps give other gradients; evaluation changes
            a buffer.
    """
    copies = [_copy_module_and_loss(module, loss, source) for _ in range(2)]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=SHAPE_WARNING_PREFIX
            )  # the trial of an evaluation refuses it, with the shapes
            outcomes = [_try_copy(*pair, dataset.train) for pair in copies if pair is not None]
    except Exception:  # the user's module or loss
        return None
    if len(outcomes) < 2:
        return None
    _check_leaves(outcomes[0], is_copy_of_instance=source is None)
    _check_repeatable(*outcomes)
    if outcomes[0].evaluation_changes:
        raise ModelError(
            f"evaluation changes {min(outcomes[0].evaluation_changes)}, so that figures would depend on how often a model was "
            "evaluated; change it in training mode only"
        )
    return ModuleTrialResult(outcomes[0].changed_tensors, outcomes[0].changed_attribute)


def check_restorable(module: nn.Module, source: ModuleSource | None) -> None:
    """Check that the module can be made again, and restored from its state dict, by making it twice more.

    A module that was given is not checked: whoever gave it has it.

    Raises:
        ModelError: the function that makes it draws from a generator that is not seeded; or a plain tensor, an array or a
            buffer that is not persistent, which no state dict holds, is drawn at random.
    """
    if source is None or not source.is_user_defined:
        return
    contents = [*_collect_unsaved_state(module), *module.state_dict().items()]
    again = source.build()
    for (label, value), (_, other) in zip(
        contents, [*_collect_unsaved_state(again), *again.state_dict().items()], strict=False
    ):
        if not is_same(value, other):
            raise ModelError(
                f"{label} is another one each time that the module is made with the same seed; draw from torch's, numpy's or "
                "Python's global generator, which are seeded, or from a generator with a seed"
            )
    held = _collect_unsaved_state(module)
    drawn = _collect_unsaved_state(replace(source, seed=source.seed + 1).build()) if held else []
    for (label, value), (_, other) in zip(held, drawn, strict=False):
        if not is_same(value, other):
            raise ModelError(
                f"{label} is drawn at random and in no state dict, so that the trained model could not be restored; register "
                "it as a persistent buffer"
            )


def _collect_unsaved_state(module: nn.Module) -> list[tuple[str, object]]:
    held = module.state_dict().keys()
    buffers = [(f"buffer {name}", buffer) for name, buffer in module.named_buffers() if name not in held]
    return [*PythonState(list(module.modules())).list_contents(), *buffers]


def _copy_module_and_loss(module: nn.Module, loss: Loss, source: ModuleSource | None) -> tuple[nn.Module, Loss] | None:
    try:
        copied: tuple[nn.Module, Loss] = copy_pair(module, loss)
        return copied
    except Exception:  # the user's own attributes may be anything
        return None if source is None else (source.build(), loss)


def _try_copy(module: nn.Module, loss: Loss, examples: Examples) -> _CopyResult:
    parts = list_parts(module, loss)
    attributes = PythonState([child for _, part in parts for child in part.modules()], (loss,))
    before = {name: tensor.detach().clone() for name, tensor in named_fixed_tensors(parts).items()}
    with use_single_thread(), isolate_generators(0), torch.enable_grad():
        first, second = (_take_step(parts, loss, examples, start) for start in (0, BATCH_SIZE))
    after = {name: tensor.detach().clone() for name, tensor in named_fixed_tensors(parts).items()}
    module.eval()
    with use_single_thread(), isolate_generators(0), torch.no_grad():
        module(_select_batch(examples, 0)[0])
    last = {name: tensor.detach() for name, tensor in named_fixed_tensors(parts).items()}
    attributes.restore()
    counters = [name for prefix, part in parts for name in find_unused_counters(part, prefix)]
    changed = _find_changed_tensors(before, after).difference(counters)
    leaves = first[1], second[1]
    return _CopyResult(
        parts, [*first[0], *second[0]], leaves, changed, _find_changed_tensors(after, last), attributes.first_change
    )


def _find_changed_tensors(before: dict[str, Tensor], after: dict[str, Tensor]) -> frozenset[str]:
    return frozenset(name for name in after if name not in before or not is_same(after[name], before[name]))


def _select_batch(examples: Examples, start: int) -> tuple[Tensor, Tensor]:
    rows = np.arange(start, start + BATCH_SIZE) % len(examples)
    x, y = (torch.from_numpy(np.array(values)).clone() for values in examples.select(rows).arrays())
    return x, y


def _take_step(
    parts: Parts, loss: Callable[[Tensor, Tensor], Tensor], examples: Examples, start: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Make one step of gradient descent; return (the gradients, the leaves of the loss)."""
    module, (x, y) = parts[0][1].train(), _select_batch(examples, start)
    trained = [parameter for parameter in named_parameters(parts).values() if parameter.requires_grad]
    value = loss(module(x), y)
    leaves = list(_iterate_leaves(value))
    gradients = torch.autograd.grad(value, trained, materialize_grads=True)
    with torch.no_grad():
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.sub_(gradient, alpha=LEARNING_RATE)
    return list(gradients), leaves


def _iterate_leaves(value: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that the backward pass of a loss ends at."""
    waiting, seen = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting.extend(function for function, _ in node.next_functions)


def _check_leaves(outcome: _CopyResult, is_copy_of_instance: bool) -> None:
    """Raise ModelError for a tensor that both steps reach, so that it was there before, and that no parameter is."""
    own = {id(parameter) for parameter in named_parameters(outcome.parts).values()}
    first, second = outcome.leaves
    for leaf in first:
        if id(leaf) not in own and any(leaf is other for other in second):
            copied = (
                "; a module that is given is copied, so a loss must not hold tensors of the original"
                if is_copy_of_instance
                else ""
            )
            raise ModelError(
                f"the loss depends on a tensor of shape {list(leaf.shape)} that requires a gradient and is no parameter of the "
                f"module, so nothing would train it; register it, or call requires_grad_(False) on it{copied}"
            )


def _check_repeatable(first: _CopyResult, second: _CopyResult) -> None:
    for a, b in zip(first.gradients, second.gradients, strict=True):
        if not float((a - b).norm()) <= MAX_GRADIENT_DIFFERENCE * float(a.norm()) and bool(torch.isfinite(a).all()):
            raise ModelError(
                "equal training steps of two copies of the module, with the same seed, give different gradients: something "
                "draws from a generator that is not seeded, or keeps state outside the module; draw from torch's, numpy's or "
                "Python's global generator, which are seeded for each client"
            )
