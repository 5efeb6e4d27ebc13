"""The Flower app that is submitted: where fedsgd's two apps are, and the scenario as a setting of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

Setting = str | int | float | bool

PROJECT = """\
[project]
name = "fedsgd-run"
version = "1.0.0"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>={flwr}"]

[tool.flwr.app]
publisher = "fedsgd"
fab-format-version = 1
flwr-version-target = "{flwr}"

[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"

[tool.flwr.app.config]
{settings}
"""


def write(
    folder: Path,
    settings: Mapping[str, Setting],
    server: str = "fedsgd.flower.server:app",
    client: str = "fedsgd.flower.client:app",
) -> Path:
    """The app's folder, which is made. server, client: where the apps are."""
    folder.mkdir()
    (folder / "LICENSE").touch()
    lines = "\n".join(f"{name} = {_toml(value)}" for name, value in settings.items())
    project = PROJECT.format(flwr=version("flwr"), settings=lines, server=server, client=client)
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    return folder


def _toml(value: Setting) -> str:
    """Strings of JSON are strings of TOML, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
