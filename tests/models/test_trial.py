"""Trials before round 1: a training step at each batch size, and evaluation on one example."""

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

Make = Callable[..., Scenario]
FACTORY = "tests.models.test_trial:make_normalised"
TORCH = "ValueError: Expected more than 1 value per channel when training, got input size torch.Size([1, 16])"


def make_normalised(width: int = 8, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes))


def make_linear() -> nn.Module:
    return nn.Linear(8, 3)


def clouds(n: int, test: int = 60) -> Dataset:
    """Three Gaussian classes in eight dimensions, n training examples."""
    generator = np.random.default_rng(3)
    y = generator.integers(0, 3, n + test)
    x = (generator.standard_normal((n + test, 8)) + 2 * np.eye(3, 8)[y]).astype(np.float32)
    return Dataset(Examples(x[:n], y[:n]), Examples(x[n:], y[n:]), 3)


def settings_of(**changed: Any) -> dict[str, Any]:
    """Five clients with equally many examples, batches of 10."""
    plain = {"data.partition.name": "iid", "data.partition.clients": 5, "client.batch_size": 10, "server.cohort": 1}
    return {**plain, "model.batch_norm": "mean", **{key.replace("__", "."): value for key, value in changed.items()}}


class Reshaping(nn.Module):
    """A module that trains on ten examples at a time only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x.view(10, 8) if self.training else x)
        return y


def squeezed(output: Tensor, target: Tensor) -> Tensor:
    """A loss that loses the axis of a batch of one."""
    return nn.functional.cross_entropy(output.squeeze(), target)


def detached(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target).detach()


LAST = 'set client.last_batch = "drop" or "merge", or another client.batch_size'
DROP = 'set client.last_batch = "drop", or another client.batch_size'
MORE = "more than 1 example (another data.partition, or fewer of its clients)"
ONLY_ONE, FULL = {"client__batch_size": 1}, {"client__batch_size": "full"}
BATCH_OF_ONE: dict[str, tuple[int, dict[str, Any], str, str]] = {
    "one client's last batch": (501, {}, "1 of 5 clients has", LAST),
    "each client's last batch": (105, {"model__batch_norm": "batch"}, "5 of 5 clients have", LAST),
    "one example": (6, {}, "4 of 5 clients have", f"give each client {MORE}"),
    "one example, full batches": (6, FULL, "4 of 5 clients have", f"give each client {MORE}"),
    "batches of one": (500, ONLY_ONE, "5 of 5 clients have", "set another client.batch_size"),
    "last and only batches": (
        8, ONLY_ONE, "5 of 5 clients have",
        f"set another client.batch_size; give the 2 of them that have no other batch {MORE}",
    ),
}  # fmt: skip


def refusal(scenario: Scenario, dataset: Dataset | None, **given: Any) -> str:
    with pytest.raises(ModelError) as caught:
        build_experiment(scenario, dataset=dataset, **given)
    return str(caught.value)


@pytest.mark.parametrize(("n", "settings", "who", "ways"), BATCH_OF_ONE.values(), ids=BATCH_OF_ONE.keys())
def test_batch_of_one_with_batch_norm_is_refused_with_the_ways_to_go_on(
    scenario: Make, n: int, settings: dict[str, Any], who: str, ways: str
) -> None:
    message = refusal(scenario(settings_of(**settings)), clouds(n), module=make_normalised())
    assert message == f"a training step on a batch of 1 example fails ({who} such a batch): {TORCH}; {ways}"


FAILING: dict[str, tuple[int, dict[str, Any], Callable[[], nn.Module], Loss | None, str]] = {
    "shape": (504, {}, Reshaping, None, rf"on a batch of 1 example fails \(4 of 5 .*\): RuntimeError: .*; {DROP}"),
    "merged": (504, {"client__last_batch": "merge"}, Reshaping, None, rf"on a batch of 11 examples fails \(4 of .*; {DROP}"),
    "merged only": (
        80, {"client__last_batch": "merge"}, Reshaping, None, rf"on a batch of 16 examples fails \(5 of 5 .*; {DROP}"
    ),
    "fewer than ten": (
        40, {}, Reshaping, None, r"on a batch of 8 examples fails \(5 of 5 .*; give each client more than 8 examples \(.*\)"
    ),
    "all of twelve": (
        60, {"client__batch_size": 12}, Reshaping, None, r"fails at every batch size that was tried: RuntimeError: shape .*"
    ),
    "squeezing loss": (501, {}, make_linear, squeezed, rf"on a batch of 1 example fails \(1 of 5 clients has .*; {LAST}"),
    "loss without graph": (
        501, {}, make_linear, detached,
        "fails at every batch size that was tried: RuntimeError: element 0 of tensors does not .*",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("n", "settings", "module", "loss", "message"), FAILING.values(), ids=FAILING.keys())
def test_training_step_that_fails_is_refused_before_round_1(
    scenario: Make, n: int, settings: dict[str, Any], module: Callable[[], nn.Module], loss: Loss | None, message: str
) -> None:
    got = refusal(scenario(settings_of(**settings)), clouds(n), module=module(), loss=loss)
    assert re.fullmatch(f"a training step {message}", got), got


@pytest.mark.parametrize("policy", ["mean", "local", "batch"])
@pytest.mark.parametrize("last_batch", ["drop", "merge"])
def test_batch_norm_trains_with_the_advised_setting(scenario: Make, policy: str, last_batch: str) -> None:
    own = {"data__held_out": 0.1, "evaluation__clients": True} if policy == "local" else {}
    n = 556 if policy == "local" else 501  # 101 = 10 · 10 + 1 examples to train on at one client
    settings = settings_of(model__batch_norm=policy, client__last_batch=last_batch, server__cohort=5, rounds=2, **own)
    assert 1 in collect_batch_size_uses(
        load_client_data(scenario(settings), None, clouds(n))[1], LocalTraining(SGD(), 1, None, 10)
    )
    result = run(scenario(settings), dataset=clouds(n), module=make_normalised())
    assert result.summary["rounds"] == 2


def test_clients_without_examples_are_not_tried() -> None:
    """Clients of 0, 20, 0 and 11 examples; then of none at all."""
    data = clouds(31)
    task = build_task(Mlp(batch_norm="mean"), data, 0, module=make_normalised())
    recipe = LocalTraining(SGD(), 1, None, 10)
    train = PartitionedData(data.train, Partition(np.arange(31), np.array([0, 0, 20, 20, 31])))
    assert collect_batch_size_uses(train, recipe) == {1: BatchSizeUse((11,), (1,)), 10: BatchSizeUse((11, 20), (1, 1))}
    with pytest.raises(ModelError, match="1 of 4 clients has such a batch"):
        check_training_steps(task, recipe, train, data.train, 0)
    check_training_steps(task, replace(recipe, last_batch="drop"), train, data.train, 0)
    nobody = PartitionedData(data.train, Partition(np.arange(0), np.array([0, 0, 0])))
    check_training_steps(task, recipe, nobody, data.train, 0)


@pytest.mark.parametrize("each", [11, 1])
def test_clients_of_a_population_are_refused_by_their_one_size(scenario: Make, each: int) -> None:
    model = {"module": FACTORY, "arguments": {"width": 60, "classes": 10}, "batch_norm": "mean"}
    data = {"name": "synthetic", "clients": 10**6, "examples": each}
    message = refusal(parse_scenario({"name": "x", "rounds": 1, "data": data, "model": model, "server": {"cohort": 5}}), None)
    ways = LAST if each > 1 else "give each client more than 1 example (data.examples)"
    assert message.startswith(
        "a training step on a batch of 1 example fails (1,000,000 of 1,000,000 clients have such a batch)"
    )
    assert message.endswith(f"; {ways}")


def test_sizes_to_try_are_the_small_the_frequent_and_the_largest() -> None:
    uses = {size: BatchSizeUse((size,), (1 if size % 100 else size,)) for size in range(1, 1001)}
    tried = select_sizes_to_try(uses)
    assert tried == [*range(1, 64), *range(300, 1001, 100)]
    assert select_sizes_to_try({5000: BatchSizeUse((5000,), (1,)), 9000: BatchSizeUse((9000,), (1,))}) == [5000, 9000]


# ------------------------------------------------------------------------------------------------------------------ evaluation


ONE = "evaluating 1 example fails, and the last slice of {} has 1 (slices have 100)"
OTHER = ', or another model.batch_norm than "batch"'
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
    "clients' own models": (
        55, 100, {"data__held_out": 0.1, "evaluation__clients": True, "model__buffers": "local"},
        "the test examples of 5 of 5 clients", "set another data.held_out",
    ),
}  # fmt: skip


class CountedNormalised(nn.Module):
    """A module whose training changes a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = make_normalised()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        y: Tensor = self.layers(x)
        return y


