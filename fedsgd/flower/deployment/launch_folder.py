"""Folder of the launcher commands and of the fork server's socket.

The folder of temporary files may be unusable: the path of a socket is limited to about a hundred bytes, and a file system that
is mounted with `noexec` runs no scripts. Each candidate is therefore tested with a real script and a real socket.

The commands are first on PATH, so a folder that another user can replace is not used. An example is a folder in the
XDG_RUNTIME_DIR of the user who calls `sudo -E`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fedsgd.system.folder_permissions import has_protected_entries

SOCKET_NAME = "warm"
SCRIPT_SECONDS = 10.0
_REPLACEABLE_TEXT = "another user can replace entries of this folder or of a folder above it"


def find_launch_folder(work_folder: Path) -> tuple[Path | None, list[str]]:
    """Return the first usable folder, None if there is none, and `FOLDER (reason)` for each unusable candidate.

    The first candidate is `work_folder`, which is private to this user. The other candidates are new folders with mode 0700.
    Unusable new folders are removed.
    """
    reason: str | None = f"in {work_folder.parent}, {_REPLACEABLE_TEXT}"
    if has_protected_entries(work_folder.parent):
        reason = find_problem(work_folder)
    if reason is None:
        return work_folder, []
    refusals = [f"{work_folder} ({reason})"]
    for parent in _list_candidate_parents():
        try:
            if not has_protected_entries(parent):
                refusals.append(f"{parent} ({_REPLACEABLE_TEXT})")
                continue
            folder = Path(tempfile.mkdtemp(prefix="fedsgd-", dir=parent))
        except (OSError, RuntimeError) as error:
            refusals.append(f"{parent} ({_describe_error(error)})")
            continue
        reason = find_problem(folder)
        if reason is None:
            return folder, refusals
        refusals.append(f"{parent} ({reason})")
        shutil.rmtree(folder, ignore_errors=True)
    return None, refusals


def find_problem(folder: Path) -> str | None:
    """Return the reason why a folder cannot hold launcher commands and a socket, None if it can hold both."""
    script, address = folder / "try", folder / SOCKET_NAME
    try:
        script.write_text("#!/bin/sh\nexit 0\n")
        script.chmod(0o700)
        subprocess.run([script], stdin=subprocess.DEVNULL, capture_output=True, timeout=SCRIPT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"a script there cannot be run: {_describe_error(error)}"
    finally:
        with suppress(OSError):
            script.unlink()
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
    except OSError as error:
        return f"a socket there cannot be used: {_describe_error(error)}"
    finally:
        with suppress(OSError):
            address.unlink()
    return None


def _list_candidate_parents() -> Iterator[Path]:
    """Yield the folders in which a private folder may be created."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime)
    yield from (Path("/tmp"), Path("/var/tmp"))
    with suppress(RuntimeError):  # the user has no home folder
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        with suppress(OSError):
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield cache


def _describe_error(error: Exception) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or str(error)
