"""A scenario as a real deployment: a SuperLink and SuperNodes as processes of their own, over Flower's own transport."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import statistics
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from fedsgd.deployment import bundle, transport
from fedsgd.deployment.federation import Asked, Federation, federation
from fedsgd.deployment.proxy import Seen
from fedsgd.deployment.watch import Told, Watch, Watched
from fedsgd.errors import DeploymentError, ScenarioError
from fedsgd.run_folder import prepare, write
from fedsgd.scenario import Scenario, in_file, load

START_SECONDS = 120.0
ROUND_SECONDS = 600.0
_STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


@dataclass(frozen=True, eq=False)
class Deployed:
    """A run that a deployment made. summary: as in summary.json, what `fedsgd.run` gives and beside it `flower`; out: the run
    folder, which has transport.parquet beside what a simulation writes."""

    summary: Mapping[str, Any]
    out: Path


def deploy(
    scenario: Scenario | str | Path,
    out: str | Path,
    *,
    nodes: int,
    tls: bool = False,
    measure_socket: bool = False,
    warm: bool = True,
    overwrite: bool = False,
    data: str | Path | None = None,
    logs: str | Path | None = None,
    start_seconds: float = START_SECONDS,
    round_seconds: float = ROUND_SECONDS,
    watched: Watched | None = None,
) -> Deployed:
    """Run a scenario (or the file that holds one) over Flower, on this machine's loopback, and stop everything.

    out: the run folder, as for `fedsgd.run`; nodes: SuperNodes, over which the clients are spread; tls: whether they talk to
    the SuperLink by TLS, with certificates made for the purpose; measure_socket: whether all bytes on their sockets are
    counted; warm: whether their apps are forked from a process that has imported everything; logs: the folder for the
    processes' logs, None: they are gone with the deployment, unless it fails; start_seconds: for all nodes to be ready;
    round_seconds: for a node's answer.

    ScenarioError, OutputError and RunError as a simulation raises them; DeploymentError if a process that the run needs did not
    start, or died: which, and where its log is. With `[participation] on_failure = "continue"` the run goes on without a
    SuperNode that died, or does not answer in time.
    """
    if not isinstance(scenario, Scenario):
        path = Path(scenario)
        with in_file(path):
            scenario = load(path)
    clients = scenario.data.n_clients
    if nodes < 1 or (clients is not None and nodes > clients):
        most = "or more" if clients is None else f"to {clients}, the clients that there are"
        raise ScenarioError(f"nodes: got {nodes}, expected 1 {most}")
    where = data or os.environ.get("FEDSGD_DATA")
    asked = Asked(nodes, scenario.to_toml(), str(Path(where).absolute()) if where else "", tls, measure_socket, warm)
    folder = prepare(Path(out), overwrite).absolute()
    settings: dict[str, bundle.Setting] = {
        "out": str(folder),
        "start-seconds": float(start_seconds),
        "round-seconds": float(round_seconds),
    }
    with _on_signals(), _temporary(logs) as (temporary, log_folder), federation(asked, temporary, log_folder) as made:
        watched = Watched() if watched is None else watched
        watched.on_up(made)
        told = _run(made, settings, watched, scenario.participation.on_failure == "continue", start_seconds)
        counted = made.counted() if measure_socket else None
        seen = {node: list(proxy.seen) for node, proxy in made.proxies.items()} if measure_socket else None
    return _finished(folder, asked, told, seen, counted)


def _run(
    made: Federation, settings: Mapping[str, bundle.Setting], watched: Watched, goes_on: bool, start_seconds: float
) -> Told:
    events = made.folder / "events.jsonl"
    events.touch()
    asked: dict[str, bundle.Setting] = {
        "scenario": made.asked.scenario,
        "data": made.asked.data,
        "nodes": made.asked.nodes,
        "events": str(events),
    }
    app = bundle.write(made.folder / "app", {**asked, **settings})
    submission = made.submit(app)
    watched.on_state("submitting the app")
    return Watch(made, events, submission, watched, start_seconds, goes_on).until_done()


def _finished(
    out: Path, asked: Asked, told: Told, seen: Mapping[int, Sequence[Seen]] | None, counted: dict[str, int] | None
) -> Deployed:
    """What only a deployment can tell, added to the run folder."""
    ends = [told.ready or 0.0, *told.ends]
    rows = transport.rows(told.carried, ends, seen)
    transport.save(out / transport.FILE, rows)
    rounds = [after - before for before, after in itertools.pairwise(ends)]
    summary = json.loads((out / "summary.json").read_bytes())
    summary["flower"] = {
        "nodes": asked.nodes,
        "tls": asked.tls,
        "warm": asked.warm,
        "version": version("flwr"),
        "round_seconds_median": statistics.median(rounds) if rounds else None,
        "transport": transport.totals(rows),
        "counted_by_flower": counted,
    }
    write(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False).encode() + b"\n")
    return Deployed(summary, out)


@contextmanager
def _temporary(logs: str | Path | None) -> Iterator[tuple[Path, Path]]:
    """(a folder for the time being, the folder for logs). Logs that nobody asked for are kept if something goes wrong."""
    log_folder = Path(tempfile.mkdtemp(prefix="fedsgd-logs-")) if logs is None else Path(logs).absolute()
    with tempfile.TemporaryDirectory(prefix="fedsgd-", ignore_cleanup_errors=True) as folder:
        try:
            yield Path(folder) / "run", log_folder
        except DeploymentError:
            raise
        except BaseException:
            if logs is None:
                shutil.rmtree(log_folder, ignore_errors=True)
            raise
    if logs is None:
        shutil.rmtree(log_folder, ignore_errors=True)


@contextmanager
def _on_signals() -> Iterator[None]:
    """Whatever asks us to end does so as Ctrl-C does, once: what is being stopped then is stopped to the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise KeyboardInterrupt

    known = [getattr(signal, name) for name in _STOPPING if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in known}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
