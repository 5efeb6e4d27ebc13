"""The one place that composes a Scenario into a runnable experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedsgd.clients import MemoryStore
from fedsgd.component import FieldError
from fedsgd.data import Dataset, Examples, partition
from fedsgd.engine import Engine, Recipe, Sequential
from fedsgd.errors import ScenarioError
from fedsgd.loop import Runtime
from fedsgd.models import Loss, Metric, Task, make_task
from fedsgd.rounds import Plan, Server, start
from fedsgd.runtime import InProcess
from fedsgd.scenario import Scenario

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class Experiment:
    """A scenario, composed: what the loop runs, and what its result is measured on."""

    scenario: Scenario
    dataset: Dataset
    task: Task
    plan: Plan
    engine: Engine
    runtime: Runtime
    server: Server

    @property
    def target_accuracy(self) -> float | None:
        """The accuracy that the run is asked to reach, if any."""
        return self.scenario.report.target_accuracy or self.scenario.stop.target_accuracy


def build(
    scenario: Scenario,
    data: str | Path | None = None,
    dataset: Dataset | None = None,
    module: nn.Module | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Experiment:
    """The experiment of a scenario. data: the folder of the data files; dataset, module, loss, metrics: take the place of what
    the scenario names."""
    if dataset is None:
        dataset = scenario.data.source.load(None if data is None else Path(data))
    try:
        task = make_task(scenario.model, dataset, scenario.seed, module, loss, metrics)
    except FieldError as error:
        raise ScenarioError(f"model.{error.field}: {error.problem}") from error
    plan = Plan(
        seed=scenario.seed,
        layout=task.layout,
        recipe=recipe(scenario),
        uplink=scenario.uplink.scheme(),
        downlink=scenario.downlink.compressor,
        optimizer=scenario.server.optimizer,
        weighting=scenario.server.weighting,
        clients=scenario.data.partition.clients,
        cohort=scenario.cohort_size,
    )
    engine = Sequential(task, plan.recipe)
    train = Examples(*dataset.train.gather())
    split = partition(scenario.data.partition, train.y, scenario.seed)
    runtime = InProcess(plan, engine, MemoryStore(), train, split)
    experiment = Experiment(scenario, dataset, task, plan, engine, runtime, start(plan, task.initial))
    if experiment.target_accuracy is not None and "accuracy" not in task.metrics:
        known = ", ".join(sorted(task.metrics)) or "none"
        raise ScenarioError(f"report.target_accuracy: there is no metric named accuracy (metrics: {known})")
    return experiment


def recipe(scenario: Scenario) -> Recipe:
    """How the scenario's clients train in one round."""
    client = scenario.client
    batch_size = None if client.batch_size == "full" else client.batch_size
    return Recipe(client.optimizer, client.epochs, client.steps, batch_size)
