"""Experiment of a node: plan, engine and data for training the node's clients, cached between messages.

A ClientApp is a new process for each message. The plan, the task, the engine's factory and the examples of the node's own
clients are therefore cached on the node's disk, in the folder of client states. A process that was forked after the experiment
was built (`PREBUILT`) does not read the cache.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedsgd.config.user_classes import ClassIdentity, find_import_paths, identify_classes
from fedsgd.data import ClientData, Examples
from fedsgd.data.partitioned import PartitionedData
from fedsgd.experiment.builder import build_experiment
from fedsgd.federation import FederationPlan
from fedsgd.flower.runtime.settings import read_scenario
from fedsgd.flower.state_directory import add_user_folders_to_path
from fedsgd.flower.user_classes import find_mismatch
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
    """Objects that training needs in addition to messages and client states. `data` has at least the node's own clients."""

    plan: FederationPlan
    engine: TrainingEngine
    data: ClientData
    engine_choice: EngineChoice


@dataclass(frozen=True)
class NodeSource:
    """Source of an experiment: scenario as TOML, and folder of the data files, "" for the default."""

    scenario: str
    data: str


PREBUILT: dict[NodeSource, NodeExperiment] = {}
"""Experiments that were built before this process was forked."""


def create_runtime(store: FolderStore, experiment: NodeExperiment) -> InProcessRuntime:
    """Return the runtime that replies to the messages of a node's clients."""
    return InProcessRuntime(experiment.plan, experiment.engine, store, experiment.data, FolderModelCache(store))


def load_node(cache_folder: Path, source: NodeSource, is_local_client: Callable[[int], bool]) -> NodeExperiment:
    """Return the experiment: prebuilt, from the cache in a folder, or built and then cached for the local clients."""
    add_user_folders_to_path()
    if source in PREBUILT:
        return PREBUILT[source]
    cache_path = cache_folder / CACHE_FILE
    return _load_cached(cache_path, source) or _build_and_cache(source, cache_path, is_local_client)


def find_class_mismatch(source: NodeSource, server_classes: Sequence[ClassIdentity]) -> str | None:
    """Return the first difference between the server's and this node's user classes, None if all are equal.

    Only classes of the node's own scenario, which is a part of its app, are imported.

    Raises:
        ScenarioError: a class cannot be imported.
    """
    add_user_folders_to_path()
    return find_mismatch(server_classes, identify_classes(find_import_paths(read_scenario(source.scenario))))


def prebuild(source: NodeSource) -> None:
    """Build the experiment for all processes that will be forked from this process."""
    add_user_folders_to_path()
    PREBUILT[source] = _build_and_cache(source)


def _build_and_cache(
    source: NodeSource, cache_path: Path | None = None, is_local_client: Callable[[int], bool] = lambda client: True
) -> NodeExperiment:
    experiment = build_experiment(read_scenario(source.scenario), source.data or None, has_own_store=False)
    plan, train, engine_choice = experiment.plan, experiment.train, experiment.engine_choice
    if cache_path is not None:
        data = train.filter_clients(is_local_client) if isinstance(train, PartitionedData) else train
        with suppress(Exception):  # a user's module may not support pickling: the experiment is then built for each message
            cache = (source, plan, experiment.task, experiment.make_engine, engine_choice, data)
            write_atomically(cache_path, pickle.dumps(cache, protocol=5))
    return NodeExperiment(plan, experiment.engine, train, engine_choice)


def _load_cached(path: Path, source: NodeSource) -> NodeExperiment | None:
    """Return the cached experiment of this source, None if there is none.

    The file is unpickled, so it is not read if another user can access its folder or replace it.
    """
    try:
        if not is_private(path.parent):
            return None
        cache: tuple[NodeSource, FederationPlan, LearningTask, EngineFactory, EngineChoice, ClientData] = pickle.loads(
            path.read_bytes()
        )
    except Exception:  # the file does not exist, or its objects cannot be restored: the experiment is then built
        return None
    cached_source, plan, task, make_engine, engine_choice, data = cache
    if cached_source != source:
        return None
    examples = Examples(*data.limit_clients(1).all_examples().arrays())
    return NodeExperiment(plan, make_engine(task, plan.local_training, examples), data, engine_choice)
