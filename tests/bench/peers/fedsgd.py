"""fedsgd as its users run it: `fedsgd run SCENARIO`, every frame encoded, decoded and written to the ledger.

Two uplinks: dense float32, and the largest 1 % of the coordinates with error feedback. Seconds a round are those that the run
says of itself in rounds.parquet; the end of round one is when that file was finished, less the seconds of the later rounds.
The last round of a run is always evaluated, so nobody's last round is timed.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

from tests.bench.peers.work import Report, Work

UPLINKS = {
    "dense": 'compressor = { name = "dense" }',
    "top-k 1 %": 'compressor = { name = "top-k", density = 0.01 }\nerror_feedback = "persist"',
}
SCENARIO = """\
name = "peers"
rounds = {work.rounds}
[data]
name = "npz"
path = "{work.arrays}/data.npz"
partition = {{ name = "natural" }}
[model]
name = "{work.model}"
[client]
optimizer = {{ name = "sgd", lr = {work.lr} }}
epochs = {work.epochs}
batch_size = {work.batch_size}
[server]
cohort = {work.cohort}
[uplink]
{uplink}
[evaluation]
every = {work.rounds}
"""


def command(folder: Path, work: Work, uplink: str, workers: int) -> list[str]:
    """The command of a user."""
    (folder / "scenario.toml").write_text(SCENARIO.format(work=work, uplink=UPLINKS[uplink]))
    options = ["--out", str(folder / "run"), "--quiet", "--json"]
    options += ["--workers", str(workers)] if workers > 1 else []
    return [sys.executable, "-m", "fedsgd", "run", str(folder / "scenario.toml"), *options]


def report(folder: Path) -> Report | None:
    """What the run folder says, if there is one."""
    import pyarrow.parquet as pq

    rounds, summary_file = (folder / "run" / name for name in ("rounds.parquet", "summary.json"))
    if not summary_file.exists():
        return None
    summary = json.loads(summary_file.read_text())
    ends = [rounds.stat().st_mtime]
    for seconds in reversed(pq.read_table(rounds)["seconds"].to_pylist()[1:]):
        ends.append(ends[-1] - seconds)
    accuracy, n_parameters = summary["final_accuracy"], summary["parameters"]
    return Report(ends[::-1], accuracy, n_parameters, summary["uplink_bytes"], summary["downlink_bytes"])


@functools.cache
def has_workers() -> bool:
    """Whether this fedsgd can train on several processes."""
    asked = subprocess.run([sys.executable, "-m", "fedsgd", "run", "--help"], capture_output=True, text=True, check=True)
    return "--workers" in asked.stdout
