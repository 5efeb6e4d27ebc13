"""ServerApp of a fedsgd scenario: the run that `fedsgd run` makes, with its clients at the other end of a Grid.

It writes the run folder itself, and a line of JSON for each event to a file that its launcher reads.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsgd.errors import FedsgdError, make_write_error
from fedsgd.experiment.builder import Experiment
from fedsgd.experiment.runner import run
from fedsgd.flower.runtime.grid_runtime import FlowerRuntime, MessageEvent
from fedsgd.flower.runtime.settings import ServerAppConfig, read_scenario, read_server_config
from fedsgd.flower.state_directory import add_user_folder_to_path

app = ServerApp()
HEARTBEAT_SECONDS = 5.0
_ERROR_ATTRIBUTES = ("round", "client", "cause", "offset", "where")
"""Of our own errors, from which they can be made again."""


class EventLog:
    """Lines of JSON in a file, each there as soon as it is written. All have the time at which they were, as the clock has it
    that all processes of a machine share."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._lock = threading.Lock()

    def write(self, event: str, **values: Any) -> None:
        """One line."""
        with self._lock:
            self._file.write(json.dumps({"event": event, "at": time.monotonic(), **values}) + "\n")
            self._file.flush()

    @contextmanager
    def write_heartbeats(self) -> Iterator[None]:
        """Say every few seconds that this process is there."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT_SECONDS):
                self.write("alive")

        thread = threading.Thread(target=beat, name="alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario of the run config.

    Raises:
        ScenarioError: a setting is missing or wrong, as in an app that `fedsgd flower` did not write.
        OutputError: the file of events cannot be written.
    """
    settings = read_server_config(context.run_config)
    with _open_events(Path(settings.events)) as file:
        events = EventLog(file)
        events.write("begun", process=os.getpid())
        try:
            with events.write_heartbeats():
                _run_scenario(grid, settings, events)
        except Exception as error:
            own = isinstance(error, FedsgdError)
            parts = {name: getattr(error, name) for name in _ERROR_ATTRIBUTES if own and hasattr(error, name)}
            kind, text = type(error).__name__, str(error)
            events.write("error", kind=kind if own else "", text=text if own else f"{kind}: {text}", **parts)
            raise
        events.write("done")


def _open_events(path: Path) -> IO[str]:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise make_write_error(path, error) from None


def _run_scenario(grid: Grid, settings: ServerAppConfig, events: EventLog) -> None:
    add_user_folder_to_path()

    def create_runtime(experiment: Experiment) -> FlowerRuntime:
        def on_carried(carried: MessageEvent) -> None:
            events.write("carried", **asdict(carried))

        for text in experiment.warnings:
            events.write("warning", text=text)
        engine, clients = str(experiment.engine_choice), len(experiment.train)
        runtime = FlowerRuntime(grid, clients, settings.nodes, settings.round_seconds, on_carried, engine)
        events.write("waiting")
        runtime.wait_for_nodes(settings.start_seconds)
        events.write("ready")
        return runtime

    run(
        read_scenario(settings.scenario),
        out=settings.out,
        overwrite=True,  # the launcher has checked that this is wanted
        data=settings.data or None,
        runtime_factory=create_runtime,
        on_engine=lambda engine: events.write("engine", text=str(engine)),
        on_round=lambda record: events.write("round", record=asdict(record)),
    )
