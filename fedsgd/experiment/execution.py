"""Execution of an experiment: the runtime that reaches its clients, the evaluation, and the location of client states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedsgd.experiment.builder import Experiment
from fedsgd.experiment.checkpoints import ClientStorage
from fedsgd.experiment.evaluation import Evaluator, LocalModelOf
from fedsgd.experiment.state_budget import StateBudget
from fedsgd.federation import FederationPlan
from fedsgd.federation.client_state import LOCAL, ClientStore, InMemoryClientStore, entries_of
from fedsgd.federation.round_loop import Runtime
from fedsgd.numerics.arrays import F32
from fedsgd.runtime import InProcessRuntime, WorkerPool
from fedsgd.runtime.stores.shared import SlotModelCache
from fedsgd.runtime.workers.channel import SharedOutbox
from fedsgd.runtime.workers.processes import SharedInputs, start_workers
from fedsgd.runtime.workers.shared_memory import SharedFile, SharedPickle
from fedsgd.runtime.workers.worker import WorkerConfig
from fedsgd.system.profiling import Phase


class Execution(ABC):
    """Context in which the clients of an experiment can be reached.

    Results depend on the experiment alone, not on the class of the execution.

    Args:
        experiment: description of the run.

    Attributes:
        experiment: description of the run.
        runtime: carrier of the messages to the clients; set while the context is open.
        evaluator: evaluation that the scenario asks for; set while the context is open.
        storage: states and models of the clients; set while the context is open, None if they are not in this process's reach.
        worker_phase_seconds: function that returns the seconds by phase, summed over all workers; None without workers.
        deployment: settings with which a deployment is launched again, as JSON has them; None for a simulation.
        processes: entries of the summary about the processes, in addition to the number of workers.
        needs_checkpoint_each_round: whether each round needs a checkpoint, if checkpoints are written at all.
    """

    needs_checkpoint_each_round = False
    runtime: Runtime
    evaluator: Evaluator

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.storage: ClientStorage | None = None
        self.deployment: Mapping[str, Any] | None = None
        self.processes: Mapping[str, int] = {}
        self.worker_phase_seconds: Callable[[], dict[Phase, float]] | None = None
        self._resources = ExitStack()

    @property
    def state_budget(self) -> StateBudget:
        """Number, size and location of the client states."""
        return self.experiment.state_budget

    @abstractmethod
    def _open(self, resources: ExitStack) -> tuple[Runtime, Evaluator]:
        """Return runtime and evaluator, and register with `resources` what the end of the context closes."""

    def begin(self, folder: Path | None) -> None:  # noqa: B027 - most executions need nothing here
        """Receive the run directory, None without one, when the outputs of the run are open.

        Args:
            folder: run directory.
        """

    def __enter__(self) -> Self:
        with ExitStack() as resources:
            self.runtime, self.evaluator = self._open(resources)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._resources.__exit__(kind, error, traceback)


ExecutionFactory = Callable[[Experiment], Execution]
"""Function from an experiment to an execution that is not open yet."""


class InProcessExecution(Execution):
    """Execution in which this process trains all clients."""

    def _open(self, resources: ExitStack) -> tuple[Runtime, Evaluator]:
        experiment, store = self.experiment, self._open_store(resources)
        runtime = InProcessRuntime(experiment.plan, experiment.engine, store, experiment.train)
        self.storage = ClientStorage(store, runtime.model_cache)
        return runtime, Evaluator(experiment.evaluation, experiment.engine, make_local_model_reader(experiment.plan, store))

    def _open_store(self, resources: ExitStack) -> ClientStore:
        """Open the store of client states at the location of the budget."""
        if self.state_budget.location == "memory":
            return InMemoryClientStore(keeps_tensors=bool(self.state_budget.device))
        return resources.enter_context(closing(self.state_budget.open_shared_store()))


class WorkerPoolExecution(Execution):
    """Execution in which worker processes train the clients and share the evaluation.

    Args:
        experiment: description of the run, built for several workers.
        n_workers: number of worker processes.
        profile: True to measure the workers' seconds by phase.
    """

    def __init__(self, experiment: Experiment, n_workers: int, profile: bool = False) -> None:
        super().__init__(experiment)
        self._n_workers = n_workers
        self._profile = profile

    def _open(self, resources: ExitStack) -> tuple[Runtime, Evaluator]:
        experiment, evaluation = self.experiment, self.experiment.evaluation
        if experiment.shared_data is None:
            raise ValueError("the data are in this process alone; build the experiment with workers=2")
        store = resources.enter_context(closing(self.state_budget.open_shared_store()))
        outbox, models = SharedOutbox(), SlotModelCache(experiment.scenario.rounds)
        config = WorkerConfig(
            experiment.plan,
            experiment.task,
            experiment.make_engine,
            evaluation.train is not None,
            evaluation.held_out is not None,
            experiment.scenario.evaluation.test == "clients",
        )
        clock = SharedFile() if self._profile else None
        inputs = SharedInputs(SharedPickle.from_value(config), experiment.shared_data, store, models, clock)
        for file in (outbox.file, inputs.worker_config.file, models, clock):
            if file is not None:
                resources.callback(file.close)
        sets = config.select_evaluation_sets(evaluation.test, experiment.train, experiment.held_out, experiment.validation)
        handles = resources.enter_context(start_workers(self._n_workers, inputs, outbox))
        pool = WorkerPool(handles, outbox, experiment.engine, experiment.train, sets, experiment.task)
        self.storage = ClientStorage(store, models)
        self.worker_phase_seconds = partial(inputs.sum_phase_seconds, self._n_workers)
        return pool, Evaluator(evaluation, pool, make_local_model_reader(experiment.plan, store))


def make_execution(experiment: Experiment, workers: int = 1, profile: bool = False) -> Execution:
    """Return the execution in this process, or with worker processes.

    Args:
        experiment: description of the run; several workers need one that was built for several.
        workers: number of processes that train clients; 1 is this process alone.
        profile: True to measure the workers' seconds by phase.
    """
    return InProcessExecution(experiment) if workers == 1 else WorkerPoolExecution(experiment, workers, profile)


def make_local_model_reader(plan: FederationPlan, store: ClientStore) -> LocalModelOf | None:
    """Return a reader of the parameters and buffers that stay at a client, None without any."""
    buffer_plan = plan.buffers
    if buffer_plan is None or not buffer_plan.has_local_state:
        return None

    def read_local_model(client: int, averaged_buffers: F32 | None) -> tuple[F32, F32 | None]:
        entries = entries_of(store.load(client).state_if_accepted, LOCAL)
        parameters = entries.get("parameters", buffer_plan.local_parameters)
        return parameters, buffer_plan.join(averaged_buffers, entries.get("statistics"))

    return read_local_model
