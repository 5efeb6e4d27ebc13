"""Isolation of a run from the settings of its process, and of these settings from the run."""

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
from tests.effort import nightly_unless

ScenarioMaker = Callable[..., Scenario]


def make_dropout_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 10))


def run_digest(scenario: Scenario, module: nn.Module) -> str:
    sha: str = fedsgd.run(scenario, model=module).summary["params_sha256"]
    return sha


@contextmanager
def set_globally(setter: Callable[[Any], object], value: Any, default: Any) -> Iterator[None]:
    """Set a value for the body, then the default."""
    setter(value)
    try:
        yield
    finally:
        setter(default)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: set_globally(torch.set_default_dtype, torch.float64, torch.float32),
    "default device": lambda: set_globally(torch.set_default_device, "meta", None),
    "autocast": lambda: torch.autocast("cpu"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic mode": lambda: set_globally(torch.set_deterministic_debug_mode, 2, 0),
    "anomaly mode": lambda: set_globally(torch.autograd.set_detect_anomaly, True, False),
    "low precision": lambda: set_globally(lambda p: setattr(torch.backends, "fp32_precision", p), "tf32", "none"),
    "without MKL-DNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "numpy's errors": lambda: np.errstate(all="raise"),
}
DAILY_SETTINGS = {"float64", "autocast", "inference mode", "deterministic mode", "numpy's errors"}


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch warns where MKL-DNN's flags are set, on any machine
@pytest.mark.parametrize("name", nightly_unless(DAILY_SETTINGS.__contains__, SETTINGS))
def test_setting_of_the_process_changes_no_digest_and_is_restored(name: str, scenario: ScenarioMaker) -> None:
    module = make_dropout_module()
    expected = run_digest(scenario(), module)
    with SETTINGS[name]():
        before = read_settings()
        assert run_digest(scenario(), module) == expected
        assert read_settings() == before
    assert run_digest(scenario(), module) == expected


def read_settings() -> tuple[Any, ...]:
    """Return the settings and states that a run must restore."""
    backends = torch.backends
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(), torch.get_deterministic_debug_mode(), torch.is_anomaly_enabled(), backends.fp32_precision,
        backends.mkldnn.enabled, tuple(np.geterr().items()), torch.get_num_threads(), random.getstate(),
        torch.get_rng_state().numpy().tobytes(), repr(numpy_global.mtrand.get_state(legacy=False)), random.random, numpy_global.rand,
    )  # fmt: skip


@pytest.mark.slow
def test_run_inside_a_device_block_is_rejected(scenario: ScenarioMaker) -> None:
    with (
        torch.device("meta"),
        pytest.raises(ScenarioError, match=r"inside `with torch\.device\(\.\.\.\)` of meta, expected none"),
    ):
        fedsgd.run(scenario())
    assert fedsgd.run(scenario({"rounds": 1})).summary["rounds"] == 1


@pytest.mark.slow
def test_runs_in_two_threads_have_the_digests_of_single_runs(scenario: ScenarioMaker) -> None:
    modules, scenarios = [make_dropout_module() for _ in range(4)], [scenario({"seed": seed}) for seed in range(4)]
    expected = [run_digest(s, module) for s, module in zip(scenarios, modules, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run_digest, scenarios, modules)) == expected


@pytest.mark.slow
def test_callback_waits_for_a_run_in_another_thread_under_the_callers_settings(scenario: ScenarioMaker) -> None:
    results: list[Any] = []

    def on_round(record: object) -> None:
        thread = threading.Thread(target=lambda: results.append(fedsgd.run(scenario({"rounds": 1})).summary["params_sha256"]))
        thread.start()
        thread.join(60)
        results.append(torch.get_default_dtype())

    expected = fedsgd.run(scenario()).summary["params_sha256"]
    with set_globally(torch.set_default_dtype, torch.float64, torch.float32):
        assert fedsgd.run(scenario(), on_round=on_round).summary["params_sha256"] == expected
    assert results == [results[0], torch.float64] * 3


def test_draws_of_two_threads_are_independent() -> None:
    def draw() -> list[float]:
        return [
            random.random(),
            random.uniform(0, 1),
            numpy_global.uniform(),
            numpy_global.sample(),
            numpy_global.standard_normal(),
        ]

    def draw_in_thread() -> None:
        random.seed(7)
        numpy_global.seed(7)
        thread_draws.append(draw())

    with isolate_global_state():
        thread_draws: list[list[float]] = []
        with isolate_generators(3):
            expected = draw()
        with isolate_generators(3):
            thread = threading.Thread(target=draw_in_thread)
            thread.start()
            thread.join()
            assert draw() == expected
    random.seed(7)
    numpy_global.seed(7)
    assert thread_draws == [draw()]


@pytest.mark.slow
def test_drawing_thread_changes_neither_engine_nor_digest(scenario: ScenarioMaker) -> None:
    def run_scenario() -> tuple[str, str]:
        summary = fedsgd.run(scenario({"server.cohort": 8})).summary
        return summary["engine"]["name"], summary["params_sha256"]

    def draw_repeatedly() -> None:
        while not stop.wait(0.0005):
            random.uniform(0, 1)
            numpy_global.uniform()

    expected, stop = run_scenario(), threading.Event()
    thread = threading.Thread(target=draw_repeatedly)
    thread.start()
    try:
        assert run_scenario() == expected
    finally:
        stop.set()
        thread.join()
    assert expected[0] == "stacked"


def test_functions_imported_inside_a_run_draw_from_the_global_generator_after_it() -> None:
    with isolate_global_state():
        assert pickle.loads(pickle.dumps(random.gauss)).__name__ == "gauss"
        gauss, rand = random.gauss, numpy_global.rand
    random.seed(1)
    numpy_global.seed(1)
    expected = gauss(0, 1), rand()
    random.seed(1)
    numpy_global.seed(1)
    assert (random.gauss(0, 1), numpy_global.rand()) == expected
    assert pickle.loads(pickle.dumps(gauss)) == random.gauss


def test_stored_normal_number_after_nested_scopes_is_restored() -> None:
    def draw_and_fail() -> None:
        with isolate_generators(1):
            for _ in range(2):
                with isolate_generators(2):
                    draws.append((numpy_global.standard_normal(), random.random(), torch.rand(1).item()))
            raise ZeroDivisionError

    draws: list[tuple[float, ...]] = []
    numpy_global.seed(1)
    numpy_global.standard_normal()  # draws two numbers and stores the second
    with pytest.raises(ZeroDivisionError):
        draw_and_fail()
    assert draws[0] == draws[1]
    second_number = numpy_global.standard_normal()
    numpy_global.seed(1)
    assert numpy_global.standard_normal(2)[1] == second_number


def test_caller_state_without_isolation_and_nested_isolation_change_nothing() -> None:
    with use_caller_state(), isolate_global_state(), isolate_global_state(), nullcontext():
        assert torch.get_default_dtype() == torch.float32
    assert type(random.random).__name__ == "builtin_function_or_method"
