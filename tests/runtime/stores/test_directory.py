"""Client states in a folder: states that the next process loads, also after a kill, a damaged file or a full disk."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedsgd.compression import EntryPatch
from fedsgd.federation.client_state import ClientState, UncommittedState
from fedsgd.runtime.stores.directory import FolderModelCache, FolderStore
from tests.runtime.stores.test_shared import is_equal


def make_state(model_round: int = 3, size: int = 50) -> ClientState:
    """Return a state that has every kind of entry."""
    rollback = {"scheme/residual": EntryPatch(np.array([1, 2]), np.ones(2, dtype=np.float32)), "own/x": None}
    entries = {"scheme/residual": np.arange(size, dtype=np.float32)}
    return ClientState({}, UncommittedState(model_round, entries, rollback, b"reply"), model_round)


def test_state_is_loaded_by_the_next_process(tmp_path: Path) -> None:
    FolderStore(tmp_path / "new" / "folder").save(7, make_state())
    store = FolderStore(tmp_path / "new" / "folder")
    assert is_equal(store.load(7), make_state())
    assert is_equal(store.load(8), ClientState())
    assert store.unreadable_clients == []
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o077 == 0, "other users have no access"


def test_generation_counts_commits_over_processes(tmp_path: Path) -> None:
    assert [FolderStore(tmp_path).commit() for _ in range(3)] == [1, 2, 3]
    store = FolderStore(tmp_path)
    store.save(0, make_state())
    store.clear()
    assert (FolderStore(tmp_path).generation, list(tmp_path.iterdir())) == (0, [])


def test_process_with_an_old_generation_cannot_save(tmp_path: Path) -> None:
    late_store, next_store = FolderStore(tmp_path), FolderStore(tmp_path)
    next_store.save(1, make_state(5))
    next_store.commit()
    next_store.save(1, make_state(6))
    with pytest.raises(RuntimeError, match="another process advanced this folder from generation 0 to 1"):
        late_store.save(1, make_state(4))
    assert FolderStore(tmp_path).load(1).model_round == 6


@pytest.mark.parametrize("change", ["flipped", "cut", "empty", "longer"])
def test_unreadable_state_counts_as_lost(tmp_path: Path, change: str) -> None:
    FolderStore(tmp_path).save(1, make_state())
    path = tmp_path / "client-1"
    data = path.read_bytes()
    for position in range(0, len(data), 7):
        damaged = {
            "flipped": data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :],
            "cut": data[:position],
            "empty": b"",
            "longer": data + bytes(position + 1),
        }[change]
        path.write_bytes(damaged)
        store = FolderStore(tmp_path)
        assert is_equal(store.load(1), ClientState())
        assert store.unreadable_clients == [1]
        FolderModelCache(store)  # reads the headers of damaged files
    store.save(1, make_state())
    assert is_equal(store.load(1), make_state())


@pytest.mark.slow
@pytest.mark.nightly
def test_process_killed_while_writing_leaves_the_old_state(tmp_path: Path) -> None:
    code = f"""
import os, signal, pathlib, zlib
from tests.runtime.stores.test_directory import make_state
from fedsgd.runtime.stores.directory import FolderStore
store = FolderStore(pathlib.Path({str(tmp_path)!r}))
store.save(1, make_state(1))
real = pathlib.Path.replace
def killed(self, target):
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.replace = killed
store.save(1, make_state(2))
"""
    process = subprocess.run([sys.executable, "-c", code], check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2, "the second write had begun"
    assert FolderStore(tmp_path).load(1).model_round == 1


def test_durable_store_syncs_each_file_and_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_folder: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda file: is_folder.append(stat.S_ISDIR(os.fstat(file).st_mode)))
    for is_durable in (False, True):
        store = FolderStore(tmp_path, is_durable=is_durable)
        store.save(1, make_state())
        store.commit()
    assert is_folder == [False, False, True]


def test_full_disk_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)
    store.save(1, make_state(1))

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(1, make_state(2))
    assert store.load(1).model_round == 1
    assert [path.name for path in tmp_path.iterdir()] == ["client-1"]


def test_model_is_cached_until_its_last_client_moves_on(tmp_path: Path) -> None:
    model = np.arange(9, dtype=np.float32)
    cache = FolderModelCache(store := FolderStore(tmp_path))
    assert not cache.has(0)
    assert not cache.has(2)
    for client in (1, 2):
        assert cache.put(2, model).tobytes() == model.tobytes()
        store.save(client, make_state(2))
        cache.move_reference(0, 2)
    for client, remains in ((1, True), (2, False)):
        cache = FolderModelCache(store := FolderStore(tmp_path))  # a new object for each message
        assert cache.get(2).tobytes() == model.tobytes()
        cache.put(5, model + 1)
        store.save(client, make_state(5))
        cache.move_reference(2, 5)
        assert FolderModelCache(store).has(2) == remains
        assert FolderModelCache(store).get(5).tobytes() == (model + 1).tobytes()


def test_unreadable_model_counts_as_absent(tmp_path: Path) -> None:
    cache = FolderModelCache(FolderStore(tmp_path))
    cache.put(4, np.ones(9, dtype=np.float32))
    (tmp_path / "model-4").write_bytes((tmp_path / "model-4").read_bytes()[:-1])
    cache = FolderModelCache(FolderStore(tmp_path))
    assert not cache.has(4)
    with pytest.raises(KeyError):
        cache.get(4)
