"""Sections with fixed bytes: one for each code of positions, symbols, build_values and digits.

`python -m tests.golden.codecs` writes them. A change of the bytes after a codec's first release is a change of the format and
needs a new version. Inputs are computed with plain arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedsgd.numerics.arrays import F32, I64, U8
from fedsgd.wire import encode_indices, encode_values
from fedsgd.wire.levels import encode_digits
from fedsgd.wire.rans import encode_symbols

FILE = Path(__file__).parent / "codecs.json"


def scatter_numbers(n: int, modulus: int) -> I64:
    """Return n numbers below `modulus`, in no order."""
    return np.arange(n, dtype=np.int64) * 7919 % 1009 * modulus // 1009


def list_index_sets() -> Iterator[tuple[str, I64, int]]:
    """Yield the name of the shortest code, the positions and P of several index sets."""
    yield "rice", np.cumsum(scatter_numbers(60, 40) + 1) - 1, 3000
    yield "bitmap", np.flatnonzero(scatter_numbers(400, 100) < 45), 400
    yield "raw", np.array([65535]), 65536
    yield "absent", np.flatnonzero(scatter_numbers(900, 100) > 2), 900
    clustered = np.where(np.arange(1200) % 40 < 38, 0, 2000 + scatter_numbers(1200, 9000))
    yield "classes", np.cumsum(clustered + 1) - 1, 600_000
    yield "none", np.zeros(0, dtype=np.int64), 50


def build_values() -> F32:
    """Return 300 values of a few magnitudes, without zeros."""
    magnitude = np.ldexp(1 + scatter_numbers(300, 1000) / 1000, -(scatter_numbers(300, 7) ** 2 // 5).astype(np.int64))
    return np.where(np.arange(300) % 3 == 1, -magnitude, magnitude).astype(np.float32)


def build_digits(base: int) -> U8:
    """Return digits below `base`, mostly small."""
    return (scatter_numbers(500, base) * scatter_numbers(500, 97) // 97).astype(np.uint8)


def build_rare_symbols() -> U8:
    """Return 30,000 symbols: zeros, and fifty others that occur once or twice and so are rarer than 1/4096."""
    symbols = np.zeros(30_000, dtype=np.uint8)
    symbols[::400] = 1 + np.arange(75) % 50
    return symbols


def sections() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each section."""
    for name, positions, size in list_index_sets():
        yield f"positions, {name}", encode_indices(positions, size)
    yield "symbols, plain", encode_symbols(np.arange(256, dtype=np.uint8))
    yield "symbols, rANS", encode_symbols(build_digits(60))
    yield "symbols, fine rANS", encode_symbols(build_rare_symbols(), frequency_bits=15)
    for base in (2, 3, 4, 5, 9, 15, 16, 31, 255):
        yield f"digits, base {base}", encode_digits(build_digits(base), base)
    for value_format in ("float32", "bfloat16", "float16", "natural", "int8", "int4", "ternary", "2bit"):
        for entropy in (True, False):
            value_sections = encode_values(build_values(), value_format, 12345, entropy)[0]
            yield f"values, {value_format}{'' if entropy else ', plain'}", b"|".join(bytes(s.data) for s in value_sections)


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: body.hex() for name, body in sections()}, indent=1) + "\n")
