"""Where a node keeps what its clients remember: on its own disk. Flower's Context, which crosses the loopback with each message
and is gone with the SuperNode, only says which folder that is and how far it had got.

FEDSGD_STATE names the folder for all runs; by default it is `fedsgd` in Flower's home. Folders of runs that nothing was written
to for a week are removed when another run begins.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from flwr.app import ConfigRecord, Context

from fedsgd.errors import OutputError
from fedsgd.flower.records import KEY
from fedsgd.runtime.folder import FolderStore
from fedsgd.user_files import user_path

DAYS_KEPT = 7
_RUN = "run-"


def store_of(context: Context, name: str = "") -> FolderStore:
    """The states of this node's clients in this run. name: of which, where a run has several federations. OutputError if the
    folder cannot be used.

    What the disk has is what holds, also if it is ahead of the Context (a process was killed between the two) or if the Context
    is new (the SuperNode was started again). Where it is behind, it is not what this node had: then nothing is left of it, and
    its clients are caught up as such that were away.
    """
    node = context.node_config.get("partition-id", context.node_id)
    folder = _root() / f"{_RUN}{context.run_id}" / f"node-{node}{name and '-'}{name}"
    try:
        if not folder.exists():
            _remove_old(folder.parent.parent)
            for above in (folder.parent.parent, folder.parent):
                above.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = FolderStore(folder)
        known = context.state.get(KEY)
        here = known if isinstance(known, ConfigRecord) and known.get("folder") == str(folder) else ConfigRecord()
        generation = here.get("generation", 0)
        if isinstance(generation, int) and store.generation < generation:
            store.clear()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be used for client state ({error.strerror}); FEDSGD_STATE names another") from None
    return store


def commit(context: Context, store: FolderStore) -> None:
    """What the store has is final, and the Context knows."""
    context.state[KEY] = ConfigRecord({"folder": str(store.folder), "generation": store.commit()})


def find_modules() -> None:
    """Let a user's own modules be found where the user stands (FEDSGD_FOLDER), behind all that is installed."""
    folder = os.environ.get("FEDSGD_FOLDER")
    if folder and folder not in sys.path:
        sys.path.append(folder)


def _root() -> Path:
    if named := os.environ.get("FEDSGD_STATE"):
        return user_path(named)
    home = os.environ.get("FLWR_HOME")
    return (Path(home) if home else Path.home() / ".flwr") / "fedsgd"


def _remove_old(root: Path) -> None:
    before = time.time() - DAYS_KEPT * 86400
    for run in root.glob(f"{_RUN}*") if root.is_dir() else ():
        with suppress(OSError):  # another node may be at it too
            if max(path.stat().st_mtime for path in (run, *run.glob("*"))) < before:
                shutil.rmtree(run, ignore_errors=True)
