"""Devices of engines. What needs a GPU is in test_cuda.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fedsgd
from fedsgd.data import Dataset
from fedsgd.errors import ModelError, RunError, ScenarioError
from fedsgd.federation.client_state import InMemoryClientStore
from fedsgd.flower.deployment import deploy
from fedsgd.models import MODELS, Mlp
from fedsgd.models.builder import build_task
from fedsgd.models.losses import flatten_positions
from fedsgd.models.task import LearningTask
from fedsgd.optim import SGD, Momentum
from fedsgd.optim.schedules import StepSchedule
from fedsgd.scenario.scenario import Scenario
from fedsgd.sweeps.directory import find_difference
from fedsgd.system import compute_device
from fedsgd.system.compute_device import CUBLAS_VARIABLE, apply_cuda_settings, resolve_device
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training import LocalTraining, TrainingJob
from fedsgd.training.base import NotCapturableError, TrainingEngine
from fedsgd.training.captured import Captured
from fedsgd.training.device import HOST, EngineDevice
from fedsgd.training.device_memory import (
    USABLE_SHARE,
    DeviceMemory,
    choose_example_capacity,
    estimate_client_bytes,
    find_peak_bytes,
    measure_examples,
    plan_memory,
)
from fedsgd.training.graph import step as step_module
from fedsgd.training.graph.recorder import record
from fedsgd.training.graph.replay import MAX_RECORDINGS, ReplayedStep
from fedsgd.training.graph.step import fusable_update
from fedsgd.training.selection import EngineChoice, _try_step, make_engine, select_engine
from fedsgd.training.sequential import Sequential
from fedsgd.training.stacked import Stacked
from tests.effort import nightly_unless
from tests.training.modules import make_images

Make = Callable[..., Scenario]


class MetaDevice(EngineDevice):
    """Device whose tensors have no numbers; torch refuses an operation on tensors of two devices, as it does on a GPU."""

    def __init__(self) -> None:
        super().__init__("meta")

    def to_host(self, tensor: Tensor) -> Any:
        assert tensor.device.type == "meta"
        return np.zeros(tuple(tensor.shape), dtype=np.float32)

    def record(self, run: Callable[[], object]) -> Callable[[], object]:
        return run

    def warm_up(self) -> Any:
        return mock.MagicMock()

    def scope(self) -> Any:
        return use_single_thread()


@pytest.fixture(params=["mlp", pytest.param("lenet", marks=pytest.mark.nightly)])
def task(request: pytest.FixtureRequest, images: Dataset) -> LearningTask:
    return build_task(MODELS[request.param](), images, 0)


@pytest.fixture(scope="module")
def images() -> Dataset:
    return make_images(shape=(28, 28))


TRAININGS = {
    "plain": LocalTraining(SGD(lr=0.1), 2, None, 7),
    "all parts": LocalTraining(Momentum(lr=0.1, momentum=0.9, weight_decay=0.01), 2, None, 7, 0.1, True, True),
}


@pytest.mark.slow
@pytest.mark.parametrize("local_training", TRAININGS.values(), ids=TRAININGS)
def test_no_operation_of_an_engine_has_tensors_of_two_devices(
    images: Dataset, task: LearningTask, local_training: LocalTraining
) -> None:
    device, size = MetaDevice(), task.layout.size
    state = {"velocity": np.zeros(size, np.float32)} if local_training.keep_optimizer_state else {}
    jobs = [
        TrainingJob(0, 1, client, task.initial_parameters, images.train.slice(0, 16), state, np.zeros(size, np.float32))
        for client in range(2)
    ]
    engines: list[TrainingEngine] = [Sequential(task, local_training, device)]
    without_numbers = (
        mock.patch.object(step_module, "_verify_step"),
        mock.patch.object(Stacked, "_verify_step"),
        mock.patch.object(torch, "equal", lambda a, b: a.shape == b.shape),
    )
    with without_numbers[0], without_numbers[1], without_numbers[2]:
        engines.append(Captured(task, local_training, images.train, [7, 2], "fused", device))
        engines.append(Stacked(task, local_training, images.train, [7, 2], "fused", 4, device))
    for engine in engines:
        assert [result.update.shape for result in engine.train(jobs)] == [(size,)] * 2
    assert {parameter.device.type for parameter in task.module.parameters()} == {"cpu"}, "the task of the run stays where it is"


def test_evaluation_stays_on_the_device(images: Dataset, task: LearningTask) -> None:
    engine = Sequential(task, TRAININGS["plain"], MetaDevice())
    with pytest.raises((NotImplementedError, RuntimeError), match=r"meta tensor|item\(\)"):  # the loss has no number
        engine.evaluate(task.initial_parameters, images.test)


def test_examples_are_copied_once_and_the_oldest_leave() -> None:
    arrays = [np.full((4, 8), i, dtype=np.float32) for i in range(3)]
    device = EngineDevice("meta", capacity=2 * arrays[0].nbytes)
    first, second = device.get_examples(arrays[0]), device.get_examples(arrays[1])
    assert device.get_examples(arrays[0][:4]) is first, "the same memory"
    device.get_examples(arrays[2])  # in place of the second, which was not used for the longest time
    assert device.get_examples(arrays[0]) is first
    assert device.get_examples(arrays[1]) is not second


def test_overlapping_rows_are_copied_as_one_text() -> None:
    text = np.arange(100, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(text, 64)
    assert measure_examples(windows) == text.nbytes < windows.nbytes
    copy = EngineDevice("meta").get_examples(windows)
    assert (tuple(copy.shape), copy.stride()) == (windows.shape, (1, 1))
    assert copy.untyped_storage().nbytes() == text.nbytes
    rows = HOST.get_examples(windows).index_select(0, torch.tensor([3, 0]))
    assert rows.numpy().tolist() == windows[[3, 0]].tolist()
    assert measure_examples(np.zeros((0, 3), np.float32)) == 0


def test_module_that_cannot_be_copied_is_refused(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0)
    problem = r"copy\.deepcopy of the module fails, which meta needs; set engine\.device"
    with (
        mock.patch("fedsgd.models.task.copy_pair", side_effect=RuntimeError("locked")),
        pytest.raises(ModelError, match=problem),
    ):
        Sequential(task, TRAININGS["plain"], EngineDevice("meta"))


# ------------------------------------------------------------------------------------------------------------------------ names


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Return a function that lets torch have a number of GPUs."""
    monkeypatch.delenv(CUBLAS_VARIABLE, raising=False)

    def set_gpus(n: int) -> None:
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)

    yield set_gpus
    os.environ.pop(CUBLAS_VARIABLE, None)


