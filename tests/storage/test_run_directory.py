"""Tests of the lock of a run directory, and of the files in it that an overwriting run removes."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedsgd.errors import OutputError
from fedsgd.storage.run_directory import clear_run_directory, lock_run_directory

NODE_FILES = ("client-12", "model-3", "generation", ".client-12.4711", ".generation.4711")


def test_lock_waits_for_the_end_of_an_earlier_run(tmp_path: Path) -> None:
    with ExitStack() as earlier_run:
        earlier_run.enter_context(lock_run_directory(tmp_path))
        with pytest.raises(OutputError, match="another run is writing to it"), lock_run_directory(tmp_path, 0.15):
            pass
        timer = threading.Timer(0.2, earlier_run.pop_all().close)
        timer.start()
        with lock_run_directory(tmp_path, 30.0):
            pass
        timer.join()


def test_overwriting_run_removes_checkpoints_and_the_states_of_nodes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    node = folder / "checkpoints" / "nodes" / "node-0"
    node.mkdir(parents=True)
    for name in NODE_FILES:
        (node / name).touch()
    (folder / "checkpoints" / "checkpoint-000001.json").touch()
    with pytest.raises(OutputError, match="is not empty"):
        clear_run_directory(folder, overwrite=False)
    clear_run_directory(folder, overwrite=True)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("path", ["nodes/notes.txt", "nodes/node-0/notes.txt", "nodes/other/client-1", "node-0/client-1"])
def test_overwriting_run_refuses_other_files_among_the_states_of_nodes(tmp_path: Path, path: str) -> None:
    file = tmp_path / "checkpoints" / path
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(OutputError, match="no run wrote this"):
        clear_run_directory(tmp_path, overwrite=True)
    assert file.exists()
