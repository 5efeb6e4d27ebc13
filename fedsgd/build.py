"""The one place that composes a Scenario into a runnable experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedsgd.arrays import F32
from fedsgd.clients import OWN, ClientStore, MemoryStore, part_of
from fedsgd.data import ClientData, Dataset
from fedsgd.engine import Chosen, Engine, EvaluationSets, Recipe, batch_sizes, choose, make_engine
from fedsgd.engine.trial import check_training_steps
from fedsgd.errors import ModelError
from fedsgd.evaluation import RESERVED, Evaluator, Own, check_accuracy, select_evaluation_sets
from fedsgd.loop import Runtime
from fedsgd.models import Loss, Metric, Task, make_task
from fedsgd.models.given import check_given
from fedsgd.participation import Attendance, Pool, checked_draw
from fedsgd.profiling import Phase
from fedsgd.rng import torch_seed
from fedsgd.rounds import CarriedBuffers, Plan, Server, start
from fedsgd.run_folder import ROUND_COLUMNS
from fedsgd.runtime import InProcess, Workers
from fedsgd.runtime.channel import Outbox
from fedsgd.runtime.processes import Shared, hired
from fedsgd.runtime.shared import Blob, SharedFile
from fedsgd.runtime.store import SlotModels, SlotStore, footprint
from fedsgd.runtime.worker import Assignment, MakeEngine
from fedsgd.scenario import PythonObjects, Scenario
from fedsgd.scenario_warnings import find_warnings
from fedsgd.schema import placed
from fedsgd.splits import check_class_labels, dealt
from fedsgd.state_plan import StatePlan, plan_states, typical_state
from fedsgd.user_code import user_code
from fedsgd.user_files import temporary_folder, user_path

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class Experiment:
    """A scenario, composed: what the loop runs, and what its result is measured on. scenario: with the engine that was chosen,
    and with what stands for Python objects.

    attendance: who is asked in a round, and whose reply is taken; states: where what clients remember is; chosen: that engine,
    and why; make_engine: makes another like it; shared: dataset, train and held_out where other processes see them too, None if
    there are to be none; warnings: lines about settings that a component is not made for; spent: seconds by phase of all
    workers together, None without workers.
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
    attendance: Attendance
    states: StatePlan
    server: Server
    make_engine: MakeEngine
    shared: Blob | None
    warnings: tuple[str, ...]
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
    from fedsgd.generators import seeded_generators
    from fedsgd.torch_scope import isolated

    with isolated(), seeded_generators(torch_seed(scenario.seed, "build")):  # classes of the user's own may draw from them
        check_given(module, loss, metrics)
        return _build(scenario, data, PythonObjects(dataset, module, loss, metrics), share)


def _build(scenario: Scenario, data: str | Path | None, objects: PythonObjects, share: bool) -> Experiment:
    objects.check(scenario)
    described = objects.describe(scenario)  # before functions run that may change what they refer to
    dataset, train, held_out = dealt(scenario, data, objects.dataset)
    if objects.module is None:
        check_class_labels(scenario, dataset)
    shared = Blob.of((dataset, train, held_out)) if share else None
    if shared is not None:  # in the place of the arrays that were read, which can go
        dataset, train, held_out = shared.load()
    with placed("model"):
        task = make_task(scenario.model, dataset, scenario.seed, objects.module, objects.loss, objects.metrics)
    plan = make_plan(scenario, task, train)
    task = _try(task, dataset, select_evaluation_sets(scenario, task, dataset, train, held_out))
    check_training_steps(task, plan.recipe, train, dataset.train, scenario.seed)
    engine, chosen, make = _engine(scenario, task, plan, dataset, train)
    scenario = replace(described, engine=replace(scenario.engine, name=chosen.name, stack=chosen.stack))
    store = MemoryStore()
    evaluator = _evaluator(scenario, engine, task, dataset, train, held_out)
    evaluator = replace(evaluator, own=_own(plan, store))
    runtime = InProcess(plan, engine, store, train)
    server = start(plan, task.initial[: plan.layout.size])
    attending = _attendance(scenario, train, plan.cohort, data)
    states = _states(scenario, plan, attending.asked, task.layout.size)
    return Experiment(
        scenario,
        dataset,
        train,
        held_out,
        task,
        plan,
        engine,
        chosen,
        evaluator,
        runtime,
        attending,
        states,
        server,
        make,
        shared,
        find_warnings(scenario, plan, train),
    )