@pytest.mark.parametrize(
    ("name", "n", "expected"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda:0"), ("cuda", 1, "cuda:0"), ("cuda:1", 2, "cuda:1"), ("cpu", 2, "cpu")],
)
def test_name_is_resolved_to_a_device(gpus: Callable[[int], None], name: str, n: int, expected: str) -> None:
    gpus(n)
    assert resolve_device(name) == expected
    assert os.environ.get(CUBLAS_VARIABLE) == (None if expected == "cpu" else ":4096:8")


@pytest.mark.parametrize(
    ("name", "n", "problem"),
    [
        ("cuda", 0, r'got "cuda", but torch \S+ finds no GPU on this machine; set "cpu", or "auto" for either'),
        ("cuda:1", 1, r'got "cuda:1", but this machine has one GPU, cuda:0; set'),
        ("cuda:9", 2, r'got "cuda:9", but this machine has 2 GPUs, cuda:0 to cuda:1; set'),
    ],
)
def test_missing_gpu_is_named_in_one_line(gpus: Callable[[int], None], name: str, n: int, problem: str) -> None:
    gpus(n)
    with pytest.raises(ScenarioError, match=f"^engine.device: {problem}"):
        resolve_device(name)


def test_torch_for_cpus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ScenarioError, match=r"engine\.device: got \"cuda\", but this torch \(\S+\) is a build for CPUs"):
        resolve_device("cuda")


def test_cuda_that_started_without_its_variable_is_refused(
    gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ScenarioError, match=r"engine\.deterministic: CUDA started before the run, without CUBLAS_WORKSPACE"):
        resolve_device("cuda")
    assert resolve_device("cuda", deterministic=False) == "cuda:0"
    monkeypatch.setenv(CUBLAS_VARIABLE, ":16:8")
    assert resolve_device("cuda") == "cuda:0"


