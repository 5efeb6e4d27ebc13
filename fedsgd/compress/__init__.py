"""Compression: operators (memoryless) and schemes (with memory), one file each.

To add an operator: write its file, add its line to COMPRESSORS.
"""

from fedsgd.component import Registry
from fedsgd.compress.base import (
    ClientId,
    Context,
    Dense,
    Gathering,
    Operator,
    Received,
    Scheme,
    Sent,
    Sparse,
    State,
    Update,
    Weighting,
)
from fedsgd.compress.error_feedback import ErrorFeedback
from fedsgd.compress.plain import Plain

COMPRESSORS: Registry[Operator] = Registry(
    "compressor",
    Operator,
    {
        "dense": "fedsgd.compress.dense:DenseOperator",
        "top-k": "fedsgd.compress.topk:TopK",
        "rand-k": "fedsgd.compress.randk:RandK",
    },
)

__all__ = [
    "COMPRESSORS",
    "ClientId",
    "Context",
    "Dense",
    "ErrorFeedback",
    "Gathering",
    "Operator",
    "Plain",
    "Received",
    "Scheme",
    "Sent",
    "Sparse",
    "State",
    "Update",
    "Weighting",
]
