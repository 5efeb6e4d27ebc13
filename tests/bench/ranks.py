"""Benchmark of ranks of torch.distributed against worker processes on this machine.

    python -m tests.bench.ranks [--rounds N] [--turns N] [--json FILE]

The model is the 2NN of McMahan et al. 2017 on random images, with ten clients of 600 examples a round, one local epoch and
batches of 10, and top-k 1 % with error feedback. `fedsgd run --workers 2` and two ranks alternate. A time is the median over
the rounds of a run without the first two and the last, which is evaluated. A figure is the least of some such times.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq

from tests.bench.rounds import SKIPPED, images, scenario
from tests.runtime.ranks.launch import Ranks

GOAL = 0.95
"""Least speed of two ranks, relative to two workers."""


def write_inputs(folder: Path, rounds: int) -> list[str]:
    """Write data and scenario to a folder, and return the arguments of `fedsgd run` without the run folder."""
    data = images()
    sets = {"x_train": data.train.x, "y_train": data.train.y, "x_test": data.test.x, "y_test": data.test.y}
    np.savez(folder / "images.npz", **{name: np.asarray(values) for name, values in sets.items()})
    s = scenario("2nn", "top-k 1 %", rounds).with_settings({"data.name": "npz", "data.path": "images.npz"})
    (folder / "scenario.toml").write_text(s.to_toml())
    return ["run", str(folder / "scenario.toml"), "--data", str(folder), "--quiet", "--overwrite"]


def read_median_seconds(run_folder: Path) -> float:
    """Return the median seconds of a round of a finished run."""
    seconds = pq.read_table(run_folder / "rounds.parquet", columns=["seconds"])["seconds"].to_pylist()
    return median(seconds[SKIPPED:-1])


def measure(rounds: int, turns: int) -> dict[str, float]:
    """Return the seconds of a round with two workers and with two ranks, and the speed of the ranks."""
    workers = ranks = float("inf")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = write_inputs(folder, rounds)
        for _ in range(turns):
            command = [sys.executable, "-m", "fedsgd", *arguments, "--workers", "2", "--out", str(folder / "workers")]
            subprocess.run(command, check=True, capture_output=True)
            workers = min(workers, read_median_seconds(folder / "workers"))
            results = Ranks("aa", [*arguments, "--out", str(folder / "ranks")]).wait(600)
            if any(status for status, *_ in results):
                raise SystemExit(results[0][2])
            ranks = min(ranks, read_median_seconds(folder / "ranks"))
        digests = {json.loads((folder / way / "summary.json").read_text())["params_sha256"] for way in ("workers", "ranks")}
    if len(digests) != 1:
        raise SystemExit("the parameters differ")
    return {"seconds, two workers": workers, "seconds, two ranks": ranks, "speed of ranks": workers / ranks}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ranks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="rounds of each run")
    parser.add_argument("--turns", type=int, default=3, help="number of runs each way, of which the least counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    options = parser.parse_args(arguments)
    figures = measure(options.rounds, options.turns)
    for name, value in figures.items():
        print(f"{name}: {value:.3g}")
    print(f"goal, speed of ranks at least {GOAL}: {'met' if figures['speed of ranks'] >= GOAL else 'missed'}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
