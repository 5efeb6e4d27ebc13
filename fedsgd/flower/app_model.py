"""The model of somebody's Flower app in two forms: a record of named arrays, as the app has it, and one vector, as compressors
have it.

P numbers in the vector: the float32 arrays, one after the other in the record's order. All other arrays (counters of int64,
float64, ...) and those that are named to be exact travel beside it, bit for bit. A tensor with several names is in the vector
once, where its first name stands, and its value is that of its last name, which a module loads last.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedsgd.arrays import F32
from fedsgd.errors import ModelError, ScenarioError, WireError, did_you_mean
from fedsgd.flower.app_ties import Groups, guess_groups, same_bits, sort_groups
from fedsgd.layout import Layout
from fedsgd.runtime.protocol import Said

NUMPY = "numpy.ndarray"
"""How Flower calls the way in which it packs arrays."""


@dataclass(frozen=True)
class Arrangement:
    """What a record of arrays is made of: names, shapes, and whether each is exact, in the record's order. An exact one is not
    in the vector. tied: groups of names, in the record's order, that are one tensor; ModelError for what cannot be one."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    exact: tuple[bool, ...]
    tied: Groups = ()

    def __post_init__(self) -> None:
        sizes = {name: math.prod(shape) for name, shape, exact in self._all if not exact}
        tied = [name for group in self.tied for name in group]
        found = [{sizes.get(name) for name in group} for group in self.tied]
        if len(set(tied)) != len(tied) or any(len(size) != 1 or None in size for size in found):
            raise ModelError(f"got the names {tied} for tensors, expected arrays of one size, each in one group")

    @cached_property
    def layout(self) -> Layout:
        """The vector [P]."""
        flat = [(name, shape) for name, shape, exact in self._all if not exact and self._first.get(name, name) == name]
        return Layout(tuple(name for name, _ in flat), tuple(shape for _, shape in flat))

    @cached_property
    def parts(self) -> Mapping[str, slice]:
        """The stretch of the vector for each name that is not exact."""
        own = {name: part for name, part, _ in self.layout.slices()}
        return {name: own[self._first.get(name, name)] for name, _, exact in self._all if not exact}

    @cached_property
    def aside(self) -> Mapping[str, tuple[int, ...]]:
        """The exact arrays' shapes, by name."""
        return {name: shape for name, shape, exact in self._all if exact}

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def _first(self) -> Mapping[str, str]:
        return {name: group[0] for group in self.tied for name in group}

    @cached_property
    def _last(self) -> Mapping[str, str]:
        return {group[0]: group[-1] for group in self.tied}

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
        for name, part, _ in self.layout.slices():
            out[part] = flat_values(arrays[self._last.get(name, name)])
        return out

    def record(self, vector: F32, aside: Mapping[str, Array]) -> ArrayRecord:
        """Inverse of `vector`, with the exact arrays where they were, and a tensor under all its names."""
        return ArrayRecord(
            {
                name: aside[name] if exact else Array(as_array(vector[self.parts[name]], shape))
                for name, shape, exact in self._all
            }
        )

    def values(self, arrays: Mapping[str, Array]) -> dict[str, F32]:
        """The flat values of each float32 array, exact or not, rounded to float32, by name."""
        return {name: flat_values(arrays[name]) for name in self.names if name in self.parts or is_float32(arrays[name])}

    def unequal(self, arrays: ArrayRecord) -> Groups:
        """The groups of names under which a record has different values."""
        values = {name: flat_values(arrays[name]) for name in self._first}
        return tuple(group for group in self.tied if any(not same_bits(values[group[0]], values[name]) for name in group))


