"""The one place that composes a Scenario into a runnable experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedsgd.clients import MemoryStore
from fedsgd.data import ClientData, Dataset
from fedsgd.engine import Chosen, Engine, Recipe, batch_sizes, choose, make_engine
from fedsgd.errors import DataError, ModelError, ScenarioError
from fedsgd.evaluation import RESERVED, Evaluator
from fedsgd.loop import Runtime
from fedsgd.models import Loss, Metric, Task, make_task
from fedsgd.optim import SGD
from fedsgd.profiling import Phase
from fedsgd.rounds import Plan, Server, start
from fedsgd.run_folder import ROUND_COLUMNS
from fedsgd.runtime import InProcess, Workers
from fedsgd.runtime.channel import Outbox
from fedsgd.runtime.processes import Shared, hired
from fedsgd.runtime.shared import Blob, SharedFile
from fedsgd.runtime.store import SharedStore
from fedsgd.runtime.worker import Assignment, MakeEngine
from fedsgd.scenario import Scenario
from fedsgd.schema import placed
from fedsgd.splits import dealt

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class Experiment:
    """A scenario, composed: what the loop runs, and what its result is measured on. scenario: with the engine that was chosen.

    chosen: that engine, and why; make_engine: makes another like it; shared: dataset, train and held_out where other processes
    see them too, None if there are to be none; spent: seconds by phase of all workers together, None without workers.
    """

    scenario: Scenario
    dataset: Dataset
    train: ClientData
    held_out: ClientData | None
    task: Task
    plan: Plan
    engine: Engine
    chosen: Chosen
    evaluator: Evaluator
    runtime: Runtime
    server: Server
    make_engine: MakeEngine
    shared: Blob | None
    spent: Callable[[], dict[Phase, float]] | None = None

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
    *,
    share: bool = False,
) -> Experiment:
    """The experiment of a scenario. data: the folder of the data files; dataset, module, loss, metrics: take the place of what
    the scenario names; share: whether `with_workers` may follow."""
    dataset, train, held_out = dealt(scenario, data, dataset)
    shared = Blob.of((dataset, train, held_out)) if share else None
    if shared is not None:  # in the place of the arrays that were read, which can go
        dataset, train, held_out = shared.load()
    with placed("model"):
        task = make_task(scenario.model, dataset, scenario.seed, module, loss, metrics)
    with placed(""):
        cohort = scenario.cohort_size(len(train))
    with placed("uplink.compressor"):
        scenario.uplink.scheme().check_layout(task.layout)
    plan = Plan(
        seed=scenario.seed,
        layout=task.layout,
        recipe=recipe(scenario),
        uplink=scenario.uplink.scheme(),
        downlink=scenario.downlink.compressor,
        optimizer=scenario.server.optimizer,
        weighting=scenario.server.weighting,
        clients=len(train),
        cohort=cohort,
    )
    _try(task, dataset)
    counts, having = train.distinct_sizes()
    asked, sizes = scenario.engine, batch_sizes(counts, plan.recipe, having)
    chosen = Chosen(asked.name, asked.update, asked.stack)
    engine, chosen = choose(chosen, task, plan.recipe, dataset.train, sizes, cohort)
    make = partial(make_engine, chosen, sizes)
    scenario = replace(scenario, engine=replace(asked, name=chosen.name, stack=chosen.stack))
    evaluator = _evaluator(scenario, engine, task, dataset, train, held_out)
    runtime = InProcess(plan, engine, MemoryStore(), train)
    server = start(plan, task.initial)
    return Experiment(scenario, dataset, train, held_out, task, plan, engine, chosen, evaluator, runtime, server, make, shared)


@contextmanager
def with_workers(experiment: Experiment, workers: int, profile: bool = False) -> Iterator[Experiment]:
    """The experiment with its clients trained, and its model evaluated, by so many processes; by this one if it is one. No
    result depends on it. profile: whether `spent` is to say what they spend their time on. ModelError if something cannot be
    sent to another process."""
    if workers == 1:
        yield experiment
        return
    if experiment.shared is None:
        raise ValueError("its data are in this process alone: build it with share=True")
    task, outbox = experiment.task, Outbox()
    training, by_client = experiment.evaluator.train is not None, experiment.evaluator.held_out is not None
    assignment = Assignment(experiment.plan, task, experiment.make_engine, training, by_client)
    clock = SharedFile() if profile else None
    shared = Shared(Blob.of(assignment), experiment.shared, SharedStore(experiment.plan.clients), clock)
    sets = assignment.sets(experiment.dataset.test, experiment.train, experiment.held_out)
    try:
        with hired(workers, shared, outbox) as lines:
            runtime = Workers(lines, outbox, experiment.engine, experiment.train, sets, task)
            evaluator = replace(experiment.evaluator, engine=runtime)
            yield replace(experiment, runtime=runtime, evaluator=evaluator, spent=partial(shared.spent, workers))
    finally:
        for file in (outbox.file, shared.assignment.file, shared.store.file, clock):
            if file is not None:
                file.close()


def _evaluator(
    scenario: Scenario, engine: Engine, task: Task, dataset: Dataset, train: ClientData, held_out: ClientData | None
) -> Evaluator:
    """What the scenario wants to know after a round. ScenarioError or ModelError if it cannot be known."""
    asked = scenario.evaluation
    wants_accuracy = {
        "report.target_accuracy": scenario.report.target_accuracy is not None,
        "stop.target_accuracy": scenario.stop.target_accuracy is not None,
        "evaluation.clients": asked.clients,
    }
    for key, wanted in wants_accuracy.items():
        if wanted and "accuracy" not in task.metrics:
            known = ", ".join(sorted(task.metrics)) or "none"
            raise ScenarioError(f"{key}: there is no metric named accuracy (metrics: {known})")
    if asked.clients and (held_out is None or not held_out.distinct_sizes()[0].any()):
        raise ScenarioError("evaluation.clients: no client has test examples of its own; set data.held_out, for example to 0.2")
    for key, data in (("clients", held_out if asked.clients else None), ("training", train if asked.training else None)):
        try:
            if data is not None:
                data.all()
        except DataError as error:
            raise ScenarioError(
                f"evaluation.{key}: {error}; the test examples are those of clients that never train"
            ) from error
    evaluator = Evaluator(
        engine,
        tuple(task.metrics),
        dataset.test,
        held_out if asked.clients else None,
        train if asked.training else None,
    )
    for name in task.metrics:
        if name in ROUND_COLUMNS or name.startswith(RESERVED):
            taken = f"rounds.parquet has columns of its own: {', '.join(ROUND_COLUMNS)}, {'..., '.join(RESERVED)}..."
            raise ModelError(f'a metric cannot be called "{name}": {taken}')
    return evaluator


def _try(task: Task, dataset: Dataset) -> None:
    """Evaluate a few examples, so that a model that does not fit its data is found out before anything is made of it."""
    from fedsgd.engine.sequential import Sequential

    x, y = dataset.train.gather()
    try:
        for part in (dataset.train, dataset.test):
            Sequential(task, Recipe(SGD(), 1, None, None)).evaluate(task.initial, part.part(0, 2))
    except ModelError:
        raise
    except Exception as error:  # the user's module, loss or metrics
        hint = "; integer examples are numbers of words or characters, give images as floats" if x.dtype.kind == "i" else ""
        data = f"examples {x.dtype} {list(x.shape[1:])}, targets {y.dtype} {list(y.shape[1:])}"
        raise ModelError(f"the model cannot be run on these data ({data}{hint}): {type(error).__name__}: {error}") from error


def recipe(scenario: Scenario) -> Recipe:
    """How the scenario's clients train in one round."""
    client = scenario.client
    batch_size = None if client.batch_size == "full" else client.batch_size
    return Recipe(client.optimizer, client.epochs, client.steps, batch_size, client.proximal)
