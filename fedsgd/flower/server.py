"""The ServerApp of a fedsgd scenario: the run that `fedsgd run` makes, with its clients at the other end of a Grid. It writes
the run folder itself, and tells who started it how far it is, a line of JSON for each thing that happens."""

from __future__ import annotations

import json
import os
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsgd.build import Experiment
from fedsgd.errors import FedsgdError
from fedsgd.experiment import run
from fedsgd.flower.place import find_modules
from fedsgd.flower.runtime import Carried, FlowerRuntime
from fedsgd.scenario import from_dict

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
    """The whole run."""
    asked = context.run_config
    with Path(str(asked["events"])).open("a", encoding="utf-8") as file:
        events = Events(file)
        events.tell("begun", process=os.getpid())
        try:
            with events.alive():
                _run(grid, asked, events)
        except Exception as error:
            own = isinstance(error, FedsgdError)
            parts = {name: getattr(error, name) for name in _PARTS if own and hasattr(error, name)}
            kind, text = type(error).__name__, str(error)
            events.tell("error", kind=kind if own else "", text=text if own else f"{kind}: {text}", **parts)
            raise
        events.tell("done")


def _run(grid: Grid, asked: Mapping[str, Any], events: Events) -> None:
    find_modules()

    def carried_by(experiment: Experiment) -> FlowerRuntime:
        def on_carried(carried: Carried) -> None:
            events.tell("carried", **asdict(carried))

        for text in experiment.warnings:
            events.tell("warning", text=text)
        engine, clients = str(experiment.chosen), len(experiment.train)
        runtime = FlowerRuntime(grid, clients, asked["nodes"], asked["round-seconds"], on_carried, engine)
        events.tell("waiting")
        runtime.meet(asked["start-seconds"])
        events.tell("ready")
        return runtime

    run(
        from_dict(tomllib.loads(asked["scenario"])),
        out=asked["out"],
        overwrite=True,  # who started us has looked whether that is wanted
        data=asked["data"] or None,
        carried_by=carried_by,
        on_engine=lambda engine: events.tell("engine", text=str(engine)),
        on_round=lambda record: events.tell("round", record=asdict(record)),
    )