def _engine(
    scenario: Scenario, task: Task, plan: Plan, dataset: Dataset, train: ClientData
) -> tuple[Engine, Chosen, MakeEngine]:
    """(the engine, which it is and why, what makes another like it)."""
    counts, having = train.distinct_sizes()
    asked, sizes = scenario.engine, batch_sizes(counts, plan.recipe, having)
    chosen = Chosen(asked.name, asked.update, asked.stack)
    engine, chosen = choose(chosen, task, plan.recipe, dataset.train, sizes, plan.cohort)
    return engine, chosen, partial(make_engine, chosen, sizes)


def make_plan(scenario: Scenario, task: Task, train: ClientData) -> Plan:
    """Return what server and clients of a scenario agree on."""
    with placed(""):
        cohort = scenario.cohort_size(len(train))
    compressors = {"uplink.compressor": scenario.uplink.scheme(), "downlink.compressor": scenario.downlink.compressor}
    for key, compressor in compressors.items():
        with placed(key), user_code(key, compressor):
            compressor.check_layout(task.shared_layout)
            compressor.max_bytes(task.shared_layout)
    return Plan(
        seed=scenario.seed,
        layout=task.shared_layout,
        recipe=recipe(scenario),
        uplink=scenario.uplink.scheme(),
        downlink=scenario.downlink.link(),
        optimizer=scenario.server.optimizer,
        weighting=scenario.server.weighting,
        clients=len(train),
        cohort=cohort,
        examples=_total(train) if scenario.server.sampler.corrects else 0,
        normalised=scenario.server.normalisation == "fednova",
        buffers=_carried(task),
        bfloat16_states=scenario.state.precision == "bfloat16",
    )


def _carried(task: Task) -> CarriedBuffers | None:
    """Return what clients carry beside the parameters that are sent, None if that is nothing."""
    values = task.initial_buffers
    if values is None and not task.n_local:
        return None
    n_sent = 0 if values is None else len(values) - task.n_local_buffers
    sent = values[:n_sent] if values is not None and n_sent else None
    local = values[n_sent:] if values is not None and task.n_local_buffers else None
    return CarriedBuffers(sent, local, task.initial[task.shared_layout.size :])


def _total(data: ClientData) -> int:
    """How many examples all clients have together."""
    each, clients = data.distinct_sizes()
    return int(each @ clients)


def _own(plan: Plan, store: ClientStore) -> Own | None:
    """What of its model each client has for itself, None if that is nothing."""
    carried = plan.buffers
    if carried is None or not carried.stay:
        return None

    def own(client: int, sent: F32 | None) -> tuple[F32, F32 | None]:
        kept = part_of(store.load(client).latest, OWN)
        return kept.get("parameters", carried.parameters), carried.joined(sent, kept.get("statistics"))

    return own


def _attendance(scenario: Scenario, train: ClientData, cohort: int, folder: str | Path | None) -> Attendance:
    asked, where = scenario.participation, None if folder is None else user_path(folder, "data")
    with placed("server.sampler"):
        draw = checked_draw(scenario.server.sampler, Pool(scenario.seed, len(train), train.sizes, where))
    return Attendance(
        scenario.seed, draw, len(train), cohort, asked.over_selection, asked.dropout, asked.deadline, asked.durations
    )


