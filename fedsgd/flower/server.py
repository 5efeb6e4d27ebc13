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

from fedsgd.build import Experiment
from fedsgd.errors import FedsgdError, cannot_write
from fedsgd.experiment import run
from fedsgd.flower.place import find_modules
from fedsgd.flower.runtime import Carried, FlowerRuntime
from fedsgd.flower.settings import ServerSettings, read_scenario, server_settings

app = ServerApp()
ALIVE_SECONDS = 5.0
_PARTS = ("round", "client", "cause", "offset", "where")
"""Of our own errors, from which they can be made again."""


class Events:
    """Lines of JSON in a file, each there as soon as it is written. All have the time at which they were, as the clock has it
    that all processes of a machine share."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._lock = threading.Lock()

    def tell(self, event: str, **values: Any) -> None:
        """One line."""
        with self._lock:
            self._file.write(json.dumps({"event": event, "at": time.monotonic(), **values}) + "\n")
            self._file.flush()

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Say every few seconds that this process is there."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(ALIVE_SECONDS):
                self.tell("alive")

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
    settings = server_settings(context.run_config)
    with _open_events(Path(settings.events)) as file:
        events = Events(file)
        events.tell("begun", process=os.getpid())
        try:
            with events.alive():
                _run(grid, settings, events)
        except Exception as error:
            own = isinstance(error, FedsgdError)
            parts = {name: getattr(error, name) for name in _PARTS if own and hasattr(error, name)}
            kind, text = type(error).__name__, str(error)
            events.tell("error", kind=kind if own else "", text=text if own else f"{kind}: {text}", **parts)
            raise
        events.tell("done")


def _open_events(path: Path) -> IO[str]:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from None


def _run(grid: Grid, settings: ServerSettings, events: Events) -> None:
    find_modules()

    def carried_by(experiment: Experiment) -> FlowerRuntime:
        def on_carried(carried: Carried) -> None:
            events.tell("carried", **asdict(carried))

        for text in experiment.warnings:
            events.tell("warning", text=text)
        engine, clients = str(experiment.chosen), len(experiment.train)
        runtime = FlowerRuntime(grid, clients, settings.nodes, settings.round_seconds, on_carried, engine)
        events.tell("waiting")
        runtime.meet(settings.start_seconds)
        events.tell("ready")
        return runtime

    run(
        read_scenario(settings.scenario),
        out=settings.out,
        overwrite=True,  # the launcher has checked that this is wanted
        data=settings.data or None,
        carried_by=carried_by,
        on_engine=lambda engine: events.tell("engine", text=str(engine)),
        on_round=lambda record: events.tell("round", record=asdict(record)),
    )