@pytest.mark.parametrize(
    ("name", "problem"),
    [("cudo", 'got "cudo", did you mean "cuda"'), ("cuda:", 'got "cuda:"'), ("tpu", 'expected one of: "auto", "cpu", "cuda"')],
)
def test_unknown_name_is_refused_when_the_scenario_is_read(scenario: Make, name: str, problem: str) -> None:
    with pytest.raises(ScenarioError, match=r"engine\.device") as caught:
        scenario({"engine.device": name})
    assert problem in str(caught.value)


def read_precisions() -> list[str]:
    owners = (torch.backends.cuda.matmul, *(getattr(torch.backends.cudnn, name, None) for name in ("conv", "rnn")))
    return [owner.fp32_precision for owner in owners if hasattr(owner, "fp32_precision")]


def test_other_value_of_the_variable_is_refused(gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(1)
    monkeypatch.setenv(CUBLAS_VARIABLE, ":4096:2")
    with pytest.raises(
        ScenarioError, match=r"CUBLAS_WORKSPACE_CONFIG is ':4096:2' in the environment, expected :4096:8 or :16:8"
    ):
        resolve_device("cuda")


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch 2.9 and later")
def test_global_precision_of_the_caller_has_no_effect() -> None:
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    try:
        with apply_cuda_settings(True):
            assert set(read_precisions()) == {"ieee"}
    finally:
        torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]


@pytest.mark.parametrize("deterministic", [True, False])
def test_settings_for_a_gpu_are_restored(deterministic: bool) -> None:
    def read() -> list[Any]:
        settings = [get() for get, _, _ in compute_device._list_settings(deterministic)]
        deterministic_module: Any = torch.utils.deterministic
        filling = deterministic_module.fill_uninitialized_memory
        return [*settings, *read_precisions(), filling]

    before = read()
    with apply_cuda_settings(deterministic):
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        assert "tf32" not in read_precisions()
        assert not torch.backends.cudnn.benchmark
    assert read() == before


class FailingEngine(TrainingEngine):
    """Engine that fails as torch does under `use_deterministic_algorithms`."""

    preferred_batch_of_clients = 1

    def train(self, jobs: Any) -> Any:
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set '...'")

    def evaluate(self, weights: Any, examples: Any, buffers: Any = None) -> Any:
        raise AssertionError


def test_operation_without_a_deterministic_form_is_named(blobs: Dataset) -> None:
    task = build_task(Mlp(), blobs, 0)
    problem = "engine.deterministic: cumsum_cuda_kernel has no deterministic form on a GPU; .* engine.deterministic = false"
    with pytest.raises(ModelError, match=problem):
        _try_step(FailingEngine(), task, blobs.train.slice(0, 2))
    captured = NotCapturableError("RuntimeError: cumsum_cuda_kernel does not have a deterministic implementation, but you set")
    with mock.patch("fedsgd.training.selection._create", side_effect=captured), pytest.raises(ModelError, match=problem):
        make_engine(EngineChoice("captured"), [2], task, TRAININGS["plain"], blobs.train)


def test_too_little_memory_for_a_step_is_named(blobs: Dataset) -> None:
    failure = mock.patch(
        "fedsgd.training.selection._create_on_device", side_effect=torch.OutOfMemoryError("CUDA out of memory")
    )
    problem = r"^engine.device: cuda:0 has too little memory for a step \(OutOfMemoryError: CUDA out of memory\); set a smaller"
    with failure, pytest.raises(ScenarioError, match=problem):
        make_engine(
            EngineChoice("captured", device="cuda:0"), [2], build_task(Mlp(), blobs, 0), TRAININGS["plain"], blobs.train
        )


def test_losses_over_positions_are_flattened_except_on_the_cpu() -> None:
    loss, output, target = functional.cross_entropy, torch.rand(2, 5, 3), torch.randint(0, 5, (2, 3))
    assert flatten_positions(loss, output, target) == (output, target)
    on_device = flatten_positions(loss, output.to("meta"), target.to("meta"))
    assert [tuple(part.shape) for part in on_device] == [(6, 5), (6,)]
    assert flatten_positions(nn.MSELoss(), output.to("meta"), target.to("meta"))[0].dim() == 3
    flat = output.movedim(1, -1).reshape(-1, 5), target.reshape(-1)
    torch.testing.assert_close(loss(*flat), loss(output, target))


