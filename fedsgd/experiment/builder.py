"""Builder of an experiment: data, model, plan, engine and evaluation of a scenario."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedsgd.data import ClientData, Dataset
from fedsgd.errors import ModelError, ScenarioError
from fedsgd.experiment.evaluation import (
    RESERVED_PREFIXES,
    EvaluationPlan,
    check_accuracy,
    check_targets,
    select_evaluation_sets,
    select_test_examples,
)
from fedsgd.experiment.federation_plan import make_plan
from fedsgd.experiment.partition_summary import check_class_labels, load_client_data, split_validation
from fedsgd.experiment.scenario_warnings import find_warnings
from fedsgd.experiment.state_budget import StateBudget, plan_state_storage, representative_state
from fedsgd.federation import FederationPlan, ServerState, initial_server_state
from fedsgd.models import Loss, Metric
from fedsgd.models.argument_checks import check_python_arguments
from fedsgd.models.builder import build_task
from fedsgd.models.task import LearningTask
from fedsgd.numerics.rng import derive_torch_seed
from fedsgd.runtime.stores.shared import stored_bytes
from fedsgd.runtime.workers.shared_memory import SharedPickle
from fedsgd.runtime.workers.worker import EngineFactory
from fedsgd.sampling import ParticipationModel, SamplingPool, bind_with_checks
from fedsgd.scenario.parsing import errors_in_section
from fedsgd.scenario.scenario import PythonObjects, Scenario
from fedsgd.scenario.target import Target
from fedsgd.storage.run_directory import ROUND_COLUMNS
from fedsgd.system.compute_device import CPU, resolve_device
from fedsgd.system.global_generators import isolate_generators
from fedsgd.system.torch_determinism import isolate_global_state
from fedsgd.system.user_files import expand_user_path, find_temporary_folder
from fedsgd.training import EvaluationSets, TrainingEngine
from fedsgd.training.device_memory import DeviceMemory, plan_memory
from fedsgd.training.evaluation_trial import resolve_evaluation
from fedsgd.training.selection import (
    EngineChoice,
    choose_typical_cohort,
    make_engine,
    rank_batch_sizes,
    select_engine,
)
from fedsgd.training.slice_evaluation import SetMetrics
from fedsgd.training.step_trial import check_training_steps

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class Experiment:
    """Description of a run: the scenario, and what is built from it. An `Execution` reaches the clients.

    Attributes:
        scenario: scenario with the selected engine, and with references to the Python objects.
        train, held_out: training and test examples of all clients; `held_out` is None without client test examples.
        validation: validation examples of all clients, on which no client trains; None without `[evaluation] validation`.
        engine: engine of this process; `make_engine` makes an equal engine in another process.
        evaluation: evaluation that the scenario asks for.
        initial_server_state: server before round 1.
        shared_data: (dataset, train, held_out, validation) in memory that other processes can read, None if this process is the
            only one.
        warnings: lines about settings that a component is not made for.
    """

    scenario: Scenario
    dataset: Dataset
    train: ClientData
    held_out: ClientData | None
    validation: ClientData | None
    task: LearningTask
    plan: FederationPlan
    engine: TrainingEngine
    engine_choice: EngineChoice
    evaluation: EvaluationPlan
    participation: ParticipationModel
    state_budget: StateBudget
    initial_server_state: ServerState
    make_engine: EngineFactory
    shared_data: SharedPickle | None
    warnings: tuple[str, ...]

    @property
    def target(self) -> Target | None:
        """Target whose cost is reported, None without a target."""
        return self.scenario.report.resolved_target or self.scenario.stop.resolved_target


def build_experiment(
    scenario: Scenario,
    data: str | Path | None = None,
    dataset: Dataset | None = None,
    module: nn.Module | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    *,
    workers: int = 1,
    has_own_store: bool = True,
) -> Experiment:
    """Build a scenario's experiment, with Python objects as for `fedsgd.run`.

    With several `workers`, the data are in memory that other processes can read, as `WorkerPoolExecution` needs, and each
    process plans with its share of a GPU's memory. `has_own_store`: the states of clients are in this process, and may stay on
    a GPU; not so for ranks and for nodes of a deployment.
    """
    # the user's classes may draw from the global generators
    with isolate_global_state(), isolate_generators(derive_torch_seed(scenario.seed, "build")):
        check_python_arguments(module, loss, metrics)
        return _build(scenario, data, PythonObjects(dataset, module, loss, metrics), workers, has_own_store)


def _build(
    scenario: Scenario, data: str | Path | None, objects: PythonObjects, workers: int, has_own_store: bool
) -> Experiment:
    objects.check(scenario, require_importable=workers > 1)
    references = objects.make_references(scenario)  # before the user's functions run and perhaps change the objects
    dataset, train, held_out = load_client_data(scenario, data, objects.dataset)
    train, validation = split_validation(scenario, train)
    if objects.module is None:
        check_class_labels(scenario, dataset)
    shared_data = SharedPickle.from_value((dataset, train, held_out, validation)) if workers > 1 else None
    if shared_data is not None:  # frees the arrays that were read
        dataset, train, held_out, validation = shared_data.load()
    with errors_in_section("model"):
        task = build_task(scenario.model, dataset, scenario.seed, objects.module, objects.loss, objects.metrics)
    data_folder = None if data is None else expand_user_path(data, "data")
    plan = make_plan(scenario, task, train, data_folder)
    sets = select_evaluation_sets(scenario, task, dataset, train, held_out, validation)
    task = _dry_run_model(scenario, task, dataset, sets)
    check_training_steps(task, plan.local_training, train, dataset.train, scenario.seed)
    participation = _participation(scenario, train, plan.cohort_size, data_folder)
    budget = _state_budget(scenario, plan, participation.n_invited, task.layout.size)
    memory = _plan_device_memory(scenario, task, plan, dataset, train, budget, workers, has_own_store)
    engine, choice, engine_factory = _build_engine(scenario, task, plan, dataset, train, memory)
    config = replace(scenario.engine, name=choice.name, stack=choice.stack, device=choice.device)
    scenario = replace(scenario, **references, engine=config)
    evaluation = _plan_evaluation(scenario, task, dataset, train, held_out, validation)
    budget = replace(budget, evaluation_bytes=task.output_bytes, device=memory.device if memory and memory.states else "")
    return Experiment(
        scenario,
        dataset,
        train,
        held_out,
        validation,
        task,
        plan,
        engine,
        choice,
        evaluation,
        participation,
        budget,
        initial_server_state(plan, task.initial_parameters[: plan.layout.size]),
        engine_factory,
        shared_data,
        find_warnings(scenario, plan, train),
    )


def _plan_device_memory(
    scenario: Scenario,
    task: LearningTask,
    plan: FederationPlan,
    dataset: Dataset,
    train: ClientData,
    budget: StateBudget,
    workers: int,
    has_own_store: bool,
) -> DeviceMemory | None:
    """Return the memory that the run needs on a GPU; None on the CPU. States stay on a GPU that one process uses."""
    device = resolve_device(scenario.engine.device, scenario.engine.deterministic)
    most_examples = int(train.distinct_sizes()[0].max(initial=0))
    if device == CPU or not most_examples:
        return None
    batch_size = max(plan.local_training.plan_batches(most_examples).batch_sizes)
    n_processes = workers + (workers > 1)  # this process has an engine, too
    may_stay = budget.location == "memory" and plan.uplink.accepts_tensors and not plan.bfloat16_states
    state_bytes = budget.n_bytes if may_stay and has_own_store and workers == 1 else 0
    sets = dataset.train, dataset.test
    return plan_memory(device, task, plan.local_training, sets, batch_size, processes=n_processes, state_bytes=state_bytes)


def _build_engine(
    scenario: Scenario,
    task: LearningTask,
    plan: FederationPlan,
    dataset: Dataset,
    train: ClientData,
    memory: DeviceMemory | None,
) -> tuple[TrainingEngine, EngineChoice, EngineFactory]:
    """Return (engine, its name and the reason for it, function that makes an equal engine)."""
    example_counts, client_counts = train.distinct_sizes()
    config, sizes = scenario.engine, rank_batch_sizes(example_counts, plan.local_training, client_counts)
    device = CPU if memory is None else memory.device
    keeps_updates = memory is not None and plan.uplink.accepts_tensors
    request = EngineChoice(
        config.name,
        config.update,
        config.stack,
        device=device,
        deterministic=config.deterministic,
        keeps_updates=keeps_updates,
    )
    cohort = choose_typical_cohort(example_counts, client_counts, plan.cohort_size)
    engine, choice = select_engine(request, task, plan.local_training, dataset.train, sizes, cohort, memory)
    return engine, choice, partial(make_engine, choice, sizes)


def _participation(scenario: Scenario, train: ClientData, cohort: int, data_folder: Path | None) -> ParticipationModel:
    config = scenario.participation
    with errors_in_section("server.sampler"):
        draw = bind_with_checks(scenario.server.sampler, SamplingPool(scenario.seed, len(train), train.sizes, data_folder))
    return ParticipationModel(
        scenario.seed, draw, len(train), cohort, config.over_selection, config.dropout, config.deadline, config.durations
    )


def _state_budget(scenario: Scenario, plan: FederationPlan, n_invited: int, size: int) -> StateBudget:
    """Return the budget of client states; `size` is the length of a client's trained vector, local parameters included."""
    n_models = scenario.rounds if plan.downlink.history_rounds is None else min(scenario.rounds, plan.downlink.history_rounds)
    models = min(plan.n_clients, n_models + 1) * plan.layout.size * 4 if plan.downlink.clients_keep_model else 0
    folder = expand_user_path(scenario.state.folder) if scenario.state.folder else find_temporary_folder()
    config, state = scenario.state, representative_state(plan, size)
    state_bytes = stored_bytes(state) if state.state_if_accepted else 0
    budget = plan_state_storage(
        plan.n_clients,
        n_invited,
        scenario.rounds,
        state_bytes,
        model_bytes=models,
        location=config.store,
        budget=config.budget_bytes,
        folder=folder,
    )
    return replace(budget, aggregation_bytes=plan.aggregator.max_working_bytes(plan.layout, plan.cohort_size))


