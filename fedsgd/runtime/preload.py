"""What the fork server imports before it forks workers; and a compiled loop, whose first call costs 0.6 s, once for all."""

import numpy as np

import fedsgd.engine.captured
import fedsgd.engine.stacked
import fedsgd.runtime.processes
from fedsgd.vectors import all_finite

__all__ = ["fedsgd"]
all_finite(np.zeros(1, dtype=np.float32))
