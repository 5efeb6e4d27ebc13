"""Execution on the ranks of torch.distributed, and the life of a rank that is not rank 0."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from fedsgd.errors import DataError, DeploymentError, FedsgdError, ModelError, OutputError, ScenarioError
from fedsgd.experiment.builder import Experiment, build_experiment
from fedsgd.experiment.checkpoints import ClientStorage, list_manifests
from fedsgd.experiment.evaluation import Evaluator
from fedsgd.experiment.execution import Execution, make_local_model_reader
from fedsgd.experiment.options import ExecutionConfig, RunCallbacks
from fedsgd.experiment.result import Result
from fedsgd.experiment.resume import continue_run
from fedsgd.experiment.run_identity import describe_identity, list_differences, list_scenario_differences
from fedsgd.experiment.runner import execute_run
from fedsgd.federation.round_loop import Runtime
from fedsgd.federation.round_record import RoundRecord
from fedsgd.runtime.client_host import ClientHost
from fedsgd.runtime.ranks.channel import GlooChannel, join_leaders, leave_leaders
from fedsgd.runtime.ranks.group import EXIT_FAILURE, RankGroup
from fedsgd.runtime.ranks.machine import MachineStorage, accept_members, join_machine
from fedsgd.runtime.ranks.remote import MachineServer, RemoteMachine, describe_error, restore_error
from fedsgd.runtime.ranks.server import SERVER_MACHINE, RankClientStore, RankModelCache, RankRuntime
from fedsgd.runtime.stores.shared import SlotModelCache
from fedsgd.runtime.workers.channel import SharedOutbox
from fedsgd.runtime.workers.pool import WorkerPool
from fedsgd.runtime.workers.worker import JobProcessor, Worker, WorkerConfig
from fedsgd.scenario.scenario import PythonObjects, Scenario
from fedsgd.storage.run_directory import CHECKPOINT_FOLDER, is_complete
from fedsgd.system.torch_determinism import isolate_global_state
from fedsgd.system.torch_threads import pin_single_thread

FOLDER_SECONDS = 10.0
"""Seconds in which a new file of rank 0 must be visible on the other machines: network file systems cache directories."""


class RankExecution(Execution):
    """Execution of rank 0, in which all ranks train the clients and share the evaluation.

    Args:
        experiment: description of the run.
        group: the ranks.
        shared_folder: folder that all machines must see, because a restart may read checkpoints there; None for no check.
    """

    def __init__(self, experiment: Experiment, group: RankGroup, shared_folder: Path | None = None) -> None:
        super().__init__(experiment)
        self._group = group
        self._shared_folder = shared_folder
        self.processes = {"ranks": group.places.n_ranks, "machines": len(group.places.machines)}

    def _open(self, resources: ExitStack) -> tuple[Runtime, Evaluator]:
        experiment, group = self.experiment, self._group
        if group.places.n_ranks > experiment.plan.n_clients:
            raise ScenarioError(f"ranks: got {group.places.n_ranks}, more than the {experiment.plan.n_clients} clients")
        _check_ranks(group, experiment, self._shared_folder)
        group.rendezvous.publish("start", {"rounds": experiment.scenario.rounds})
        resources.enter_context(_await_end(group))
        pool, storage = resources.enter_context(_open_machine(experiment, group, experiment.scenario.rounds))
        remotes = resources.enter_context(_connect_machines(group, tuple(experiment.task.metrics)))
        runtime = RankRuntime(group.places, pool, remotes)
        store = RankClientStore(group.places, storage, remotes)
        self.storage = ClientStorage(store, RankModelCache(storage, remotes))
        resources.enter_context(_announce_failure(group))
        return runtime, Evaluator(experiment.evaluation, runtime, make_local_model_reader(experiment.plan, store))

    def begin(self, folder: Path | None) -> None:
        if folder is not None:
            self._group.rendezvous.claim_folder(folder)


def run_on_ranks(
    scenario: Scenario,
    data: str | Path | None,
    out: Path,
    overwrite: bool,
    on_round: Callable[[RoundRecord], None] | None,
    callbacks: RunCallbacks,
    group: RankGroup,
    needs_shared_folder: bool,
) -> Result | None:
    """Run a scenario as rank 0; arguments and errors as for `execute_run`.

    If this launch has begun the run before, continue it from its latest checkpoint, or begin again without one; return None if
    it is finished. `needs_shared_folder` tells whether all machines must see the run directory.
    """
    shared_folder = out.absolute().parent if needs_shared_folder else None
    factory, config = partial(RankExecution, group=group, shared_folder=shared_folder), ExecutionConfig()
    continues = group.rendezvous.has_claimed(out)
    if continues and is_complete(out):
        group.rendezvous.publish("folder", None)
        group.rendezvous.publish("start", None)
        group.wait_for_others()
        return None
    if continues and list_manifests(out / CHECKPOINT_FOLDER):
        return continue_run(out, None, data, PythonObjects(), on_round, callbacks, config, factory)
    with isolate_global_state():
        return execute_run(
            scenario,
            data=data,
            out=out,
            overwrite=overwrite or continues,
            on_round=on_round,
            callbacks=callbacks,
            config=config,
            execution_factory=factory,
        )


def serve_rank(group: RankGroup, load: Callable[[], tuple[Scenario, str | Path | None]]) -> None:
    """Train clients for rank 0 until the run is over.

    Args:
        group: the ranks, of which this process is not rank 0.
        load: function that returns the scenario, and the folder of this machine's data files, None for that of FEDSGD_DATA.

    Raises:
        DeploymentError: the leader of this machine, or rank 0, has ended.
        SystemExit: a rank has ended, and its end is explained.
    """
    pin_single_thread()
    with isolate_global_state():
        experiment = _build_or_report(group, load)
        _check_folder(group)
        start = group.rendezvous.read("start")
        if start is None:  # the run is finished already
            return
        try:
            if group.rank == group.leader:
                _serve_machine(experiment, group, start["rounds"])
            else:
                _serve_leader(experiment, group, start["rounds"])
        except (EOFError, ConnectionError):
            reason = group.explain_lost_server()
            raise DeploymentError(reason) if reason else SystemExit(EXIT_FAILURE) from None


def _build_or_report(group: RankGroup, load: Callable[[], tuple[Scenario, str | Path | None]]) -> Experiment:
    """Load the scenario, build the experiment, and publish its identity or the error for `_check_ranks`."""
    try:
        experiment = build_experiment(*load(), has_own_store=False)
    except Exception as error:  # also of the user's classes
        group.rendezvous.publish(f"identity/{group.rank}", {"error": describe_error(error)})
        group.rendezvous.read("start")  # rank 0 ends all ranks
        raise
    identity = {"identity": describe_identity(experiment), "scenario": experiment.scenario.to_toml()}
    group.rendezvous.publish(f"identity/{group.rank}", identity)
    return experiment


def _serve_leader(experiment: Experiment, group: RankGroup, n_rounds: int) -> None:
    """Work for the leader of this machine."""
    n_clients = experiment.plan.n_clients
    with join_machine(group.rendezvous, group.places, n_clients, n_rounds) as (channel, outbox, storage):
        Worker(channel, outbox, _make_processor(experiment, storage)).serve()


def _serve_machine(experiment: Experiment, group: RankGroup, n_rounds: int) -> None:
    """Lead the other ranks of this machine."""
    with _open_machine(experiment, group, n_rounds) as (pool, storage):
        join_leaders(group.rendezvous, group.places)
        MachineServer(GlooChannel(SERVER_MACHINE, group.places.name_rank(0)), pool, storage).serve()
        leave_leaders()


@contextmanager
def _open_machine(experiment: Experiment, group: RankGroup, n_rounds: int) -> Iterator[tuple[WorkerPool, MachineStorage]]:
    """Return a context with the ranks of this leader's machine, and the storage of its clients."""
    with ExitStack() as resources:
        store = resources.enter_context(closing(experiment.state_budget.open_shared_store()))
        storage = MachineStorage(store, resources.enter_context(closing(SlotModelCache(n_rounds))))
        outbox = SharedOutbox()
        resources.callback(outbox.file.close)
        handles = resources.enter_context(accept_members(group.rendezvous, group.places, storage, outbox))
        processor = _make_processor(experiment, storage)
        yield (
            WorkerPool(
                handles, outbox, experiment.engine, experiment.train, processor.evaluation_sets, experiment.task, processor
            ),
            storage,
        )


