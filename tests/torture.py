"""Kills runs at random moments, resumes them, and compares the results with those of runs that were never interrupted.

python -m tests.torture [--kills 50] [--seed 0]

Half of the kills come at a random moment, the others while a checkpoint is being written. A resumed run may be killed again.
Each process is forked from a process that has imported torch, so that a kill costs about a second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from fedsgd.experiment.ledger import DIGEST_COLUMNS

TOP_K = {"name": "top-k", "density": 0.05}
UNIFORM = {"cohort": 5, "weighting": "uniform"}
BASE = {
    "name": "torture",
    "rounds": 12,
    "data.partition": {"name": "iid", "clients": 12},
    "client": {"steps": 4, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}},
    "server": {"cohort": 5},
    "participation": {"dropout": 0.2},
    "checkpoint": {"every": 1},
}
CASES: Mapping[str, Mapping[str, Any]] = {
    "top-k": {"uplink": {"compressor": TOP_K, "error_feedback": "persist"}, "downlink": {"policy": "difference"}},
    "stc": {
        "uplink": {"compressor": {"name": "stc", "density": 0.05}},
        "downlink": {"policy": "error-feedback", "compressor": TOP_K},
    },
    "dgc": {"uplink": {"compressor": {"name": "dgc", "density": 0.05}}},
    "ef21": {"uplink": {"compressor": {"name": "ef21", "op": TOP_K}}, "server": UNIFORM},
    "scaffold": {"uplink": {"compressor": {"name": "scaffold"}}, "server": UNIFORM},
    "fedadam": {
        "server": {"cohort": 5, "optimizer": {"name": "fedadam", "lr": 0.05}},
        "uplink": {"compressor": {"name": "qsgd"}},
    },
    "batch norm": {"model.batch_norm": "mean", "uplink": {"compressor": TOP_K, "error_feedback": "persist"}},
}
"""Settings of each case, besides BASE."""
TIMES = ("seconds", "peak_memory_bytes", "work", "workers")
"""Keys of summary.json that may differ."""
START_SECONDS = 60.0


@dataclass(frozen=True)
class Setup:
    """Settings and processes of a run."""

    case: str
    workers: int
    store: str

    def __str__(self) -> str:
        return f"{self.case}, {self.workers} worker{'s' * (self.workers > 1)}, states on {self.store}"


@dataclass
class Chain:
    """One run directory, whose run is killed several times.

    Attributes:
        moments: for each kill, "random" or "checkpoint".
        rounds: last round of the checkpoint from which each resumed process continued.
    """

    setup: Setup
    moments: list[str] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)


SETUPS = [
    Setup(case, workers, store) for workers, store in ((1, "memory"), (2, "disk"), (2, "memory"), (1, "disk")) for case in CASES
]


def run_process(setup: Setup, folder: Path, is_new: bool, workers: int, started: Connection) -> None:
    """Run or resume a run in this process, which is killed or ends."""
    import torch

    from fedsgd.experiment.options import ExecutionConfig
    from fedsgd.experiment.resume import resume
    from fedsgd.experiment.runner import run
    from fedsgd.scenario.scenario import Scenario

    os.setsid()
    torch.manual_seed(0)
    module = None
    if setup.case == "batch norm":
        linear, head = torch.nn.Linear(64, 16), torch.nn.Linear(16, 10)
        module = torch.nn.Sequential(torch.nn.Flatten(), linear, torch.nn.BatchNorm1d(16), torch.nn.ReLU(), head)
    execution = ExecutionConfig(workers)
    started.send(None)
    if is_new:
        scenario = Scenario(name="torture").with_settings({**BASE, **CASES[setup.case], "state.store": setup.store})
        run(scenario, model=module, out=folder, execution=execution)
    else:
        resume(folder, model=module, execution=execution)


class Torturer:
    """Runner of killed and of uninterrupted runs in one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = np.random.default_rng(seed)
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(["torch", "fedsgd.experiment.resume", "fedsgd.experiment.builder"])
        self._references: dict[Setup, tuple[dict[str, Any], float]] = {}

    def kill_runs(self, n_kills: int) -> Iterator[Chain]:
        """Kill runs, each up to three times, resume and compare them, and yield each run after its comparison."""
        done = 0
        for number, setup in enumerate(cycle(SETUPS)):
            if done >= n_kills:
                return
            chain = self._kill_run(setup, self._folder / f"killed-{number}", min(n_kills - done, 1 + number % 3))
            done += len(chain.moments)
            yield chain

    def _kill_run(self, setup: Setup, folder: Path, n_kills: int) -> Chain:
        expected, seconds = self._run_uninterrupted(setup)
        chain, is_new = Chain(setup), True
        while True:
            moment = ("random", "checkpoint")[len(chain.moments) % 2] if len(chain.moments) < n_kills else None
            workers = setup.workers if is_new else 1 + (setup.workers + len(chain.moments)) % 2
            ended = self._run_until(setup, folder, is_new, workers, moment, seconds)
            if not ended:
                chain.moments.append(str(moment))
            elif moment is None:
                break
            manifests = sorted((folder / "checkpoints").glob("checkpoint-*.json")) if folder.is_dir() else []
            if ended and moment is not None:  # the run was faster than the kill: it begins again
                is_new, folder = True, folder.with_name(f"{folder.name}x")
                continue
            is_new = not manifests
            if is_new:
                folder = folder.with_name(f"{folder.name}x")  # killed before the first checkpoint
            else:
                chain.rounds.append(int(manifests[-1].stem.removeprefix("checkpoint-")))
        difference = find_difference(expected, read_results(folder))
        if difference:
            raise AssertionError(f"{setup}: killed at {chain.moments}, resumed after {chain.rounds}: {difference}")
        return chain

    def _run_uninterrupted(self, setup: Setup) -> tuple[dict[str, Any], float]:
        """Return the results of a run without kills, and its seconds."""
        if setup not in self._references:
            folder = self._folder / f"reference-{len(self._references)}"
            start = time.monotonic()
            assert self._run_until(setup, folder, True, setup.workers, None, 0.0)
            self._references[setup] = read_results(folder), time.monotonic() - start
        return self._references[setup]

    def _run_until(self, setup: Setup, folder: Path, is_new: bool, workers: int, moment: str | None, seconds: float) -> bool:
        """Run or resume in a new process, which is killed at a moment; return whether it ended before.

        `seconds` is the duration of an uninterrupted run.
        """
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=run_process, args=(setup, folder, is_new, workers, sender))
        process.start()
        assert receiver.poll(START_SECONDS)
        wait = float(self._random.uniform(0, seconds))
        if moment is None:
            process.join()
            assert process.exitcode == 0, f"{setup}: the process ended with {process.exitcode}"
            return True
        deadline = time.monotonic() + wait
        while process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        while moment == "checkpoint" and process.is_alive() and not list((folder / "checkpoints").glob(".*.partial")):
            pass
        was_alive = process.is_alive()
        if was_alive:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert was_alive or process.exitcode == 0, f"{setup}: the process ended with {process.exitcode}"
        return not was_alive


