"""Scripts of the folder scenarios/ as modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

SCENARIOS = Path(__file__).parent.parent / "scenarios"


def load_script(path: str) -> ModuleType:
    """Return a new module of a script; `path` is relative to scenarios/."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, SCENARIOS / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
