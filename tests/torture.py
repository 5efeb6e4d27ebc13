"""Kills runs at random moments, resumes them, and compares the results with those of runs that were never interrupted.

python -m tests.torture [--kills 50] [--seed 0]

Kills come within a random round, or while a file of a checkpoint or a segment of the ledger is being written. A resumed run may
be killed again, and may continue on another number of workers. Processes are forked from one that has imported torch.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from fedsgd.errors import ScenarioWarning
from fedsgd.experiment.ledger import DIGEST_COLUMNS
from fedsgd.federation.round_record import RoundRecord
from fedsgd.storage.run_directory import is_complete

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
UNCOMPARED = ("seconds", "peak_memory_bytes", "work", "workers", "states")
"""Keys of summary.json that may differ: times, memory, and the location of the states, which is a setting of the case."""
PARTIAL_FILES = {
    "server file": ("checkpoints", ".server-*"),
    "client file": ("checkpoints", ".clients-*"),
    "manifest": ("checkpoints", ".checkpoint-*"),
    "ledger": ("ledger.parquet", ".segment-*"),
}
"""Folder and pattern of the partial file that exists during a step of a checkpoint."""
KINDS = ("within a round", "within a round", "within a round", *PARTIAL_FILES)
"""Moments of a kill."""


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
    """One run that is killed several times.

    Attributes:
        kills: moment of each kill, and the round after which it came.
    """

    setup: Setup
    kills: list[tuple[str, int]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.setup}: " + (", ".join(f"{kind} after round {round}" for kind, round in self.kills) or "not killed")


SETUPS = [
    Setup(case, workers, store) for workers, store in ((1, "memory"), (2, "disk"), (2, "memory"), (1, "disk")) for case in CASES
]


def run_process(setup: Setup, folder: Path, is_new: bool, workers: int, events: Connection) -> None:
    """Run or resume a run in this process, which is killed or ends. Send the number of each finished round."""
    import torch

    from fedsgd.experiment.options import ExecutionConfig
    from fedsgd.experiment.resume import resume
    from fedsgd.experiment.runner import run
    from fedsgd.scenario.scenario import Scenario

    warnings.simplefilter("ignore", ScenarioWarning)
    torch.manual_seed(0)
    module = None
    if setup.case == "batch norm":
        linear, head = torch.nn.Linear(64, 16), torch.nn.Linear(16, 10)
        module = torch.nn.Sequential(torch.nn.Flatten(), linear, torch.nn.BatchNorm1d(16), torch.nn.ReLU(), head)
    execution = ExecutionConfig(workers)
    events.send(0)

    def on_round(record: RoundRecord) -> None:
        events.send(record.round)

    if is_new:
        scenario = Scenario(name="torture").with_settings({**BASE, **CASES[setup.case], "state.store": setup.store})
        run(scenario, model=module, out=folder, overwrite=True, execution=execution, on_round=on_round)
    else:
        resume(folder, model=module, execution=execution, on_round=on_round)


class Torturer:
    """Runner of killed and of uninterrupted runs in one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = np.random.default_rng(seed)
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(["torch", "fedsgd.experiment.resume", "fedsgd.training.stacked"])
        self._references: dict[str, dict[str, Any]] = {}

    def kill_runs(self, n_kills: int) -> Iterator[Chain]:
        """Kill runs, each up to three times, resume and compare them, and yield each run after its comparison."""
        done = 0
        for number, setup in enumerate(cycle(SETUPS)):
            if done >= n_kills:
                return
            chain = self._kill_run(setup, self._folder / f"killed-{number}", min(n_kills - done, 1 + number % 3))
            done += len(chain.kills)
            yield chain

    def _kill_run(self, setup: Setup, folder: Path, n_kills: int) -> Chain:
        """Kill a run in rounds that grow from kill to kill, resume it after each kill, and compare its results."""
        chain, expected = Chain(setup), self._run_uninterrupted(setup.case)
        rounds = sorted(self._random.integers(0, BASE["rounds"], size=n_kills).tolist())
        for number, round in enumerate(rounds):
            kind = KINDS[int(self._random.integers(len(KINDS)))]
            workers = setup.workers if not number else 1 + int(self._random.integers(2))
            if self._start(setup, folder, workers, (kind, round)):
                chain.kills.append((kind, round))
        assert not self._start(setup, folder, setup.workers, None)
        if difference := find_difference(expected, read_results(folder)):
            raise AssertionError(f"{chain}: {difference}")
        return chain

    def _run_uninterrupted(self, case: str) -> dict[str, Any]:
        """Return the results of a run without kills, in one process with states in memory."""
        if case not in self._references:
            folder = self._folder / f"reference-{len(self._references)}"
            assert not self._start(Setup(case, 1, "memory"), folder, 1, None)
            self._references[case] = read_results(folder)
        return self._references[case]

    def _start(self, setup: Setup, folder: Path, workers: int, kill: tuple[str, int] | None) -> bool:
        """Run, or resume if there is a checkpoint, in a new process, and return True if it was killed before its end."""
        if is_complete(folder):  # the last process was killed after its work
            return False
        is_new = not list((folder / "checkpoints").glob("checkpoint-*.json"))
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=run_process, args=(setup, folder, is_new, workers, sender))
        process.start()
        sender.close()
        is_killed = kill is not None and self._wait_for_moment(process, receiver, folder, *kill)
        if is_killed:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert is_killed or process.exitcode == 0, f"{setup}: the process ended with {process.exitcode}"
        return is_killed

    def _wait_for_moment(self, process: BaseProcess, receiver: Connection, folder: Path, kind: str, round: int) -> bool:
        """Return True at the moment of a kill, False if the process ends before."""
        last_time, seconds, finished = time.monotonic(), 0.05, -1
        with suppress(EOFError):
            while finished < round:
                finished = receiver.recv()
                seconds, last_time = time.monotonic() - last_time, time.monotonic()
            if kind == "within a round":
                receiver.poll(float(self._random.uniform(0, min(seconds, 1.0))))
            while kind != "within a round" and process.is_alive():
                if list((folder / PARTIAL_FILES[kind][0]).glob(PARTIAL_FILES[kind][1])):
                    break
        return process.is_alive()


def read_results(folder: Path) -> dict[str, Any]:
    """Return what must be equal in two runs: digests, summary, and rows of the tables, times apart."""
    summary = json.loads((folder / "summary.json").read_text())
    rounds = pq.read_table(folder / "rounds.parquet").drop_columns(["seconds"])
    ledger = pq.read_table(folder / "ledger.parquet", columns=[*DIGEST_COLUMNS, "steps", "examples"])
    return {
        **{f"summary.json: {key}": value for key, value in summary.items() if key not in UNCOMPARED},
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
            n_kills += len(chain.kills)
            print(f"{chain}: equal", flush=True)
    print(f"{n_kills} kills, all results equal")


if __name__ == "__main__":
    main()
