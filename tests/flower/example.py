"""The example app of scenarios/flower_app, with and without its two lines."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

APP = Path(__file__).parents[2] / "scenarios" / "flower_app"


def write_app(to: Path, compressed: bool, settings: Mapping[str, int] | None = None) -> Path:
    """Copy the example, unchanged or without its two lines and their imports.

    Args:
        to: folder of the copy.
        compressed: True to copy the two lines, too.
        settings: values of keys in `[tool.flwr.app.config]`, as `--run-config` sets them.
    """
    shutil.copytree(APP, to, ignore=shutil.ignore_patterns("__pycache__"))
    project = to / "pyproject.toml"
    for key, value in (settings or {}).items():
        text, changes = re.subn(rf"^{key} = .*$", f"{key} = {value}", project.read_text(), flags=re.MULTILINE)
        assert changes == 1, key
        project.write_text(text)
    if not compressed:
        for path in (to / "digits_app").glob("*_app.py"):
            lines = [
                line for line in path.read_text().splitlines() if not re.search(r"import fedsgd|from fedsgd| Compressed", line)
            ]
            path.write_text("\n".join(lines).replace("mods=[compression_mod()]", "") + "\n")
            assert not re.search(r"compression_mod|CompressedStrategy|import.*fedsgd", path.read_text())
    return to
