"""Law of scale: input laws, bias and variance hold for very large, very small and very unequal numbers too."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fedsgd.certification.operator_laws import INPUT_LAWS, draw_gaussian, example_layout
from fedsgd.certification.statistical_laws import check_mean_error, check_variance
from fedsgd.compression.base import CodecContext, CompressionOperator
from fedsgd.errors import LawError, NonFiniteError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.rng import derive_generator

SIZE = 1000
N_DRAWS = 100
MAX_FLOAT32 = float(np.finfo(np.float32).max)
EXPONENTS = (20, -20, 40, -40, 64, -64, 100, -100, 115, -120)
"""Powers of two that vectors are multiplied by."""


def scale(op: CompressionOperator) -> None:
    """Input laws hold for very large, very small and very unequal numbers, and bias and variance for vectors times 2^±100.

    Contractive operators are also tried on vectors for which `is_in_range` is False, where NonFiniteError is legal. Other
    operators may overflow on such vectors.
    """
    ctx = CodecContext(0, 1, 0, example_layout(SIZE))
    for name, x in build_hard_vectors():
        if is_in_range(x) or op.kind == "contractive":
            for law in INPUT_LAWS:
                _check_law(law, op, name, x, ctx)
    for exponent in (-100, 100):
        x = np.ldexp(draw_gaussian(derive_generator(0, "laws/scale"), SIZE), exponent)
        for check in (check_mean_error, check_variance):
            _check_law(check, op, f"Gaussian coordinates times 2^{exponent}", x, N_DRAWS)


def is_in_range(x: F32) -> bool:
    """Return True if P · max|x| is within float32's range, so that no sum of coordinates and no P · x_i overflows."""
    return len(x) * float(np.abs(x).max()) <= MAX_FLOAT32


def _check_law(law: Callable[..., None], op: CompressionOperator, name: str, x: F32, argument: CodecContext | int) -> None:
    """Check a law on a vector, without numpy's warnings, and add the vector's name to a LawError."""
    try:
        with np.errstate(all="ignore"):
            law(op, x, argument)
    except NonFiniteError as error:
        if is_in_range(x):
            raise LawError(f"scale: {op}: {name}: NonFiniteError, but P · max|x| is within float32's range") from error
    except LawError as error:
        raise LawError(f"scale: {op}: {name}: {str(error).replace(f'{op}: ', '', 1)}") from error


def build_hard_vectors() -> Iterator[tuple[str, F32]]:
    """Yield descriptions and vectors [SIZE] of extreme magnitudes."""
    rng = derive_generator(0, "laws/scale")
    x, exponents = draw_gaussian(rng, SIZE), rng.integers(-126, 115, SIZE)
    signs, integers = np.where(x < 0, np.float32(-1), np.float32(1)), rng.integers(1, 2**23, SIZE).astype(np.float32)
    for exponent in EXPONENTS:
        yield f"Gaussian coordinates times 2^{exponent}", np.ldexp(x, exponent)
    yield "subnormal coordinates", np.ldexp(signs * integers, -149)
    yield "coordinates of ±2^-149", np.ldexp(signs, -149)
    yield "coordinates of ±2^-126 to ±2^114", np.ldexp(signs, exponents)
    yield "coordinates of ±2^117", np.ldexp(signs, 117)
    for name, background in (("zeros", np.zeros_like(x)), ("coordinates near 1", x), ("tiny coordinates", np.ldexp(x, -100))):
        for position in (0, SIZE // 2, SIZE - 1):
            vector = background.copy()
            vector[position] = -(2.0**100)
            yield f"-2^100 among {name}", vector
    yield "coordinates of ± the largest float32", signs * np.float32(MAX_FLOAT32)
    vector = np.zeros_like(x)
    vector[SIZE // 2] = MAX_FLOAT32
    yield "the largest float32 among zeros", vector
