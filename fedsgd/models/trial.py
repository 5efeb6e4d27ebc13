"""Trial of a module and its loss on copies: the tensors that training changes, and the repeatability of a step.

This module imports torch: import it only where a module is built.
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
"""Learning rate, large enough to change an average of the weights."""
SHAPE_WARNING_PREFIX = "Using a target size"
"""Beginning of PyTorch's warning that output and target differ in shape."""
MAX_GRADIENT_DIFFERENCE = 1e-3
"""Maximum difference between equal steps' gradients, relative to the norm of a gradient."""


@dataclass(frozen=True)
class ModuleTrialResult:
    """Buffers and frozen parameters that two training steps changed, and the label of changed Python state or None."""

    changed_tensors: frozenset[str]
    changed_attribute: str | None


@dataclass(frozen=True, eq=False)
class _CopyResult:
    """Result of two training steps and an evaluation on one copy; each step's backward pass ends at its `leaves`."""

    parts: Parts
    gradients: list[Tensor]
    leaves: tuple[list[Tensor], list[Tensor]]
    changed_tensors: frozenset[str]
    evaluation_changes: frozenset[str]
    changed_attribute: str | None


def try_module(module: nn.Module, loss: Loss, dataset: Dataset, source: ModuleSource | None) -> ModuleTrialResult | None:
    """Make two training steps and an evaluation on each of two copies, which `source` builds if the module cannot be copied.

    Return None if there are no copies, or if a step or the evaluation fails. Later trials report the failure.

    Raises:
        ModelError: a tensor that requires a gradient would not be trained; equal steps give different gradients; evaluation
            changes a buffer.
    """
    copies = [_copy_module_and_loss(module, loss, source) for _ in range(2)]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=SHAPE_WARNING_PREFIX)  # the trial of an evaluation raises an error
            results = [_try_copy(*pair, dataset.train) for pair in copies if pair is not None]
    except Exception:  # the user's module or loss may raise any type
        return None
    if len(results) < 2:
        return None
    _check_leaves(results[0], is_copy_of_instance=source is None)
    _check_repeatable(*results)
    if results[0].evaluation_changes:
        raise ModelError(
            f"evaluation changes {min(results[0].evaluation_changes)}, so results would depend on the number of evaluations; "
            "change it in training mode only"
        )
    return ModuleTrialResult(results[0].changed_tensors, results[0].changed_attribute)


def check_restorable(module: nn.Module, source: ModuleSource | None) -> None:
    """Rebuild a module that a user's function makes, to check that the function and a state dict restore the module.

    Raises:
        ModelError: the source draws from a generator without a seed. Or a plain tensor, an array or a non-persistent buffer,
            none of which is in a state dict, is drawn at random.
    """
    if source is None or not source.is_user_defined:
        return
    contents = [*_collect_unsaved_state(module), *module.state_dict().items()]
    second_module = source.build()
    second_contents = [*_collect_unsaved_state(second_module), *second_module.state_dict().items()]
    for (label, value), (_, second_value) in zip(contents, second_contents, strict=False):
        if not is_same(value, second_value):
            raise ModelError(
                f"{label} differs each time that the module is built with the same seed; draw from torch's, numpy's or "
                "Python's global generator, which are seeded, or from a generator with a seed"
            )
    state = _collect_unsaved_state(module)
    other_seed_state = _collect_unsaved_state(replace(source, seed=source.seed + 1).build()) if state else []
    for (label, value), (_, other_seed_value) in zip(state, other_seed_state, strict=False):
        if not is_same(value, other_seed_value):
            raise ModelError(
                f"{label} is drawn at random and in no state dict, so the trained model could not be restored; register it as "
                "a persistent buffer"
            )


def _collect_unsaved_state(module: nn.Module) -> list[tuple[str, object]]:
    persistent_names = module.state_dict().keys()
    buffers = [(f"buffer {name}", buffer) for name, buffer in module.named_buffers() if name not in persistent_names]
    return [*PythonState(list(module.modules())).list_contents(), *buffers]


def _copy_module_and_loss(module: nn.Module, loss: Loss, source: ModuleSource | None) -> tuple[nn.Module, Loss] | None:
    try:
        pair: tuple[nn.Module, Loss] = copy_pair(module, loss)
        return pair
    except Exception:  # copying a user's attributes may raise any type
        return None if source is None else (source.build(), loss)


def _try_copy(module: nn.Module, loss: Loss, examples: Examples) -> _CopyResult:
    parts = list_parts(module, loss)
    python_state = PythonState([child for _, part in parts for child in part.modules()], (loss,))
    before = {name: tensor.detach().clone() for name, tensor in named_fixed_tensors(parts).items()}
    with use_single_thread(), isolate_generators(0), torch.enable_grad():
        first, second = (_take_step(parts, loss, examples, start) for start in (0, BATCH_SIZE))
    after = {name: tensor.detach().clone() for name, tensor in named_fixed_tensors(parts).items()}
    module.eval()
    with use_single_thread(), isolate_generators(0), torch.no_grad():
        module(_select_batch(examples, 0)[0])
    after_evaluation = {name: tensor.detach() for name, tensor in named_fixed_tensors(parts).items()}
    python_state.restore()
    counters = [name for prefix, part in parts for name in find_unused_counters(part, prefix)]
    return _CopyResult(
        parts,
        gradients=[*first[0], *second[0]],
        leaves=(first[1], second[1]),
        changed_tensors=_find_changed_tensors(before, after).difference(counters),
        evaluation_changes=_find_changed_tensors(after, after_evaluation),
        changed_attribute=python_state.first_change,
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
    """Make one step of gradient descent; return (the gradients, the leaves of the loss's graph)."""
    module, (x, y) = parts[0][1].train(), _select_batch(examples, start)
    parameters = [parameter for parameter in named_parameters(parts).values() if parameter.requires_grad]
    value = loss(module(x), y)
    leaves = list(_iterate_leaves(value))
    gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(gradient, alpha=LEARNING_RATE)
    return list(gradients), leaves


def _iterate_leaves(value: Tensor) -> Iterator[Tensor]:
    """Yield the tensors at which the backward pass of a loss ends."""
    stack, visited = [value.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(function for function, _ in node.next_functions)


def _check_leaves(result: _CopyResult, is_copy_of_instance: bool) -> None:
    """Raise ModelError for a leaf that is no parameter and that both steps have, so that it existed before the steps."""
    parameter_ids = {id(parameter) for parameter in named_parameters(result.parts).values()}
    first, second = result.leaves
    for leaf in first:
        if id(leaf) not in parameter_ids and any(leaf is other_leaf for other_leaf in second):
            hint = ""
            if is_copy_of_instance:
                hint = "; the module is a copy, so the loss must not refer to tensors of the original"
            raise ModelError(
                f"the loss depends on a tensor of shape {list(leaf.shape)} that requires a gradient and is no parameter of the "
                f"module, so nothing would train it; register it, or call requires_grad_(False) on it{hint}"
            )


def _check_repeatable(first: _CopyResult, second: _CopyResult) -> None:
    for a, b in zip(first.gradients, second.gradients, strict=True):
        if not float((a - b).norm()) <= MAX_GRADIENT_DIFFERENCE * float(a.norm()) and bool(torch.isfinite(a).all()):
            raise ModelError(
                "equal training steps of two copies of the module, with the same seed, give different gradients: something "
                "draws from a generator without a seed, or stores state outside the module; draw from torch's, numpy's or "
                "Python's global generator, which are seeded for each client"
            )
