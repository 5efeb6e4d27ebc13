"""The floating-point operations of a training step, counted: what a price of computing rests on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedsgd.data import Examples
from fedsgd.models.task import LearningTask
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training.flat_module import FlatModule, TensorFormat, batch_tensors

BATCH_SIZE = 8
FLOPS_PER_PARAMETER = 6


class Flops(NamedTuple):
    """per_example: of one example, forward and backward. rule: "counted", by PyTorch's own counter, which knows the matrix
    products, convolutions and attention that training consists of, and counts a multiplication and an addition as two; or "six
    a parameter" where it finds none or fails (2P forward, 4P backward; Kaplan et al. 2020, section 2.1)."""

    per_example: float
    rule: Literal["counted", "six a parameter"]


def count_training_flops(task: LearningTask, examples: Examples) -> Flops:
    """Of the gradient of the loss on a few of these examples. The module is as it was afterwards, and so are torch's global
    generator and its threads."""
    six = Flops(float(FLOPS_PER_PARAMETER * task.layout.size), "six a parameter")
    try:
        counted = _count_flops(task, examples)
    except Exception:  # the user's module, loss or an operation that the counter cannot read: no reason to lose a finished run
        return six
    return Flops(counted, "counted") if counted else six


def _count_flops(task: LearningTask, examples: Examples) -> float:
    part = examples.slice(0, min(BATCH_SIZE, len(examples)))
    network, flat = FlatModule(task), torch.empty(task.layout.size)
    arrangement = TensorFormat(task.layout)
    arrangement.load(flat, task.initial_parameters)
    network.bind_parameters(arrangement.view_tensors(flat))
    was_training = task.module.training
    with use_single_thread(), isolate_generators(0), network.isolated_buffers(), _disable_fused_layers():
        task.module.train()
        with FlopCounterMode(display=False) as counter:
            network.compute_gradients(*batch_tensors(part))
    task.module.train(was_training)
    return float(counter.get_total_flops()) / len(part)


@contextmanager
def _disable_fused_layers() -> Iterator[None]:
    """MKL-DNN makes one operation of a whole recurrent layer, in which the counter finds nothing to count."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)  # said when its flags are set, on any machine
        with torch.backends.mkldnn.flags(enabled=False):
            yield
