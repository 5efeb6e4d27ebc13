"""ServerApp of a fedsgd scenario: the same run as `fedsgd run`, with clients that are reached over a Grid.

The ServerApp writes the run folder. It also writes a line of JSON for each event to a file that its launcher reads.
"""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsgd.config.user_classes import find_import_paths, identify_classes
from fedsgd.errors import FedsgdError, ResumeWarning, make_write_error
from fedsgd.experiment.builder import Experiment
from fedsgd.experiment.options import RunCallbacks
from fedsgd.experiment.run_checkpoints import ResumePoint, find_resume_point
from fedsgd.experiment.runner import execute_run
from fedsgd.flower.runtime.execution import FlowerExecution
from fedsgd.flower.runtime.grid_runtime import FlowerRuntime, MessageEvent
from fedsgd.flower.runtime.settings import ServerAppConfig, read_scenario, read_server_config
from fedsgd.flower.state_directory import add_user_folders_to_path
from fedsgd.storage.run_directory import lock_run_directory
from fedsgd.system.torch_determinism import isolate_global_state

app = ServerApp()
HEARTBEAT_SECONDS = 5.0
_ERROR_ATTRIBUTES = {"round": "round", "client": "client", "cause": "cause", "offset": "offset", "where": "location"}
"""Attributes of fedsgd's errors by the key of the event, from which the launcher constructs the same error."""


class EventLog:
    """File of events, each a line of JSON, flushed at once, with the time in seconds of the machine's monotonic clock."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._lock = threading.Lock()

    def write(self, event: str, **values: Any) -> None:
        """Write one event with its values."""
        with self._lock:
            self._file.write(json.dumps({"event": event, "at": time.monotonic(), **values}) + "\n")
            self._file.flush()

    @contextmanager
    def write_heartbeats(self) -> Iterator[None]:
        """Write an event "alive" every `HEARTBEAT_SECONDS` while the context is open."""
        stop = threading.Event()

        def write_until_stop() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                self.write("alive")

        thread = threading.Thread(target=write_until_stop, name="alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario of the run config. ScenarioError for settings that `fedsgd flower` would not write."""
    config = read_server_config(context.run_config)
    with _open_events(Path(config.events)) as file:
        events = EventLog(file)
        events.write("begun", process=os.getpid())
        try:
            with events.write_heartbeats():
                _run_scenario(grid, config, events)
        except Exception as error:
            is_own = isinstance(error, FedsgdError)
            values = {key: getattr(error, name) for key, name in _ERROR_ATTRIBUTES.items() if is_own and hasattr(error, name)}
            kind, text = type(error).__name__, str(error)
            values["notes"] = getattr(error, "__notes__", [])
            events.write("error", kind=kind if is_own else "", text=text if is_own else f"{kind}: {text}", **values)
            raise
        events.write("done")


def _open_events(path: Path) -> IO[str]:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise make_write_error(path, error) from None


def _run_scenario(grid: Grid, config: ServerAppConfig, events: EventLog) -> None:
    add_user_folders_to_path()
    scenario = read_scenario(config.scenario)
    server_classes = identify_classes(find_import_paths(scenario))

    def create_execution(experiment: Experiment) -> FlowerExecution:
        def write_message(message: MessageEvent) -> None:
            events.write("carried", **asdict(message))

        for text in experiment.warnings:
            events.write("warning", text=text)
        engine, n_clients = str(experiment.engine_choice), len(experiment.train)
        runtime = FlowerRuntime(grid, n_clients, config.nodes, config.round_seconds, write_message, engine, server_classes)
        return FlowerExecution(experiment, runtime, config.start_seconds, events.write, json.loads(config.launch))

    with isolate_global_state(), _forward_resume_warnings(events), _open_resume_point(config) as point:
        execute_run(
            scenario,
            data=config.data or None,
            out=config.out,
            overwrite=True,  # the launcher has checked the run folder
            on_round=lambda record: events.write("round", record=asdict(record)),
            callbacks=RunCallbacks(on_engine=lambda engine: events.write("engine", text=str(engine))),
            execution_factory=create_execution,
            point=point,
        )


@contextmanager
def _open_resume_point(config: ServerAppConfig) -> Iterator[ResumePoint | None]:
    """Lock the directory of a run that is resumed, and yield the run's latest checkpoint. Yield None for a new run."""
    if not config.is_resumed:
        yield None
        return
    with lock_run_directory(Path(config.out)):
        yield find_resume_point(Path(config.out))


@contextmanager
def _forward_resume_warnings(events: EventLog) -> Iterator[None]:
    """Write an event for each `ResumeWarning` in the context."""
    with warnings.catch_warnings():
        show_other_warning = warnings.showwarning

        def show_warning(message: Warning | str, category: type[Warning], *location: Any, **options: Any) -> None:
            if issubclass(category, ResumeWarning):
                events.write("warning", text=str(message))
            else:
                show_other_warning(message, category, *location, **options)

        warnings.simplefilter("always", ResumeWarning)
        warnings.showwarning = show_warning
        yield