@pytest.mark.parametrize(("n", "test", "settings", "what", "remedy"), EVALUATED.values(), ids=EVALUATED.keys())
def test_last_slice_of_one_normalised_by_itself_is_refused(
    scenario: Make, n: int, test: int, settings: dict[str, Any], what: str, remedy: str
) -> None:
    settings = settings_of(model__batch_norm="batch", **settings)
    module = CountedNormalised() if "model.buffers" in settings else make_normalised()
    message = refusal(scenario(settings), clouds(n, test), module=module)
    assert message == f"{ONE.format(what)}: {TORCH}; {remedy}{OTHER}"


def test_clients_with_one_test_example_each_are_evaluated_together(scenario: Make) -> None:
    settings = settings_of(model__batch_norm="batch", data__held_out=0.1, evaluation__clients=True, rounds=1)
    result = run(scenario(settings), dataset=clouds(55, 100), module=make_normalised())
    assert result.client_accuracy is not None
    assert len(result.client_accuracy) == 5


def are_correct(output: Tensor, target: Tensor) -> Tensor:
    """A metric that loses the axis of a batch of one."""
    return (output.argmax(1) == target).float().squeeze()


def test_metric_that_fails_on_the_last_slice_is_refused_with_its_size(scenario: Make) -> None:
    message = refusal(scenario(settings_of()), clouds(500, 101), module=make_linear(), metrics={"accuracy": are_correct})
    assert message.startswith(f"{ONE.format('the 101 test examples')}: metric")
    assert message.endswith("; use another number of test examples")


