"""Local training of a cohort. An engine's own module imports torch; what is here does not.

sequential   one client after the other, plain autograd: the oracle
captured     the step recorded once, rewritten, replayed without autograd
stacked      the same for many clients at once
"""

from fedsgd.training.base import (
    EngineName,
    LastBatch,
    LocalTraining,
    TrainingEngine,
    TrainingJob,
    TrainingResult,
    UpdateMode,
    explain_restart,
)
from fedsgd.training.evaluation_result import EVALUATION_SLICE_SIZE, EvaluationResult, EvaluationSets

__all__ = [
    "EVALUATION_SLICE_SIZE",
    "EngineName",
    "EvaluationResult",
    "EvaluationSets",
    "LastBatch",
    "LocalTraining",
    "TrainingEngine",
    "TrainingJob",
    "TrainingResult",
    "UpdateMode",
    "explain_restart",
]
