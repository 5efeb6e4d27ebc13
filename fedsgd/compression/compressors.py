"""Compressors: operators without memory, and schemes with memory."""

from fedsgd.compression import COMPRESSORS
from fedsgd.compression.operators.count_sketch import CountSketch
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.drive import Drive
from fedsgd.compression.operators.eden import Eden
from fedsgd.compression.operators.integer import Integer
from fedsgd.compression.operators.natural import NaturalCompression
from fedsgd.compression.operators.per_layer import PerLayer
from fedsgd.compression.operators.qsgd import QSGD
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.scheduled import Scheduled
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.terngrad import TernGrad
from fedsgd.compression.operators.threshold import Threshold
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.cafe import CAFe
from fedsgd.compression.schemes.demo import DeMo
from fedsgd.compression.schemes.dgc import DGC
from fedsgd.compression.schemes.ef21 import EF21
from fedsgd.compression.schemes.fetch_sgd import FetchSGD
from fedsgd.compression.schemes.power_sgd import PowerSGD
from fedsgd.compression.schemes.scaffold import Scaffold
from fedsgd.compression.schemes.stc import STC

register = COMPRESSORS.register

__all__ = [
    "DGC",
    "EF21",
    "QSGD",
    "STC",
    "CAFe",
    "CountSketch",
    "DeMo",
    "Dense",
    "Drive",
    "Eden",
    "FetchSGD",
    "Integer",
    "NaturalCompression",
    "PerLayer",
    "PowerSGD",
    "RandK",
    "Scaffold",
    "Scheduled",
    "Sign",
    "TernGrad",
    "Threshold",
    "TopK",
    "register",
]
