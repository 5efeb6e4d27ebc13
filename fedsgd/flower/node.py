"""A node: the clients of a scenario that live there, between one message and the next.

A ClientApp is a new process for each message, so what a node needs is kept on its disk beside its clients' states: the plan,
the task, how to make the engine, and the examples of its own clients. A process that is forked from one that has built the
scenario already (`BUILT`) needs none of that.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedsgd.data import ClientData, Examples
from fedsgd.data.clients import Dealt
from fedsgd.engine import Chosen, Engine
from fedsgd.flower.place import find_modules
from fedsgd.folder_rights import is_private
from fedsgd.models import Task
from fedsgd.rounds import Plan
from fedsgd.run_folder import write
from fedsgd.runtime.folder import FolderModels, FolderStore
from fedsgd.runtime.in_process import InProcess
from fedsgd.runtime.worker import MakeEngine

FILE = "scenario.pickle"


@dataclass(frozen=True, eq=False)
class Built:
    """All that training takes beside messages and states. chosen: which engine it is."""

    plan: Plan
    engine: Engine
    data: ClientData
    chosen: Chosen


@dataclass(frozen=True)
class Source:
    """scenario: as TOML; data: the folder of the data files, or nothing."""

    scenario: str
    data: str


BUILT: dict[Source, Built] = {}
"""What was built before this process was forked."""


def runtime(store: FolderStore, built: Built) -> InProcess:
    """What answers the messages of a node's clients."""
    return InProcess(built.plan, built.engine, store, built.data, FolderModels(store))


def opened(store: FolderStore, source: Source, lives_here: Callable[[int], bool]) -> Built:
    """The scenario, as quickly as this process can have it. lives_here: whether a client is one of this node's."""
    find_modules()
    if source in BUILT:
        return BUILT[source]
    return _kept(store.folder / FILE, source) or _built(source, store.folder / FILE, lives_here)


def build_here(source: Source) -> None:
    """Build it for all processes that will be forked from this one."""
    find_modules()
    BUILT[source] = _built(source)


def _built(source: Source, keep_in: Path | None = None, lives_here: Callable[[int], bool] = lambda client: True) -> Built:
    from fedsgd.build import build
    from fedsgd.flower.settings import read_scenario

    made = build(read_scenario(source.scenario), source.data or None)
    if keep_in is not None:
        data = made.train.only(lives_here) if isinstance(made.train, Dealt) else made.train
        with suppress(Exception):  # somebody's own module may not be one that can be pickled: it is built for each message then
            write(keep_in, pickle.dumps((source, made.plan, made.task, made.make_engine, made.chosen, data), protocol=5))
    return Built(made.plan, made.engine, made.train, made.chosen)


def _kept(path: Path, source: Source) -> Built | None:
    """Return the objects that are stored there for this scenario, None if there are none.

    Nothing in the file came over a network. Where other users may write in its folder, it is not read: it is unpickled.
    """
    try:
        if not is_private(path.parent):
            return None
        found: tuple[Source, Plan, Task, MakeEngine, Chosen, ClientData] = pickle.loads(path.read_bytes())
    except Exception:  # there is nothing, or it cannot be made again here: then it is built
        return None
    known, plan, task, make_engine, chosen, data = found
    if known != source:
        return None
    return Built(plan, make_engine(task, plan.recipe, Examples(*data.first(1).all().gather())), data, chosen)
