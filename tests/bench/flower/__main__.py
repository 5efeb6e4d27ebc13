"""What a deployment by Flower costs beside the frames.

    python -m tests.bench.flower [overhead] [app] [rounds] [--turns N] [--rounds R] [--json FILE]
    python -m tests.bench.flower cold [--times N]
    python -m tests.bench.flower shapes [--rounds R] [--json FILE]

overhead: payloads of 1 kB, 100 kB and 10 MB there and back between a SuperLink and a SuperNode: what Flower's message weighs,
and what the node's socket carried from the moment it was sent until the reply was there, polls of that time included; medians.
app: scenarios/flower_app on four nodes, without its two lines and with them: bytes by Flower's own counter and on the sockets.
rounds: seconds a round of the quickstart on four nodes, its apps started from nothing as Flower does it, and forked from a
process that is ready; beside the same rounds in one process.
cold: two rounds of the quickstart on two nodes, started from nothing, N times; prints each failure, and ends with 1 if there
was one.
shapes: the apps of tests/flower/apps on four nodes, plain and with our two lines: accuracy and bytes by Flower's own counter.
cold and shapes are not among the parts by default.

Each deployment is stopped before the next one starts. Times are noisy on a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

import fedsgd
from fedsgd.flower.deployment import DeploymentCallbacks, app_bundle, deploy, transport_table
from fedsgd.flower.deployment.cluster import ClusterConfig, LocalCluster, local_cluster
from tests.bench.flower.shapes import measure_shapes, shape_lines
from tests.flower.example import write_app

ROOT = Path(__file__).parents[3]
SIZES = (1_000, 100_000, 10_000_000)
LOOK_SECONDS = 0.02
NODES = 4
PARTS = ("overhead", "app", "rounds")
COLD, SHAPES = "cold", "shapes"


@contextmanager
def deployed(nodes: int, warm: bool = True) -> Iterator[LocalCluster]:
    """A federation whose sockets are measured."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))  # for our own app
    with tempfile.TemporaryDirectory(prefix="fedsgd-bench-") as folder:
        place = Path(folder)
        with local_cluster(
            ClusterConfig(nodes, measure_socket=True, use_fork_server=warm), place / "run", place / "logs"
        ) as made:
            yield made


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The events of a ServerApp."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------------------------- overhead


@dataclass(frozen=True)
class Overhead:
    """Bytes of one payload in one direction; medians of the turns."""

    payload: int
    direction: str
    message: int
    socket: int


def overhead(turns: int) -> list[Overhead]:
    """For each size, down and up."""
    with deployed(1) as made:
        events = made.folder / "events.jsonl"
        settings: dict[str, app_bundle.AppConfigValue] = {
            "events": str(events),
            "sizes": " ".join(map(str, SIZES)),
            "turns": turns,
        }
        apps = "tests.bench.flower.echo:server", "tests.bench.flower.echo:client"
        made.submit(app_bundle.write_app(made.folder / "app", settings, *apps), stream=True).wait()
        seen = list(made.proxies[0].traffic)
        told = lines_of(events) if events.exists() else []
        if not told or told.pop()["event"] != "done":
            raise SystemExit(made.get_log_path("serverapp").read_text(errors="replace")[-3000:])
    found = []
    for size in SIZES:
        for direction in ("down", "up"):
            here = [event for event in told if event["size"] == size]
            sockets = [
                sum(s.n_bytes for s in seen if s.direction == direction and event["begun"] <= s.time <= event["at"])
                for event in here
            ]
            found.append(Overhead(size, direction, int(median(e[direction] for e in here)), int(median(sockets))))
    return found


# ------------------------------------------------------------------------------------------------------------------------------ app


@dataclass(frozen=True)
class AppRun:
    """Bytes of a run of the example: by Flower's own counter, and on the nodes' sockets, each round (the first apart)."""

    compressed: bool
    rounds: int
    counted_up: int
    counted_down: int
    socket_up: tuple[int, ...]
    socket_down: tuple[int, ...]
    accuracy: float


def app_run(compressed: bool, rounds: int) -> AppRun:
    """A run of the example app."""
    with deployed(NODES) as made:
        app = write_app(made.folder / "app", compressed, {"num-server-rounds": rounds, "min-nodes": NODES})
        submission, log, ends = made.submit(app, stream=True), made.get_log_path("serverapp"), list[float]()
        while submission.poll() is None:
            text = log.read_text(errors="replace") if log.exists() else ""
            begun = len(re.findall(r"\[ROUND \d+/\d+\]", text)) + ("Strategy execution finished" in text)
            ends += [time.monotonic()] * (begun - len(ends))
            time.sleep(LOOK_SECONDS)
        if len(ends) != rounds + 1:
            raise SystemExit(text[-3000:])
        counted = made.read_flower_byte_counters() or {"up": 0, "down": 0}
        rows = transport_table.transport_rows([], ends, {node: list(proxy.traffic) for node, proxy in made.proxies.items()})
    by_round = {
        d: tuple(sum(r["socket_bytes"] for r in rows if (r["round"], r["direction"]) == (n, d)) for n in range(1, rounds + 1))
        for d in ("up", "down")
    }
    accuracies = [float(found) for found in re.findall(r"'accuracy': ([0-9.]+)", text)]
    return AppRun(compressed, rounds, counted["up"], counted["down"], by_round["up"], by_round["down"], accuracies[-1])


