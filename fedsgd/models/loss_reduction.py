"""Reduction of a loss over a set of examples that is evaluated in slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsgd.errors import ModelError

Reduction = Literal["mean", "counted", "sum", "whole"]
"""Reduction of the losses of slices to the loss of a set.

mean: each slice weighs as much as it has examples. counted: each slice weighs as much as its targets that are not ignored,
or as their class weights. sum: slices are added up. whole: the loss is computed in one call on the outputs of the whole set.
"""


@dataclass(frozen=True)
class LossReduction:
    """Reduction of the loss over a set of examples.

    Attributes:
        kind: for sets of at most `max_examples` examples.
        largest: the most examples whose outputs fit in memory together; None: any number.
        larger: for larger sets; None: the loss of a larger set cannot be computed.
    """

    kind: Reduction
    max_examples: int | None = None
    kind_above_max: Literal["mean", "sum"] | None = None

    def select_kind(self, n_examples: int) -> Reduction:
        """Return the reduction for a set of so many examples; ModelError where there is none."""
        if self.kind != "whole" or self.max_examples is None or n_examples <= self.max_examples:
            return self.kind
        if self.kind_above_max is None:
            raise ModelError(f"the outputs of {n_examples:,} examples take too much memory for one call of the loss")
        return self.kind_above_max

    @property
    def is_additive(self) -> bool:
        """Tell if the loss of two sets together is the sum of theirs, not their mean."""
        return self.kind == "sum" or (self.kind == "whole" and self.kind_above_max == "sum")
