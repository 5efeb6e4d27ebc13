"""Benchmark of Flower deployments: the bytes and seconds that Flower adds to the frames.

    python -m tests.bench.flower [overhead] [app] [rounds] [--turns N] [--rounds R] [--json FILE]
    python -m tests.bench.flower cold [--times N]
    python -m tests.bench.flower shapes [--rounds R] [--json FILE]

overhead: payloads of 1 kB, 100 kB and 10 MB from a SuperLink to a SuperNode and back. The figures are medians of the bytes of
    Flower's message and of the bytes on the node's socket between the sending of the message and the arrival of the reply. The
    latter include the polls during that time.
app: scenarios/flower_app on four nodes, without and with the two lines of fedsgd: bytes by Flower's own counter and on the
    sockets.
rounds: seconds of a round of the quickstart on four nodes. Flower starts a new process for each app ("cold"), or fedsgd forks
    it from a prepared process ("warm"). The same rounds in one process are the comparison.
cold: two rounds of the quickstart on two nodes without the prepared process, N times. Each failure is printed; the exit status
    is 1 if there was one.
shapes: the apps of tests/flower/apps on four nodes, without and with the two lines of fedsgd: accuracy and bytes by Flower's
    own counter.

The default is overhead, app and rounds. Each deployment is stopped before the next one starts. Times vary if other programs use
the machine.
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
POLL_SECONDS = 0.02
NODES = 4
PARTS = ("overhead", "app", "rounds")
COLD, SHAPES = "cold", "shapes"


@contextmanager
def start_cluster(nodes: int) -> Iterator[LocalCluster]:
    """Start a SuperLink and SuperNodes whose sockets are measured, and stop them at the end of the context."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))  # to import echo.py
    with tempfile.TemporaryDirectory(prefix="fedsgd-bench-") as name:
        folder = Path(name)
        with local_cluster(ClusterConfig(nodes, measure_socket=True), folder / "run", folder / "logs") as cluster:
            yield cluster


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events that a ServerApp has written."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------------------------- overhead


@dataclass(frozen=True)
class Overhead:
    """Bytes of one payload in one direction, medians of the turns.

    Attributes:
        payload: bytes of the payload.
        direction: "down" or "up".
        message: bytes of Flower's message.
        socket: bytes on the node's socket.
    """

    payload: int
    direction: str
    message: int
    socket: int


def measure_overhead(turns: int) -> list[Overhead]:
    """Return the overhead of each size in both directions."""
    with start_cluster(1) as cluster:
        log = cluster.folder / "events.jsonl"
        settings: dict[str, app_bundle.AppConfigValue] = {
            "events": str(log),
            "sizes": " ".join(map(str, SIZES)),
            "turns": turns,
        }
        server, client = "tests.bench.flower.echo:server", "tests.bench.flower.echo:client"
        app = app_bundle.write_app(cluster.folder / "app", settings, server_app=server, client_app=client)
        cluster.submit(app, stream=True).wait()
        traffic = list(cluster.proxies[0].traffic)
        events = read_events(log) if log.exists() else []
        if not events or events.pop()["event"] != "done":
            raise SystemExit(cluster.get_log_path("serverapp").read_text(errors="replace")[-3000:])
    figures = []
    for size in SIZES:
        for direction in ("down", "up"):
            of_size = [event for event in events if event["size"] == size]
            sockets = [
                sum(s.n_bytes for s in traffic if s.direction == direction and event["start"] <= s.time <= event["at"])
                for event in of_size
            ]
            figures.append(Overhead(size, direction, int(median(e[direction] for e in of_size)), int(median(sockets))))
    return figures


# ------------------------------------------------------------------------------------------------------------------------------ app


@dataclass(frozen=True)
class AppRun:
    """Bytes of a run of the example app.

    Attributes:
        compressed: True if the app has the two lines of fedsgd.
        rounds: number of rounds.
        counted_up: bytes of the uplink by Flower's own counter.
        counted_down: bytes of the downlink by Flower's own counter.
        socket_up: bytes of the uplink on the nodes' sockets, by round.
        socket_down: bytes of the downlink on the nodes' sockets, by round.
        accuracy: accuracy after the last round.
    """

    compressed: bool
    rounds: int
    counted_up: int
    counted_down: int
    socket_up: tuple[int, ...]
    socket_down: tuple[int, ...]
    accuracy: float


def run_app(compressed: bool, rounds: int) -> AppRun:
    """Run the example app."""
    with start_cluster(NODES) as cluster:
        app = write_app(cluster.folder / "app", compressed, {"num-server-rounds": rounds, "min-nodes": NODES})
        submission, log, ends = cluster.submit(app, stream=True), cluster.get_log_path("serverapp"), list[float]()
        while submission.poll() is None:
            text = log.read_text(errors="replace") if log.exists() else ""
            n_lines = len(re.findall(r"\[ROUND \d+/\d+\]", text)) + ("Strategy execution finished" in text)
            ends += [time.monotonic()] * (n_lines - len(ends))
            time.sleep(POLL_SECONDS)
        if len(ends) != rounds + 1:
            raise SystemExit(text[-3000:])
        counters = cluster.read_flower_byte_counters() or {"up": 0, "down": 0}
        traffic = {node: list(proxy.traffic) for node, proxy in cluster.proxies.items()}
        rows = transport_table.transport_rows([], ends, traffic)
    by_round = {
        d: tuple(sum(r["socket_bytes"] for r in rows if (r["round"], r["direction"]) == (n, d)) for n in range(1, rounds + 1))
        for d in ("up", "down")
    }
    accuracies = [float(number) for number in re.findall(r"'accuracy': ([0-9.]+)", text)]
    return AppRun(compressed, rounds, counters["up"], counters["down"], by_round["up"], by_round["down"], accuracies[-1])


