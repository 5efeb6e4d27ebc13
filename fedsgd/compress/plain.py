"""No memory: what the operator drops is lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedsgd.arrays import F32
from fedsgd.compress.base import Context, OperatorScheme, Sent
from fedsgd.compress.run_config import RunConfig
from fedsgd.compress.update import State
from fedsgd.layout import Layout


@dataclass(frozen=True)
class Plain(OperatorScheme):
    """The operator alone, on each round's update by itself. Nothing is remembered on either side."""

    name: ClassVar[str] = "plain"

    @property
    def codec(self) -> int:
        """Its frames are the operator's."""
        return self.op.codec

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        return Sent(self.op.encode(x, ctx)[0], {}, {})

    def withheld(self, state: State, layout: Layout) -> F32 | None:
        return None

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        return self.op.find_warnings(run)
