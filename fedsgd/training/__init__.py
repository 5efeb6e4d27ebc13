"""Local training of clients, and evaluation. This module does not import torch; the modules of the engines do.

sequential   trains client after client with plain autograd: the reference, for any model
captured     records the step of a batch size once, rewrites it, and replays it without autograd
stacked      replays a recorded step for many clients at once
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
