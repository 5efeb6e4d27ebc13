"""Tests of the commands that come before Flower's commands on PATH."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsgd.errors import OutputError
from fedsgd.flower.deployment import launchers


def test_missing_flower_command_is_an_output_error() -> None:
    with pytest.raises(OutputError, match="flwr-nothing: this command of flwr does not exist"):
        launchers.find_flower_command("flwr-nothing")
    assert Path(launchers.find_flower_command(launchers.CLIENT_COMMAND)).name == launchers.CLIENT_COMMAND
