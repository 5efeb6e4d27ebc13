"""Pricing models, command line and edited runs for the tests of the analysis."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from fedsgd.analysis import Run
from fedsgd.analysis.ledger_stats import read_client_traffic
from fedsgd.cli import main
from fedsgd.network import ClientTraffic, Link, Network, PricingModel, get_device

TINY = {"rounds": 6, "client.epochs": 1, "data.partition": {"name": "iid", "clients": 20}}
PHONE, SERVER = get_device("phone"), get_device("server")
PRICING_MODEL = PricingModel(Network(Link(1e6, 4e6, 0.02)), PHONE, SERVER)


def invoke(*arguments: str | Path) -> Result:
    """Run a command line of fedsgd."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def read_all_traffic(run: Run, *rows: int) -> ClientTraffic:
    """Read the traffic of all rounds as one object."""
    chunks = list(read_client_traffic(run, *rows))
    return ClientTraffic(1, *(np.concatenate([getattr(chunk, f.name) for chunk in chunks]) for f in fields(ClientTraffic)[1:]))


def edit_summary(folder: Path, **changes: Any) -> None:
    """Change keys of a run's summary."""
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, **changes}))


def copy_run(run: Path, to: Path, old: str, new: str, summary: dict[str, Any] | None = None) -> Path:
    """Copy a run folder, with a text of the scenario replaced and with other keys in the summary."""
    shutil.copytree(run, to)
    text = (to / "scenario.toml").read_text()
    assert old in text
    (to / "scenario.toml").write_text(text.replace(old, new))
    edit_summary(to, **(summary or {}))
    return to
