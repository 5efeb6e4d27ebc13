"""Count of the floating-point operations of a training step, from which computing times are estimated."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fedsgd.data import Examples
from fedsgd.models.task import LearningTask
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training.flat_module import FlatModule, batch_tensors

BATCH_SIZE = 8
"""Examples in the batch whose operations are counted."""
FLOPS_PER_PARAMETER = 6
"""Operations per parameter and example if the count fails: 2 forward, 4 backward (Kaplan et al. 2020, section 2.1)."""


class Flops(NamedTuple):
    """Floating-point operations of training on one example, forward and backward, and the rule of the count.

    "counted": PyTorch's counter covers matrix products, convolutions and attention, and counts a multiplication and an addition
    as two. "six a parameter": the step or the counter fails, or no operation of the module is covered.
    """

    per_example: float
    rule: Literal["counted", "six a parameter"]


def count_training_flops(task: LearningTask, examples: Examples) -> Flops:
    """Count the operations of the gradient on the first `BATCH_SIZE` examples at the initial parameters, which stay loaded."""
    estimate = Flops(float(FLOPS_PER_PARAMETER * task.layout.size), "six a parameter")
    try:
        per_example = _count_flops(task, examples)
    except Exception:  # of the user's module or loss, or of the counter; a finished run must not fail for it
        return estimate
    return Flops(per_example, "counted") if per_example else estimate


def _count_flops(task: LearningTask, examples: Examples) -> float:
    batch = examples.slice(0, min(BATCH_SIZE, len(examples)))
    flat_module, was_training = FlatModule(task), task.module.training
    flat_module.load_weights(task.initial_parameters)
    with use_single_thread(), isolate_generators(0), flat_module.isolated_buffers(), _disable_fused_layers():
        task.module.train()
        try:
            with _FlopCounter() as counter:
                flat_module.compute_gradients(*batch_tensors(batch))
        finally:
            task.module.train(was_training)
    n_flops: float = counter.n_flops
    return n_flops / len(batch)


class _FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sum of PyTorch's formulas over all operations in the context.

    PyTorch's own mode, FlopCounterMode, gives the same sum, but its first operation imports PyTorch's compiler, which takes a
    second of processor time in each run.

    Attributes:
        n_flops: floating-point operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_flops = 0.0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # True, PyTorch's default, imports the compiler
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, formula = kwargs or {}, flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.n_flops += formula(*args, **kwargs, out_val=result)
        return result


@contextmanager
def _disable_fused_layers() -> Iterator[None]:
    """Run the body without MKL-DNN and without fused attention.

    On a CPU, a recurrent layer or attention would be one operation that the counter does not cover.
    """
    has_fused_attention = torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_flash_sdp(False)  # for a CPU too
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)  # PyTorch warns on any machine
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        torch.backends.cuda.enable_flash_sdp(has_fused_attention)
