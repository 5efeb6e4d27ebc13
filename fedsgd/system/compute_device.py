"""Devices on which engines compute: names, their check on this machine, and torch's settings for equal results on a GPU.

Importing this module does not import torch; its functions do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from fedsgd.errors import ScenarioError

CPU, CUDA, AUTO = "cpu", "cuda", "auto"
CUBLAS_VARIABLE, CUBLAS_VALUE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
"""Environment variable of cuBLAS, and a value of it with which matrix products are deterministic."""
CUBLAS_VALUES = (CUBLAS_VALUE, ":16:8")
"""Values with which torch accepts matrix products as deterministic."""
_NAME = re.compile(r"cpu|auto|cuda(:(0|[1-9][0-9]?))?")
_NO_DETERMINISTIC_FORM = re.compile(r"(\S+) does not have a deterministic implementation")


def is_device_name(name: str) -> bool:
    """Return whether a text is "cpu", "cuda", "auto", or "cuda:" and the number of a GPU."""
    return _NAME.fullmatch(name) is not None


def resolve_device(name: str, deterministic: bool = True) -> str:
    """Return "cpu" or "cuda:" with the number of a GPU of this machine, for a name of `is_device_name`.

    "auto" is the first GPU, or the CPU if there is none. ScenarioError if there is no such device. With `deterministic`, the
    environment of the process is prepared for deterministic matrix products, which must happen before CUDA starts.
    """
    if name == CPU:
        return CPU
    import torch

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == AUTO and not n_gpus:
        return CPU
    number = int(name.partition(":")[2] or 0)
    if number >= n_gpus:
        raise ScenarioError(f'engine.device: got "{name}", but {_describe_gpus(n_gpus)}; set "cpu", or "auto" for either')
    configured = os.environ.get(CUBLAS_VARIABLE)
    if deterministic and configured is not None and configured not in CUBLAS_VALUES:
        problem = f"{CUBLAS_VARIABLE} is {configured!r} in the environment, expected {' or '.join(CUBLAS_VALUES)}"
        raise ScenarioError(f"engine.deterministic: {problem}")
    if deterministic and configured is None:
        cuda: Any = torch.cuda
        if cuda.is_initialized():
            cause = f"CUDA started before the run, without {CUBLAS_VARIABLE}={CUBLAS_VALUE} in the environment"
            remedy = "set it before Python starts, or set engine.deterministic = false"
            raise ScenarioError(f"engine.deterministic: {cause}: {remedy}")
        os.environ[CUBLAS_VARIABLE] = CUBLAS_VALUE
    return f"{CUDA}:{number}"


def _describe_gpus(n_gpus: int) -> str:
    """Return the reason why a GPU cannot be used."""
    import torch

    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is a build for CPUs"
    if not n_gpus:
        return f"torch {torch.__version__} finds no GPU on this machine"
    return f"this machine has {'one GPU, cuda:0' if n_gpus == 1 else f'{n_gpus} GPUs, cuda:0 to cuda:{n_gpus - 1}'}"


def name_gpu(device: str) -> str:
    """Return the model of a GPU, such as "NVIDIA H200"."""
    import torch

    return torch.cuda.get_device_name(device)


def describe_device(device: str) -> str:
    """Return "cpu", or the name and the model of a GPU, for messages."""
    return CPU if device == CPU else f"{device}, {name_gpu(device)}"


def find_nondeterministic_operation(error: BaseException) -> str | None:
    """Return the operation of torch's error about a missing deterministic form; None for another error."""
    match = _NO_DETERMINISTIC_FORM.search(str(error))
    return match[1] if match else None


@contextmanager
def apply_cuda_settings(deterministic: bool) -> Iterator[None]:
    """Set torch for computations on a GPU during the body: full float32 precision, no kernels chosen by timing.

    With `deterministic`, an operation without a deterministic form raises torch's RuntimeError.
    """
    import torch

    with ExitStack() as scopes:
        for get, set_to, value in _list_settings(deterministic):
            previous_value = get()
            if previous_value != value:
                scopes.callback(set_to, previous_value)
                set_to(value)
        cudnn = torch.backends.cudnn
        parts = [getattr(cudnn, name) for name in ("conv", "rnn") if hasattr(cudnn, name)]
        scopes.enter_context(_use_full_precision(cudnn, parts))
        scopes.enter_context(_use_full_precision(torch.backends.cuda.matmul, [torch.backends.cuda.matmul]))
        yield


@contextmanager
def _use_full_precision(library: Any, parts: Sequence[Any]) -> Iterator[None]:
    """Let a library of torch.backends use float32 in place of TF32 during the body.

    Torch has an older and a newer interface. The older one refuses to be read if the caller has used the newer one.
    """
    precisions = [(part, part.fp32_precision) for part in parts if hasattr(part, "fp32_precision")]
    try:
        allowed = library.allow_tf32
    except RuntimeError:
        allowed = None
    library.allow_tf32 = False
    for part, _ in precisions:
        part.fp32_precision = "ieee"  # otherwise torch.backends.fp32_precision decides
    try:
        yield
    finally:
        if allowed is not None:
            library.allow_tf32 = allowed
        for part, precision in precisions:
            part.fp32_precision = precision


def _list_settings(deterministic: bool) -> list[tuple[Callable[[], Any], Callable[[Any], Any], Any]]:
    """Return getter, setter and value of each setting."""
    import torch

    cudnn = torch.backends.cudnn
    attributes: list[tuple[Any, str, Any]] = [(cudnn, "benchmark", False), (cudnn, "deterministic", deterministic)]
    if deterministic:  # uninitialized memory is never read, and filling it takes time
        attributes.append((torch.utils.deterministic, "fill_uninitialized_memory", False))
    mode = torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 2 if deterministic else 0
    return [mode, *((partial(getattr, o, n), partial(setattr, o, n), v) for o, n, v in attributes)]