def _states(scenario: Scenario, plan: Plan, asked: int, size: int) -> StatePlan:
    """Where what clients remember will be. asked: how many of them a round; size: of the vector that they train."""
    kept = scenario.rounds if plan.downlink.remember is None else min(scenario.rounds, plan.downlink.remember)
    models = min(plan.clients, kept + 1) * plan.layout.size * 4 if plan.downlink.needs_held else 0
    folder = user_path(scenario.state.folder) if scenario.state.folder else temporary_folder()
    state, typical = scenario.state, typical_state(plan, size)
    each = footprint(typical) if typical.latest else 0
    return plan_states(
        plan.clients, asked, scenario.rounds, each, models=models, where=state.store, budget=state.n_bytes, folder=folder
    )


@contextmanager
def with_workers(experiment: Experiment, workers: int, profile: bool = False) -> Iterator[Experiment]:
    """The experiment with its clients trained, and its model evaluated, by so many processes, by this one if it is one; and
    with their states where its plan says. No result depends on either. profile: whether `spent` is to say what they spend their
    time on. ModelError if something cannot be sent to another process, OutputError if nothing can be kept on disk."""
    if workers == 1 and experiment.states.place == "memory":
        yield experiment
        return
    with closing(experiment.states.shared_store()) as store:
        if workers == 1:
            runtime = InProcess(experiment.plan, experiment.engine, store, experiment.train)
            evaluator = replace(experiment.evaluator, own=_own(experiment.plan, store))
            yield replace(experiment, runtime=runtime, evaluator=evaluator)
        else:
            with _hired(experiment, workers, profile, store) as experiment:
                yield experiment


@contextmanager
def _hired(experiment: Experiment, workers: int, profile: bool, store: SlotStore) -> Iterator[Experiment]:
    if experiment.shared is None:
        raise ValueError("its data are in this process alone: build it with share=True")
    task, outbox = experiment.task, Outbox()
    training, by_client = experiment.evaluator.train is not None, experiment.evaluator.held_out is not None
    assignment = Assignment(experiment.plan, task, experiment.make_engine, training, by_client)
    clock = SharedFile() if profile else None
    models = SlotModels(experiment.scenario.rounds)
    shared = Shared(Blob.of(assignment), experiment.shared, store, models, clock)
    sets = assignment.sets(experiment.dataset.test, experiment.train, experiment.held_out)
    try:
        with hired(workers, shared, outbox) as lines:
            runtime = Workers(lines, outbox, experiment.engine, experiment.train, sets, task)
            evaluator = replace(experiment.evaluator, engine=runtime, own=_own(experiment.plan, store))
            yield replace(experiment, runtime=runtime, evaluator=evaluator, spent=partial(shared.spent, workers))
    finally:
        for file in (outbox.file, shared.assignment.file, models, clock):
            if file is not None:
                file.close()


def _evaluator(
    scenario: Scenario, engine: Engine, task: Task, dataset: Dataset, train: ClientData, held_out: ClientData | None
) -> Evaluator:
    """What the scenario wants to know after a round. ScenarioError or ModelError if it cannot be known."""
    asked = scenario.evaluation
    check_accuracy(scenario, task)
    for name in task.metrics:
        if name in ROUND_COLUMNS or name.startswith(RESERVED):
            taken = f"rounds.parquet has columns of its own: {', '.join(ROUND_COLUMNS)}, {'..., '.join(RESERVED)}..."
            raise ModelError(f'a metric cannot be called "{name}": {taken}')
    return Evaluator(
        engine,
        tuple(task.metrics),
        dataset.test,
        held_out if asked.clients else None,
        train if asked.training else None,
    )


def _try(task: Task, dataset: Dataset, sets: EvaluationSets) -> Task:
    """Evaluate a few examples, so that a model that does not fit its data is found out before anything is made of it.

    Returns:
        The task with its metrics and the reduction of its loss as the trial settled them.
    """
    from fedsgd.engine.evaluation_trial import settle_evaluation

    x, y = dataset.train.gather()
    try:
        return settle_evaluation(task, dataset, sets)
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
    carry, corrected = client.velocity == "carry", scenario.uplink.scheme().corrects
    steps = (client.epochs, client.steps)
    return Recipe(client.optimizer, *steps, batch_size, client.proximal, carry, corrected, client.last_batch)