def arranged(arrays: ArrayRecord, exact: Sequence[str], tied: Groups = ()) -> Arrangement:
    """Arrays of a model in transit. exact: patterns of names, as in shells; tied: groups of names that are one tensor each, and
    exact under all names if under one. ModelError if no array would be compressed."""
    kept = {name: is_exact(name, array, exact) for name, array in arrays.items()}
    for group in tied:
        kept.update(dict.fromkeys(group, any(kept[name] for name in group)))
    if all(kept.values()):
        got = ", ".join(f'"{name}" of {array.dtype}' for name, array in list(arrays.items())[:3]) or "no arrays"
        raise ModelError(f"got {got}, expected float32 arrays: no others are compressed, nor are those that `exact` names")
    order = {name: i for i, name in enumerate(arrays)}
    groups = sorted(
        (tuple(sorted(group, key=order.__getitem__)) for group in tied if not kept[group[0]]), key=lambda g: order[g[0]]
    )
    shapes = tuple(tuple(array.shape) for array in arrays.values())
    return Arrangement(tuple(arrays), shapes, tuple(kept.values()), tuple(groups))


def is_exact(name: str, array: Array, exact: Sequence[str]) -> bool:
    """Return True for an array that does not go into the vector."""
    return not is_float32(array) or any(fnmatchcase(name, pattern) for pattern in exact)


def guess_ties(arrays: ArrayRecord, exact: Sequence[str]) -> Groups:
    """Return the groups of names that are probably one tensor each in a first model, among the arrays that are compressed."""
    return guess_groups({name: flat_values(array) for name, array in arrays.items() if not is_exact(name, array, exact)})


def tie_by_name(groups: Groups, arrays: Mapping[str, Array]) -> Groups:
    """Return the groups of the setting `tied` as the model has them, without arrays of other types than float32.

    Raises:
        ScenarioError: the model has no such array, or the arrays of a group have different values.
    """
    found = []
    for group in groups:
        for name in group:
            if name not in arrays:
                raise ScenarioError(f'tied: got "{name}", which the model does not have{did_you_mean(name, arrays)}')
        if not all(is_float32(arrays[name]) for name in group):
            continue  # exact arrays need no group: equal bytes are sent once
        for name in group[1:]:
            if not same_bits(flat_values(arrays[group[0]]), flat_values(arrays[name])):
                names = f'"{group[0]}" and "{name}"'
                raise ScenarioError(f"tied: got {names}, which differ in the model at the start, expected the same values")
        found.append(group)
    return sort_groups(found)


def is_float32(array: Array) -> bool:
    """Return True for an array that can be in the vector."""
    return bool(array.dtype == "float32" and array.stype == NUMPY)


def flat_values(array: Array) -> F32:
    """Return the values of an array, rounded to float32. Values beyond its range become infinite, for the caller to find."""
    with np.errstate(over="ignore"):
        flat: F32 = array.numpy().reshape(-1).astype(np.float32, copy=False)
    return flat


def as_array(part: F32, shape: tuple[int, ...]) -> NDArray[Any]:
    """A stretch of a vector as an array of that shape, which may be ()."""
    return np.asarray(part).reshape(shape)


def n_bytes(arrays: ArrayRecord) -> int:
    """What Flower would send of a record: its arrays as they are packed."""
    return sum(len(array.data) for array in arrays.values())


def said_aside(arrangement: Arrangement, arrays: ArrayRecord) -> Said:
    """The exact arrays of a record, to be sent. Equal bytes are sent once: a later array has the number of their frame."""
    head: list[tuple[object, ...]] = []
    frames: dict[bytes, int] = {}
    for name in arrangement.aside:
        array = arrays[name]
        repeated = (frames[array.data],) if array.data in frames else ()
        frames.setdefault(array.data, len(frames))
        head.append((name, array.dtype, tuple(array.shape), array.stype, *repeated))
    return json.dumps(head).encode() if head else b"", list(frames)


def read_aside(arrangement: Arrangement, said: Said, like: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Inverse of `said_aside`; WireError unless it is those that the model has, and they can be read. like: arrays as which
    they are to be packed."""
    head, frames = said
    try:
        told = json.loads(head) if head else []
        own = itertools.count()
        placed = [(*entry, next(own)) if len(entry) == 4 else tuple(entry) for entry in told]
        arrays = {
            name: Array(dtype, tuple(shape), stype, bytes(frames[at])) for name, dtype, shape, stype, at in placed if at >= 0
        }
        if next(own) != len(frames):
            raise ValueError
    except (ValueError, TypeError, IndexError, RecursionError):
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
