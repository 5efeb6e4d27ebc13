"""Cost of compression under partial participation: eight methods, each at its best learning rate, bytes in both directions.

    python scenarios/participation/compare.py --data DIR                   ten of a hundred clients a round
    python scenarios/participation/compare.py --data DIR --cohort 1        one of a hundred: residuals become stale
    python scenarios/participation/compare.py --data DIR --rounds 20 --seeds 1 --rates 0.4        one or two minutes

Every run is `participation.toml` with the settings of METHODS and SPLITS below. Each method runs at every learning rate of the
grid with every seed. The table reports the learning rate with the best mean accuracy over the seeds. Accuracy: on the test
set, mean of the last five evaluations (every tenth round), ± standard deviation over the seeds. Bytes: mean over the seeds at
the same learning rate, with one message per client. Finished runs are stored in --results, one JSON object a line, and are not
repeated after an interruption. fedsgd warns of two settings that are compared on purpose: sparse updates without error
feedback, and residuals of clients that take part every hundred rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fedsgd
from fedsgd.config.quantities import compression_ratio

BASE = Path(__file__).parent / "participation.toml"
TERNARY = {"name": "top-k", "density": 0.01, "values": "ternary"}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "dense": {},
    "top-k 1 %, no feedback": {"uplink.compressor": {"name": "top-k", "density": 0.01}},
    "top-k 1 %": {"uplink.compressor": {"name": "top-k", "density": 0.01}, "uplink.error_feedback": "persist"},
    "STC both ways": {
        "uplink.compressor": {"name": "stc", "density": 0.01},
        "downlink.policy": "error-feedback",
        "downlink.compressor": TERNARY,
    },
    "CAFe, top-k 1 %": {"uplink.compressor": {"name": "cafe", "op": {"name": "top-k", "density": 0.01}}},
    "EDEN, 1 bit": {"uplink.compressor": {"name": "eden", "bits": 1}},
    "QSGD, 4 bits": {"uplink.compressor": {"name": "qsgd", "levels": 7}},
    "rand-k 10 %": {"uplink.compressor": {"name": "rand-k", "density": 0.1}},
}
STALE: Mapping[str, Mapping[str, Any]] = {
    "top-k 1 %, decay 0.9": {**METHODS["top-k 1 %"], "uplink.error_feedback": "decay", "uplink.residual_factor": 0.9},
    "top-k 1 %, reset after 50": {**METHODS["top-k 1 %"], "uplink.error_feedback": "reset", "uplink.residual_rounds": 50},
}
"""Other policies for stale residuals: with one client of a hundred a round, a client takes part every hundred rounds."""
SPLITS: Mapping[str, Mapping[str, Any]] = {
    "IID": {"data.partition": {"name": "iid", "clients": 100}},
    "two classes": {"data.partition": {"name": "shards", "clients": 100, "shards_per_client": 2}},
}
LAST_EVALUATIONS = 5

Job = tuple[str, str, int, float, int, int]
"""(method, split, cohort, learning rate, seed, rounds)."""
Record = dict[str, Any]


def run(job: Job, data: str | None) -> Record:
    """Execute one run and return its record for the results file."""
    method, split, cohort, rate, seed, rounds = job
    settings = {**{**METHODS, **STALE}[method], **SPLITS[split], "server.cohort": cohort, "client.optimizer.lr": rate}
    start = time.perf_counter()
    try:
        result = fedsgd.run(fedsgd.load(BASE, {**settings, "seed": seed, "rounds": rounds}), data=data)
    except fedsgd.NonFiniteError as error:  # divergence at a large learning rate is a result too
        return {"job": list(job), "accuracy": 0.0, "up": 0, "down": 0, "dense": 1, "error": str(error)}
    accuracies = [r.accuracy for r in result.history if r.accuracy is not None]
    summary = result.summary
    return {
        "job": list(job),
        "accuracy": statistics.fmean(accuracies[-LAST_EVALUATIONS:]),
        "up": summary["uplink_bytes"],
        "down": summary["downlink_bytes"],
        "dense": summary["dense_uplink_bytes"],
        "seconds": time.perf_counter() - start,
    }


def _run(arguments: tuple[Job, str | None]) -> Record:
    return run(*arguments)


def best(records: Sequence[Record]) -> tuple[float, list[Record]]:
    """Return the learning rate with the highest mean accuracy over the seeds, and its runs."""
    by_rate: dict[float, list[Record]] = {}
    for record in records:
        by_rate.setdefault(record["job"][3], []).append(record)
    return max(by_rate.items(), key=lambda item: statistics.fmean(r["accuracy"] for r in item[1]))


def table(records: Sequence[Record], methods: Sequence[str], splits: Sequence[str]) -> str:
    """Return a Markdown table with a row for each method.

    For each split it has accuracy, learning rate, megabytes up and down, and the compression ratio of both directions together.
    """
    head = [
        "uplink",
        *itertools.chain(*([f"{s}: accuracy", "learning rate", "MB up", "MB down", "ratio both ways"] for s in splits)),
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for method in methods:
        cells = [method]
        for split in splits:
            rate, runs = best([r for r in records if r["job"][:2] == [method, split]])
            accuracy, diverged = [r["accuracy"] for r in runs], sum("error" in r for r in runs)
            spread = f" ± {statistics.stdev(accuracy):.4f}" if len(runs) > 1 else ""
            outcome = f"diverges in {diverged} of {len(runs)}" if diverged else f"{statistics.fmean(accuracy):.4f}{spread}"
            up, down, dense = (statistics.fmean(r[key] for r in runs) for key in ("up", "down", "dense"))
            ratio = compression_ratio(2 * dense, up + down) or 0.0
            cells += [
                outcome,
                f"{rate:g}",
                f"{up / 1e6:.1f}",
                f"{down / 1e6:.1f}",
                f"{ratio:.1f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def load_records(path: Path) -> list[Record]:
    """Return the records of the runs that are finished."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def parse_options() -> argparse.Namespace:
    """Return the command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the MNIST files; default: FEDSGD_DATA")
    parser.add_argument("--cohort", type=int, default=10, help="clients a round, of a hundred; default: 10")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; default: 3")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.2, 0.4, 0.8], help="learning rates; default: 0.2 0.4 0.8")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *STALE], help="default: all; stale policies with --cohort 1")
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=list(SPLITS))
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs; default: 1")
    parser.add_argument("--results", type=Path, default=Path("participation.jsonl"), help="default: participation.jsonl")
    parser.add_argument("--json", action="store_true", help="print the runs as JSON instead of the table")
    options = parser.parse_args()
    if options.methods is None:
        options.methods = [*METHODS, *(STALE if options.cohort == 1 else ())]
    return options


def main() -> None:
    options = parse_options()
    grid = itertools.product(range(options.seeds), options.rates, options.splits, options.methods)
    jobs: list[Job] = [(m, split, options.cohort, rate, seed, options.rounds) for seed, rate, split, m in grid]
    finished = {tuple(record["job"]): record for record in load_records(options.results)}
    missing = [job for job in jobs if job not in finished]
    if missing:
        options.results.open("a").close()  # a path that cannot be written is an error before the first run
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for n, record in enumerate(pool.imap_unordered(_run, [(job, options.data) for job in missing]), start=1):
            finished[tuple(record["job"])] = record
            with options.results.open("a") as file:
                print(json.dumps(record), file=file)
            print(f"{n} of {len(missing)}: {record['job']}: {record['accuracy']:.4f}", file=sys.stderr, flush=True)
    records = [finished[job] for job in jobs]
    print(json.dumps(records) if options.json else table(records, options.methods, options.splits))


if __name__ == "__main__":
    try:
        main()
    except (fedsgd.FedsgdError, OSError) as error:
        sys.exit(f"compare.py: {error}")
