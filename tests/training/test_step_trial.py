"""Trials before round 1: training steps at each batch size, and evaluation of small slices."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import mtrand
from torch import Tensor, nn

from fedsgd.data import Dataset, Examples, Partition, PartitionedData
from fedsgd.errors import ModelError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.partition_summary import load_client_data
from fedsgd.experiment.runner import run
from fedsgd.models import Loss, Mlp
from fedsgd.models.builder import build_task
from fedsgd.optim import SGD
from fedsgd.scenario.scenario import Scenario, parse_scenario
from fedsgd.training import LocalTraining
from fedsgd.training.step_trial import BatchSizeUse, check_training_steps, collect_batch_size_uses, select_sizes_to_try

ScenarioFactory = Callable[..., Scenario]
FACTORY = "tests.training.test_step_trial:make_normalised"
BATCH_NORM_ERROR = "ValueError: Expected more than 1 value per channel when training, got input size torch.Size([1, 16])"


def make_normalised(width: int = 8, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes))


def make_linear() -> nn.Module:
    return nn.Linear(8, 3)


def make_dataset(n: int, n_test: int = 60) -> Dataset:
    """Return three Gaussian classes in eight dimensions, with n training examples."""
    generator = np.random.default_rng(3)
    y = generator.integers(0, 3, n + n_test)
    x = (generator.standard_normal((n + n_test, 8)) + 2 * np.eye(3, 8)[y]).astype(np.float32)
    return Dataset(Examples(x[:n], y[:n]), Examples(x[n:], y[n:]), 3)


def make_settings(**changes: Any) -> dict[str, Any]:
    """Return settings of five clients with equally many examples and batches of 10."""
    defaults = {"data.partition.name": "iid", "data.partition.clients": 5, "client.batch_size": 10, "server.cohort": 1}
    return {**defaults, "model.batch_norm": "mean", **{key.replace("__", "."): value for key, value in changes.items()}}


class Reshaping(nn.Module):
    """Module that trains on batches of ten examples only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x.view(10, 8) if self.training else x)
        return y


