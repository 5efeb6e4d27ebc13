"""The model of somebody's Flower app in two forms: a record of named arrays, as the app has it, and one vector, as compressors
have it.

P numbers in the vector: the float32 arrays, one after the other in the record's order. All other arrays (counters of int64,
float64, ...) and those that are named to be exact travel beside it, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedsgd.arrays import F32
from fedsgd.errors import ModelError, WireError, did_you_mean
from fedsgd.layout import Layout
from fedsgd.runtime.protocol import Said

NUMPY = "numpy.ndarray"
"""How Flower calls the way in which it packs arrays."""


@dataclass(frozen=True)
class Arrangement:
    """What a record of arrays is made of: names, shapes, and whether each is exact, in the record's order. An exact one is not
    in the vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    exact: tuple[bool, ...]

    @cached_property
    def layout(self) -> Layout:
        """The vector [P]."""
        flat = [(name, shape) for name, shape, exact in self._all if not exact]
        return Layout(tuple(name for name, _ in flat), tuple(shape for _, shape in flat))

    @cached_property
    def aside(self) -> Mapping[str, tuple[int, ...]]:
        """The exact arrays' shapes, by name."""
        return {name: shape for name, shape, exact in self._all if exact}

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    @property
    def _all(self) -> Iterable[tuple[str, tuple[int, ...], bool]]:
        return zip(self.names, self.shapes, self.exact, strict=True)

    def problem(self, arrays: ArrayRecord) -> str | None:
        """What keeps these from being other values of the same model: what was got and what was expected. None if nothing
        does. The types of exact arrays are their own affair."""
        for name in arrays:
            if name not in self._known:
                return f'got an array "{name}", which the model does not have{did_you_mean(name, self.names)}'
        for name, shape, exact in self._all:
            if name not in arrays:
                return f'got no array "{name}", expected one of shape {shape}'
            got = arrays[name]
            if tuple(got.shape) != shape:
                return f'got "{name}" of shape {tuple(got.shape)}, expected {shape}'
            if not exact and (got.stype != NUMPY or not got.dtype.startswith("float")):
                return f'got "{name}" of type {got.dtype}, expected float32'
        return None

    def vector(self, arrays: ArrayRecord) -> F32:
        """The vector [P] of such a record, rounded to float32. ModelError for another model's."""
        problem = self.problem(arrays)
        if problem is not None:
            raise ModelError(problem)
        out = np.empty(self.layout.size, dtype=np.float32)
        with np.errstate(over="ignore"):  # what leaves float32's range is found by whoever uses it
            for name, part, _ in self.layout.slices():
                out[part] = arrays[name].numpy().reshape(-1)
        return out

    def record(self, vector: F32, aside: Mapping[str, Array]) -> ArrayRecord:
        """Inverse of `vector`, with the exact arrays where they were."""
        parts = {name: Array(as_array(vector[part], shape)) for name, part, shape in self.layout.slices()}
        return ArrayRecord({name: aside[name] if exact else parts[name] for name, _, exact in self._all})


def arranged(arrays: ArrayRecord, exact: Sequence[str]) -> Arrangement:
    """How a model's arrays travel. exact: patterns of names, as in shells. ModelError if no array would be compressed."""
    kept = [
        array.dtype != "float32" or array.stype != NUMPY or any(fnmatchcase(name, pattern) for pattern in exact)
        for name, array in arrays.items()
    ]
    if all(kept):
        got = ", ".join(f'"{name}" of {array.dtype}' for name, array in list(arrays.items())[:3]) or "no arrays"
        raise ModelError(f"got {got}, expected float32 arrays: no others are compressed, nor are those that `exact` names")
    return Arrangement(tuple(arrays), tuple(tuple(array.shape) for array in arrays.values()), tuple(kept))


def as_array(part: F32, shape: tuple[int, ...]) -> NDArray[Any]:
    """A stretch of a vector as an array of that shape, which may be ()."""
    return np.asarray(part).reshape(shape)


def n_bytes(arrays: ArrayRecord) -> int:
    """What Flower would send of a record: its arrays as they are packed."""
    return sum(len(array.data) for array in arrays.values())


def said_aside(arrangement: Arrangement, arrays: ArrayRecord) -> Said:
    """The exact arrays of a record, to be sent."""
    kept = [(name, arrays[name]) for name in arrangement.aside]
    head = [(name, array.dtype, tuple(array.shape), array.stype) for name, array in kept]
    return json.dumps(head).encode() if head else b"", [array.data for _, array in kept]


def read_aside(arrangement: Arrangement, said: Said, like: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Inverse of `said_aside`; WireError unless it is those that the model has, and they can be read. like: arrays as which
    they are to be packed."""
    head, frames = said
    try:
        told = json.loads(head) if head else []
        arrays = {
            name: Array(dtype, tuple(shape), stype, bytes(data))
            for (name, dtype, shape, stype), data in zip(told, frames, strict=True)
        }
    except (ValueError, TypeError, RecursionError):
        raise WireError(0, "the arrays beside the update cannot be read") from None
    if arrays.keys() != arrangement.aside.keys():
        raise WireError(0, f"the arrays beside the update are {sorted(arrays)}, expected {sorted(arrangement.aside)}")
    for name, array in arrays.items():
        packed = array.stype if like is None else like[name].stype
        if array.stype != packed or (packed == NUMPY and _shape(array) != arrangement.aside[name]):
            raise WireError(0, f'"{name}" is no array of numbers of shape {arrangement.aside[name]}')
    return arrays


def _shape(array: Array) -> tuple[int, ...] | None:
    try:
        read = array.numpy()
        return tuple(read.shape) if read.dtype.kind in "biufc" else None
    except Exception:  # whatever numpy says of bytes that are no array
        return None
