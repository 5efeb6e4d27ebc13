"""Arrays of Flower as numbers: their types, their values in float32, and the arrays made of such values."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array

from fedsgd.arrays import F32
from fedsgd.vectors import all_finite

NUMPY = "numpy.ndarray"
"""Flower's name of its own packing of arrays."""
FLOAT32 = "float32"


def is_float(array: Array) -> bool:
    """Return True for an array of float16, float32 or float64, of any byte order."""
    return array.stype == NUMPY and is_float_type(array.dtype)


def is_compressible(array: Array) -> bool:
    """Return True for an array of floats that are finite as float32."""
    return is_float(array) and all_finite(flat_values(array))


@lru_cache
def is_float_type(dtype: str) -> bool:
    """Return True for numpy's name of float16, float32 or float64."""
    known = _numpy_type(dtype)
    return known is not None and known.kind == "f" and known.itemsize <= 8


def overflows(array: Array) -> bool:
    """Return True if a finite number of an array leaves float32's range."""
    return array.dtype != FLOAT32 and bool(np.any(np.isinf(flat_values(array)) & np.isfinite(array.numpy().reshape(-1))))


def flat_values(array: Array) -> F32:
    """Return the values of an array, rounded to float32. Values beyond its range become infinite, for the caller to find."""
    with np.errstate(over="ignore"):
        flat: F32 = array.numpy().reshape(-1).astype(np.float32, copy=False)
    return flat


def as_array(part: F32, shape: tuple[int, ...], dtype: str | None = None) -> Array:
    """Return a stretch of a vector as an array of this shape and type, float32 by default."""
    with np.errstate(over="ignore"):
        return Array(np.asarray(part, dtype=dtype or np.float32).reshape(shape))


def packed_shape(array: Array, dtype: str) -> tuple[int, ...] | None:
    """Return the shape of the packed array; None unless it holds numbers, or has this type."""
    try:
        read = array.numpy()
    except Exception:  # numpy raises what it likes for bytes that are no array
        return None
    return tuple(read.shape) if read.dtype.kind in "biufc" or (array.dtype == dtype and _may_be(read.dtype, dtype)) else None


def _may_be(read: np.dtype[Any], dtype: str) -> bool:
    """Return True if numpy reads an array of a named type as this type. Of types that others register, it reads the bytes."""
    known = _numpy_type(dtype)
    return known in (None, read) or (known.kind == "V" and read.kind == "V" and known.itemsize == read.itemsize)


def _numpy_type(dtype: str) -> np.dtype[Any] | None:
    """Return numpy's type of this name; None for a type of another library, such as bfloat16, and for a text that is none."""
    try:
        return np.dtype(dtype)
    except Exception:  # numpy parses the text, and raises SyntaxError and ValueError too
        return None
