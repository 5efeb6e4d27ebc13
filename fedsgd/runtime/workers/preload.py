"""What the fork server imports before it forks workers; and a compiled loop, whose first call costs 0.6 s, once for all."""

import numpy as np

import fedsgd.runtime.workers.processes
import fedsgd.training.captured
import fedsgd.training.stacked
from fedsgd.numerics.reductions import all_finite

__all__ = ["fedsgd"]
all_finite(np.zeros(1, dtype=np.float32))
