"""Tensors of a task's module and loss by name: trainable parameters, frozen parameters and buffers.

Optimizers and compressors leave out the tensors that training changes without a gradient. Running statistics of batch norm
have their own policy (`fedsgd.models.batch_norm`); all other such tensors follow `[model] buffers`. This module imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from fedsgd.errors import ModelError
from fedsgd.numerics.arrays import F32

MAX_EXACT_INTEGER = 2**24
"""Maximum n for which float32 represents every integer from −n to n."""
_EXACT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.int8, torch.uint8, torch.int16)

Parts = Sequence[tuple[str, nn.Module]]
"""Pairs (prefix of the names, module): the task's module, and the loss if it is a module."""


def list_parts(module: nn.Module, loss: object) -> list[tuple[str, nn.Module]]:
    """Return the parts of a task: the module with the prefix "" and, if the loss is a module, the loss with "loss."."""
    return [("", module), *([("loss.", loss)] if isinstance(loss, nn.Module) else [])]


def named_parameters(parts: Parts) -> dict[str, nn.Parameter]:
    """Return the parameters of module and loss by name; a shared parameter occurs once, under its first name."""
    parameters: dict[str, nn.Parameter] = {}
    for prefix, part in parts:
        ids = {id(parameter) for parameter in parameters.values()}
        parameters.update({f"{prefix}{name}": p for name, p in part.named_parameters() if id(p) not in ids})
    return parameters


def named_buffers(parts: Parts) -> dict[str, Tensor]:
    """Return the buffers of module and loss by name."""
    return {f"{prefix}{name}": buffer for prefix, part in parts for name, buffer in part.named_buffers()}


def named_fixed_tensors(parts: Parts) -> dict[str, Tensor]:
    """Return the tensors that no gradient trains, by name: the buffers of module and loss, then their frozen parameters."""
    frozen_parameters = {name: parameter for name, parameter in named_parameters(parts).items() if not parameter.requires_grad}
    return {**named_buffers(parts), **frozen_parameters}


def check_no_shared_memory(parts: Parts) -> None:
    """Raise ModelError if a trainable parameter's memory range overlaps another tensor's, or if its entries share memory."""
    spans = []
    for name, tensor in {**named_parameters(parts), **named_buffers(parts)}.items():
        if is_lazy(tensor) or not tensor.numel():
            continue
        extent = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        if tensor.requires_grad and tensor.numel() > extent:
            raise ModelError(f"{name} is expanded, so that several of its entries share memory; use its clone()")
        begin = tensor.data_ptr()
        spans.append((begin, begin + extent * tensor.element_size(), name, tensor.requires_grad))
    last = last_trainable = (0, "")
    for begin, end, name, is_trainable in sorted(spans):
        last_end, last_name = last if is_trainable else last_trainable
        if begin < last_end:
            raise ModelError(
                f"{last_name} and {name} share memory but are two tensors, which training would separate; assign one "
                "torch.nn.Parameter to both names, or derive one of them in forward()"
            )
        last = max(last, (end, name))
        last_trainable = max(last_trainable, (end, name)) if is_trainable else last_trainable


def find_unused_counters(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the names of each `num_batches_tracked` that a norm layer does not use, because the momentum is a number."""
    for name, child in module.named_modules():
        if isinstance(child, _NormBase) and child.momentum is not None and child.num_batches_tracked is not None:
            yield f"{prefix}{name}{'.' if name else ''}num_batches_tracked"


def convert_to_float32(name: str, buffer: Tensor) -> F32:
    """Convert a buffer to float32, [n], without rounding. ModelError for float64, complex numbers and integers beyond ±2²⁴."""
    if buffer.dtype not in _EXACT_DTYPES and not _is_exact_in_float32(buffer):
        raise ModelError(
            f"{name} is {buffer.dtype}, expected numbers that float32 represents exactly: torch.float32, torch.float16, "
            f"torch.bfloat16, or integers up to {MAX_EXACT_INTEGER:,}"
        )
    values: F32 = buffer.detach().to(torch.float32).cpu().numpy().reshape(-1)
    return values


def _is_exact_in_float32(buffer: Tensor) -> bool:
    if buffer.is_floating_point() or buffer.is_complex():
        return False
    return not buffer.numel() or int(buffer.abs().max()) <= MAX_EXACT_INTEGER