def _make_processor(experiment: Experiment, storage: MachineStorage) -> JobProcessor:
    evaluation = experiment.evaluation
    config = WorkerConfig(
        experiment.plan, experiment.task, experiment.make_engine, evaluation.train is not None, evaluation.held_out is not None
    )
    host = ClientHost(experiment.plan, experiment.engine, storage.store, experiment.train, storage.models)
    sets = config.select_evaluation_sets(evaluation.test, experiment.train, experiment.held_out, experiment.validation)
    return JobProcessor(host, sets)


@contextmanager
def _connect_machines(group: RankGroup, metrics: Sequence[str]) -> Iterator[Mapping[int, RemoteMachine]]:
    """Return a context with the other machines by number; their ranks end with the context."""
    places = group.places
    if len(places.machines) == 1:
        yield {}
        return
    join_leaders(group.rendezvous, places)
    channels = {
        number: GlooChannel(number, places.name_rank(ranks[0])) for number, ranks in enumerate(places.machines) if number
    }
    remotes = {number: RemoteMachine(channel, metrics) for number, channel in channels.items()}
    yield remotes
    for remote in remotes.values():
        remote.end()
    leave_leaders()


@contextmanager
def _await_end(group: RankGroup) -> Iterator[None]:
    """Wait for the other ranks at the end of the context, unless it ends with an error."""
    yield
    group.wait_for_others()


