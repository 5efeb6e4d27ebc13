"""Resumption of a deployment from the latest checkpoint of its run folder."""

from __future__ import annotations

from pathlib import Path

from fedsgd.config.argument_checks import resolve_config
from fedsgd.errors import CheckpointError
from fedsgd.experiment.resume import plan_resumption
from fedsgd.flower.deployment.monitor import DeploymentCallbacks
from fedsgd.flower.deployment.runner import DeploymentConfig, DeploymentResult, launch
from fedsgd.storage.run_directory import lock_run_directory
from fedsgd.system.user_files import expand_user_path

RELEASE_SECONDS = 20.0
"""Time limit for the ServerApp of a killed launcher to end; the guard ends it within seconds."""


def resume_deployment(
    run_dir: str | Path,
    *,
    rounds: int | None = None,
    data: str | Path | None = None,
    callbacks: DeploymentCallbacks | None = None,
) -> DeploymentResult:
    """Continue a deployment whose ServerApp, SuperLink or launcher died, with the same nodes and settings, to the run's end.

    The rounds after the latest checkpoint are run again. A client that already replied in the interrupted round sends the same
    reply again, so parameters and ledger are those of a run that was never interrupted.

    Args:
        run_dir: run folder of a deployment with `[checkpoint] every`.
        rounds: maximum number of rounds in place of the scenario's, to continue a finished run.
        data: folder of the data files, None for the folder of the run.
        callbacks: functions that are called during the run, None for none.

    Raises:
        CheckpointError: the folder has no deployment's checkpoint that can be used; or the scenario, the data, the user's code,
            or the version of fedsgd, torch or the wire format has changed.
        OutputError: another run is writing to the folder, or it cannot be written.
        ScenarioError, RunError, DeploymentError: as for `deploy`; ScenarioError also if `rounds` does not continue the run.
    """
    callbacks = resolve_config("callbacks", callbacks, DeploymentCallbacks)
    folder = expand_user_path(run_dir, "run_dir").absolute()
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such run directory")
    with lock_run_directory(folder, RELEASE_SECONDS):  # the new ServerApp locks the folder itself
        point, scenario = plan_resumption(folder, rounds)
    if point.deployment is None:
        raise CheckpointError(
            f"{folder}: is the run of a simulation; continue it with `fedsgd resume`, in Python fedsgd.resume"
        )
    if point.damages:
        reason = "a deployment continues from its latest checkpoint only, because its nodes store the states of one round back"
        raise CheckpointError(f"{point.damages[0]}: {reason}")
    data_folder = str(expand_user_path(data).absolute()) if data else point.run["data"] or ""
    execution = DeploymentConfig(**point.deployment["execution"])
    return launch(scenario, folder, point.deployment["nodes"], data_folder, execution, callbacks, point.manifest.round)
