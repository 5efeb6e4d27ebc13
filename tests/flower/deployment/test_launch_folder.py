"""Tests of the selection of a folder for the launcher commands and the fork server's socket."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedsgd.flower.deployment import launch_folder


def test_usable_work_folder_is_the_launch_folder(tmp_path: Path) -> None:
    assert launch_folder.find_launch_folder(tmp_path) == (tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_work_folder_with_a_long_path_is_replaced_by_a_new_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / ("x" * 120)
    work.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    folder, refusals = launch_folder.find_launch_folder(work)
    assert folder is not None
    try:
        assert folder.parent == Path("/tmp")
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        folder.rmdir()
    assert refusals == [
        f"{work} (a socket there cannot be used: AF_UNIX path too long)",
        f"{tmp_path / 'missing'} (No such file or directory)",
    ]


@pytest.mark.parametrize("access", ["owner", "above", "for all"])
def test_folder_that_another_user_can_replace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, access: str) -> None:
    work, runtime = tmp_path / "work", tmp_path / "above" / "runtime"
    for path in (work, runtime.parent, runtime):
        path.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    find_problem, path_stat = launch_folder.find_problem, Path.stat

    def stat_with_other_owner(path: Path, **options: Any) -> os.stat_result:
        values = list(path_stat(path, **options))
        values[4] = values[4] + (path == runtime) * 1000
        return os.stat_result(values)

    if access == "owner":
        monkeypatch.setattr(Path, "stat", stat_with_other_owner)
    else:
        (runtime if access == "for all" else runtime.parent).chmod(0o777)
    monkeypatch.setattr(launch_folder, "find_problem", lambda path: "no" if path == work else find_problem(path))
    folder, refusals = launch_folder.find_launch_folder(work)
    assert folder is not None
    folder.rmdir()
    assert folder.parent == Path("/tmp")
    reason = "another user can replace entries of this folder or of a folder above it"
    assert refusals == [f"{work} (no)", f"{runtime} ({reason})"]
    assert list(runtime.iterdir()) == []
    if access != "owner":
        (runtime / "run").mkdir()
        folder, refusals = launch_folder.find_launch_folder(runtime / "run")
        assert folder is not None
        folder.rmdir()
        assert refusals == [f"{runtime / 'run'} (in {runtime}, {reason})", f"{runtime} ({reason})"]


def test_folders_that_run_no_scripts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that is mounted with noexec runs no scripts."""
    for name in ("work", "noexec", "cache"):
        (tmp_path / name).mkdir(mode=0o700)
    subprocess_run = subprocess.run

    def run(command: list[Path], **options: Any) -> Any:
        if tmp_path / "cache" not in command[0].parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return subprocess_run(command, **options)

    monkeypatch.setattr(launch_folder.subprocess, "run", run)
    monkeypatch.setattr(launch_folder, "_list_candidate_parents", lambda: [tmp_path / "noexec", tmp_path / "cache"])
    folder, refusals = launch_folder.find_launch_folder(tmp_path / "work")
    assert folder is not None
    assert folder.parent == tmp_path / "cache"
    reason = "(a script there cannot be run: Permission denied)"
    assert refusals == [f"{tmp_path / 'work'} {reason}", f"{tmp_path / 'noexec'} {reason}"]
    assert list((tmp_path / "noexec").iterdir()) == []