class Limited(nn.Linear):
    """A module that refuses large inputs."""

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 1e6:
            raise ValueError("too large")
        return super().forward(x)


def test_last_slice_that_fails_for_its_values_is_not_blamed_for_its_size(scenario: Make) -> None:
    data = clouds(500, 101)
    assert isinstance(data.test.x, np.ndarray)
    data.test.x[-1] = 1e9
    message = refusal(scenario(settings_of()), data, module=Limited(8, 3))
    assert message == "the model cannot be run on these data (examples float32 [8], targets int64 []): ValueError: too large"


def test_last_slice_of_one_with_running_statistics_is_evaluated(scenario: Make) -> None:
    build_experiment(scenario(settings_of(model__batch_norm="mean")), dataset=clouds(500, 101), module=make_normalised())


# -------------------------------------------------------------------------------------------------------- what is left untouched


class Drawing(nn.Module):
    """A module with a Python attribute and buffers that training changes, and noise from three generators."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 3), nn.BatchNorm1d(3)
        self.trained_on: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.trained_on.append(len(x))
        y: Tensor = self.norm(self.linear(x)) + 1e-9 * (torch.rand(()) + random.random() + mtrand.standard_normal())
        return y


def surroundings() -> tuple[object, ...]:
    return random.getstate(), repr(mtrand.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads()


def test_trial_leaves_module_and_generators_as_they_were(scenario: Make) -> None:
    experiment = build_experiment(scenario(settings_of(engine__name="sequential")), dataset=clouds(510), module=Drawing())
    module = experiment.task.module
    state = {name: value.clone() for name, value in module.state_dict().items()}
    assert module.trained_on == []
    mtrand.standard_normal()  # draws two numbers and stores the second
    before = surroundings()
    check_training_steps(experiment.task, experiment.plan.local_training, experiment.train, experiment.dataset.train, 0)
    assert surroundings() == before
    assert module.trained_on == []
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


class Locked(nn.Linear):
    """A module that cannot be copied."""

    def __init__(self) -> None:
        super().__init__(8, 3)
        self.lock = threading.Lock()


def test_module_that_cannot_be_copied_is_trained_without_a_trial(scenario: Make) -> None:
    settings = {**settings_of(rounds=1), "model": {"module": "tests.models.test_trial:Locked"}}
    settings.pop("model.batch_norm")
    assert run(scenario(settings), dataset=clouds(501)).summary["rounds"] == 1
