"""Compression: operators (memoryless) and schemes (with memory), one file each.

To add an operator: write its file, add its line to COMPRESSORS.
"""

from fedsgd.component import Registry
from fedsgd.compress.ageing import Ageing
from fedsgd.compress.base import (
    ClientId,
    Compressor,
    Context,
    Gathering,
    Operator,
    OperatorScheme,
    Received,
    Scheme,
    Sent,
    Weighting,
)
from fedsgd.compress.error_feedback import ErrorFeedback
from fedsgd.compress.plain import Plain
from fedsgd.compress.update import Dense, Patch, Sparse, State, Update, undone

COMPRESSORS: Registry[Compressor] = Registry(
    "compressor",
    Compressor,
    {
        "dense": "fedsgd.compress.dense:DenseOperator",
        "top-k": "fedsgd.compress.topk:TopK",
        "rand-k": "fedsgd.compress.randk:RandK",
        "threshold": "fedsgd.compress.threshold:Threshold",
        "sign": "fedsgd.compress.sign:Sign",
        "terngrad": "fedsgd.compress.terngrad:TernGrad",
        "qsgd": "fedsgd.compress.qsgd:QSGD",
        "natural": "fedsgd.compress.natural:Natural",
        "integer": "fedsgd.compress.integer:Integer",
        "eden": "fedsgd.compress.eden:Eden",
        "drive": "fedsgd.compress.drive:Drive",
        "count-sketch": "fedsgd.compress.count_sketch:CountSketch",
        "scheduled": "fedsgd.compress.scheduled:Scheduled",
        "per-layer": "fedsgd.compress.per_layer:PerLayer",
        "dgc": "fedsgd.compress.dgc:DGC",
        "stc": "fedsgd.compress.stc:STC",
        "ef21": "fedsgd.compress.ef21:EF21",
        "cafe": "fedsgd.compress.cafe:CAFe",
        "power-sgd": "fedsgd.compress.power_sgd:PowerSGD",
        "fetch-sgd": "fedsgd.compress.fetch_sgd:FetchSGD",
        "scaffold": "fedsgd.compress.scaffold:Scaffold",
    },
)

__all__ = [
    "COMPRESSORS",
    "Ageing",
    "ClientId",
    "Compressor",
    "Context",
    "Dense",
    "ErrorFeedback",
    "Gathering",
    "Operator",
    "OperatorScheme",
    "Patch",
    "Plain",
    "Received",
    "Scheme",
    "Sent",
    "Sparse",
    "State",
    "Update",
    "Weighting",
    "undone",
]
