"""Sections whose bytes must not change: one for each way to code positions, symbols, floats and digits.

`python -m tests.golden.codecs` writes them; from the codec's first release on that is a change of the format, with a new
version. Inputs are plain arithmetic.
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


def scattered(n: int, modulus: int) -> I64:
    """n numbers below `modulus` without an order."""
    return np.arange(n, dtype=np.int64) * 7919 % 1009 * modulus // 1009


def supports() -> Iterator[tuple[str, I64, int]]:
    """(the code that is shortest for it, positions, P)."""
    yield "rice", np.cumsum(scattered(60, 40) + 1) - 1, 3000
    yield "bitmap", np.flatnonzero(scattered(400, 100) < 45), 400
    yield "raw", np.array([65535]), 65536
    yield "absent", np.flatnonzero(scattered(900, 100) > 2), 900
    clustered = np.where(np.arange(1200) % 40 < 38, 0, 2000 + scattered(1200, 9000))
    yield "classes", np.cumsum(clustered + 1) - 1, 600_000
    yield "none", np.zeros(0, dtype=np.int64), 50


def floats() -> F32:
    """300 values of a few magnitudes, none of them zero."""
    magnitude = np.ldexp(1 + scattered(300, 1000) / 1000, -(scattered(300, 7) ** 2 // 5).astype(np.int64))
    return np.where(np.arange(300) % 3 == 1, -magnitude, magnitude).astype(np.float32)


def skewed(base: int) -> U8:
    """Digits below `base_round`, mostly small."""
    return (scattered(500, base) * scattered(500, 97) // 97).astype(np.uint8)


def rare() -> U8:
    """30,000 zeros, but for fifty symbols that occur once or twice each: they are rarer than 1/4096."""
    symbols = np.zeros(30_000, dtype=np.uint8)
    symbols[::400] = 1 + np.arange(75) % 50
    return symbols


def sections() -> Iterator[tuple[str, bytes]]:
    """(what it is, its bytes)."""
    for name, positions, size in supports():
        yield f"positions, {name}", encode_indices(positions, size)
    yield "symbols, plain", encode_symbols(np.arange(256, dtype=np.uint8))
    yield "symbols, rANS", encode_symbols(skewed(60))
    yield "symbols, fine rANS", encode_symbols(rare(), frequency_bits=15)
    for base in (2, 3, 4, 5, 9, 15, 16, 31, 255):
        yield f"digits, base {base}", encode_digits(skewed(base), base)
    for form in ("float32", "bfloat16", "float16", "natural", "int8", "int4", "ternary"):
        for entropy in (True, False):
            coded = encode_values(floats(), form, 12345, entropy)[0]
            yield f"values, {form}{'' if entropy else ', plain'}", b"|".join(bytes(s.data) for s in coded)


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: body.hex() for name, body in sections()}, indent=1) + "\n")
