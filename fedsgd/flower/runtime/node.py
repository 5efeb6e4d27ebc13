"""A node: the clients of a scenario that live there, between one message and the next.

A ClientApp is a new process for each message, so what a node needs is kept on its disk beside its clients' states: the plan,
the task, how to make the engine, and the examples of its own clients. A process that is forked from one that has built the
scenario already (`PREBUILT`) needs none of that.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedsgd.data import ClientData, Examples
from fedsgd.data.partitioned import PartitionedData
from fedsgd.experiment.builder import build_experiment
from fedsgd.federation import FederationPlan
from fedsgd.flower.runtime.settings import read_scenario
from fedsgd.flower.state_directory import add_user_folder_to_path
from fedsgd.models.task import LearningTask
from fedsgd.runtime.in_process import InProcessRuntime
from fedsgd.runtime.stores.directory import FolderModelCache, FolderStore
from fedsgd.runtime.workers.worker import EngineFactory
from fedsgd.storage.run_directory import write_atomically
from fedsgd.system.folder_permissions import is_private
from fedsgd.training import TrainingEngine
from fedsgd.training.selection import EngineChoice

CACHE_FILE = "scenario.pickle"


@dataclass(frozen=True, eq=False)
class NodeExperiment:
    """All that training takes beside messages and states. chosen: which engine it is."""

    plan: FederationPlan
    engine: TrainingEngine
    data: ClientData
    engine_choice: EngineChoice


@dataclass(frozen=True)
class NodeSource:
    """scenario: as TOML; data: the folder of the data files, or nothing."""

    scenario: str
    data: str


PREBUILT: dict[NodeSource, NodeExperiment] = {}
"""What was built before this process was forked."""


def create_runtime(store: FolderStore, experiment: NodeExperiment) -> InProcessRuntime:
    """What answers the messages of a node's clients."""
    return InProcessRuntime(experiment.plan, experiment.engine, store, experiment.data, FolderModelCache(store))


def load_node(store: FolderStore, source: NodeSource, is_local_client: Callable[[int], bool]) -> NodeExperiment:
    """The scenario, as quickly as this process can have it. lives_here: whether a client is one of this node's."""
    add_user_folder_to_path()
    if source in PREBUILT:
        return PREBUILT[source]
    return _load_cached(store.folder / CACHE_FILE, source) or _build_and_cache(
        source, store.folder / CACHE_FILE, is_local_client
    )


def prebuild(source: NodeSource) -> None:
    """Build it for all processes that will be forked from this one."""
    add_user_folder_to_path()
    PREBUILT[source] = _build_and_cache(source)


def _build_and_cache(
    source: NodeSource, cache_path: Path | None = None, is_local_client: Callable[[int], bool] = lambda client: True
) -> NodeExperiment:
    made = build_experiment(read_scenario(source.scenario), source.data or None)
    if cache_path is not None:
        data = made.train.filter_clients(is_local_client) if isinstance(made.train, PartitionedData) else made.train
        with suppress(Exception):  # somebody's own module may not be one that can be pickled: it is built for each message then
            write_atomically(
                cache_path, pickle.dumps((source, made.plan, made.task, made.make_engine, made.engine_choice, data), protocol=5)
            )
    return NodeExperiment(made.plan, made.engine, made.train, made.engine_choice)


def _load_cached(path: Path, source: NodeSource) -> NodeExperiment | None:
    """Return the objects that are stored there for this scenario, None if there are none.

    Nothing in the file came over a network. Where other users may write in its folder, it is not read: it is unpickled.
    """
    try:
        if not is_private(path.parent):
            return None
        found: tuple[NodeSource, FederationPlan, LearningTask, EngineFactory, EngineChoice, ClientData] = pickle.loads(
            path.read_bytes()
        )
    except Exception:  # there is nothing, or it cannot be made again here: then it is built
        return None
    known, plan, task, make_engine, chosen, data = found
    if known != source:
        return None
    return NodeExperiment(
        plan, make_engine(task, plan.local_training, Examples(*data.limit_clients(1).all_examples().arrays())), data, chosen
    )
