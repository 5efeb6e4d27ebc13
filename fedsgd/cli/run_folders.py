"""Folders of runs that commands write, and lines about running them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedsgd.cli.streams import echo
from fedsgd.errors import DeploymentError, OutputError, RunError, WireError
from fedsgd.storage.run_directory import CHECKPOINT_FOLDER


def mention_shared_cores(n_processes: int, noun: str, quiet: bool) -> None:
    """Print a line if there are more processes than cores, unless `quiet`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if n_processes > cores and not quiet:
        load = f"{n_processes} {noun} share {cores} core{'s' * (cores > 1)}"
        echo(f"fedsgd: {load}: they are no faster than {cores} {noun if cores > 1 else noun.removesuffix('s')}", err=True)


@contextmanager
def mention_partial_ledger(out: Path) -> Iterator[None]:
    """Print the path of the ledger if the run is interrupted or fails, and a ledger exists."""
    try:
        yield
    except (RunError, WireError, DeploymentError, KeyboardInterrupt):
        ledger = out / "ledger.parquet"
        if ledger.is_file() or (ledger.is_dir() and any(ledger.iterdir())):
            echo(f"fedsgd: {ledger} has the ledger of the rounds so far", err=True)
        raise


@contextmanager
def mention_resumption(out: Path, since: float = 0.0) -> Iterator[None]:
    """Print the command that continues a deployment, if it is interrupted or loses a process after a checkpoint.

    Args:
        out: run folder.
        since: seconds since the epoch; an earlier checkpoint is of a run that the deployment was going to replace.
    """
    try:
        yield
    except (DeploymentError, KeyboardInterrupt):
        manifests = (out / CHECKPOINT_FOLDER).glob("checkpoint-*.json")
        if any(path.stat().st_mtime >= since for path in manifests):
            echo(f"fedsgd: to continue: fedsgd resume {out}", err=True)
        raise


@contextmanager
def claim_numbered_folder(name: str) -> Iterator[Path]:
    """Create runs/NAME-N with the lowest free N. Afterwards, remove this folder and `runs` if they are empty."""
    runs = Path("runs")
    for n in itertools.count(1):
        folder = runs / f"{name}-{n}"
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError(f"{folder}: cannot be created ({error.strerror}); choose a folder with --out") from None
    try:
        yield folder
    finally:
        for path in (folder, runs):
            with suppress(OSError):
                path.rmdir()
