"""Bytes of top-k 1 % of McMahan's 2NN by each counting rule, and by encoding.

    python scenarios/replication/counting-rules/measure.py [--data DIR]

Prints the tables of results/counting-rules.md. Formulas are those of fedsgd.analysis.replication.counting_rules. Buffers are
measured with the same calls as in the code of the systems: pickle (Plato), gzip (OpenFL), the entropy of FedJAX, and the gaps
of STC's repository. The update is Gaussian, whose positions are uniform. With --data, a second one is a client's update on
MNIST, residual included, in round 10 of scenarios/mnist_fedavg.toml with error feedback. All bytes are of one uplink message.
"""

from __future__ import annotations

import argparse
import gzip
import math
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedsgd
from fedsgd.analysis.replication.counting_rules import COUNTING_RULES, GOLDEN_RATIO, MessageCounts
from fedsgd.compression import CodecContext
from fedsgd.compression.operators.sparsifier import top_k_size
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.updates import Update
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Frame, FrameKind, Header, Sections, ValueFormat, encode_frame

DENSITY, ROUND = 0.01, 10
SHAPES = ((200, 784), (200,), (200, 200), (200,), (10, 200), (10,))
LAYOUT = ParameterLayout(tuple(f"tensor {i}" for i in range(len(SHAPES))), SHAPES)
FORMATS: tuple[ValueFormat, ...] = ("float32", "float16", "natural", "int8", "2bit", "ternary")
SKETCHES = {"11 × 10,000": 11 * 10_000, "5 × 500,000": 5 * 500_000}
"""Default sizes of a sketch: FLSim, flsim/channels/sketch_channel.py; CommEfficient, CommEfficient/utils.py at 02d621e."""
SCENARIO = Path(__file__).resolve().parents[2] / "mnist_fedavg.toml"
UPDATES: list[F32] = []


@dataclass(frozen=True)
class InspectedTopK(TopK):
    """Top-k that adds each input of round 10 to UPDATES."""

    name = "inspected-top-k"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        """Encode an update as `TopK` does."""
        if ctx.round == ROUND:
            UPDATES.append(x.copy())
        return super().encode(x, ctx)


def draw_update() -> F32:
    """Return 199,210 Gaussian coordinates, seed 0."""
    return np.random.default_rng(0).standard_normal(LAYOUT.size, dtype=np.float32)


def train_update(folder: str) -> F32:
    """Return update and residual of the first client of round 10 on MNIST."""
    settings = {"rounds": ROUND, "uplink.compressor.name": "top-k", "uplink.error_feedback": "persist"}
    scenario = fedsgd.load(SCENARIO, settings)
    fedsgd.run(replace(scenario, uplink=replace(scenario.uplink, compressor=InspectedTopK(DENSITY))), data=folder)
    return UPDATES[0]


def encode(x: F32, values: ValueFormat) -> tuple[int, F32]:
    """Return the bytes of the whole frame of top-k 1 %, and the decoded vector."""
    op = TopK(DENSITY, values)
    sections, update = op.encode(x, CodecContext(0, 1, 0, LAYOUT))
    return len(encode_frame(Frame(Header(FrameKind.UPDATE, 1, op.codec, 1, 0, 0, 1), sections))), update.to_dense()


def split(x: F32) -> list[F32]:
    """Return the tensors of a vector."""
    return [x[part].reshape(shape) for _, part, shape in LAYOUT.list_slices()]


def pickle_bytes(x: F32) -> int:
    """Return the size of a pickled state dictionary, as Plato's server logs it."""
    return sys.getsizeof(pickle.dumps(OrderedDict((f"layer{i}", torch.from_numpy(t.copy())) for i, t in enumerate(split(x)))))


def gzip_bytes(x: F32) -> int:
    """Return the size of each tensor as gzipped float32, as OpenFL's GZIPTransformer sends it."""
    return sum(len(gzip.compress(tensor.tobytes())) for tensor in split(x))


def gzip_code_bytes(x: F32) -> int:
    """Return the size of OpenFL's STC pipeline: the index of each value in the sorted values, as gzipped float32."""
    codes = [np.unique(tensor, return_inverse=True)[1] for tensor in split(x)]
    return sum(len(gzip.compress(code.astype(np.float32).tobytes())) for code in codes)


def entropy_bytes(x: F32) -> float:
    """Return FedJAX's estimate of an arithmetic code: entropy of the values, their histogram, and 66 bits, for each tensor."""
    bits = 0.0
    for tensor in split(x):
        _, counts = np.unique(tensor, return_counts=True)
        shares, d, n_values = counts / tensor.size, tensor.size, len(counts)
        bits += -d * float(shares @ np.log2(shares)) + n_values * math.log2(math.e * (d + n_values) / n_values) + 66
    return bits / 8


