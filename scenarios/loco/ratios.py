"""Uplink bytes of SparseLoCo, DeMo and OpenDiLoCo: published by arithmetic, and in fedsgd's frames by encoding.

    python scenarios/loco/ratios.py
    fedsgd replicate covenant-ratio

SparseLoCo (Sarfi et al. 2025, arXiv 2508.15706) and Covenant-72B (arXiv 2603.08163) send the largest k of each 4096
coordinates with 12-bit positions and 2-bit values: the published uplink ratio to float32 is 32 / (14 k / 4096), 146 for k =
64. The entropy of the positions is log₂C(4096, k)/k bits. DeMo (Peng et al. 2024, arXiv 2411.19870) sends the largest 32 DCT
coefficients of a block of 64, or of 64 × 64 for a matrix, and its code sends each position as an int64. OpenDiLoCo (Jaghouar
et al. 2024, arXiv 2407.07852) has the 8-bit codecs of hivemind: a byte for each coordinate, and tables of float32. The vector
has Gaussian coordinates and a fixed seed, so positions are uniform, the worst case for codes that use clusters.
"""

from __future__ import annotations

from math import comb, log2
from typing import Literal

import numpy as np

from fedsgd.compression import CodecContext, CompressionOperator
from fedsgd.compression.operators.integer import Integer
from fedsgd.compression.operators.topk import TopK
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Frame, FrameKind, Header, Sections, ValueFormat, encode_frame

CHUNK, N_CHUNKS = 4096, 400
SIZE = CHUNK * N_CHUNKS
SENT_PER_CHUNK = (32, 64, 128)
OPERATORS = {"2 bits": ("2bit", "vector"), "2 bits, bins of chunks": ("2bit", "chunk"), "signs": ("ternary", "vector")}
TABLE, LENGTH = 4 * 256, 8
"""Bytes of a table of 256 float32 numbers, and of the length that hivemind writes before each table."""


def draw_vector() -> F32:
    """Return 1,638,400 Gaussian coordinates, seed 0."""
    return np.random.default_rng(0).standard_normal(SIZE, dtype=np.float32)


def encode(op: CompressionOperator, x: F32) -> tuple[Sections, int, F32]:
    """Return the sections, the bytes of the whole frame, and the decoded vector."""
    sections, update = op.encode(x, CodecContext(0, 1, 0, ParameterLayout.from_size(len(x))))
    return sections, len(encode_frame(Frame(Header(FrameKind.UPDATE, 1, op.codec, 1, 0, 0, 1), sections))), update.to_dense()


def published_ratio(k: int, value_bits: int = 2) -> float:
    """Return the ratio to float32 of positions of 12 bits and values of `value_bits` bits."""
    return 32 / ((12 + value_bits) * k / CHUNK)


def index_overhead(sections: Sections, n_chunks: int, chunk: int, k: int) -> float:
    """Return the bits of the INDEX section as a multiple of the entropy of uniform positions."""
    return 8 * len(sections[0].data) / (n_chunks * log2(comb(chunk, k)))


def sparse_loco(x: F32) -> list[tuple[int, float, dict[str, float], float]]:
    """Return k, the published ratio, the ratio of each of OPERATORS, and the overhead of positions, for each k."""
    rows = []
    for k in SENT_PER_CHUNK:
        ratios = {}
        for name, (values, scales) in OPERATORS.items():
            sections, n_bytes, _ = encode(TopK(k / CHUNK, values, CHUNK, scales), x)
            ratios[name] = 4 * SIZE / n_bytes
        rows.append((k, published_ratio(k), ratios, index_overhead(sections, N_CHUNKS, CHUNK, k)))
    return rows


def compute_cells() -> dict[str, dict[str, float]]:
    """Return the figures of the study covenant-ratio.

    Frames with "int8" values have a scale for each chunk, and those with "2bit" values four bins for the whole vector. The
    published format is 12 bits for a position and 2 or 8 for a value, without the bytes of scales and bins.
    """
    x = draw_vector()
    settings: list[tuple[str, int, int, ValueFormat, Literal["vector", "chunk"]]] = [
        *((f"k = {k}, 2-bit values", k, 2, "2bit", "vector") for k in SENT_PER_CHUNK),
        ("k = 64, values as bytes", 64, 8, "int8", "chunk"),
    ]
    cells = {}
    for label, k, value_bits, values, scales in settings:
        n_bytes = encode(TopK(k / CHUNK, values, CHUNK, scales), x)[1]
        cells[label] = {
            "value": published_ratio(k, value_bits),
            "own_value": 4 * SIZE / n_bytes,
            "rule_bytes": (12 + value_bits) * k * N_CHUNKS // 8,
            "n_bytes": n_bytes,
        }
    return cells


def demo_positions(x: F32) -> list[tuple[str, int, float, float]]:
    """Return block, its bits of information, the entropy and fedsgd's bits for a position; DeMo's code sends 64 bits."""
    rows = []
    for block, n in (("64 coordinates", 64), ("64 × 64 of a matrix", 4096)):
        sections, _, decoded = encode(TopK(32 / n, "ternary", n), x)
        n_positions = int(np.count_nonzero(decoded))
        rows.append((block, int(log2(n)), log2(comb(n, 32)) / 32, 8 * len(sections[0].data) / n_positions))
    return rows


def eight_bit(x: F32) -> list[tuple[str, int]]:
    """Return codec and bytes of each 8-bit codec: hivemind's by its format, and fedsgd's whole frame."""
    block_scales = 4 * -(-SIZE // 4096)
    return [
        ("hivemind, uniform", LENGTH + TABLE + SIZE),
        ("hivemind, quantile", LENGTH + TABLE + SIZE),
        ("hivemind, blocks of 4096", 2 * LENGTH + block_scales + TABLE + SIZE),
        ("fedsgd, integer", encode(Integer(8, "nearest", 4096), x)[1]),
        ("fedsgd, integer with entropy", encode(Integer(8, "nearest", 4096, entropy=True), x)[1]),
        ("fedsgd, top-k 1, int8 of chunks", encode(TopK(1.0, "int8", 4096, "chunk"), x)[1]),
    ]


def main() -> None:
    """Print the tables."""
    x = draw_vector()
    print(f"{SIZE:,} Gaussian coordinates, {N_CHUNKS} chunks of {CHUNK}; ratios to float32\n")
    print(f"{'k':>4}  {'12 + 2 bits':>11}  {'2 bits':>8}  {'bins of chunks':>14}  {'signs':>8}  {'positions / entropy':>19}")
    for k, published, ratios, overhead in sparse_loco(x):
        cells = [f"{ratio:.1f}×" for ratio in ratios.values()]
        print(f"{k:>4}  {published:>10.1f}×  {cells[0]:>8}  {cells[1]:>14}  {cells[2]:>8}  {overhead:>19.5f}")
    print(f"\n{'DeMo, a position of 32 in':<25}  {'its code':>8}  {'information':>11}  {'entropy':>7}  {'fedsgd':>6}  bits")
    for block, information, entropy, bits in demo_positions(x):
        print(f"{block:<25}  {64:>8}  {information:>11}  {entropy:>7.3f}  {bits:>6.3f}")
    print(f"\n{'8 bits a coordinate':<31}  {'bytes':>10}  {'ratio':>7}")
    for name, n_bytes in eight_bit(x):
        print(f"{name:<31}  {n_bytes:>10,}  {4 * SIZE / n_bytes:>6.3f}×")


if __name__ == "__main__":
    main()