def test_replayed_update_is_not_fused_with_a_schedule() -> None:
    scheduled = LocalTraining(SGD(lr=0.1, schedule=StepSchedule(every=1, gamma=0.5)), 1, None, 7)
    assert fusable_update(scheduled) is not None
    assert fusable_update(scheduled, needs_constant_rate=True) is None
    assert fusable_update(TRAININGS["plain"], needs_constant_rate=True) is not None


def test_deployment_on_a_gpu_is_refused(scenario: Make, gpus: Callable[[int], None], tmp_path: Any) -> None:
    gpus(1)
    with pytest.raises(ScenarioError, match=r'engine\.device: got "cuda", expected "cpu": nodes are forked processes'):
        deploy(scenario({"engine.device": "cuda"}), tmp_path / "run", nodes=2)


@pytest.mark.slow
def test_auto_and_cuda_are_the_devices_that_a_finished_cell_has(scenario: Make, tmp_path: Any) -> None:
    path = tmp_path / "scenario.toml"
    for stored, planned, differs in (
        ("cpu", "auto", False),
        ("cuda:0", "auto", False),
        ("cuda:0", "cuda", False),
        ("cuda:1", "cuda:0", True),
        ("cuda:0", "cpu", True),
    ):
        for name in ("auto", "sequential"):
            path.write_text(scenario({"engine": {"name": "sequential", "device": stored}}).to_toml())
            difference = find_difference(path, scenario({"engine": {"name": name, "device": planned}}))
            assert ("engine.device" in difference) == differs, (stored, planned, name, difference)


def test_cell_with_other_determinism_is_not_reused(scenario: Make, tmp_path: Any) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(scenario({"engine": {"name": "captured", "device": "cuda:0", "deterministic": False}}).to_toml())
    assert "engine.deterministic is False there" in find_difference(path, scenario({"engine": {"device": "cuda"}}))


@pytest.mark.slow
def test_device_of_a_run_is_resolved_and_in_the_summary(scenario: Make) -> None:
    result = fedsgd.run(scenario({"engine.device": "auto"}))
    assert (
        result.summary["engine"]["device"]
        == result.scenario.engine.device
        == ("cuda:0" if torch.cuda.is_available() else "cpu")
    )
    assert result.summary["engine"]["deterministic"] is True


# ---------------------------------------------------------------------------------------------------------------------- replays


def test_replayed_step_keeps_its_memory_and_its_recordings() -> None:
    w, calls = torch.zeros(3), list[float]()

    def step(x: Tensor, rate: float) -> None:
        calls.append(rate)
        w.add_(x, alpha=rate)

    replayed = ReplayedStep(step, [w], HOST)
    replayed(torch.ones(3), 2.0)
    assert w.tolist() == [2, 2, 2], "the runs before the recording are undone"
    assert calls == [2.0] * 4
    replayed(torch.full((3,), 10.0), 2.0)
    assert w.tolist() == [22, 22, 22], "with the numbers of the second call"
    assert calls == [2.0] * 5, "recorded once for a combination"
    for number in range(MAX_RECORDINGS):
        replayed(torch.zeros(3), float(number) + 0.5)
    calls.clear()
    replayed(torch.ones(3), 99.0)
    assert calls == [99.0], "beyond the limit a step runs without a recording"


def test_runs_before_a_recording_draw_no_numbers_of_the_client() -> None:
    w = torch.zeros(2)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    ReplayedStep(lambda: w.copy_(torch.rand(2)), [w], HOST)()
    assert w.tolist() == expected.tolist()


# ----------------------------------------------------------------------------------------------------------------------- memory


def test_stack_is_the_wanted_one_as_far_as_it_fits() -> None:
    memory = DeviceMemory("cuda:0", 1000, 200, 60)
    assert memory.max_clients == 10
    assert memory.choose_stack(None, 4) == 4
    assert memory.choose_stack(None, 50) == 10
    assert memory.choose_stack(10, 50) == 10


def test_too_little_memory_names_the_need_and_a_setting_that_fits() -> None:
    memory = DeviceMemory("cuda:0", 10_000_000, 2_000_000, 600_000)
    problem = (
        r"^engine.device: cuda:0 has 10 MB free for this process, expected 17.5 MB for the examples and 20 clients at a time; "
        r"set engine.stack = 10$"
    )
    with pytest.raises(ScenarioError, match=problem):
        memory.choose_stack(20, 50)
    with pytest.raises(ScenarioError, match=r'expected 25 MB for the examples and one client; set engine.device = "cpu"$'):
        DeviceMemory("cuda:0", 10_000_000, 2_000_000, 18_000_000).choose_stack(None, 50)


