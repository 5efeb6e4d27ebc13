"""Source of a user's module, with a compressor and an aggregator, for tests of classes outside fedsgd."""

from __future__ import annotations

from pathlib import Path

RULES = '''
from dataclasses import dataclass
from typing import ClassVar

from fedsgd.aggregation.mean import WeightedMean
from fedsgd.compression.operators.topk import TopK
from {helper} import FACTOR


@dataclass(frozen=True)
class HalfTopK(TopK):
    """Top-k with half the density."""

    name: ClassVar[str] = "half-top-k"

    def encode(self, x, ctx):
        return TopK(self.density / FACTOR).encode(x, ctx)

    def decode(self, sections, ctx):
        return TopK(self.density / FACTOR).decode(sections, ctx)


@dataclass(frozen=True)
class UserMean(WeightedMean):
    """Weighted mean of a user."""

    name: ClassVar[str] = "user-mean"
'''


def write_rules(folder: Path, name: str) -> dict[str, str]:
    """Write the modules `name` and `name_helper`, which `name` imports, and return settings of a scenario with their classes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(RULES.format(helper=f"{name}_helper"))
    (folder / f"{name}_helper.py").write_text("FACTOR = 2\n")
    return {"uplink.compressor": f"{name}:HalfTopK", "server.aggregator": f"{name}:UserMean"}
