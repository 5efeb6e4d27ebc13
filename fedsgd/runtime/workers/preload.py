"""Work of the fork server, once for all workers: imports, and the first call of a compiled loop, which takes 0.6 s."""

import numpy as np

import fedsgd.runtime.workers.processes
import fedsgd.training.captured
import fedsgd.training.stacked
from fedsgd.numerics.reductions import all_finite

__all__ = ["fedsgd"]
all_finite(np.zeros(1, dtype=np.float32))
