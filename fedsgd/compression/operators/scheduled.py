"""Schedule of densities for an operator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from fedsgd.compression.base import CodecContext, CompressionOperator, OperatorKind
from fedsgd.compression.operators.sparsifier import density_in_round
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.updates import Update
from fedsgd.config.component import FieldError, FractionAboveZero, PositiveInt, field_types
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Sections


def _has_density(operator: type[CompressionOperator]) -> bool:
    return "density" in field_types(operator)


@dataclass(frozen=True)
class Scheduled(CompressionOperator):
    """Any operator with a density: `densities` first, each for `rounds` rounds, then the operator's own density.

    The default is the warm-up of Deep Gradient Compression (Lin et al. 2018): 25, 6.25, 1.5625, 0.4 %. Updates are denser while
    the model changes fast, and sparser later. Laws and bounds are those of the operator, δ and A at their worst density.

    Use: as a warm-up of a sparsifier, where a low density costs accuracy in the first rounds.

    Avoid: in short runs, whose bytes are then mostly those of the dense rounds.

    Attributes:
        op: operator with a field `density`.
        densities: densities of the first rounds.
        rounds: rounds that each of `densities` lasts.
    """

    name: ClassVar[str] = "scheduled"
    codec: ClassVar[int] = 14

    op: CompressionOperator = field(default=TopK(), metadata={"accepts": _has_density})
    densities: tuple[FractionAboveZero, ...] = (0.25, 0.0625, 0.015625, 0.004)
    rounds: PositiveInt = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _has_density(type(self.op)):
            raise FieldError(self.name, "op", f"got {self.op.name}, expected an operator with a density")

    def select_operator(self, round: int) -> CompressionOperator:
        """Return the operator with the density of a round.

        Args:
            round: number of the round, from 1.
        """
        return self._with_density(density_in_round(self._final_density, self.densities, self.rounds, round))

    @property
    def kind(self) -> OperatorKind:
        return self.op.kind

    @property
    def deterministic(self) -> bool:
        return self.op.deterministic

    @property
    def position_invariant(self) -> bool:
        return self.op.position_invariant

    @property
    def has_independent_errors(self) -> bool:
        return self.op.has_independent_errors

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        return self.select_operator(ctx.round).encode(x, ctx)

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        return self.select_operator(ctx.round).decode(sections, ctx)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max(op.max_bytes(layout) for op in self._list_operators())

    def contraction(self, layout: ParameterLayout) -> float:
        return min(op.contraction(layout) for op in self._list_operators())

    def absolute_error(self, layout: ParameterLayout) -> float:
        return max(op.absolute_error(layout) for op in self._list_operators())

    def check_layout(self, layout: ParameterLayout) -> None:
        self.op.check_layout(layout)

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return self.select_operator(ctx.round).n_coordinates(sections, ctx)

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        return self.op.find_warnings(replace(run, key=f"{run.key}.op"))

    @property
    def _final_density(self) -> float:
        op: Any = self.op
        return float(op.density)

    def _with_density(self, density: float) -> CompressionOperator:
        op: Any = self.op
        operator: CompressionOperator = replace(op, density=density)
        return operator

    def _list_operators(self) -> list[CompressionOperator]:
        return [self._with_density(density) for density in (*self.densities, self._final_density)]
