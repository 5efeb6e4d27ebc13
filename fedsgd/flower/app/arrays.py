"""Conversion between Flower's arrays and numpy's float32 values, and checks of their types."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array

from fedsgd.numerics.arrays import F32
from fedsgd.numerics.reductions import all_finite

NUMPY_STYPE = "numpy.ndarray"
"""Flower's name of numpy's packing of arrays, the packing that Flower's own functions write."""
FLOAT32 = "float32"


def is_float(array: Array) -> bool:
    """Return True for an array of float16, float32 or float64, of any byte order."""
    return array.stype == NUMPY_STYPE and is_float_type(array.dtype)


def is_compressible(array: Array) -> bool:
    """Return True for an array of floats that are finite as float32."""
    return is_float(array) and all_finite(flatten_values(array))


@lru_cache
def is_float_type(dtype: str) -> bool:
    """Return True for numpy's name of float16, float32 or float64."""
    numpy_dtype = _parse_dtype(dtype)
    return numpy_dtype is not None and numpy_dtype.kind == "f" and numpy_dtype.itemsize <= 8


def has_float32_overflow(array: Array) -> bool:
    """Return True if a finite number of an array is outside float32's range."""
    return array.dtype != FLOAT32 and bool(np.any(np.isinf(flatten_values(array)) & np.isfinite(array.numpy().reshape(-1))))


def flatten_values(array: Array) -> F32:
    """Return the values of an array, rounded to float32. Values outside float32's range become infinite; callers check."""
    with np.errstate(over="ignore"):
        flat: F32 = array.numpy().reshape(-1).astype(np.float32, copy=False)
    return flat


def make_array(values: F32, shape: tuple[int, ...], dtype: str | None = None) -> Array:
    """Return an array with these flat values, this shape and this type, float32 by default."""
    with np.errstate(over="ignore"):
        return Array(np.asarray(values, dtype=dtype or np.float32).reshape(shape))


def read_packed_shape(array: Array, dtype: str) -> tuple[int, ...] | None:
    """Return the shape of a packed array; None if its bytes are neither an array of numbers nor an array of type `dtype`."""
    try:
        values = array.numpy()
    except Exception:  # numpy raises errors of many classes for bytes that are no array
        return None
    return (
        tuple(values.shape)
        if values.dtype.kind in "biufc" or (array.dtype == dtype and _is_compatible_dtype(values.dtype, dtype))
        else None
    )


def _is_compatible_dtype(array_dtype: np.dtype[Any], declared_dtype: str) -> bool:
    """Return True if numpy may read `declared_dtype` as `array_dtype`. Other libraries' types are read as raw bytes."""
    dtype = _parse_dtype(declared_dtype)
    return dtype in (None, array_dtype) or (dtype.kind == array_dtype.kind == "V" and dtype.itemsize == array_dtype.itemsize)


def _parse_dtype(dtype: str) -> np.dtype[Any] | None:
    """Return numpy's type of this name; None for a type of another library, such as bfloat16, and for any other text."""
    try:
        return np.dtype(dtype)
    except Exception:  # numpy parses the text, and also raises SyntaxError and ValueError
        return None