# --------------------------------------------------------------------------------------------------------------------------- rounds


@dataclass(frozen=True)
class Rounds:
    """Seconds of the quickstart. round: the median; start: until the nodes are ready."""

    how: str
    round: float
    answering: float | None


def rounds_of(rounds: int) -> list[Rounds]:
    """Flower's way, a warm process's, and one process."""
    scenario = fedsgd.load(ROOT / "scenarios" / "quickstart.toml", {"rounds": rounds})
    found = []
    for how, warm in (("cold", False), ("warm", True)):
        with tempfile.TemporaryDirectory() as folder:
            import pyarrow.parquet as pq

            done = deploy(scenario, Path(folder) / "run", nodes=NODES, use_fork_server=warm)
            rows = pq.read_table(Path(folder) / "run" / transport_table.FILE_NAME).to_pylist()
        answering = median(row["seconds"] for row in rows if row["round"] and row["seconds"] is not None)
        found.append(Rounds(how, done.summary["flower"]["round_seconds_median"], answering))
    alone = fedsgd.run(scenario)
    found.append(Rounds("one process", median(record.seconds for record in alone.history), None))
    return found


# ----------------------------------------------------------------------------------------------------------------------------- cold


@dataclass(frozen=True)
class ColdRun:
    """A cold deployment. failure: its error, empty if it succeeded as the first one did."""

    number: int
    seconds: float
    failure: str


def cold_runs(times: int) -> Iterator[ColdRun]:
    """Deploy the quickstart so many times without a warm process; the logs of a failed deployment are kept and named."""
    scenario = fedsgd.load(ROOT / "scenarios" / "quickstart.toml", {"rounds": 2})
    expected = fedsgd.run(scenario).summary["params_sha256"]
    for number in range(1, times + 1):
        begun, failure, troubles = time.monotonic(), "", list[str]()
        with tempfile.TemporaryDirectory() as folder:
            try:
                watched = DeploymentCallbacks(on_trouble=troubles.append)
                done = deploy(scenario, Path(folder) / "run", nodes=2, use_fork_server=False, callbacks=watched)
                if done.summary["params_sha256"] != expected:
                    failure = "the parameters are not those of a simulation"
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
        yield ColdRun(number, round(time.monotonic() - begun, 1), "\n".join(filter(None, [*troubles, failure])))


def cold(times: int) -> list[ColdRun]:
    """Print each run as it ends; SystemExit(1) after the last one if any failed."""
    runs = []
    for run in cold_runs(times):
        runs.append(run)
        print(f"{run.number}/{times}: {run.seconds} s, {run.failure or 'ok'}", flush=True)
    failed = sum(bool(run.failure) for run in runs)
    print(f"{failed} of {times} cold deployments failed")
    if failed:
        raise SystemExit(1)
    return runs


def show(figures: list[Any], title: str) -> None:
    """A table of dataclasses."""
    table = Table(title=title, title_justify="left")
    for name in asdict(figures[0]):
        table.add_column(name, justify="right")
    for figure in figures:
        table.add_row(
            *(f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else str(v) for v in asdict(figure).values())
        )
    Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    """Measure the named parts, by default `PARTS`."""
    every = (*PARTS, COLD, SHAPES)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all of them by default; or {COLD}, {SHAPES}"
    )
    parser.add_argument("--turns", type=int, default=5, help="how often each payload is sent")
    parser.add_argument("--rounds", type=int, default=5, help="of app, of rounds and of shapes")
    parser.add_argument("--times", type=int, default=20, help="cold deployments")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.what) - {*every}:
        parser.error(f"got {', '.join(sorted(unknown))}, expected some of {', '.join(every)}")
    made: dict[str, list[Any]] = {}
    for what in asked.what or PARTS:
        if what == "overhead":
            made[what] = overhead(asked.turns)
        elif what == "app":
            made[what] = [app_run(compressed, asked.rounds) for compressed in (False, True)]
        elif what == COLD:
            made[what] = cold(asked.times)
        elif what == SHAPES:
            made[what] = measure_shapes(asked.rounds)
        else:
            made[what] = rounds_of(asked.rounds)
        if what == SHAPES:
            print(*shape_lines(made[what]), sep="\n")
        else:
            show(made[what], what)
    if asked.json is not None:
        asked.json.write_text(json.dumps({name: [asdict(f) for f in figures] for name, figures in made.items()}, indent=2))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # temporary folders are removed
    main()
