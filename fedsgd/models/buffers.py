"""Buffers that training changes: which they are, and the policy that says where they go.

A buffer is no gradient, so no optimizer and no compressor sees it. Batch norm's running statistics have a policy of their own
(`fedsgd.models.batch_norm`); any other buffer follows `[model] buffers`. Imports torch, so import it where a module is built.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from fedsgd.arrays import F32
from fedsgd.data import Dataset, Examples
from fedsgd.errors import ModelError
from fedsgd.torch_scope import one_thread, seeded_generators

TRIAL_EXAMPLES = 8
"""Examples in each of the two batches of the trial."""
MOST_COUNTED = 2**24
"""float32 holds every integer up to here."""
_EXACT = (torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.int8, torch.uint8, torch.int16)

Parts = Sequence[tuple[str, nn.Module]]
"""The module and, where it is one, the loss, each with the prefix of its names."""


def parts_of(module: nn.Module, loss: object) -> list[tuple[str, nn.Module]]:
    """Return what has parameters and buffers: the module and, where it is one, the loss, with the prefix "loss."."""
    return [("", module), *([("loss.", loss)] if isinstance(loss, nn.Module) else [])]


def named_parameters(parts: Parts) -> dict[str, nn.Parameter]:
    """Return the parameters of module and loss by name, each once, however many names it has."""
    named: dict[str, nn.Parameter] = {}
    for prefix, part in parts:
        known = {id(parameter) for parameter in named.values()}
        named.update({f"{prefix}{name}": p for name, p in part.named_parameters() if id(p) not in known})
    return named


def named_buffers(parts: Parts) -> dict[str, Tensor]:
    """Return the buffers of module and loss by name."""
    return {f"{prefix}{name}": buffer for prefix, part in parts for name, buffer in part.named_buffers()}


def check_memory(parts: Parts) -> None:
    """Check that no parameter shares memory with a different tensor, from which engines, and copies, would part it.

    Raises:
        ModelError: a parameter is a view of another tensor, or several of its entries are one number in memory.
    """
    spans = []
    for name, tensor in {**named_parameters(parts), **named_buffers(parts)}.items():
        if is_lazy(tensor) or not tensor.numel():
            continue
        extent = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        if tensor.requires_grad and tensor.numel() > extent:
            raise ModelError(f"{name} is expanded, so that several of its entries share memory; use its clone()")
        begin = tensor.data_ptr()
        spans.append((begin, begin + extent * tensor.element_size(), name, tensor.requires_grad))
    last = last_trained = (0, "")
    for begin, end, name, trained in sorted(spans):
        reached, other = last if trained else last_trained
        if begin < reached:
            raise ModelError(
                f"{other} and {name} share memory but are two tensors, which would drift apart; assign one torch.nn.Parameter "
                "to both names, or derive one of them in forward()"
            )
        last = max(last, (end, name))
        last_trained = max(last_trained, (end, name)) if trained else last_trained


def unused_counters(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the names of the counters of batches that a norm layer keeps and does not use: its momentum is a number."""
    for name, child in module.named_modules():
        if isinstance(child, _NormBase) and child.momentum is not None and child.num_batches_tracked is not None:
            yield f"{prefix}{name}{'.' if name else ''}num_batches_tracked"


def changed_buffers(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], dataset: Dataset) -> set[str] | None:
    """Return the names of the buffers that two training steps change, made on a copy; None if they cannot be made.

    Raises:
        ModelError: the loss depends on a tensor that requires a gradient and is no parameter of the module or the loss.
    """
    try:
        module, loss = copy.deepcopy((module, loss))
    except Exception:  # the user's own attributes may be anything: buffers are then looked at while clients train
        return None
    parts = parts_of(module, loss)
    before = {name: buffer.clone() for name, buffer in named_buffers(parts).items()}
    try:
        with one_thread(), seeded_generators(0), torch.enable_grad():
            leaves = [_step(module.train(), loss, dataset.train, start) for start in (0, TRIAL_EXAMPLES)]
    except Exception:  # what is wrong is named by the trial of a step of each batch size
        return None
    own = {id(parameter) for parameter in named_parameters(parts).values()}
    foreign = [leaf for leaf in leaves[0] if id(leaf) not in own and any(leaf is other for other in leaves[1])]
    if foreign:
        raise ModelError(
            f"the loss depends on a tensor of shape {list(foreign[0].shape)} that requires a gradient and is no parameter of "
            "the module (given modules are copied), so nothing would train it; register it as a parameter of the module"
        )
    after = named_buffers(parts)
    changed = {name for name in after if name not in before or not torch.equal(after[name], before[name])}
    return changed.difference(*(unused_counters(part, prefix) for prefix, part in parts))


def _step(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], examples: Examples, start: int) -> list[Tensor]:
    """Make one step without an update; return the leaves of the loss. One that both steps have was there before them."""
    rows = np.arange(start, start + TRIAL_EXAMPLES) % len(examples)
    x, y = (torch.from_numpy(np.array(values)) for values in examples.take(rows).gather())
    value = loss(module(x), y)
    leaves = list(_leaves(value))
    torch.autograd.backward(value)
    return leaves


def _leaves(value: Tensor) -> Iterator[Tensor]:
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


def as_float32(name: str, buffer: Tensor) -> F32:
    """Return a buffer as float32 numbers [n], exactly.

    Raises:
        ModelError: float32 does not hold them.
    """
    if buffer.dtype not in _EXACT and not _countable(buffer):
        raise ModelError(f"buffer {name} is {buffer.dtype}, expected torch.float32, or integers up to {MOST_COUNTED:,}")
    values: F32 = buffer.detach().to(torch.float32).numpy().reshape(-1)
    return values


def _countable(buffer: Tensor) -> bool:
    if buffer.is_floating_point() or buffer.is_complex():
        return False
    return not buffer.numel() or int(buffer.abs().max()) <= MOST_COUNTED