def read_results(folder: Path) -> dict[str, Any]:
    """Return what must be equal in two runs: digests, summary, and rows of the tables, times apart."""
    summary = json.loads((folder / "summary.json").read_text())
    rounds = pq.read_table(folder / "rounds.parquet").drop_columns(["seconds"])
    ledger = pq.read_table(folder / "ledger.parquet", columns=[*DIGEST_COLUMNS, "steps", "examples"])
    return {
        **{f"summary.json: {key}": value for key, value in summary.items() if key not in TIMES},
        "params.safetensors": (folder / "params.safetensors").read_bytes(),
        "rounds.parquet": rounds.to_pylist(),
        "ledger.parquet": ledger.to_pylist(),
    }


def find_difference(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> str | None:
    """Return the first result that differs, None if all are equal."""
    for key in dict.fromkeys([*expected, *actual]):
        if expected.get(key) != actual.get(key):
            return f"{key} differs: expected {str(expected.get(key))[:300]}, got {str(actual.get(key))[:300]}"
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill runs, and print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    n_kills = 0
    with tempfile.TemporaryDirectory() as folder:
        for chain in Torturer(Path(folder), options.seed).kill_runs(options.kills):
            n_kills += len(chain.moments)
            moments = ", ".join(chain.moments)
            print(f"{chain.setup}: killed at {moments}; resumed after rounds {chain.rounds}: equal", flush=True)
    print(f"{n_kills} kills, all results equal")


if __name__ == "__main__":
    main()