def test_peak_of_a_recorded_step_counts_tensors_from_operation_to_last_use() -> None:
    x = torch.ones(100)

    def step() -> list[Tensor]:
        a = x * 2  # 400 bytes, until b
        b = a.view(10, 10).sum(0)  # a view, and 40 bytes
        c = x * 3  # 400 bytes, while b waits
        return [b, c[:10] + b]

    graph, results = record(step, {}, {"x": x})
    assert find_peak_bytes(graph, results) == 40 + 400 + 40
    assert find_peak_bytes(*record(lambda: [x * 2], {}, {"x": x})) == 400


def test_memory_of_a_client_has_vectors_and_intermediate_results(images: Dataset) -> None:
    task = build_task(Mlp(hidden=(30,)), images, 0)
    p = task.layout.size
    plain, full = (estimate_client_bytes(task, t, images.train, 10) for t in TRAININGS.values())
    assert full - plain == 4 * p * 3  # velocity, received model, correction
    larger = estimate_client_bytes(task, TRAININGS["plain"], images.train, 20)
    vectors, gradients = 5 * 4 * p, 4 * p
    assert vectors + 2 * gradients < plain < larger < 2 * plain


def test_plan_shares_the_free_memory_between_processes(images: Dataset) -> None:
    task = build_task(Mlp(hidden=(30,)), images, 0)
    with mock.patch.object(torch.cuda, "mem_get_info", return_value=(8_000_000, 0)):
        memory = plan_memory("cuda:0", task, TRAININGS["plain"], (images.train, images.test), 10, processes=4)
    n_bytes = sum(array.nbytes for part in (images.train, images.test) for array in (part.x, part.y))
    assert (memory.free, memory.examples) == (2_000_000, n_bytes)
    assert str(memory).startswith("2 MB free, ")


def test_stack_of_a_gpu_follows_from_size_memory_and_cohort(images: Dataset) -> None:
    task = build_task(MODELS["softmax"](), images, 0)

    def select(free: int, cohort: int, **request: Any) -> EngineChoice:
        memory = DeviceMemory("cuda:0", free, 0, 1_000_000)
        return select_engine(
            EngineChoice(**request), task, TRAININGS["plain"], images.train, [10], np.full(cohort, 30), memory
        )[1]

    choice = select(10**9, 12)
    assert (choice.name, choice.stack) == ("stacked", 12)
    assert choice.reason == "12 clients a round, 1 GB free, 0 B for examples, 1 MB a client"
    assert select(int(5.5e6 / USABLE_SHARE), 12).stack == 5
    assert select(10**9, 12, stack=3).stack == 3
    alone = select(int(1.5e6 / USABLE_SHARE), 12)
    assert (alone.name, alone.stack, alone.reason) == ("captured", None, "not stacked, because 1 client fits")
    assert select(10**9, 12, name="sequential").stack is None
    with pytest.raises(ScenarioError, match="one client"):
        select(10, 12, name="captured")


# ------------------------------------------------------------------------------------------------------------------ compression


UPLINKS: dict[str, dict[str, Any]] = {
    "plain": {"compressor": {"name": "top-k", "density": 0.05}},
    "error feedback": {"compressor": {"name": "top-k", "density": 0.05}, "error_feedback": "persist"},
    "stale": {"compressor": {"name": "top-k", "density": 0.05}, "error_feedback": "decay"},
    "dgc": {"compressor": {"name": "dgc", "density": 0.05}},
}
LOSSES = {"server.cohort": 4, "participation.dropout": 0.3, "client.velocity": "carry", "client.optimizer.name": "momentum"}


