"""Process of a calibration: it builds the experiment, runs the first rounds, and writes the plan."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fedsgd.config.registry import refuse_plugins
from fedsgd.errors import FedsgdError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.planning.calibration import calibrate
from fedsgd.experiment.planning.cohorts import draw_cohorts
from fedsgd.experiment.planning.estimate import estimate_run
from fedsgd.experiment.planning.run_plan import REPLY_FILE, REQUEST_FILE, RUN_FOLDER, RunPlan, describe_error
from fedsgd.scenario.scenario import parse_scenario
from fedsgd.system.forkserver import preload_workers
from fedsgd.system.torch_determinism import isolate_global_state


def main() -> None:
    """Read the request in the folder that the command line names, and write the reply."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt ends the parent process, whose end ends this process
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    folder = Path(sys.argv[1])
    request = json.loads(Path(folder, REQUEST_FILE).read_text(encoding="utf-8"))
    try:
        reply = _plan(request, folder).to_json()
    except FedsgdError as error:
        reply = describe_error(error)
    Path(folder, REPLY_FILE).write_text(json.dumps(reply), encoding="utf-8")


def _exit_with_parent() -> None:
    os.read(0, 1)  # standard input is a pipe that only the end of the parent process closes
    os._exit(1)


def _plan(request: dict[str, Any], folder: Path) -> RunPlan:
    workers, run_folder = request["workers"], folder / RUN_FOLDER
    preload_workers(workers)
    run_folder.mkdir()
    with refuse_plugins() if request["refuse_plugins"] else nullcontext(), isolate_global_state():
        scenario = parse_scenario(tomllib.loads(request["scenario"]))
        data = request["data"] or os.environ.get("FEDSGD_DATA") or None
        experiment = build_experiment(scenario, data, workers=workers)
        calibration = calibrate(experiment, workers, run_folder, request["time"])
        return estimate_run(experiment, workers, calibration, draw_cohorts(experiment, calibration.n_rounds))
