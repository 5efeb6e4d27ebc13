"""Tests of the app that is submitted."""

from __future__ import annotations

import tomllib
from pathlib import Path

from fedsgd.flower.deployment import app_bundle


def test_settings_of_the_app_are_unchanged_after_toml(tmp_path: Path) -> None:
    settings: dict[str, app_bundle.AppConfigValue] = {"a": 'x = "é\n\\ ü\x7f\t"', "b": 3, "c": 0.5, "d": True}
    folder = app_bundle.write_app(tmp_path / "app", settings)
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["flwr"]["app"]["config"] == settings
