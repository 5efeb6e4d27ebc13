"""Work of the fork server, once for all workers: imports, also of the compiler of loops, which takes 0.6 s."""

import fedsgd.runtime.workers.processes
import fedsgd.training.captured
import fedsgd.training.stacked
from fedsgd.numerics.reductions import first_non_finite

__all__ = ["fedsgd"]
first_non_finite.compile()
