"""Tests of `deploy` without processes: defaults and signals."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedsgd.cli.flower import flower_command
from fedsgd.flower.deployment import DeploymentConfig
from fedsgd.flower.deployment.runner import _build_run_settings, _handle_signals
from fedsgd.scenario.scenario import Scenario


def test_command_has_the_defaults_of_a_deployment() -> None:
    options = {option.name: option.default for option in flower_command.params}
    for name in ("start_seconds", "round_seconds"):
        assert options[name] == getattr(DeploymentConfig(), name)


@pytest.mark.parametrize(
    ("every", "rounds_done", "state"),
    [(None, 0, ""), (5, 0, "/runs/a/checkpoints/nodes"), (None, 3, "/runs/a/checkpoints/nodes")],
)
def test_run_settings_have_the_folder_of_states_and_the_settings_of_the_launch(
    scenario: Callable[..., Scenario], every: int | None, rounds_done: int, state: str
) -> None:
    """The folder's name does not depend on Flower's number of the run, which is new at each launch."""
    execution = DeploymentConfig(tls=True, use_fork_server=False, logs="logs", round_seconds=5.0)
    s = scenario({} if every is None else {"checkpoint.every": every})
    settings = _build_run_settings(s, Path("/runs/a"), 2, execution, rounds_done)
    assert settings["state"] == state
    assert settings["is-resumed"] is (rounds_done > 0)
    launch = json.loads(str(settings["launch"]))
    assert launch["nodes"] == 2
    assert DeploymentConfig(**launch["execution"]) == replace(execution, logs=None)


def test_ignored_signal_stays_ignored_and_second_signal_does_not_interrupt() -> None:
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _handle_signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        with _handle_signals() as signals:
            signals.ignore()
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, handler)