# --------------------------------------------------------------------------------------------------------------------------- rounds


@dataclass(frozen=True)
class Rounds:
    """Seconds of the quickstart.

    Attributes:
        how: "cold", "warm" or "one process".
        round: median seconds of a round.
        answering: median seconds in which a node's app handles a message; None in one process.
    """

    how: str
    round: float
    answering: float | None


def measure_rounds(rounds: int) -> list[Rounds]:
    """Run the quickstart with new processes, with forked processes and in one process."""
    scenario = fedsgd.load(ROOT / "scenarios" / "quickstart.toml", {"rounds": rounds})
    figures = []
    for name, warm in (("cold", False), ("warm", True)):
        with tempfile.TemporaryDirectory() as folder:
            import pyarrow.parquet as pq

            result = deploy(
                scenario, Path(folder) / "run", nodes=NODES, execution=fedsgd.DeploymentConfig(use_fork_server=warm)
            )
            rows = pq.read_table(Path(folder) / "run" / transport_table.FILE_NAME).to_pylist()
        answering = median(row["seconds"] for row in rows if row["round"] and row["seconds"] is not None)
        figures.append(Rounds(name, result.summary["flower"]["round_seconds_median"], answering))
    simulation = fedsgd.run(scenario)
    figures.append(Rounds("one process", median(record.seconds for record in simulation.history), None))
    return figures


# ----------------------------------------------------------------------------------------------------------------------------- cold


@dataclass(frozen=True)
class ColdRun:
    """A cold deployment.

    Attributes:
        number: number of the deployment, from 1.
        seconds: duration of the deployment.
        failure: warnings and the error of the deployment, empty if the result equals that of a simulation.
    """

    number: int
    seconds: float
    failure: str


def cold_runs(times: int) -> Iterator[ColdRun]:
    """Deploy the quickstart `times` times without the prepared process. The error of a failed deployment names its logs."""
    scenario = fedsgd.load(ROOT / "scenarios" / "quickstart.toml", {"rounds": 2})
    expected = fedsgd.run(scenario).summary["params_sha256"]
    for number in range(1, times + 1):
        start, failure, warnings = time.monotonic(), "", list[str]()
        with tempfile.TemporaryDirectory() as folder:
            try:
                callbacks = DeploymentCallbacks(on_trouble=warnings.append)
                result = deploy(
                    scenario,
                    Path(folder) / "run",
                    nodes=2,
                    execution=fedsgd.DeploymentConfig(use_fork_server=False),
                    callbacks=callbacks,
                )
                if result.summary["params_sha256"] != expected:
                    failure = "the parameters differ from those of a simulation"
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
        yield ColdRun(number, round(time.monotonic() - start, 1), "\n".join(filter(None, [*warnings, failure])))


def measure_cold_runs(times: int) -> list[ColdRun]:
    """Run cold deployments and print each result; SystemExit(1) after the last deployment if one failed."""
    runs = []
    for run in cold_runs(times):
        runs.append(run)
        print(f"{run.number}/{times}: {run.seconds} s, {run.failure or 'ok'}", flush=True)
    n_failed = sum(bool(run.failure) for run in runs)
    print(f"{n_failed} of {times} cold deployments failed")
    if n_failed:
        raise SystemExit(1)
    return runs


def print_table(figures: list[Any], title: str) -> None:
    """Print a table of dataclasses."""
    table = Table(title=title, title_justify="left")
    for name in asdict(figures[0]):
        table.add_column(name, justify="right")
    for figure in figures:
        table.add_row(
            *(f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else str(v) for v in asdict(figure).values())
        )
    Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    all_parts = (*PARTS, COLD, SHAPES)
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.flower", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(all_parts)}; by default {', '.join(PARTS)}")
    parser.add_argument("--turns", type=int, default=5, help="overhead: number of times that each payload is sent")
    parser.add_argument("--rounds", type=int, default=5, help="app, rounds and shapes: number of rounds")
    parser.add_argument("--times", type=int, default=20, help="cold: number of deployments")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - {*all_parts}:
        parser.error(f"got {', '.join(sorted(unknown))}, expected some of {', '.join(all_parts)}")
    figures: dict[str, list[Any]] = {}
    for part in options.parts or PARTS:
        if part == "overhead":
            figures[part] = measure_overhead(options.turns)
        elif part == "app":
            figures[part] = [run_app(compressed, options.rounds) for compressed in (False, True)]
        elif part == COLD:
            figures[part] = measure_cold_runs(options.times)
        elif part == SHAPES:
            figures[part] = measure_shapes(options.rounds)
        else:
            figures[part] = measure_rounds(options.rounds)
        if part == SHAPES:
            print(*shape_lines(figures[part]), sep="\n")
        else:
            print_table(figures[part], part)
    if options.json is not None:
        report = {part: [asdict(figure) for figure in of_part] for part, of_part in figures.items()}
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that temporary folders are removed
    main()