def squeezing_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return a loss that fails for a batch of one, because the axis of the batch is removed."""
    return nn.functional.cross_entropy(output.squeeze(), target)


def detached_loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target).detach()


REMEDY_FOR_LAST_BATCH = 'set client.last_batch = "drop" or "merge", or another client.batch_size'
REMEDY_DROP = 'set client.last_batch = "drop", or another client.batch_size'
MORE_EXAMPLES = "more than 1 example (another data.partition, or fewer of its clients)"
BATCH_SIZE_ONE, FULL_BATCH = {"client__batch_size": 1}, {"client__batch_size": "full"}
BATCH_OF_ONE: dict[str, tuple[int, dict[str, Any], str, str]] = {
    "last batch of one client": (501, {}, "1 of 5 clients has", REMEDY_FOR_LAST_BATCH),
    "last batch of each client": (105, {"model__batch_norm": "batch"}, "5 of 5 clients have", REMEDY_FOR_LAST_BATCH),
    "one example": (6, {}, "4 of 5 clients have", f"give each client {MORE_EXAMPLES}"),
    "one example, full batches": (6, FULL_BATCH, "4 of 5 clients have", f"give each client {MORE_EXAMPLES}"),
    "batches of one": (500, BATCH_SIZE_ONE, "5 of 5 clients have", "set another client.batch_size"),
    "last and only batches": (
        8, BATCH_SIZE_ONE, "5 of 5 clients have",
        f"set another client.batch_size; give the 2 clients with no other batch {MORE_EXAMPLES}",
    ),
}  # fmt: skip


def build_and_catch_message(scenario: Scenario, dataset: Dataset | None, **arguments: Any) -> str:
    """Build an experiment; return the message of its ModelError."""
    with pytest.raises(ModelError) as error:
        build_experiment(scenario, dataset=dataset, **arguments)
    return str(error.value)


@pytest.mark.parametrize(("n", "settings", "clients", "remedy"), BATCH_OF_ONE.values(), ids=BATCH_OF_ONE.keys())
def test_batch_of_one_with_batch_norm_raises_error_with_remedy(
    scenario: ScenarioFactory, n: int, settings: dict[str, Any], clients: str, remedy: str
) -> None:
    message = build_and_catch_message(scenario(make_settings(**settings)), make_dataset(n), module=make_normalised())
    assert message == f"a training step on a batch of 1 example fails ({clients} such a batch): {BATCH_NORM_ERROR}; {remedy}"


FAILING: dict[str, tuple[int, dict[str, Any], Callable[[], nn.Module], Loss | None, str]] = {
    "shape": (504, {}, Reshaping, None, rf"on a batch of 1 example fails \(4 of 5 .*\): RuntimeError: .*; {REMEDY_DROP}"),
    "merged": (504, {"client__last_batch": "merge"}, Reshaping, None, rf"on a batch of 11 examples fails \(4 of .*; {REMEDY_DROP}"),
    "merged only": (
        80, {"client__last_batch": "merge"}, Reshaping, None, rf"on a batch of 16 examples fails \(5 of 5 .*; {REMEDY_DROP}"
    ),
    "fewer than ten": (
        40, {}, Reshaping, None, r"on a batch of 8 examples fails \(5 of 5 .*; give each client more than 8 examples \(.*\)"
    ),
    "all of twelve": (
        60, {"client__batch_size": 12}, Reshaping, None, r"fails at every batch size that was tried: RuntimeError: shape .*"
    ),
    "squeezing loss": (501, {}, make_linear, squeezing_loss, rf"on a batch of 1 example fails \(1 of 5 clients has .*; {REMEDY_FOR_LAST_BATCH}"),
    "loss without graph": (
        501, {}, make_linear, detached_loss,
        "fails at every batch size that was tried: RuntimeError: element 0 of tensors does not .*",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("n", "settings", "module", "loss", "message"), FAILING.values(), ids=FAILING.keys())
def test_failing_training_step_raises_error_before_round_1(
    scenario: ScenarioFactory,
    n: int,
    settings: dict[str, Any],
    module: Callable[[], nn.Module],
    loss: Loss | None,
    message: str,
) -> None:
    text = build_and_catch_message(scenario(make_settings(**settings)), make_dataset(n), module=module(), loss=loss)
    assert re.fullmatch(f"a training step {message}", text), text


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("policy", ["mean", "local", "batch"])
@pytest.mark.parametrize("last_batch", ["drop", "merge"])
def test_batch_norm_trains_with_setting_of_the_remedy(scenario: ScenarioFactory, policy: str, last_batch: str) -> None:
    client_evaluation = {"data__held_out": 0.1, "evaluation__clients": True} if policy == "local" else {}
    n = 556 if policy == "local" else 501  # one client trains on 101 = 10 · 10 + 1 examples
    settings = make_settings(
        model__batch_norm=policy, client__last_batch=last_batch, server__cohort=5, rounds=2, **client_evaluation
    )
    assert 1 in collect_batch_size_uses(
        load_client_data(scenario(settings), None, make_dataset(n))[1], LocalTraining(SGD(), 1, None, 10)
    )
    result = run(scenario(settings), data=make_dataset(n), model=make_normalised())
    assert result.summary["rounds"] == 2


def test_clients_without_examples_have_no_trial() -> None:
    """The clients have 0, 20, 0 and 11 examples; in the second case no client has any."""
    data = make_dataset(31)
    task = build_task(Mlp(batch_norm="mean"), data, 0, module=make_normalised())
    local_training = LocalTraining(SGD(), 1, None, 10)
    train = PartitionedData(data.train, Partition(np.arange(31), np.array([0, 0, 20, 20, 31])))
    assert collect_batch_size_uses(train, local_training) == {1: BatchSizeUse((11,), (1,)), 10: BatchSizeUse((11, 20), (1, 1))}
    with pytest.raises(ModelError, match="1 of 4 clients has such a batch"):
        check_training_steps(task, local_training, train, data.train, 0)
    check_training_steps(task, replace(local_training, last_batch="drop"), train, data.train, 0)
    no_examples = PartitionedData(data.train, Partition(np.arange(0), np.array([0, 0, 0])))
    check_training_steps(task, local_training, no_examples, data.train, 0)


@pytest.mark.parametrize("n_examples", [11, 1])
def test_generated_clients_with_batch_of_one_raise_error(scenario: ScenarioFactory, n_examples: int) -> None:
    model = {"module": FACTORY, "arguments": {"width": 60, "classes": 10}, "batch_norm": "mean"}
    data = {"name": "synthetic", "clients": 10**6, "examples": n_examples}
    message = build_and_catch_message(
        parse_scenario({"name": "x", "rounds": 1, "data": data, "model": model, "server": {"cohort": 5}}), None
    )
    remedy = REMEDY_FOR_LAST_BATCH if n_examples > 1 else "give each client more than 1 example (data.examples)"
    assert message.startswith(
        "a training step on a batch of 1 example fails (1,000,000 of 1,000,000 clients have such a batch)"
    )
    assert message.endswith(f"; {remedy}")


def test_sizes_to_try_are_small_frequent_and_largest() -> None:
    uses = {size: BatchSizeUse((size,), (1 if size % 100 else size,)) for size in range(1, 1001)}
    sizes = select_sizes_to_try(uses)
    assert sizes == [*range(1, 64), *range(300, 1001, 100)]
    assert select_sizes_to_try({5000: BatchSizeUse((5000,), (1,)), 9000: BatchSizeUse((9000,), (1,))}) == [5000, 9000]


# ------------------------------------------------------------------------------------------------------------------ evaluation


SLICE_OF_ONE = "the last slice of {} has 1 (slices have 100), and evaluating 1 example fails"
OTHER_BATCH_NORM = ', or another model.batch_norm than "batch"'
EVALUATED: dict[str, tuple[int, int, dict[str, Any], str, str]] = {
    "test": (500, 101, {}, "the 101 test examples", "use another number of test examples"),
    "training": (
        301, 100, {"client__last_batch": "drop", "evaluation__training": True},
        "the 301 training examples", "set evaluation.training = false",
    ),
    "clients": (
        511, 100, {"data__held_out": 0.2, "evaluation__clients": True},
        "the 101 test examples of clients", "set another data.held_out",
    ),
    "models of clients": (
        55, 100, {"data__held_out": 0.1, "evaluation__clients": True, "model__buffers": "local"},
        "the test examples of 5 of 5 clients", "set another data.held_out",
    ),
}  # fmt: skip


class CountedNormalised(nn.Module):
    """Module with a buffer that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = make_normalised()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        y: Tensor = self.layers(x)
        return y


