"""Full disks, missing rights and missing file descriptors: one line, and the earlier checkpoints and the ledger stay intact."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import fedsgd
from fedsgd.errors import OutputError
from fedsgd.experiment.checkpoints import find_usable_manifests
from fedsgd.federation.round_record import RoundRecord
from fedsgd.sweeps import executor
from tests.experiment.test_resume import SETTINGS, find_difference, make_scenario, read_results

pytestmark = pytest.mark.slow

ON_DISK = {**SETTINGS["bfloat16 on disk"], "state.store": "memory", "checkpoint.every": 1, "rounds": 12}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 160 kB, which `mount -o remount,size=...` enlarges."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", folder], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("this user cannot mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def list_usable_rounds(folder: Path) -> list[int]:
    return [
        int(path.stem[-6:]) for path, result in find_usable_manifests(folder / "checkpoints") if not isinstance(result, str)
    ]


def test_full_disk_ends_the_run_in_one_line_and_a_larger_disk_continues_it(small_disk: Path, tmp_path: Path) -> None:
    scenario, folder = make_scenario(ON_DISK), small_disk / "run"
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)") as caught:
        fedsgd.run(scenario, out=folder)
    rounds = list_usable_rounds(folder)
    assert rounds
    assert caught.value.__notes__ == [f"last checkpoint: after round {rounds[0]}; to continue: fedsgd resume {folder}"]
    assert set(pq.read_table(folder / "ledger.parquet")["round"].to_pylist()) >= {*range(1, rounds[0] + 1)}
    with pytest.raises(OutputError, match="No space left on device"):
        fedsgd.resume(folder)
    assert list_usable_rounds(folder) == rounds
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    fedsgd.resume(folder)
    fedsgd.run(scenario, out=tmp_path / "whole")
    assert find_difference(read_results(tmp_path / "whole"), read_results(folder)) is None


def test_missing_file_descriptors_end_the_run_in_one_line(tmp_path: Path) -> None:
    limits, folder = resource.getrlimit(resource.RLIMIT_NOFILE), tmp_path / "run"

    def forbid_descriptors(record: RoundRecord) -> None:
        if record.round == 3:
            next_descriptor = os.open("/dev/null", os.O_RDONLY)
            os.close(next_descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (next_descriptor, limits[1]))

    try:
        with pytest.raises(OutputError, match="Too many open files"):
            fedsgd.run(make_scenario(ON_DISK), out=folder, on_round=forbid_descriptors)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert list_usable_rounds(folder)[0] == 3
    assert fedsgd.resume(folder).history[-1].round == 12


def test_directory_without_rights_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    fedsgd.run(make_scenario(), out=folder)

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)"):
        fedsgd.resume(folder, rounds=6)
    assert (folder / "summary.json").exists()


def test_missing_shared_memory_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(OutputError, match=r"memory that processes share cannot be created \(No space .*; use one worker"):
        fedsgd.run(make_scenario(), execution=fedsgd.ExecutionConfig(workers=2))
    monkeypatch.setattr(executor, "ProcessPoolExecutor", refuse)
    with pytest.raises(OutputError, match=r"processes of a sweep need shared memory \(No space .*; use --jobs 1"):
        fedsgd.sweep(make_scenario(), out=tmp_path, seeds=2, execution=fedsgd.SweepConfig(jobs=2))
