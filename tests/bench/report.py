"""What a report of a long run costs: ledgers of a hundred thousand and a million rows, made up, priced and put on a page.

    python -m tests.bench.report [--rows N,N] [--json FILE]

A ledger has a hundred clients a round of a thousand, three frames each (TASK, MODEL, UPDATE) with random sizes, on links that
differ. Each measurement is a process of its own. seconds are set beside reading the whole ledger with pyarrow in the same process,
and peak memory beside that of the process before it began: of a report it should hardly grow with the rows. Times are noisy on a
machine that others use.
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

from fedsgd.storage.parquet import SEGMENT_ROWS

ROOT = Path(__file__).parents[2]
ROWS = (100_000, 1_000_000)
CLIENTS, COHORT, FRAMES = 1000, 100, 3
WORK = {"flops_per_example": 879_200.0, "flops_rule": "counted", "copy_seconds": 4e-5}
PARAMETERS = 199_210


def make_run(folder: Path, rows: int) -> None:
    """A run folder whose ledger has so many rows, whole rounds."""
    import fedsgd

    fedsgd.run(fedsgd.load(ROOT / "scenarios" / "quickstart.toml", {"rounds": 1, "client.epochs": 1}), out=folder)
    n_rounds = rows // (COHORT * FRAMES)
    rng = np.random.default_rng(0)
    ledger = _ledger(n_rounds, rng)
    pq.write_table(pa.table(ledger), folder / "ledger.parquet", row_group_size=SEGMENT_ROWS, compression="zstd")  # as a run
    summed = {way: ledger["n_bytes"][ledger["direction"] == way].reshape(n_rounds, -1).sum(axis=1) for way in ("up", "down")}
    accuracy = 1 - 0.9 * np.exp(-np.arange(n_rounds) / (n_rounds / 5)) + rng.normal(0, 0.005, n_rounds)
    shared = {name: np.cumsum(summed[way]) for way, name in (("up", "uplink_bytes"), ("down", "downlink_bytes"))}
    rounds = {
        "round": np.arange(1, n_rounds + 1),
        "lr": np.full(n_rounds, 0.1),
        "clients": np.full(n_rounds, COHORT),
        "accepted": np.full(n_rounds, COHORT),
        "failures": np.zeros(n_rounds, dtype=np.int64),
        **shared,
        "uplink_received_bytes": shared["uplink_bytes"],
        "downlink_broadcast_bytes": shared["downlink_bytes"],
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
    """Columns: in each round the frames down, client by client, then those up."""
    cohorts = np.sort(rng.permuted(np.tile(np.arange(CLIENTS), (n_rounds, 1)), axis=1)[:, :COHORT], axis=1)
    client = np.concatenate([np.repeat(cohorts, 2, axis=1), cohorts], axis=1).reshape(-1)
    kind = np.tile(np.array(["TASK", "MODEL"] * COHORT + ["UPDATE"] * COHORT), n_rounds)
    up, model = kind == "UPDATE", kind == "MODEL"
    n = len(client)
    index, value = (np.where(up | model, rng.integers(2000, 9000, n), 0) for _ in range(2))
    header = np.full(n, 30)
    sizes = 50 + 550 * rng.random(CLIENTS)
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
        "examples": np.where(up, sizes[client].astype(np.int64), 0),
        "encode_seconds": np.where(up, 2e-4, 0.0),
        "decode_seconds": np.where(up | model, 1e-4, 0.0),
    }


def measured(folder: Path, what: str) -> dict[str, float]:
    """In this process: seconds, peak memory before and after, and the page's bytes."""
    from fedsgd.analysis import load_methods, price
    from fedsgd.analysis.page.html import render
    from fedsgd.analysis.page.payload import ReportOptions, build_payload
    from fedsgd.network import build_pricing_model
    from fedsgd.system.machine import measure_peak_memory

    build_pricing_model("4g")
    load_methods([folder])
    begun = measure_peak_memory() or 0
    start, size = time.perf_counter(), 0
    if what == "read":
        pq.read_table(folder / "ledger.parquet")
    elif what == "price":
        price(load_methods([folder])[0].runs[0], [build_pricing_model("4g", spread=0.5)])
    else:
        page = render(
            build_payload(load_methods([folder]), ReportOptions("long", 0.9, build_pricing_model("4g", spread=0.5), "4g"))
        )
        size = len(page.encode())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "before": float(begun), "peak": float(measure_peak_memory() or 0), "page_bytes": float(size)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "WHAT"), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.one:
        print(json.dumps(measured(Path(asked.one[0]), asked.one[1])))
        return
    figures = [figure for rows in map(int, asked.rows.split(",")) for figure in _of(rows)]
    table = Table("rows", "what", "seconds", "× reading it", "memory on top, MB", "page, MB")
    for f in figures:
        page = f"{f['page_bytes'] / 1e6:.2f}" if f["page_bytes"] else ""
        top = (f["peak"] - f["before"]) / 1e6
        table.add_row(f"{f['rows']:,}", f["what"], f"{f['seconds']:.2f}", f"{f['ratio']:.1f}", f"{top:.0f}", page)
    Console().print(table)
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2))


def _of(rows: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder) / "run", rows)
        found = []
        for what in ("read", "price", "report"):
            command = [sys.executable, "-m", "tests.bench.report", "--one", str(Path(folder) / "run"), what]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            found.append({"rows": rows, "what": what, **json.loads(done.stdout)})
        return [{**f, "ratio": f["seconds"] / found[0]["seconds"]} for f in found]


if __name__ == "__main__":
    main()