@pytest.mark.parametrize(("n", "n_test", "settings", "subject", "remedy"), EVALUATED.values(), ids=EVALUATED.keys())
def test_last_slice_of_one_with_batch_statistics_raises_error(
    scenario: ScenarioFactory, n: int, n_test: int, settings: dict[str, Any], subject: str, remedy: str
) -> None:
    settings = make_settings(model__batch_norm="batch", **settings)
    module = CountedNormalised() if "model.buffers" in settings else make_normalised()
    message = build_and_catch_message(scenario(settings), make_dataset(n, n_test), module=module)
    assert message == f"{SLICE_OF_ONE.format(subject)}: {BATCH_NORM_ERROR}; {remedy}{OTHER_BATCH_NORM}"


def test_clients_with_one_test_example_each_are_evaluated_together(scenario: ScenarioFactory) -> None:
    settings = make_settings(model__batch_norm="batch", data__held_out=0.1, evaluation__clients=True, rounds=1)
    result = run(scenario(settings), data=make_dataset(55, 100), model=make_normalised())
    assert result.client_accuracy is not None
    assert len(result.client_accuracy) == 5


def are_correct(output: Tensor, target: Tensor) -> Tensor:
    """Return correct predictions, without the axis of a batch of one."""
    return (output.argmax(1) == target).float().squeeze()


def test_metric_that_fails_on_last_slice_raises_error_with_size(scenario: ScenarioFactory) -> None:
    message = build_and_catch_message(
        scenario(make_settings()), make_dataset(500, 101), module=make_linear(), metrics={"accuracy": are_correct}
    )
    assert message.startswith(f"{SLICE_OF_ONE.format('the 101 test examples')}: metric")
    assert message.endswith("; use another number of test examples")


class Limited(nn.Linear):
    """Module that raises an error for large inputs."""

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 1e6:
            raise ValueError("too large")
        return super().forward(x)


def test_last_slice_with_failing_values_raises_error_without_size(scenario: ScenarioFactory) -> None:
    data = make_dataset(500, 101)
    assert isinstance(data.test.x, np.ndarray)
    data.test.x[-1] = 1e9
    message = build_and_catch_message(scenario(make_settings()), data, module=Limited(8, 3))
    assert message == "the model cannot be run on these data (examples float32 [8], targets int64 []): ValueError: too large"


def test_last_slice_of_one_with_running_statistics_is_evaluated(scenario: ScenarioFactory) -> None:
    build_experiment(
        scenario(make_settings(model__batch_norm="mean")), dataset=make_dataset(500, 101), module=make_normalised()
    )


# ----------------------------------------------------------------------------------------------------------------- side effects


class Drawing(nn.Module):
    """Module with an attribute and buffers that training changes, and with noise from three generators."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 3), nn.BatchNorm1d(3)
        self.trained_on: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.trained_on.append(len(x))
        y: Tensor = self.norm(self.linear(x)) + 1e-9 * (torch.rand(()) + random.random() + mtrand.standard_normal())
        return y


def read_global_state() -> tuple[object, ...]:
    """Return the states of the global generators and the number of threads."""
    return random.getstate(), repr(mtrand.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads()


def test_trial_changes_neither_module_nor_generators(scenario: ScenarioFactory) -> None:
    experiment = build_experiment(
        scenario(make_settings(engine__name="sequential")), dataset=make_dataset(510), module=Drawing()
    )
    module = experiment.task.module
    state = {name: value.clone() for name, value in module.state_dict().items()}
    assert module.trained_on == []
    mtrand.standard_normal()  # draws two numbers and stores the second
    global_state = read_global_state()
    check_training_steps(experiment.task, experiment.plan.local_training, experiment.train, experiment.dataset.train, 0)
    assert read_global_state() == global_state
    assert module.trained_on == []
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


class Locked(nn.Linear):
    """Module that cannot be copied."""

    def __init__(self) -> None:
        super().__init__(8, 3)
        self.lock = threading.Lock()


def test_module_that_cannot_be_copied_trains_without_trial(scenario: ScenarioFactory) -> None:
    settings = {**make_settings(rounds=1), "model": {"module": "tests.training.test_step_trial:Locked"}}
    settings.pop("model.batch_norm")
    assert run(scenario(settings), data=make_dataset(501)).summary["rounds"] == 1
