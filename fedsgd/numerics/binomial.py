"""Sizes of sets of positions, in bits."""

from __future__ import annotations

import math
from functools import lru_cache


@lru_cache(maxsize=65536)
def log2_choose(n: int, k: int) -> float:
    """Return log₂ C(n, k), the minimum bits for a set of k of n positions if all sets are equally likely.

    The rounding of the result may differ between machines: no frame may depend on the result.

    >>> round(log2_choose(10, 3), 6)  # C(10, 3) = 120
    6.906891
    """
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
