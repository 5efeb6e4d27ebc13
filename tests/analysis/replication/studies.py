"""Small studies for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsgd.scenario.toml_text import format_toml_value

SCENARIO = """
name = "mine"
rounds = 4
data = { name = "digits", partition = { name = "iid", clients = 4 } }
model = { name = "softmax" }
client = { optimizer = { name = "sgd", lr = 0.5 }, steps = 2 }
server = { cohort = 2 }
report = { target_accuracy = 0.4 }
"""
STUDY = {
    "title": "Rounds",
    "source": "a paper, table 1",
    "scenario": "scenario.toml",
    "measure": "rounds",
    "tolerance": 1.5,
    "seeds": 2,
    "cells": {"a": {"paper": 2}, "b": {"paper": 2, "settings": {"client.steps": 4}}},
}


def write_study(folder: Path, scenario_text: str = SCENARIO, **changes: Any) -> Path:
    """Write study.toml and scenario.toml into a folder, and return the folder. A change to None removes a key."""
    folder.mkdir(parents=True, exist_ok=True)
    table = {key: value for key, value in {**STUDY, **changes}.items() if value is not None}
    lines = [f"{key} = {format_toml_value(value)}" for key, value in table.items()]
    (folder / "study.toml").write_text("\n".join(lines), encoding="utf-8")
    (folder / "scenario.toml").write_text(scenario_text, encoding="utf-8")
    return folder
