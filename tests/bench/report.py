"""Benchmark of pricing and reporting a long run, with synthetic ledgers of a hundred thousand and a million rows.

    python -m tests.bench.report [--rows N,N] [--json FILE]

A ledger has a hundred of a thousand clients in each round, with three frames of random size each (TASK, MODEL, UPDATE). The
clients' links differ. Each measurement runs in a separate process. Its seconds are compared with the time that pyarrow needs to
read the whole ledger. Its peak memory is compared with the peak before the measurement: for a report, the difference should
hardly grow with the rows. Times vary if other programs use the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from fedsgd.scenario.target import parse_target
from fedsgd.storage.parquet import SEGMENT_ROWS

ROOT = Path(__file__).parents[2]
ROWS = (100_000, 1_000_000)
CLIENTS, COHORT, FRAMES = 1000, 100, 3
WORK = {"flops_per_example": 879_200.0, "flops_rule": "counted", "copy_seconds": 4e-5}
PARAMETERS = 199_210


def make_run(folder: Path, rows: int) -> None:
    """Write a run folder whose ledger has `rows` rows, rounded down to whole rounds."""
    import fedsgd

    fedsgd.run(fedsgd.load(ROOT / "scenarios" / "quickstart.toml", {"rounds": 1, "client.epochs": 1}), out=folder)
    n_rounds = rows // (COHORT * FRAMES)
    rng = np.random.default_rng(0)
    ledger = _ledger(n_rounds, rng)
    pq.write_table(
        pa.table(ledger), folder / "ledger.parquet", row_group_size=SEGMENT_ROWS, compression="zstd"
    )  # as a run does
    round_bytes = {
        direction: ledger["n_bytes"][ledger["direction"] == direction].reshape(n_rounds, -1).sum(axis=1)
        for direction in ("up", "down")
    }
    accuracy = 1 - 0.9 * np.exp(-np.arange(n_rounds) / (n_rounds / 5)) + rng.normal(0, 0.005, n_rounds)
    total_bytes = {"uplink_bytes": np.cumsum(round_bytes["up"]), "downlink_bytes": np.cumsum(round_bytes["down"])}
    rounds = {
        "round": np.arange(1, n_rounds + 1),
        "lr": np.full(n_rounds, 0.1),
        "clients": np.full(n_rounds, COHORT),
        "accepted": np.full(n_rounds, COHORT),
        "failures": np.zeros(n_rounds, dtype=np.int64),
        **total_bytes,
        "uplink_received_bytes": total_bytes["uplink_bytes"],
        "downlink_broadcast_bytes": total_bytes["downlink_bytes"],
        "dense_uplink_bytes": np.cumsum(np.full(n_rounds, 4 * PARAMETERS * COHORT)),
        "dense_downlink_bytes": np.cumsum(np.full(n_rounds, 4 * PARAMETERS * COHORT)),
        "residual_norm": rng.random(n_rounds),
        "rounds_missed": rng.random(n_rounds),
        "seconds": np.full(n_rounds, 0.1),
        "accuracy": np.minimum(accuracy, 1),
    }
    pq.write_table(pa.table(rounds), folder / "rounds.parquet")
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"clients": CLIENTS, "parameters": PARAMETERS, "rounds": n_rounds, "work": WORK}
    (folder / "summary.json").write_text(json.dumps(summary))


def _ledger(n_rounds: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return the columns of a ledger; each round has the downlink frames, client by client, then the uplink frames."""
    cohorts = np.sort(rng.permuted(np.tile(np.arange(CLIENTS), (n_rounds, 1)), axis=1)[:, :COHORT], axis=1)
    client = np.concatenate([np.repeat(cohorts, 2, axis=1), cohorts], axis=1).reshape(-1)
    kind = np.tile(np.array(["TASK", "MODEL"] * COHORT + ["UPDATE"] * COHORT), n_rounds)
    up, model = kind == "UPDATE", kind == "MODEL"
    n = len(client)
    index, value = (np.where(up | model, rng.integers(2000, 9000, n), 0) for _ in range(2))
    header = np.full(n, 30)
    n_examples = 50 + 550 * rng.random(CLIENTS)
    return {
        "round": np.repeat(np.arange(1, n_rounds + 1), COHORT * FRAMES),
        "client": client,
        "direction": np.where(up, "up", "down"),
        "kind": kind,
        "base": np.zeros(n, dtype=np.int64),
        "n_bytes": header + index + value,
        "header_bytes": header,
        "index_bytes": index,
        "value_bytes": value,
        "side_bytes": np.zeros(n, dtype=np.int64),
        "kept": np.where(up | model, 2000, 0),
        "fate": np.full(n, "received"),
        "frame_hash": np.char.add("0" * 16, np.char.mod("%016x", rng.integers(0, 2**62, n))),
        "steps": np.where(up, 60, 0),
        "examples": np.where(up, n_examples[client].astype(np.int64), 0),
        "encode_seconds": np.where(up, 2e-4, 0.0),
        "decode_seconds": np.where(up | model, 1e-4, 0.0),
    }


def measure(folder: Path, task: str) -> dict[str, float]:
    """Measure a task in this process.

    Args:
        folder: run folder.
        task: "read" the ledger with pyarrow, "price" the run, or "report" it on a page.

    Returns:
        Seconds, peak memory before and after the task in bytes, and bytes of the page (0 if there is none).
    """
    from fedsgd.analysis import load_methods, price
    from fedsgd.analysis.page.html import render
    from fedsgd.analysis.page.payload import ReportOptions, build_payload
    from fedsgd.network import build_pricing_model
    from fedsgd.system.machine import measure_peak_memory

    build_pricing_model("4g")
    load_methods([folder])
    peak_before = measure_peak_memory() or 0
    start, page_bytes = time.perf_counter(), 0
    if task == "read":
        pq.read_table(folder / "ledger.parquet")
    elif task == "price":
        price(load_methods([folder])[0].runs[0], [build_pricing_model("4g", spread=0.5)])
    else:
        page = render(
            build_payload(
                load_methods([folder]), ReportOptions("long", parse_target(0.9), build_pricing_model("4g", spread=0.5), "4g")
            )
        )
        page_bytes = len(page.encode())
    seconds = time.perf_counter() - start
    peak = float(measure_peak_memory() or 0)
    return {"seconds": seconds, "before": float(peak_before), "peak": peak, "page_bytes": float(page_bytes)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="numbers of rows, separated by commas")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "TASK"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        folder, task = options.one
        print(json.dumps(measure(Path(folder), task)))
        return
    figures = [figure for rows in map(int, options.rows.split(",")) for figure in _measure_size(rows)]
    table = Table("rows", "task", "seconds", "× read", "additional memory, MB", "page, MB")
    for f in figures:
        page = f"{f['page_bytes'] / 1e6:.2f}" if f["page_bytes"] else ""
        additional_memory = (f["peak"] - f["before"]) / 1e6
        table.add_row(f"{f['rows']:,}", f["what"], f"{f['seconds']:.2f}", f"{f['ratio']:.1f}", f"{additional_memory:.0f}", page)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


def _measure_size(rows: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder) / "run", rows)
        figures = []
        for task in ("read", "price", "report"):
            command = [sys.executable, "-m", "tests.bench.report", "--one", str(Path(folder) / "run"), task]
            process = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            figures.append({"rows": rows, "what": task, **json.loads(process.stdout)})
        return [{**f, "ratio": f["seconds"] / figures[0]["seconds"]} for f in figures]


if __name__ == "__main__":
    main()
