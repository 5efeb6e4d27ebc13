"""A sparsifier whose density changes over the rounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from fedsgd.arrays import F32
from fedsgd.component import Count, FieldError, Share, field_types
from fedsgd.compress.base import Context, Kind, Operator
from fedsgd.compress.density import staged
from fedsgd.compress.run_config import RunConfig
from fedsgd.compress.topk import TopK
from fedsgd.compress.update import Update
from fedsgd.layout import Layout
from fedsgd.wire import Sections


def _has_density(operator: type[Operator]) -> bool:
    """Return whether operators of this class have a density that a schedule can set."""
    return "density" in field_types(operator)


@dataclass(frozen=True)
class Scheduled(Operator):
    """Any operator that has a density: `densities` first, each for `rounds` rounds, then the operator's own.

    The default is the warm-up of Deep Gradient Compression (Lin et al. 2018): 25, 6.25, 1.5625, 0.4 %. Dense updates while the
    model changes fast, sparse ones when it has settled. Laws and bounds are the operator's, δ and A at their worst density.
    """

    name: ClassVar[str] = "scheduled"
    codec: ClassVar[int] = 14

    op: Operator = field(default=TopK(), metadata={"accepts": _has_density})
    densities: tuple[Share, ...] = (0.25, 0.0625, 0.015625, 0.004)
    rounds: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _has_density(type(self.op)):
            raise FieldError(self.name, "op", f"{self.op.name} has no density to schedule")

    def at(self, round: int) -> Operator:
        """The operator of that round."""
        return self._with(staged(self._own, self.densities, self.rounds, round))

    @property
    def kind(self) -> Kind:
        return self.op.kind

    @property
    def deterministic(self) -> bool:
        return self.op.deterministic

    @property
    def even(self) -> bool:
        return self.op.even

    @property
    def independent(self) -> bool:
        return self.op.independent

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        return self.at(ctx.round).encode(x, ctx)

    def decode(self, sections: Sections, ctx: Context) -> Update:
        return self.at(ctx.round).decode(sections, ctx)

    def max_bytes(self, layout: Layout) -> int:
        return max(op.max_bytes(layout) for op in self._all())

    def contraction(self, layout: Layout) -> float:
        return min(op.contraction(layout) for op in self._all())

    def floor(self, layout: Layout) -> float:
        return max(op.floor(layout) for op in self._all())

    def check_layout(self, layout: Layout) -> None:
        self.op.check_layout(layout)

    def kept(self, sections: Sections, ctx: Context) -> int:
        return self.at(ctx.round).kept(sections, ctx)

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        return self.op.find_warnings(replace(run, key=f"{run.key}.op"))

    @property
    def _own(self) -> float:
        op: Any = self.op
        return float(op.density)

    def _with(self, density: float) -> Operator:
        op: Any = self.op
        changed: Operator = replace(op, density=density)
        return changed

    def _all(self) -> list[Operator]:
        return [self._with(density) for density in (*self.densities, self._own)]
