"""fedsgd with its command, `fedsgd run SCENARIO`: every frame is encoded, decoded and written to the ledger.

There are two uplinks: dense float32, and top-k 1 % with error feedback. The seconds of a round are those of rounds.parquet. The
end of round one is the modification time of that file minus the seconds of the later rounds. fedsgd always evaluates the last
round, so the last round does not count for any peer.
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
    """Write the scenario and return the command that a user would type."""
    (folder / "scenario.toml").write_text(SCENARIO.format(work=work, uplink=UPLINKS[uplink]))
    options = ["--out", str(folder / "run"), "--quiet", "--json"]
    options += ["--workers", str(workers)] if workers > 1 else []
    return [sys.executable, "-m", "fedsgd", "run", str(folder / "scenario.toml"), *options]


def report(folder: Path) -> Report | None:
    """Return the report of a run folder, None if the run did not finish."""
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
    """Return True if this version of fedsgd has the option --workers."""
    process = subprocess.run([sys.executable, "-m", "fedsgd", "run", "--help"], capture_output=True, text=True, check=True)
    return "--workers" in process.stdout
