"""Operations on a vector that is a numpy array or a torch tensor, for code that computes on either.

This module does not import torch: it calls methods of the tensor. Positions are arrays of the host in both cases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.numerics.arrays import F32, I64
from fedsgd.numerics.reductions import all_finite, squared_norm


def is_tensor(vector: object) -> bool:
    """Return whether a vector is a torch tensor, not an array or a number of numpy."""
    return not isinstance(vector, np.ndarray | np.generic)


def to_host(vector: Any) -> NDArray[Any]:
    """Return a vector as an array; the array itself, or the numbers of a tensor."""
    array: NDArray[Any] = vector.detach().cpu().numpy() if is_tensor(vector) else vector
    return array


def is_finite(vector: Any) -> bool:
    """Return True if no number of a vector is an infinity or a NaN."""
    if is_tensor(vector):
        return bool(vector.isfinite().all())
    is_array = isinstance(vector, np.ndarray) and vector.dtype == np.float32
    return all_finite(vector) if is_array else bool(np.isfinite(vector).all())


def sum_squares(vector: Any) -> float:
    """Return |x|² of an array in the order of `fedsgd.numerics.reductions`, or of a tensor in torch's order."""
    return float(vector.double().square().sum()) if is_tensor(vector) else squared_norm(vector)


def like_update(array: Any, update: Any) -> Any:
    """Return the entry of a state as the kind of an update: float32 vectors as a tensor on its device, or as arrays."""
    if is_tensor(update):
        is_vector = isinstance(array, np.ndarray) and array.dtype == np.float32
        return update.new_tensor(array) if is_vector else array
    return to_host(array)


def copy_vector(vector: Any) -> Any:
    """Return a copy of a vector, of the same kind."""
    return vector.clone() if is_tensor(vector) else vector.copy()


def scale_vector(vector: Any, factor: np.float32) -> Any:
    """Return factor · vector in float32."""
    return vector * (float(factor) if is_tensor(vector) else factor)


def zeros_like(vector: Any) -> Any:
    """Return zeros of a vector's size, kind and place."""
    return vector.new_zeros(len(vector)) if is_tensor(vector) else np.zeros_like(vector)


def set_at(vector: Any, positions: I64, values: Any) -> None:
    """Overwrite the numbers at distinct positions [k] with values [k], or with one number."""
    vector[positions] = _match(vector, values)


def add_to_tensor(tensor: Any, values: F32, weight: float, positions: I64 | None = None) -> None:
    """Add weight · values to a tensor in place, in float32: at distinct positions [k], or everywhere without positions."""
    summand = tensor.new_tensor(values) * weight
    if positions is None:
        tensor += summand
    else:
        tensor[positions] = tensor[positions] + summand


def _match(vector: Any, values: Any) -> Any:
    """Return values as a tensor on the device of the vector, if that is a tensor."""
    return vector.new_tensor(values) if is_tensor(vector) and isinstance(values, np.ndarray) else values
