"""Recording of a training step as a graph of the tensor operations that the module, the loss and autograd call.

Torch's own tracer, `make_fx`, records the same operations, but it imports a compiler (1.8 s) that is not needed here.

A placeholder with "value" in its meta is a fixed tensor: the same object in every step (a parameter, a buffer, a constant).
The meta "varies" is True if the numbers in a fixed tensor may change. All other placeholders are inputs of each step. A
node's meta "spec" is the `TensorSpec` of the result.
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

from fedsgd.training.base import NotCapturableError

DATA_READING_FUNCTIONS = (Tensor.numpy, Tensor.tolist, Tensor.__array__)
"""Functions that read the numbers of a tensor without an operation that a `Recorder` sees."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape, stride, dtype and device of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def from_tensor(tensor: Tensor) -> TensorSpec:
        """Return a tensor's spec."""
        return TensorSpec(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)


class Recorder(TorchDispatchMode):
    """Dispatch mode that records the operations of the forward and the backward pass, below autograd, in order."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: for True, torch would import its compiler in order to disable the compiler."""
        return False

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self._device = device
        self.graph = Graph()
        self._nodes: dict[int, Node] = {}
        self._nodes_by_storage: dict[tuple[int, TensorSpec], Node] = {}
        self._live_tensors: list[Tensor] = []  # keeps ids unique

    def add_input(self, name: str, tensor: Tensor, is_fixed: bool, is_mutable: bool = True) -> Node:
        """Add a placeholder for a tensor of the recorded step; `is_mutable`: the numbers in a fixed tensor may change."""
        node = self.graph.placeholder(name)
        if is_fixed:
            node.meta.update(value=tensor.detach(), varies=is_mutable)
        self._register(tensor, node)
        return node

    def get_node(self, tensor: Tensor) -> Node:
        """Return the node that computed a tensor; a new constant if no recorded operation computed the tensor."""
        node = self._nodes.get(id(tensor)) or self._nodes_by_storage.get(_storage_key(tensor))
        if node is not None:
            return node
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            node = self.add_input("constant", tensor, is_fixed=True, is_mutable=False)
        if self._device is not None:  # a number of Python, which torch stores on the CPU: a replay on a GPU cannot copy it
            node.meta["value"] = node.meta["value"].to(self._device)
        return node

    def _register(self, tensor: Tensor, node: Node) -> None:
        self._nodes[id(tensor)] = self._nodes_by_storage[_storage_key(tensor)] = node
        self._live_tensors.append(tensor)
        node.meta["spec"] = TensorSpec.from_tensor(tensor)

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        _check_data_independence(func, args)
        if any(isinstance(value, torch.Generator) for value in (kwargs or {}).values()):
            raise NotCapturableError(f"{func} draws from its own generator")
        arguments = self._replace_tensors(args), self._replace_tensors(dict(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        node = self.graph.call_function(func, *arguments)
        if isinstance(result, Tensor):
            self._register(result, node)
        elif isinstance(result, tuple | list):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._register(part, self.graph.call_function(operator.getitem, (node, i)))
        elif result is not None:
            raise NotCapturableError(f"{func} returns a {type(result).__name__}, not a tensor")
        return result

    def _replace_tensors(self, argument: Any) -> Any:
        """Return an argument of an operation with the nodes of its tensors."""
        if isinstance(argument, Tensor):
            return self.get_node(argument)
        if isinstance(argument, tuple | list):
            return type(argument)(self._replace_tensors(value) for value in argument)
        if isinstance(argument, dict):
            return {name: self._replace_tensors(value) for name, value in argument.items()}
        return argument


def _storage_key(tensor: Tensor) -> tuple[int, TensorSpec]:
    """Return a tensor's address and spec: `.data` returns a new tensor without an operation, recognized by these two."""
    address = tensor.data_ptr() if tensor.layout is torch.strided and tensor.numel() else id(tensor)
    return address, TensorSpec.from_tensor(tensor)


class FunctionGuard(TorchFunctionMode):
    """Function mode that raises NotCapturableError at a call of one of `DATA_READING_FUNCTIONS`."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in DATA_READING_FUNCTIONS:
            raise NotCapturableError(
                f"{func.__name__} reads numbers of a tensor, so the next operations may depend on the data"
            )
        return func(*args, **(kwargs or {}))


def _check_data_independence(func: OpOverload, args: tuple[Any, ...]) -> None:
    """Raise NotCapturableError for an operation after which other data may lead to other operations."""
    if torch.Tag.data_dependent_output in func.tags:
        raise NotCapturableError(f"{func} reads a number of a tensor, so the next operations may depend on the data")
    if torch.Tag.dynamic_output_shape in func.tags:
        indices = args[1] if func is torch.ops.aten.index.Tensor else ()
        if not indices or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):  # a mask
            raise NotCapturableError(f"{func} returns a tensor whose shape depends on the data")


def copy_graph(graph: Graph, nodes: Sequence[Node]) -> tuple[Graph, list[Node]]:
    """Return a copy of a graph without an output node, and the copies of the nodes. The values of placeholders are shared."""
    copy, copies = Graph(), dict[Node, Node]()
    copy.graph_copy(graph, copies)
    for node in copy.nodes:
        if "owner" in node.meta:
            node.meta["owner"] = copies[node.meta["owner"]]
    return copy, [copies[node] for node in nodes]


def record(
    step: Callable[[], Sequence[Tensor]], fixed_tensors: Mapping[str, Tensor], step_inputs: Mapping[str, Tensor]
) -> tuple[Graph, list[Node]]:
    """Record a step, and return the graph, without an output node, and the nodes of the step's results."""
    recorder = Recorder(next((tensor.device for tensor in step_inputs.values()), None))
    for name, tensor in fixed_tensors.items():
        recorder.add_input(name, tensor, is_fixed=True)
    for name, tensor in step_inputs.items():
        recorder.add_input(name, tensor, is_fixed=False)
    with recorder, FunctionGuard():
        results = step()
    return recorder.graph, [recorder.get_node(result) for result in results]
