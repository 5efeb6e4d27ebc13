"""The example app of scenarios/flower_app, with and without its two lines."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

APP = Path(__file__).parent.parent / "scenarios" / "flower_app"


def write_app(to: Path, compressed: bool) -> Path:
    """The example, as it is or without its two lines and what they import."""
    shutil.copytree(APP, to, ignore=shutil.ignore_patterns("__pycache__"))
    if not compressed:
        for path in (to / "digits_app").glob("*_app.py"):
            lines = [
                line for line in path.read_text().splitlines() if not re.search(r"import fedsgd|from fedsgd| Compressed", line)
            ]
            path.write_text("\n".join(lines).replace("mods=[compression_mod()]", "") + "\n")
            assert not re.search(r"compression_mod|CompressedStrategy|import.*fedsgd", path.read_text())
    return to
