"""Uplink bytes of top-k with natural values, EF-sign and PowerSGD on ResNet-18: by the paper's bits, and in frames of fedsgd.

    fedsgd replicate natural-compression-ratios

Horváth et al., Natural Compression (arXiv 1905.10988), tables 2 and 3. Top-k: 32 bits for a position, and 32 or, with natural
values, 8 for a value. EF-sign: one bit a coordinate. PowerSGD: r · (n + m) float32 numbers a matrix, and whole other tensors.
The network is ResNet-18 of He et al. 2016 (table 1) with the first layer of section 4.2 for CIFAR-10: a 3×3 convolution and no
pooling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from fedsgd.compression import CodecContext, CompressionScheme, ErrorFeedback
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.power_sgd import PowerSGD
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Frame, FrameKind, Header, encode_frame

DENSITIES = {"0.39 %": 1 / 256, "1.56 %": 1 / 64, "6.25 %": 1 / 16}
RANKS = (2, 7)


def resnet_18() -> Iterator[tuple[int, ...]]:
    """Yield the shapes: convolutions, each with weight and bias of its batch norm, and a linear layer with ten outputs."""

    def convolution(outputs: int, inputs: int, side: int) -> Iterator[tuple[int, ...]]:
        yield from ((outputs, inputs, side, side), (outputs,), (outputs,))

    yield from convolution(64, 3, 3)
    inputs = 64
    for width in (64, 128, 256, 512):
        for _ in range(2):
            yield from convolution(width, inputs, 3)
            yield from convolution(width, width, 3)
            if inputs != width:
                yield from convolution(width, inputs, 1)
            inputs = width
    yield from ((10, 512), (10,))


SHAPES = tuple(resnet_18())
LAYOUT = ParameterLayout(tuple(f"tensor {i}" for i in range(len(SHAPES))), SHAPES)


def count_power_sgd_bytes(rank: int) -> int:
    """Return the bytes of the factors and of the tensors with one dimension, as float32."""
    return 4 * sum(rank * (s[0] + math.prod(s[1:])) if len(s) > 1 else math.prod(s) for s in SHAPES)


def list_schemes() -> Iterator[tuple[str, CompressionScheme, int]]:
    """Yield label, scheme and bytes by the paper's rule of each cell."""
    for percent, density in DENSITIES.items():
        k = round(density * LAYOUT.size)
        yield f"top-k {percent}", ErrorFeedback(TopK(density)), k * (32 + 32) // 8
        yield f"top-k {percent}, natural values", ErrorFeedback(TopK(density, "natural")), k * (32 + 8) // 8
    yield "EF-sign", ErrorFeedback(Sign()), -(-LAYOUT.size // 8)
    for rank in RANKS:
        yield f"PowerSGD rank {rank}", PowerSGD(rank), count_power_sgd_bytes(rank)


def encode(scheme: CompressionScheme, x: F32) -> int:
    """Return the bytes of the whole frame."""
    sections = scheme.send(x, {}, CodecContext(0, 1, 0, LAYOUT)).sections
    return len(encode_frame(Frame(Header(FrameKind.UPDATE, 1, scheme.codec, 1, 0, 0, 1), sections)))


def compute_cells() -> dict[str, dict[str, float]]:
    """Return the ratio of dense float32 to the bytes by the paper's rule, and to those of a frame, for each cell."""
    x = np.random.default_rng(0).standard_normal(LAYOUT.size, dtype=np.float32)
    dense_bytes, cells = 4 * LAYOUT.size, {}
    for label, scheme, rule_bytes in list_schemes():
        n_bytes = encode(scheme, x)
        cells[label] = {
            "value": dense_bytes / rule_bytes,
            "own_value": dense_bytes / n_bytes,
            "rule_bytes": rule_bytes,
            "n_bytes": n_bytes,
        }
    return cells
