"""Bits of a coordinate in sparse ternary compression (STC): the paper's Golomb code, and frames of fedsgd.

    fedsgd replicate stc2019-bits

Sattler et al. 2019 (arXiv 1903.02891), lossless encoding: a gap g between two positions is the unary quotient and
the b-bit remainder of (g − 1) / 2^b, b = 1 + ⌊log₂(ln(φ − 1) / ln(1 − p))⌋, φ = (1 + √5)/2. The mean length at uniform
positions is b + 1/(1 − (1 − p)^(2^b)). A sign takes one bit more.
"""

from __future__ import annotations

import math

import numpy as np

from fedsgd.compression import CodecContext
from fedsgd.compression.schemes.stc import STC
from fedsgd.numerics.arrays import F32, I64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Frame, FrameKind, Header, encode_frame

SIZE = 865_482
"""Parameters of VGG11 as the paper has it: 3.461928 MB of float32."""
DENSITIES = {"p = 1/25": 1 / 25, "p = 1/100": 1 / 100, "p = 1/400": 1 / 400, "p = 1/1000": 1 / 1000}


def golomb_parameter(density: float) -> int:
    """Return b, the bits of a remainder."""
    return 1 + math.floor(math.log2(math.log((math.sqrt(5) - 1) / 2) / math.log1p(-density)))


def golomb_bits(positions: I64, b: int) -> int:
    """Return the bits of the code for ascending positions: a unary quotient with its end, and b bits, for each gap."""
    gaps = np.diff(positions, prepend=-1)
    return int((((gaps - 1) >> b) + 1 + b).sum())


def encode(x: F32, density: float) -> tuple[I64, int]:
    """Return the positions that STC sends, and the bytes of the whole frame."""
    scheme = STC(density)
    context = CodecContext(0, 1, 0, ParameterLayout.from_size(len(x)))
    sections = scheme.send(x, {}, context).sections
    positions = np.flatnonzero(scheme.decode(sections, context).to_dense())
    return positions, len(encode_frame(Frame(Header(FrameKind.UPDATE, 1, scheme.codec, 1, 0, 0, 1), sections)))


def compute_cells() -> dict[str, dict[str, float]]:
    """Return bits of a coordinate by the paper's code and in a frame of fedsgd, for each density."""
    x = np.random.default_rng(0).standard_normal(SIZE, dtype=np.float32)
    cells = {}
    for label, density in DENSITIES.items():
        positions, n_bytes = encode(x, density)
        n_bits = golomb_bits(positions, golomb_parameter(density)) + len(positions)
        cells[label] = {
            "value": n_bits / len(positions),
            "own_value": 8 * n_bytes / len(positions),
            "rule_bytes": -(-n_bits // 8),
            "n_bytes": n_bytes,
        }
    return cells