def golomb_bytes(x: F32) -> float:
    """Return the count of STC's repository: Golomb codes of the real gaps, two bits more for each coordinate; per tensor."""
    bits = 0.0
    for tensor in split(x):
        positions = tensor.ravel().nonzero()[0]
        k, q = len(positions), (len(positions) + 1) / (tensor.size + 1)
        if k:
            b = 1 + math.floor(math.log2(math.log(GOLDEN_RATIO - 1) / math.log(1 - q)))
            bits += float(np.ceil(np.diff(positions, prepend=-1) / 2**b).sum()) + k * (b + 1 + 1)
    return bits / 8


def measure(x: F32) -> dict[str, float]:
    """Return the bytes of top-k 1 % of an update by each frame and each buffer."""
    frames = {values: encode(x, values) for values in FORMATS}
    return {
        **{f"fedsgd, frame with `{values}` values": frames[values][0] for values in FORMATS},
        "Plato, pickled tensors, any values": pickle_bytes(frames["float32"][1]),
        "OpenFL, gzip of float32 values": gzip_bytes(frames["float32"][1]),
        "OpenFL, STC pipeline, ternary values": gzip_code_bytes(frames["ternary"][1]),
        "FedJAX, entropy of float32 values": entropy_bytes(frames["float32"][1]),
        "FedJAX, entropy of ternary values": entropy_bytes(frames["ternary"][1]),
        "STC's repository, ternary values": golomb_bytes(frames["ternary"][1]),
    }


def count_messages(x: F32) -> tuple[MessageCounts, MessageCounts]:
    """Return the counts of one message of top-k 1 %: of the whole vector, and of each matrix with vectors sent whole (DGC)."""
    tensors = split(encode(x, "float32")[1])
    sent = [int(np.count_nonzero(tensor)) for tensor in tensors]
    n_vector_coordinates = sum(n for n, tensor in zip(sent, tensors, strict=True) if tensor.ndim == 1)
    matrices = [tensor.size for tensor in tensors if tensor.ndim > 1]
    n_matrix_coordinates = sum(top_k_size(DENSITY, size) for size in matrices)
    return (
        MessageCounts(LAYOUT.size, sum(sent), n_vector_coordinates=n_vector_coordinates),
        MessageCounts(LAYOUT.size, n_matrix_coordinates, n_whole_parameters=LAYOUT.size - sum(matrices)),
    )


def formula_rows(x: F32) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table of formulas."""
    frames = {values: encode(x, values)[0] for values in FORMATS}
    of_vector, of_matrices = count_messages(x)
    for rule in COUNTING_RULES.values():
        for size, n_cells in SKETCHES.items() if rule.name == "count-sketch" else [("", 0)]:
            counts = replace(of_matrices if rule.name == "dgc-runs" else of_vector, n_cells=n_cells)
            n_bytes = rule.count_bytes(counts)
            yield (
                f"`{rule.name}`{', ' * bool(size)}{size}{'' if rule.is_checked else ', not checked'}",
                rule.title,
                ", ".join(rule.systems),
                rule.formula,
                f"{math.ceil(n_bytes):,}",
                format_ratio(rule.count_ratio(counts)),
                f"{n_bytes / frames[rule.values]:.2f}",
            )


def source_rows() -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table of sources."""
    for rule in COUNTING_RULES.values():
        yield f"`{rule.name}`", "; ".join(rule.sources), rule.omissions


def measured_rows(measured: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table of frames and buffers; `measured` has the bytes of each update."""
    for name in next(iter(measured.values())):
        sizes = [n_bytes[name] for n_bytes in measured.values()]
        yield (name, *(cell for size in sizes for cell in (f"{math.ceil(size):,}", format_ratio(4 * LAYOUT.size / size))))


def format_ratio(ratio: float) -> str:
    """Return a ratio with one digit after the point, with two below 10."""
    return f"{ratio:.{1 if ratio >= 10 else 2}f}×"


def format_table(heading: Sequence[str], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"|{'|'.join(line)}|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="measure.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder of MNIST, to measure a client's update too")
    folder: Any = parser.parse_args(argv).data
    x = draw_update()
    heading = ["rule", "counts for a coordinate", "counted by", "formula", "bytes up", "ratio up", "rule / frame"]
    print(format_table(heading, formula_rows(x)))
    measured = {"Gaussian": measure(x), **({"MNIST": measure(train_update(folder))} if folder else {})}
    heading = ["measured", *(cell for name in measured for cell in (f"{name}, bytes up", f"{name}, ratio up"))]
    print("\n" + format_table(heading, measured_rows(measured)))
    print("\n" + format_table(["rule", "source", "leaves out"], source_rows()))


if __name__ == "__main__":
    try:
        main()
    except fedsgd.FedsgdError as error:
        sys.exit(f"measure.py: {error}")
