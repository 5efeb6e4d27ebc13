"""What becomes of updates that a client held back while it was away."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedsgd.arrays import F32
from fedsgd.component import Coefficient, Count, FieldError
from fedsgd.compress.base import Context, Gathering, Received, Scheme, Sent
from fedsgd.compress.run_config import RunConfig
from fedsgd.compress.update import State, Update
from fedsgd.layout import Layout
from fedsgd.wire import Sections


@dataclass(frozen=True)
class Ageing(Scheme):
    """A scheme whose clients do not keep forever what they hold back.

    What a client has not sent was computed on an older model, and says less about the present one with every round that it is
    away. "decay": it shrinks by `factor` for each round missed; "reset": it is dropped if more than `rounds` were missed. With
    every client in every round both change nothing. Missed rounds are counted from the last in which the client took part,
    whether its reply arrived or not.
    """

    name: ClassVar[str] = "ageing"

    scheme: Scheme
    policy: Literal["decay", "reset"] = "decay"
    factor: Coefficient = 0.9
    rounds: Count = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scheme.backlog:
            raise FieldError(self.name, "scheme", f"{self.scheme.name} holds nothing back that could grow stale")

    @property
    def codec(self) -> int:
        """Its frames are the scheme's."""
        return self.scheme.codec

    def send(self, x: F32, state: State, ctx: Context) -> Sent:
        sent = self.scheme.send(x, self._aged(state, ctx.round), ctx)
        return Sent(sent.sections, {**sent.state, "round": np.array(ctx.round)}, sent.undo)

    def _aged(self, state: State, round: int) -> State:
        """What is left of the state in `round`."""
        rest = {name: value for name, value in state.items() if name != "round"}
        missed = max(0, round - int(state["round"]) - 1) if "round" in state else 0
        if self.policy == "reset" and missed > self.rounds:
            return {name: value for name, value in rest.items() if name not in self.scheme.backlog}
        if self.policy == "decay" and missed:
            kept = np.float32(self.factor**missed)
            return {name: value * kept if name in self.scheme.backlog else value for name, value in rest.items()}
        return rest

    def withheld(self, state: State, layout: Layout) -> F32 | None:
        return self.scheme.withheld({name: value for name, value in state.items() if name != "round"}, layout)

    def held_back(self, state: State) -> F32 | None:
        return self.scheme.held_back(state)

    def decode(self, sections: Sections, ctx: Context) -> Update:
        return self.scheme.decode(sections, ctx)

    def fold(self, server: State, replies: Iterable[Received], gathering: Gathering) -> tuple[F32, State]:
        return self.scheme.fold(server, replies, gathering)

    def max_bytes(self, layout: Layout) -> int:
        return self.scheme.max_bytes(layout)

    def kept(self, sections: Sections, ctx: Context) -> int:
        return self.scheme.kept(sections, ctx)

    @property
    def independent(self) -> bool:
        return self.scheme.independent

    def check_layout(self, layout: Layout) -> None:
        self.scheme.check_layout(layout)

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        return self.scheme.find_warnings(run)
