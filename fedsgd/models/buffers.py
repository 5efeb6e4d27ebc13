"""Parameters, buffers and frozen parameters of a module and its loss, by name.

What training changes without a gradient is seen by no optimizer and no compressor. Batch norm's running statistics have a
policy of their own (`fedsgd.models.batch_norm`); anything else follows `[model] buffers`. Imports torch.
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
"""float32 holds every integer up to here."""
_EXACT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.int8, torch.uint8, torch.int16)

Parts = Sequence[tuple[str, nn.Module]]
"""The module and, where it is one, the loss, each with the prefix of its names."""


def list_parts(module: nn.Module, loss: object) -> list[tuple[str, nn.Module]]:
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


def named_fixed_tensors(parts: Parts) -> dict[str, Tensor]:
    """Return by name what no gradient trains: the buffers of module and loss, then their frozen parameters."""
    frozen = {name: parameter for name, parameter in named_parameters(parts).items() if not parameter.requires_grad}
    return {**named_buffers(parts), **frozen}


def check_no_shared_memory(parts: Parts) -> None:
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


def find_unused_counters(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the names of the counters of batches that a norm layer keeps and does not use: its momentum is a number."""
    for name, child in module.named_modules():
        if isinstance(child, _NormBase) and child.momentum is not None and child.num_batches_tracked is not None:
            yield f"{prefix}{name}{'.' if name else ''}num_batches_tracked"


def convert_to_float32(name: str, buffer: Tensor) -> F32:
    """Return a buffer as float32 numbers [n], exactly.

    Raises:
        ModelError: float32 does not hold them.
    """
    if buffer.dtype not in _EXACT_DTYPES and not _is_exact_in_float32(buffer):
        raise ModelError(
            f"{name} is {buffer.dtype}, which float32 does not hold: expected torch.float32, "
            f"or integers up to {MAX_EXACT_INTEGER:,}"
        )
    values: F32 = buffer.detach().to(torch.float32).numpy().reshape(-1)
    return values


def _is_exact_in_float32(buffer: Tensor) -> bool:
    if buffer.is_floating_point() or buffer.is_complex():
        return False
    return not buffer.numel() or int(buffer.abs().max()) <= MAX_EXACT_INTEGER
