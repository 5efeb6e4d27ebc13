"""Isolation of a run from what its process has set, and of that from the run."""

from __future__ import annotations

import pickle
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from numpy import random as numpy_global
from torch import nn

import fedsgd
from fedsgd.errors import ScenarioError
from fedsgd.scenario.scenario import Scenario
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_determinism import isolate_global_state, use_caller_state

Make = Callable[..., Scenario]


def dropout_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 10))


def digest(scenario: Scenario, module: nn.Module) -> str:
    sha: str = fedsgd.run(scenario, module=module).summary["params_sha256"]
    return sha


@contextmanager
def setting(set_to: Callable[[Any], object], value: Any, before: Any) -> Iterator[None]:
    set_to(value)
    try:
        yield
    finally:
        set_to(before)


AMBIENT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: setting(torch.set_default_device, "meta", None),
    "autocast": lambda: torch.autocast("cpu"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic mode": lambda: setting(torch.set_deterministic_debug_mode, 2, 0),
    "anomaly mode": lambda: setting(torch.autograd.set_detect_anomaly, True, False),
    "low precision": lambda: setting(lambda p: setattr(torch.backends, "fp32_precision", p), "tf32", "none"),
    "without MKL-DNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "numpy's errors": lambda: np.errstate(all="raise"),
}


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch says it where MKL-DNN's flags are set, on any machine
@pytest.mark.parametrize("name", AMBIENT)
def test_setting_of_the_process_changes_no_digest_and_is_restored(name: str, scenario: Make) -> None:
    net = dropout_net()
    expected = digest(scenario(), net)
    with AMBIENT[name]():
        before = states()
        assert digest(scenario(), net) == expected
        assert states() == before
    assert digest(scenario(), net) == expected


def states() -> tuple[Any, ...]:
    backends = torch.backends
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(), torch.get_deterministic_debug_mode(), torch.is_anomaly_enabled(), backends.fp32_precision,
        backends.mkldnn.enabled, tuple(np.geterr().items()), torch.get_num_threads(), random.getstate(),
        torch.get_rng_state().numpy().tobytes(), repr(numpy_global.mtrand.get_state(legacy=False)), random.random, numpy_global.rand,
    )  # fmt: skip


def test_run_inside_a_device_block_is_refused_in_one_line(scenario: Make) -> None:
    with (
        torch.device("meta"),
        pytest.raises(ScenarioError, match=r"inside `with torch\.device\(\.\.\.\)` of meta, expected none"),
    ):
        fedsgd.run(scenario())
    assert fedsgd.run(scenario({"rounds": 1})).summary["rounds"] == 1


def test_two_threads_give_the_digests_of_runs_alone(scenario: Make) -> None:
    nets, asked = [dropout_net() for _ in range(4)], [scenario({"seed": seed}) for seed in range(4)]
    alone = [digest(s, net) for s, net in zip(asked, nets, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(digest, asked, nets)) == alone


def test_callback_may_wait_for_a_run_in_another_thread_and_sees_the_callers_settings(scenario: Make) -> None:
    seen: list[Any] = []

    def on_round(record: object) -> None:
        thread = threading.Thread(target=lambda: seen.append(fedsgd.run(scenario({"rounds": 1})).summary["params_sha256"]))
        thread.start()
        thread.join(60)
        seen.append(torch.get_default_dtype())

    expected = fedsgd.run(scenario()).summary["params_sha256"]
    with setting(torch.set_default_dtype, torch.float64, torch.float32):
        assert fedsgd.run(scenario(), on_round=on_round).summary["params_sha256"] == expected
    assert seen == [seen[0], torch.float64] * 3


def test_draws_of_another_thread_change_nothing_here_nor_there() -> None:
    def drawn() -> list[float]:
        return [
            random.random(),
            random.uniform(0, 1),
            numpy_global.uniform(),
            numpy_global.sample(),
            numpy_global.standard_normal(),
        ]

    def others() -> None:
        random.seed(7)
        numpy_global.seed(7)
        there.append(drawn())

    with isolate_global_state():
        there: list[list[float]] = []
        with isolate_generators(3):
            expected = drawn()
        with isolate_generators(3):
            thread = threading.Thread(target=others)
            thread.start()
            thread.join()
            assert drawn() == expected
    random.seed(7)
    numpy_global.seed(7)
    assert there == [drawn()]


def test_thread_that_draws_all_the_time_changes_neither_engine_nor_digest(scenario: Make) -> None:
    def ended() -> tuple[str, str]:
        summary = fedsgd.run(scenario({"server.cohort": 8})).summary
        return summary["engine"]["name"], summary["params_sha256"]

    def beat() -> None:
        while not stop.wait(0.0005):
            random.uniform(0, 1)
            numpy_global.uniform()

    expected, stop = ended(), threading.Event()
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        assert ended() == expected
    finally:
        stop.set()
        thread.join()
    assert expected[0] == "stacked"


def test_functions_of_random_pickle_inside_a_run_and_draw_as_ever_after_it() -> None:
    with isolate_global_state():
        assert pickle.loads(pickle.dumps(random.gauss)).__name__ == "gauss"
        kept, kept_of_numpy = random.gauss, numpy_global.rand
    random.seed(1)
    numpy_global.seed(1)
    first = kept(0, 1), kept_of_numpy()
    random.seed(1)
    numpy_global.seed(1)
    assert (random.gauss(0, 1), numpy_global.rand()) == first
    assert pickle.loads(pickle.dumps(kept)) == random.gauss


def test_stored_normal_number_and_nested_scopes_are_restored() -> None:
    def fail() -> None:
        with isolate_generators(1):
            for _ in range(2):
                with isolate_generators(2):
                    drawn.append((numpy_global.standard_normal(), random.random(), torch.rand(1).item()))
            raise ZeroDivisionError

    drawn: list[tuple[float, ...]] = []
    numpy_global.seed(1)
    numpy_global.standard_normal()  # draws two numbers and stores the second
    with pytest.raises(ZeroDivisionError):
        fail()
    assert drawn[0] == drawn[1]
    after = numpy_global.standard_normal()
    numpy_global.seed(1)
    assert numpy_global.standard_normal(2)[1] == after


def test_outside_alone_and_nested_isolation_change_nothing() -> None:
    with use_caller_state(), isolate_global_state(), isolate_global_state(), nullcontext():
        assert torch.get_default_dtype() == torch.float32
    assert type(random.random).__name__ == "builtin_function_or_method"
