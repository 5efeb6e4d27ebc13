"""Local training of a cohort. An engine's own module imports torch; what is here does not.

sequential   one client after the other, plain autograd: the oracle
captured     the step recorded once, rewritten, replayed without autograd
stacked      the same for many clients at once
"""

from fedsgd.engine.base import Engine, EngineName, LastBatch, Local, Recipe, Update, Work, explain_restart
from fedsgd.engine.choice import Chosen, batch_sizes, choose, make_engine
from fedsgd.engine.evaluated import EVALUATION_SLICE, Evaluated, EvaluationSets

__all__ = [
    "EVALUATION_SLICE",
    "Chosen",
    "Engine",
    "EngineName",
    "Evaluated",
    "EvaluationSets",
    "LastBatch",
    "Local",
    "Recipe",
    "Update",
    "Work",
    "batch_sizes",
    "choose",
    "explain_restart",
    "make_engine",
]
