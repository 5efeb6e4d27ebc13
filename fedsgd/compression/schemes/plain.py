"""Scheme without memory: the part of an update that the operator drops is lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedsgd.compression.base import CodecContext, EncodedUpdate, OperatorScheme
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.updates import StateArrays
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout


@dataclass(frozen=True)
class MemorylessScheme(OperatorScheme):
    """The operator alone, for the update of each round. Neither client nor server has a state."""

    name: ClassVar[str] = "plain"

    @property
    def codec(self) -> int:
        return self.op.codec

    @property
    def accepts_tensors(self) -> bool:
        return self.op.accepts_tensors

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        return EncodedUpdate(self.op.encode(x, ctx)[0], {}, {})

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        return None

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        return self.op.find_warnings(run)