def _plan_evaluation(
    scenario: Scenario,
    task: LearningTask,
    dataset: Dataset,
    train: ClientData,
    held_out: ClientData | None,
    validation: ClientData | None,
) -> EvaluationPlan:
    """Return the evaluation that the scenario asks for, after a check of the metrics and their names."""
    config = scenario.evaluation
    check_accuracy(scenario, task)
    for name in (*task.metrics, *task.set_metrics):
        if name in ROUND_COLUMNS or name.startswith(RESERVED_PREFIXES):
            columns = f"{', '.join(ROUND_COLUMNS)}, {'..., '.join(RESERVED_PREFIXES)}..."
            raise ModelError(f'a metric cannot be called "{name}": rounds.parquet has columns of its own: {columns}')
    plan = EvaluationPlan(
        tuple(task.metrics),
        select_test_examples(scenario, dataset, held_out),
        held_out if config.clients else None,
        train if config.training else None,
        SetMetrics(task.set_metrics) if task.set_metrics else None,
        validation,
    )
    check_targets(scenario, plan)
    return plan


def _dry_run_model(scenario: Scenario, task: LearningTask, dataset: Dataset, sets: EvaluationSets) -> LearningTask:
    """Evaluate a few examples, so that a model that does not fit its data fails before the first round.

    The returned task has the metrics that apply, and the reduction of its loss.
    """
    x, y = dataset.train.arrays()
    try:
        return resolve_evaluation(task, dataset, sets, scenario.evaluation.metrics or (), scenario.state.budget_bytes)
    except (ModelError, ScenarioError):
        raise
    except Exception as error:  # the user's module, loss or metrics
        hint = "; integer examples are numbers of words or characters, give images as floats" if x.dtype.kind == "i" else ""
        data = f"examples {x.dtype} {list(x.shape[1:])}, targets {y.dtype} {list(y.shape[1:])}"
        raise ModelError(f"the model cannot be run on these data ({data}{hint}): {type(error).__name__}: {error}") from error
