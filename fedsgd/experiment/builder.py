"""The one place that composes a Scenario into a runnable experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedsgd.config.user_errors import wrap_user_errors
from fedsgd.data import ClientData, Dataset
from fedsgd.errors import ModelError
from fedsgd.experiment.evaluation import RESERVED_PREFIXES, Evaluator, LocalModelOf, check_accuracy, select_evaluation_sets
from fedsgd.experiment.partition_summary import check_class_labels, load_client_data
from fedsgd.experiment.scenario_warnings import find_warnings
from fedsgd.experiment.state_budget import StateBudget, plan_state_storage, representative_state
from fedsgd.federation import BufferPlan, FederationPlan, ServerState, initial_server_state
from fedsgd.federation.client_state import LOCAL, ClientStore, InMemoryClientStore, entries_of
from fedsgd.federation.round_loop import Runtime
from fedsgd.models import Loss, Metric
from fedsgd.models.argument_checks import check_python_arguments
from fedsgd.models.builder import build_task
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.rng import derive_torch_seed
from fedsgd.runtime import InProcessRuntime, WorkerPool
from fedsgd.runtime.stores.shared import SlotModelCache, SlotStore, stored_bytes
from fedsgd.runtime.workers.channel import SharedOutbox
from fedsgd.runtime.workers.processes import SharedInputs, start_workers
from fedsgd.runtime.workers.shared_memory import SharedFile, SharedPickle
from fedsgd.runtime.workers.worker import EngineFactory, WorkerConfig
from fedsgd.sampling import ParticipationModel, SamplingPool, bind_with_checks
from fedsgd.scenario.parsing import errors_in_section
from fedsgd.scenario.scenario import PythonObjects, Scenario
from fedsgd.storage.run_directory import ROUND_COLUMNS
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.profiling import Phase
from fedsgd.system.torch_determinism import isolate_global_state
from fedsgd.system.user_files import expand_user_path, find_temporary_folder
from fedsgd.training import EvaluationSets, LocalTraining, TrainingEngine
from fedsgd.training.evaluation_trial import resolve_evaluation
from fedsgd.training.selection import EngineChoice, make_engine, rank_batch_sizes, select_engine
from fedsgd.training.step_trial import check_training_steps

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
    task: LearningTask
    plan: FederationPlan
    engine: TrainingEngine
    engine_choice: EngineChoice
    evaluator: Evaluator
    runtime: Runtime
    participation: ParticipationModel
    state_budget: StateBudget
    initial_server_state: ServerState
    make_engine: EngineFactory
    shared_data: SharedPickle | None
    warnings: tuple[str, ...]
    worker_phase_seconds: Callable[[], dict[Phase, float]] | None = None

    @property
    def target_accuracy(self) -> float | None:
        """The accuracy that the run is asked to reach, if any."""
        return self.scenario.report.target_accuracy or self.scenario.stop.target_accuracy


def build_experiment(
    scenario: Scenario,
    data: str | Path | None = None,
    dataset: Dataset | None = None,
    module: nn.Module | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    *,
    share_data: bool = False,
) -> Experiment:
    """The experiment of a scenario. data: the folder of the data files; dataset, module, loss, metrics: take the place of what
    the scenario names; share: whether `with_worker_pool` may follow."""
    with (
        isolate_global_state(),
        isolate_generators(derive_torch_seed(scenario.seed, "build")),
    ):  # classes of the user's own may draw from them
        check_python_arguments(module, loss, metrics)
        return _build(scenario, data, PythonObjects(dataset, module, loss, metrics), share_data)


def _build(scenario: Scenario, data: str | Path | None, objects: PythonObjects, share_data: bool) -> Experiment:
    objects.check(scenario)
    described = objects.insert_references(scenario)  # before functions run that may change what they refer to
    dataset, train, held_out = load_client_data(scenario, data, objects.dataset)
    if objects.module is None:
        check_class_labels(scenario, dataset)
    shared = SharedPickle.from_value((dataset, train, held_out)) if share_data else None
    if shared is not None:  # in the place of the arrays that were read, which can go
        dataset, train, held_out = shared.load()
    with errors_in_section("model"):
        task = build_task(scenario.model, dataset, scenario.seed, objects.module, objects.loss, objects.metrics)
    plan = make_plan(scenario, task, train)
    task = _dry_run_model(task, dataset, select_evaluation_sets(scenario, task, dataset, train, held_out))
    check_training_steps(task, plan.local_training, train, dataset.train, scenario.seed)
    engine, chosen, make = _build_engine(scenario, task, plan, dataset, train)
    scenario = replace(described, engine=replace(scenario.engine, name=chosen.name, stack=chosen.stack))
    store = InMemoryClientStore()
    evaluator = _build_evaluator(scenario, engine, task, dataset, train, held_out)
    evaluator = replace(evaluator, local_model_of=_make_local_model_reader(plan, store))
    runtime = InProcessRuntime(plan, engine, store, train)
    server = initial_server_state(plan, task.initial_parameters[: plan.layout.size])
    attending = _participation(scenario, train, plan.cohort_size, data)
    states = _state_budget(scenario, plan, attending.n_invited, task.layout.size)
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


def _build_engine(
    scenario: Scenario, task: LearningTask, plan: FederationPlan, dataset: Dataset, train: ClientData
) -> tuple[TrainingEngine, EngineChoice, EngineFactory]:
    """(the engine, which it is and why, what makes another like it)."""
    counts, having = train.distinct_sizes()
    asked, sizes = scenario.engine, rank_batch_sizes(counts, plan.local_training, having)
    chosen = EngineChoice(asked.name, asked.update, asked.stack)
    engine, chosen = select_engine(chosen, task, plan.local_training, dataset.train, sizes, plan.cohort_size)
    return engine, chosen, partial(make_engine, chosen, sizes)


def make_plan(scenario: Scenario, task: LearningTask, train: ClientData) -> FederationPlan:
    """Return what server and clients of a scenario agree on."""
    with errors_in_section(""):
        cohort = scenario.compute_cohort_size(len(train))
    compressors = {"uplink.compressor": scenario.uplink.build_scheme(), "downlink.compressor": scenario.downlink.compressor}
    for key, compressor in compressors.items():
        with errors_in_section(key), wrap_user_errors(key, compressor):
            compressor.check_layout(task.shared_layout)
            compressor.max_bytes(task.shared_layout)
    return FederationPlan(
        seed=scenario.seed,
        layout=task.shared_layout,
        local_training=local_training_config(scenario),
        uplink=scenario.uplink.build_scheme(),
        downlink=scenario.downlink.build_downlink(),
        server_optimizer=scenario.server.optimizer,
        weighting=scenario.server.weighting,
        n_clients=len(train),
        cohort_size=cohort,
        n_examples=_count_examples(train) if scenario.server.sampler.yields_inclusion_probabilities else 0,
        uses_fednova=scenario.server.normalisation == "fednova",
        buffers=_build_buffer_plan(task),
        bfloat16_states=scenario.state.precision == "bfloat16",
    )


def _build_buffer_plan(task: LearningTask) -> BufferPlan | None:
    """Return what clients carry beside the parameters that are sent, None if that is nothing."""
    values = task.initial_buffers
    if values is None and not task.n_local_parameters:
        return None
    n_sent = 0 if values is None else len(values) - task.n_local_buffers
    sent = values[:n_sent] if values is not None and n_sent else None
    local = values[n_sent:] if values is not None and task.n_local_buffers else None
    return BufferPlan(sent, local, task.initial_parameters[task.shared_layout.size :])


def _count_examples(data: ClientData) -> int:
    """How many examples all clients have together."""
    each, clients = data.distinct_sizes()
    return int(each @ clients)


def _make_local_model_reader(plan: FederationPlan, store: ClientStore) -> LocalModelOf | None:
    """What of its model each client has for itself, None if that is nothing."""
    carried = plan.buffers
    if carried is None or not carried.has_local_state:
        return None

    def read_local_model(client: int, averaged_buffers: F32 | None) -> tuple[F32, F32 | None]:
        kept = entries_of(store.load(client).state_if_accepted, LOCAL)
        return kept.get("parameters", carried.local_parameters), carried.join(averaged_buffers, kept.get("statistics"))

    return read_local_model


def _participation(scenario: Scenario, train: ClientData, cohort: int, folder: str | Path | None) -> ParticipationModel:
    asked, where = scenario.participation, None if folder is None else expand_user_path(folder, "data")
    with errors_in_section("server.sampler"):
        draw = bind_with_checks(scenario.server.sampler, SamplingPool(scenario.seed, len(train), train.sizes, where))
    return ParticipationModel(
        scenario.seed, draw, len(train), cohort, asked.over_selection, asked.dropout, asked.deadline, asked.durations
    )


def _state_budget(scenario: Scenario, plan: FederationPlan, n_invited: int, size: int) -> StateBudget:
    """Where what clients remember will be. asked: how many of them a round; size: of the vector that they train."""
    kept = scenario.rounds if plan.downlink.history_rounds is None else min(scenario.rounds, plan.downlink.history_rounds)
    models = min(plan.n_clients, kept + 1) * plan.layout.size * 4 if plan.downlink.clients_keep_model else 0
    folder = expand_user_path(scenario.state.folder) if scenario.state.folder else find_temporary_folder()
    state, typical = scenario.state, representative_state(plan, size)
    each = stored_bytes(typical) if typical.state_if_accepted else 0
    return plan_state_storage(
        plan.n_clients,
        n_invited,
        scenario.rounds,
        each,
        model_bytes=models,
        location=state.store,
        budget=state.budget_bytes,
        folder=folder,
    )


@contextmanager
def with_worker_pool(experiment: Experiment, workers: int, profile: bool = False) -> Iterator[Experiment]:
    """The experiment with its clients trained, and its model evaluated, by so many processes, by this one if it is one; and
    with their states where its plan says. No result depends on either. profile: whether `spent` is to say what they spend their
    time on. ModelError if something cannot be sent to another process, OutputError if nothing can be kept on disk."""
    if workers == 1 and experiment.state_budget.location == "memory":
        yield experiment
        return
    with closing(experiment.state_budget.open_shared_store()) as store:
        if workers == 1:
            runtime = InProcessRuntime(experiment.plan, experiment.engine, store, experiment.train)
            evaluator = replace(experiment.evaluator, local_model_of=_make_local_model_reader(experiment.plan, store))
            yield replace(experiment, runtime=runtime, evaluator=evaluator)
        else:
            with _start_workers(experiment, workers, profile, store) as experiment:
                yield experiment


@contextmanager
def _start_workers(experiment: Experiment, workers: int, profile: bool, store: SlotStore) -> Iterator[Experiment]:
    if experiment.shared_data is None:
        raise ValueError("its data are in this process alone: build it with share=True")
    task, outbox = experiment.task, SharedOutbox()
    training, by_client = experiment.evaluator.train is not None, experiment.evaluator.held_out is not None
    assignment = WorkerConfig(experiment.plan, task, experiment.make_engine, training, by_client)
    clock = SharedFile() if profile else None
    models = SlotModelCache(experiment.scenario.rounds)
    shared = SharedInputs(SharedPickle.from_value(assignment), experiment.shared_data, store, models, clock)
    sets = assignment.select_evaluation_sets(experiment.dataset.test, experiment.train, experiment.held_out)
    try:
        with start_workers(workers, shared, outbox) as lines:
            runtime = WorkerPool(lines, outbox, experiment.engine, experiment.train, sets, task)
            evaluator = replace(
                experiment.evaluator, engine=runtime, local_model_of=_make_local_model_reader(experiment.plan, store)
            )
            yield replace(
                experiment,
                runtime=runtime,
                evaluator=evaluator,
                worker_phase_seconds=partial(shared.sum_phase_seconds, workers),
            )
    finally:
        for file in (outbox.file, shared.worker_config.file, models, clock):
            if file is not None:
                file.close()


def _build_evaluator(
    scenario: Scenario,
    engine: TrainingEngine,
    task: LearningTask,
    dataset: Dataset,
    train: ClientData,
    held_out: ClientData | None,
) -> Evaluator:
    """What the scenario wants to know after a round. ScenarioError or ModelError if it cannot be known."""
    asked = scenario.evaluation
    check_accuracy(scenario, task)
    for name in task.metrics:
        if name in ROUND_COLUMNS or name.startswith(RESERVED_PREFIXES):
            taken = f"rounds.parquet has columns of its own: {', '.join(ROUND_COLUMNS)}, {'..., '.join(RESERVED_PREFIXES)}..."
            raise ModelError(f'a metric cannot be called "{name}": {taken}')
    return Evaluator(
        engine,
        tuple(task.metrics),
        dataset.test,
        held_out if asked.clients else None,
        train if asked.training else None,
    )


def _dry_run_model(task: LearningTask, dataset: Dataset, sets: EvaluationSets) -> LearningTask:
    """Evaluate a few examples, so that a model that does not fit its data is found out before anything is made of it.

    Returns:
        The task with its metrics and the reduction of its loss as the trial settled them.
    """
    x, y = dataset.train.arrays()
    try:
        return resolve_evaluation(task, dataset, sets)
    except ModelError:
        raise
    except Exception as error:  # the user's module, loss or metrics
        hint = "; integer examples are numbers of words or characters, give images as floats" if x.dtype.kind == "i" else ""
        data = f"examples {x.dtype} {list(x.shape[1:])}, targets {y.dtype} {list(y.shape[1:])}"
        raise ModelError(f"the model cannot be run on these data ({data}{hint}): {type(error).__name__}: {error}") from error


def local_training_config(scenario: Scenario) -> LocalTraining:
    """How the scenario's clients train in one round."""
    client = scenario.client
    batch_size = None if client.batch_size == "full" else client.batch_size
    carry, corrected = client.velocity == "carry", scenario.uplink.build_scheme().corrects_gradients
    steps = (client.epochs, client.steps)
    return LocalTraining(client.optimizer, *steps, batch_size, client.proximal, carry, corrected, client.last_batch)
