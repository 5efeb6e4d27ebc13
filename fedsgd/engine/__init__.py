"""Local training of a cohort. An engine's own module imports torch; what is here does not.

sequential   one client after the other, plain autograd: the oracle
captured     the step recorded once, rewritten, replayed without autograd
stacked      the same for many clients at once
"""

from fedsgd.engine.base import EVALUATION_SLICE, Engine, EngineName, Evaluated, LastBatch, Local, Recipe, Update, Work
from fedsgd.engine.choice import Chosen, batch_sizes, choose, make_engine

__all__ = [
    "EVALUATION_SLICE",
    "Chosen",
    "Engine",
    "EngineName",
    "Evaluated",
    "LastBatch",
    "Local",
    "Recipe",
    "Update",
    "Work",
    "batch_sizes",
    "choose",
    "make_engine",
]