def run_with_tensors(scenario: Scenario, keeps_tensors: bool, **options: Any) -> tuple[fedsgd.Result, list[Any]]:
    """Run a scenario whose engine keeps updates as tensors, on the CPU; return the result, and the states of the clients."""
    stores: list[InMemoryClientStore] = []

    def make_store(**_: Any) -> InMemoryClientStore:
        stores.append(InMemoryClientStore(keeps_tensors=keeps_tensors))
        return stores[-1]

    device = mock.patch("fedsgd.training.selection.EngineDevice", return_value=EngineDevice(keeps_updates=True))
    with device, mock.patch("fedsgd.experiment.execution.InMemoryClientStore", make_store):
        result = fedsgd.run(scenario, **options)
    states = [stores[0].load(client).state_if_accepted for client in range(8)] if stores else []
    return result, [value for state in states for name, value in state.items() if name.startswith("scheme/")]


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(
    ("engine", "uplink"),
    nightly_unless(
        lambda case: case[0] == "captured" or case in (("sequential", "plain"), ("stacked", "stale")),
        product(["sequential", "captured", "stacked"], UPLINKS),
    ),
)
def test_updates_on_the_device_give_the_digests_of_arrays(scenario: Make, uplink: str, engine: str) -> None:
    s = scenario({"rounds": 5, "engine.name": engine, "uplink": UPLINKS[uplink], **LOSSES})
    expected = fedsgd.run(s).summary
    for keeps_tensors in (True, False):
        result, vectors = run_with_tensors(s, keeps_tensors)
        assert result.summary["params_sha256"] == expected["params_sha256"]
        assert result.summary["ledger_sha256"] == expected["ledger_sha256"]
        floats = [value for value in vectors if value.ndim]
        assert all(isinstance(value, torch.Tensor) == keeps_tensors for value in floats)
        assert bool(floats) == (uplink != "plain")


@pytest.mark.slow
def test_run_with_states_on_the_device_is_resumed(scenario: Make, tmp_path: Any) -> None:
    settings = {"uplink": UPLINKS["dgc"], "checkpoint.every": 2, **LOSSES}
    run_with_tensors(scenario({"rounds": 4, **settings}), True, out=tmp_path / "run")
    resumed = fedsgd.resume(tmp_path / "run", rounds=6)
    assert resumed.summary["ledger_sha256"] == fedsgd.run(scenario({"rounds": 6, **settings})).summary["ledger_sha256"]


@pytest.mark.slow
def test_hostile_and_infinite_updates_on_the_device(scenario: Make) -> None:
    hostile = {"faults.hostile": {"kind": "sign-flip", "share": 0.3}, "uplink": UPLINKS["dgc"], "rounds": 4}
    s = scenario(hostile)
    assert run_with_tensors(s, True)[0].summary["ledger_sha256"] == fedsgd.run(s).summary["ledger_sha256"]
    with pytest.raises(RunError, match=r"is not finite in \d+ of \d+ coordinates"):
        run_with_tensors(scenario({"rounds": 3, "client.optimizer.lr": 1e38, "uplink": UPLINKS["plain"]}), True)


def test_states_stay_on_a_gpu_as_far_as_they_fit(images: Dataset) -> None:
    task = build_task(MODELS["softmax"](), images, 0)
    sets = images.train, images.test
    with mock.patch.object(torch.cuda, "mem_get_info", return_value=(10_000_000, 0)):
        fitting = plan_memory("cuda:0", task, TRAININGS["plain"], sets, 10, state_bytes=2_000_000)
        too_large = plan_memory("cuda:0", task, TRAININGS["plain"], sets, 10, state_bytes=4_000_000)
    assert (fitting.states, too_large.states) == (2_000_000, 0)
    assert fitting.max_clients < too_large.max_clients
    assert "2 MB for states" in str(fitting)


def test_tensor_that_stays_on_the_cpu_is_explained(blobs: Dataset) -> None:
    class Mixed(TrainingEngine):
        preferred_batch_of_clients = 1

        def train(self, jobs: Any) -> Any:
            raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices")

        def evaluate(self, weights: Any, examples: Any, buffers: Any = None) -> Any:
            raise AssertionError

    problem = "^the model cannot be run on the GPU: RuntimeError: Expected all tensors.*; tensors that are no buffers"
    with pytest.raises(ModelError, match=problem):
        _try_step(Mixed(), build_task(Mlp(), blobs, 0), blobs.train.slice(0, 2))


def test_room_for_examples_is_the_dataset_and_a_quarter_of_the_free_memory(images: Dataset) -> None:
    n_bytes = images.train.x.nbytes + images.train.y.nbytes
    with mock.patch.object(torch.cuda, "mem_get_info", return_value=(4000, 0)):
        assert choose_example_capacity("cuda:0", images.train) == 2 * n_bytes + 1000
