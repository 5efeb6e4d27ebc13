"""Reduction of a loss over a set of examples that is evaluated in slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsgd.errors import ModelError

Reduction = Literal["mean", "counted", "sum", "whole"]
"""Reduction of slices' losses to the loss of a set.

"mean": mean of the slices, weighted by numbers of examples. "counted": mean of the slices, weighted by the number or the class
weights of the targets that are not ignored. "sum": sum of the slices. "whole": one call for the whole set.
"""


@dataclass(frozen=True)
class LossReduction:
    """Reduction of the loss over a set of examples.

    `kind` "whole" applies to at most `max_examples` examples, whose outputs fit in memory together; None: any number.
    `kind_above_max` applies to larger sets; None: the loss of a larger set cannot be computed.

    >>> LossReduction("whole", max_examples=1000, kind_above_max="mean").select_kind(2000)
    'mean'
    """

    kind: Reduction
    max_examples: int | None = None
    kind_above_max: Literal["mean", "sum"] | None = None

    def select_kind(self, n_examples: int) -> Reduction:
        """Return the reduction for a set of `n_examples` examples. ModelError if there is none."""
        if self.kind != "whole" or self.max_examples is None or n_examples <= self.max_examples:
            return self.kind
        if self.kind_above_max is None:
            raise ModelError(f"the outputs of {n_examples:,} examples take too much memory for one call of the loss")
        return self.kind_above_max

    @property
    def is_additive(self) -> bool:
        """True if the loss of two sets together is the sum of the sets' losses, not a mean."""
        return self.kind == "sum" or (self.kind == "whole" and self.kind_above_max == "sum")
