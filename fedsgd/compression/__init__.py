"""Compressors: operators (without memory) and schemes (with memory), one file each.

To add a compressor, write its file and add its line to COMPRESSORS, its codec's row to `docs/reference/wire-format-values.md`
and its decoder to `tests/wire/second_decoder.py`. Then record its frames (`python -m tests.golden.frames`) and its cost
(`tests/bench/codec_costs.py`). Its docstring says in "Use: ..." and "Avoid: ..." when it suits.
Codec ids are unique: wire-format-values.md lists the ids that are taken.
"""

from fedsgd.compression.base import (
    ClientId,
    CodecContext,
    CompressionOperator,
    CompressionScheme,
    Compressor,
    EncodedUpdate,
    OperatorScheme,
    Weighting,
)
from fedsgd.compression.schemes.error_feedback import ErrorFeedback
from fedsgd.compression.schemes.plain import MemorylessScheme
from fedsgd.compression.schemes.stale_residuals import StaleResidualPolicy
from fedsgd.compression.updates import DenseUpdate, EntryPatch, SparseUpdate, StateArrays, Update, apply_rollback
from fedsgd.config.registry import Registry

COMPRESSORS: Registry[type[Compressor]] = Registry(
    "compressor",
    Compressor,
    {
        "dense": "fedsgd.compression.operators.dense:Dense",
        "top-k": "fedsgd.compression.operators.topk:TopK",
        "rand-k": "fedsgd.compression.operators.randk:RandK",
        "threshold": "fedsgd.compression.operators.threshold:Threshold",
        "sign": "fedsgd.compression.operators.sign:Sign",
        "terngrad": "fedsgd.compression.operators.terngrad:TernGrad",
        "qsgd": "fedsgd.compression.operators.qsgd:QSGD",
        "natural": "fedsgd.compression.operators.natural:NaturalCompression",
        "integer": "fedsgd.compression.operators.integer:Integer",
        "eden": "fedsgd.compression.operators.eden:Eden",
        "drive": "fedsgd.compression.operators.drive:Drive",
        "count-sketch": "fedsgd.compression.operators.count_sketch:CountSketch",
        "scheduled": "fedsgd.compression.operators.scheduled:Scheduled",
        "per-layer": "fedsgd.compression.operators.per_layer:PerLayer",
        "dgc": "fedsgd.compression.schemes.dgc:DGC",
        "stc": "fedsgd.compression.schemes.stc:STC",
        "ef21": "fedsgd.compression.schemes.ef21:EF21",
        "cafe": "fedsgd.compression.schemes.cafe:CAFe",
        "power-sgd": "fedsgd.compression.schemes.power_sgd:PowerSGD",
        "fetch-sgd": "fedsgd.compression.schemes.fetch_sgd:FetchSGD",
        "demo": "fedsgd.compression.schemes.demo:DeMo",
        "scaffold": "fedsgd.compression.schemes.scaffold:Scaffold",
    },
)
"""Compressors by the name that a scenario gives them."""

__all__ = [
    "COMPRESSORS",
    "ClientId",
    "CodecContext",
    "CompressionOperator",
    "CompressionScheme",
    "Compressor",
    "DenseUpdate",
    "EncodedUpdate",
    "EntryPatch",
    "ErrorFeedback",
    "MemorylessScheme",
    "OperatorScheme",
    "SparseUpdate",
    "StaleResidualPolicy",
    "StateArrays",
    "Update",
    "Weighting",
    "apply_rollback",
]