@contextmanager
def _announce_failure(group: RankGroup) -> Iterator[None]:
    """Tell the other ranks of an error at once, before their connections close."""
    try:
        yield
    except BaseException as error:
        group.fail(error)
        raise


# ------------------------------------------------------------------------------------------------------- checks before round 1


def _check_ranks(group: RankGroup, experiment: Experiment, folder: Path | None) -> None:
    """Raise the error of a rank, or a ScenarioError if a rank has another scenario, other data, code or versions."""
    own_identity, own_scenario = describe_identity(experiment), experiment.scenario.to_toml()
    for rank in range(1, group.places.n_ranks):
        report, name = group.rendezvous.read(f"identity/{rank}"), group.places.name_rank(rank)
        if "error" in report:
            error = restore_error(report["error"])
            kind = type(error) if isinstance(error, DataError | ModelError | OutputError) else ScenarioError
            text = str(error) if isinstance(error, FedsgdError) else f"{type(error).__name__}: {error}"
            raise kind(f"{name}: {text}")
        differences = [
            *list_scenario_differences(own_scenario, report["scenario"]),
            *list_differences(own_identity, report["identity"]),
        ]
        if differences:
            text = differences[0].replace(" was ", " is ").replace(", now ", " on rank 0, there ")
            raise ScenarioError(f"{name}: {text}; all ranks need the same scenario, data and versions")
    if folder is not None:
        _check_shared_folder(group, folder)
    else:
        group.rendezvous.publish("folder", None)


def _check_shared_folder(group: RankGroup, folder: Path) -> None:
    """Raise an OutputError unless the leaders of all machines see a folder."""
    token = folder / f".fedsgd-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        group.rendezvous.publish("folder", str(token.absolute()))
        for ranks in group.places.machines[1:]:
            if not group.rendezvous.read(f"folder/{ranks[0]}"):
                problem = "is not the same folder there, and a restart may need its checkpoints; choose another with --out"
                raise OutputError(f"{folder.absolute()}: {group.places.name_rank(ranks[0])}: {problem}")
    finally:
        token.unlink(missing_ok=True)


def _check_folder(group: RankGroup) -> None:
    """Report whether this machine sees the folder of rank 0, if rank 0 asks."""
    if group.rank != group.leader:
        return
    token, end = group.rendezvous.read("folder"), time.monotonic() + FOLDER_SECONDS
    if token is None:
        return
    while not (is_visible := Path(token).exists()) and time.monotonic() < end:
        time.sleep(0.2)
    group.rendezvous.publish(f"folder/{group.rank}", is_visible)
