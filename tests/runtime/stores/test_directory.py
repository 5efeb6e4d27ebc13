"""Client states in a folder: what the next process finds there, also if the last one was killed or the disk is not what it was."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedsgd.compression import EntryPatch
from fedsgd.federation.client_state import ClientState, UncommittedState
from fedsgd.runtime.stores.directory import FolderModelCache, FolderStore
from tests.runtime.stores.test_shared import same


def state(held: int = 3, size: int = 50) -> ClientState:
    """One with all that a state can have."""
    undo = {"scheme/residual": EntryPatch(np.array([1, 2]), np.ones(2, dtype=np.float32)), "own/x": None}
    memory = {"scheme/residual": np.arange(size, dtype=np.float32)}
    return ClientState({}, UncommittedState(held, memory, undo, b"reply"), held)


def test_what_one_process_saved_the_next_one_loads(tmp_path: Path) -> None:
    FolderStore(tmp_path / "new" / "folder").save(7, state())
    store = FolderStore(tmp_path / "new" / "folder")
    assert same(store.load(7), state())
    assert same(store.load(8), ClientState())
    assert store.unreadable_clients == []
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o077 == 0, "nobody else's business"


def test_generations_are_counted_over_processes(tmp_path: Path) -> None:
    assert [FolderStore(tmp_path).commit() for _ in range(3)] == [1, 2, 3]
    store = FolderStore(tmp_path)
    store.save(0, state())
    store.clear()
    assert (FolderStore(tmp_path).generation, list(tmp_path.iterdir())) == (0, [])


def test_a_process_that_was_taken_for_dead_cannot_bring_back_what_is_old(tmp_path: Path) -> None:
    late, next_one = FolderStore(tmp_path), FolderStore(tmp_path)
    next_one.save(1, state(5))
    next_one.commit()
    next_one.save(1, state(6))
    with pytest.raises(RuntimeError, match="another process advanced this folder from generation 0 to 1"):
        late.save(1, state(4))
    assert FolderStore(tmp_path).load(1).model_round == 6


@pytest.mark.parametrize("change", ["flipped", "cut", "empty", "longer"])
def test_a_state_that_cannot_be_read_is_as_good_as_lost(tmp_path: Path, change: str) -> None:
    FolderStore(tmp_path).save(1, state())
    path = tmp_path / "client-1"
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        bad = {
            "flipped": data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :],
            "cut": data[:at],
            "empty": b"",
            "longer": data + bytes(at + 1),
        }[change]
        path.write_bytes(bad)
        store = FolderStore(tmp_path)
        assert same(store.load(1), ClientState())
        assert store.unreadable_clients == [1]
        FolderModelCache(store)  # whatever their heads say
    store.save(1, state())
    assert same(store.load(1), state())


def test_a_process_that_is_killed_while_it_writes_leaves_what_was_there(tmp_path: Path) -> None:
    code = f"""
import os, signal, pathlib, zlib
from tests.runtime.stores.test_directory import state
from fedsgd.runtime.stores.directory import FolderStore
store = FolderStore(pathlib.Path({str(tmp_path)!r}))
store.save(1, state(1))
real = pathlib.Path.replace
def killed(self, target):
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.replace = killed
store.save(1, state(2))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2, "it had begun"
    assert FolderStore(tmp_path).load(1).model_round == 1


def test_where_there_is_no_room_the_state_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)
    store.save(1, state(1))

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(1, state(2))
    assert store.load(1).model_round == 1
    assert [path.name for path in tmp_path.iterdir()] == ["client-1"]


def test_models_are_there_for_the_next_process_and_go_with_their_last_holder(tmp_path: Path) -> None:
    model = np.arange(9, dtype=np.float32)
    models = FolderModelCache(store := FolderStore(tmp_path))
    assert not models.has(0)
    assert not models.has(2)
    for client in (1, 2):
        assert models.put(2, model).tobytes() == model.tobytes()
        store.save(client, state(2))
        models.move_reference(0, 2)
    for client, left in ((1, True), (2, False)):
        models = FolderModelCache(store := FolderStore(tmp_path))  # as every message has it
        assert models.get(2).tobytes() == model.tobytes()
        models.put(5, model + 1)
        store.save(client, state(5))
        models.move_reference(2, 5)
        assert FolderModelCache(store).has(2) == left
        assert FolderModelCache(store).get(5).tobytes() == (model + 1).tobytes()


def test_a_model_that_cannot_be_read_is_not_there(tmp_path: Path) -> None:
    models = FolderModelCache(FolderStore(tmp_path))
    models.put(4, np.ones(9, dtype=np.float32))
    (tmp_path / "model-4").write_bytes((tmp_path / "model-4").read_bytes()[:-1])
    models = FolderModelCache(FolderStore(tmp_path))
    assert not models.has(4)
    with pytest.raises(KeyError):
        models.get(4)
