"""Tests of `deploy` without processes: defaults and signals."""

from __future__ import annotations

import os
import signal

import pytest

from fedsgd.cli.flower import flower_command
from fedsgd.flower.deployment import DeploymentConfig
from fedsgd.flower.deployment.runner import _handle_signals


def test_command_has_the_defaults_of_a_deployment() -> None:
    options = {option.name: option.default for option in flower_command.params}
    for name in ("start_seconds", "round_seconds"):
        assert options[name] == getattr(DeploymentConfig(), name)


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
