"""Compression ratios of the uplink of Deep Gradient Compression, measured by encoding vectors of its networks.

    python scenarios/dgc/ratios.py
    fedsgd replicate dgc2018-ratios

Lin et al. 2018, tables 3 and 4: ResNet-50 0.35 MB and 277×, AlexNet 0.39 MB and 597×, the PTB language model 0.42 MB and 462×.
The paper's format sends the largest 0.1 % of each tensor with more than one dimension, each value as a float32 after a 16-bit
run of zeros; it sends other tensors whole. The table adds the bytes of the same coordinates in fedsgd's frames. The values are
Gaussian, with another standard deviation in each tensor. Positions are then uniform, the worst case for the run-length code.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np

from fedsgd.compression import CodecContext
from fedsgd.compression.kernels.top_k import top_k
from fedsgd.compression.operators.sparsifier import top_k_size
from fedsgd.compression.schemes.dgc import DGC
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Frame, FrameKind, Header, ValueFormat, encode_frame

DENSITY = 0.001
LONGEST_RUN = 2**16 - 1
FORMATS: tuple[ValueFormat, ...] = ("float32", "bfloat16", "ternary")
PAPER = {"ResNet-50": (0.35, 277), "AlexNet": (0.39, 597), "PTB LSTM": (0.42, 462)}


def resnet_50() -> Iterator[tuple[int, ...]]:
    """Yield the shapes of He et al. 2016: convolutions, each with weight and bias of its batch norm, and a linear layer."""

    def convolution(outputs: int, inputs: int, side: int) -> Iterator[tuple[int, ...]]:
        yield from ((outputs, inputs, side, side), (outputs,), (outputs,))

    yield from convolution(64, 3, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(width, inputs, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:
                yield from convolution(4 * width, inputs, 1)
            inputs = 4 * width
    yield from ((1000, 2048), (1000,))


def alexnet() -> Iterator[tuple[int, ...]]:
    """Yield the shapes of Krizhevsky et al. 2012, with the second, fourth and fifth convolution in two halves."""
    shapes = [(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3)]
    for shape in [*shapes, (4096, 9216), (4096, 4096), (1000, 4096)]:
        yield from (shape, shape[:1])


def ptb_lstm() -> Iterator[tuple[int, ...]]:
    """Yield the shapes of an embedding of 10,000 words, two LSTM layers of 1,500 units, and a decoder with tied weights."""
    yield (10_000, 1500)
    for _ in range(2):
        yield from ((6000, 1500), (6000, 1500), (6000,), (6000,))
    yield (10_000,)


NETWORKS = {"ResNet-50": resnet_50, "AlexNet": alexnet, "PTB LSTM": ptb_lstm}


def layout_of(network: str) -> ParameterLayout:
    """Return the layout of a network's tensors in one flat vector."""
    shapes = tuple(NETWORKS[network]())
    return ParameterLayout(tuple(f"tensor {i}" for i in range(len(shapes))), shapes)


def gradient(layout: ParameterLayout) -> F32:
    """Return Gaussian values with another standard deviation in each tensor."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(layout.size, dtype=np.float32)
    for _, part, shape in layout.list_slices():
        x[part] *= np.float32(rng.lognormal() / math.sqrt(math.prod(shape[1:])))
    return x


def encode_with_dgc(x: F32, layout: ParameterLayout) -> bytes:
    """Encode the paper's message: (run of zeros u16, value f32) for each coordinate of a matrix, float32 for other tensors."""
    out = []
    for _, part, shape in layout.list_slices():
        if len(shape) < 2:
            out.append(x[part].tobytes())
            continue
        indices, values = top_k(x[part], top_k_size(DENSITY, part.stop - part.start))
        last = -1
        for index, value in zip(indices.tolist(), values.tolist(), strict=True):
            run = index - last - 1
            while run > LONGEST_RUN:  # a longer run is split by a zero value, as run-length codes do
                out.append(struct.pack("<Hf", LONGEST_RUN, 0.0))
                run -= LONGEST_RUN + 1
            out.append(struct.pack("<Hf", run, value))
            last = index
    return b"".join(out)


def encode_with_fedsgd(x: F32, layout: ParameterLayout, value_format: ValueFormat) -> bytes:
    """Encode the same coordinates as a frame of fedsgd."""
    scheme = DGC(DENSITY, momentum=0.0, values=value_format, per_layer=True)
    result = scheme.send(x, {}, CodecContext(0, 1, 0, layout))
    return encode_frame(Frame(Header(FrameKind.UPDATE, 1, scheme.codec, 1, 0, 0, 1), result.sections))


def measure_sizes(network: str, formats: tuple[ValueFormat, ...] = FORMATS) -> dict[str, int]:
    """Return the bytes of the uplink by wire: "DGC" and each value format of fedsgd."""
    layout = layout_of(network)
    x = gradient(layout)
    return {"DGC": len(encode_with_dgc(x, layout)), **{form: len(encode_with_fedsgd(x, layout, form)) for form in formats}}


def ratios(network: str) -> dict[str, tuple[float, float]]:
    """Return size in MiB and compression ratio of the uplink by wire: "DGC" and each value format of fedsgd."""
    size = layout_of(network).size
    return {wire: (n_bytes / 2**20, 4 * size / n_bytes) for wire, n_bytes in measure_sizes(network).items()}


def compute_cells() -> dict[str, dict[str, float]]:
    """Return the figures of the study dgc2018-ratios; the frames of fedsgd have the same coordinates and float32 values."""
    cells = {}
    for network in NETWORKS:
        dense_bytes = 4 * layout_of(network).size
        sizes = measure_sizes(network, ("float32",))
        rule_bytes, n_bytes = sizes["DGC"], sizes["float32"]
        cells[network] = {
            "value": dense_bytes / rule_bytes,
            "own_value": dense_bytes / n_bytes,
            "rule_bytes": rule_bytes,
            "n_bytes": n_bytes,
        }
    return cells


def main() -> None:
    """Print the table."""
    print(
        f"{'uplink of':<10} {'parameters':>11}  {'paper':>14}  {'DGC wire':>16}" + "".join(f"  {form:>16}" for form in FORMATS)
    )
    for network, (megabytes, ratio) in PAPER.items():
        by_wire = ratios(network)
        cells = "".join(f"  {by_wire[wire][0]:.4f} MiB {by_wire[wire][1]:4.0f}×" for wire in ("DGC", *FORMATS))
        print(f"{network:<10} {layout_of(network).size:>11,}  {megabytes:.2f} MB {ratio:>4}×{cells}", flush=True)


if __name__ == "__main__":
    main()
