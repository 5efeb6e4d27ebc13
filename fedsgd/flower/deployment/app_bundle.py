"""Folder of the Flower app that is submitted: the names of fedsgd's two apps, the settings of the run, and user modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

MODULE_FOLDER = "fedsgd_modules"
"""Folder of the user's modules in the app that a deployment submits."""
AppConfigValue = str | int | float | bool

PYPROJECT_TEMPLATE = """\
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


def write_app(
    folder: Path,
    settings: Mapping[str, AppConfigValue],
    modules: Mapping[str, bytes] = MappingProxyType({}),
    *,
    server_app: str = "fedsgd.flower.runtime.server_app:app",
    client_app: str = "fedsgd.flower.runtime.client_app:app",
) -> Path:
    """Create the folder of an app and return it. `settings` is its run config; `modules` has files of user modules by path."""
    folder.mkdir()
    (folder / "LICENSE").touch()
    lines = "\n".join(f"{name} = {_format_toml(value)}" for name, value in settings.items())
    project = PYPROJECT_TEMPLATE.format(flwr=version("flwr"), settings=lines, server=server_app, client=client_app)
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    write_modules(folder / MODULE_FOLDER, modules)
    return folder


def write_modules(folder: Path, modules: Mapping[str, bytes]) -> None:
    """Write the files of user modules, by their path relative to the folder."""
    for name, content in modules.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _format_toml(value: AppConfigValue) -> str:
    """Return a value as TOML. A JSON string is a TOML string, except that TOML requires DEL to be escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
