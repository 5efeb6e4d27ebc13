"""One training step as a graph: every tensor operation that the module, the loss and autograd call, recorded as it happens.

torch's own tracer, `make_fx`, records the same operations; but it imports a compiler (1.8 s) that nothing here needs.

In a graph, a placeholder whose meta has a "value" stands for a tensor that is the same object in every step (a parameter, a
buffer, a constant), and "varies" says whether what is in it may change; the others are what each step is given.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fedsgd.training.base import NotCapturableError

DATA_READING_FUNCTIONS = (Tensor.numpy, Tensor.tolist, Tensor.__array__)
"""How numbers leave a tensor without an operation."""


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor before there is one."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def from_tensor(tensor: Tensor) -> TensorSpec:
        """Of this tensor."""
        return TensorSpec(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)


class Recorder(TorchDispatchMode):
    """Records below autograd: what it sees is the forward and the backward pass, in the order in which they happen."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler, to keep it away from here."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()
        self._nodes: dict[int, Node] = {}
        self._nodes_by_storage: dict[tuple[int, TensorSpec], Node] = {}
        self._live_tensors: list[Tensor] = []  # so that no two tensors have the same id

    def add_input(self, name: str, tensor: Tensor, is_fixed: bool, is_mutable: bool = True) -> Node:
        """A placeholder for `tensor`; fixed: it is this very tensor in every step; varies: what is in it may change."""
        node = self.graph.placeholder(name)
        if is_fixed:
            node.meta.update(value=tensor.detach(), varies=is_mutable)
        self._register(tensor, node)
        return node

    def get_node(self, tensor: Tensor) -> Node:
        """What computed this tensor; a constant if nothing that was recorded did."""
        known = self._nodes.get(id(tensor)) or self._nodes_by_storage.get(_storage_key(tensor))
        if known is not None:
            return known
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            return self.add_input("constant", tensor, is_fixed=True, is_mutable=False)

    def _register(self, tensor: Tensor, node: Node) -> None:
        self._nodes[id(tensor)] = self._nodes_by_storage[_storage_key(tensor)] = node
        self._live_tensors.append(tensor)
        node.meta["like"] = TensorSpec.from_tensor(tensor)

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        _check_data_independence(func, args)
        if any(isinstance(value, torch.Generator) for value in (kwargs or {}).values()):
            raise NotCapturableError(f"{func} draws from a generator of its own")
        given = tree_map_only(Tensor, self.get_node, (args, dict(kwargs or {})))
        out = func(*args, **(kwargs or {}))
        node = self.graph.call_function(func, *given)
        if isinstance(out, Tensor):
            self._register(out, node)
        elif isinstance(out, tuple | list):
            for i, part in enumerate(out):
                if isinstance(part, Tensor):
                    self._register(part, self.graph.call_function(operator.getitem, (node, i)))
        elif out is not None:
            raise NotCapturableError(f"{func} gives a {type(out).__name__}, not a tensor")
        return out


def _storage_key(tensor: Tensor) -> tuple[int, TensorSpec]:
    """Where its numbers are: what `.data` gives is another tensor, which no operation made, in the same place."""
    return (tensor.data_ptr() if tensor.layout is torch.strided and tensor.numel() else id(tensor)), TensorSpec.from_tensor(
        tensor
    )


class FunctionGuard(TorchFunctionMode):
    """CaptureError where numbers leave tensors in a way that a `Recorder` does not see."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in DATA_READING_FUNCTIONS:
            raise NotCapturableError(
                f"{func.__name__} reads numbers out of a tensor, so that what comes next may depend on the data"
            )
        return func(*args, **(kwargs or {}))


def _check_data_independence(func: OpOverload, args: tuple[Any, ...]) -> None:
    """CaptureError for an operation after which the next ones may be others for other data."""
    if torch.Tag.data_dependent_output in func.tags:
        raise NotCapturableError(f"{func} reads a number out of a tensor, so that what comes next may depend on the data")
    if torch.Tag.dynamic_output_shape in func.tags:
        indices = args[1] if func is torch.ops.aten.index.Tensor else ()
        if not indices or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):  # a mask
            raise NotCapturableError(f"{func} gives a shape that depends on the data")


def record(
    step: Callable[[], Sequence[Tensor]], fixed_tensors: Mapping[str, Tensor], step_inputs: Mapping[str, Tensor]
) -> tuple[Graph, list[Node]]:
    """(the graph of what `step` calls, the nodes of what it returns); the graph has no output yet.

    fixed: by name, the tensors that are the same objects in every step; given: those that each step brings.
    """
    recorder = Recorder()
    for name, tensor in fixed_tensors.items():
        recorder.add_input(name, tensor, is_fixed=True)
    for name, tensor in step_inputs.items():
        recorder.add_input(name, tensor, is_fixed=False)
    with recorder, FunctionGuard():
        results = step()
    return recorder.graph, [recorder.get_node(result) for result in results]
