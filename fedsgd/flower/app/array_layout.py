"""The model of somebody's Flower app in two forms: a record of named arrays, as the app has it, and one vector, as compressors
have it.

- The vector [P] holds the arrays of float16, float32 and float64 in float32, one after the other in the record's order.
- An app gets each array in its own type. A float64 number is rounded to the 24 bits of a float32 on its way.
- All other arrays (integers, complex numbers, other packings), arrays that are not finite, and those that are named to be exact
  travel apart from the vector, bit for bit.
- A tensor with several names is in the vector once, where its first name stands. Its value is that of its last name, which a
  module loads last.
- A reply may lack arrays of the model, and have others: see `ReplyArrays`.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
from flwr.app import Array, ArrayRecord

from fedsgd.errors import ModelError, ScenarioError, suggest_name
from fedsgd.flower.app.arrays import (
    FLOAT32,
    NUMPY_STYPE,
    flatten_values,
    has_float32_overflow,
    is_compressible,
    is_float,
    is_float_type,
    make_array,
    read_packed_shape,
)
from fedsgd.flower.app.tied_weights import TiedGroups, guess_groups, is_bit_equal, sort_groups
from fedsgd.numerics.arrays import F32, BoolArray
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import all_finite


@dataclass(frozen=True)
class ArrayLayout:
    """Arrays of a model: which of them are in the vector, and in which order.

    Attributes:
        names: names of all arrays, in the record's order.
        shapes: their shapes.
        exact: True for each array that is not in the vector.
        tied: groups of names, in the record's order, that are one tensor.
        types: name and type of each array in the vector that is not a float32, as numpy spells it.

    Raises:
        ModelError: a group is not one tensor, or a type is not one of floats.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    exact: tuple[bool, ...]
    tied_groups: TiedGroups = ()
    dtypes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        sizes = {name: math.prod(shape) for name, shape, exact in self._entries if not exact}
        tied = [name for group in self.tied_groups for name in group]
        found = [{sizes.get(name) for name in group} for group in self.tied_groups]
        if len(set(tied)) != len(tied) or any(len(size) != 1 or None in size for size in found):
            raise ModelError(f"got the names {tied} for tensors, expected arrays of one size, each in one group")
        for name, dtype in self.dtypes:
            if name not in sizes or not is_float_type(dtype):
                raise ModelError(f'got the type "{dtype}" for "{name}", expected a type of floats and an array of the vector')

    @cached_property
    def layout(self) -> ParameterLayout:
        """The vector [P]."""
        flat = [(name, shape) for name, shape, exact in self._entries if not exact and self._first_name.get(name, name) == name]
        return ParameterLayout(tuple(name for name, _ in flat), tuple(shape for _, shape in flat))

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        """The stretch of the vector for each name that is not exact."""
        own = {name: part for name, part, _ in self.layout.list_slices()}
        return {name: own[self._first_name.get(name, name)] for name, _, exact in self._entries if not exact}

    @cached_property
    def exact_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The exact arrays' shapes, by name."""
        return {name: shape for name, shape, exact in self._entries if exact}

    @cached_property
    def shape_by_name(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each array, by name."""
        return dict(zip(self.names, self.shapes, strict=True))

    @cached_property
    def dtype_by_name(self) -> Mapping[str, str]:
        """The type of each array in the vector that is not a float32, by name."""
        return dict(self.dtypes)

    @cached_property
    def _first_name(self) -> Mapping[str, str]:
        return {name: group[0] for group in self.tied_groups for name in group}

    @property
    def _entries(self) -> Iterable[tuple[str, tuple[int, ...], bool]]:
        return zip(self.names, self.shapes, self.exact, strict=True)

    def find_mismatch(self, arrays: Mapping[str, Array]) -> str | None:
        """Return what was got and expected where arrays are not other values of this model; None if they are.

        Types of floats may differ, and so may types of exact arrays.
        """
        for name in arrays:
            if name not in self.shape_by_name:
                return f'got an array "{name}", which the model does not have{suggest_name(name, self.names)}'
        for name, shape, exact in self._entries:
            if name not in arrays:
                return f'got no array "{name}", expected one of shape {shape}'
            got = arrays[name]
            if tuple(got.shape) != shape:
                return f'got "{name}" of shape {tuple(got.shape)}, expected {shape}'
            if not exact and not is_float(got):
                return f'got "{name}" of type {got.dtype}, expected a type of floats'
        return None

    def to_vector(self, arrays: Mapping[str, Array]) -> F32:
        """Return the vector [P] of such arrays, rounded to float32.

        Raises:
            ModelError: they are the arrays of another model.
        """
        problem = self.find_mismatch(arrays)
        if problem is not None:
            raise ModelError(problem)
        return self.fill_vector(np.empty(self.layout.size, dtype=np.float32), arrays)

    def fill_vector(self, vector: F32, arrays: Mapping[str, Array]) -> F32:
        """Write arrays of the model, all or some, into a vector [P] and return it. Of a tensor's names, the last one counts."""
        for name, part in self.slices.items():
            if name in arrays:
                vector[part] = flatten_values(arrays[name])
        return vector

    def round_to_dtypes(self, vector: F32) -> F32:
        """Return the vector [P] as an app gets it: with the numbers of narrower types rounded to them."""
        narrow = [(name, np.dtype(dtype)) for name, dtype in self.dtypes if np.dtype(dtype).itemsize < 4]
        if narrow:
            vector = vector.copy()
            with np.errstate(over="ignore"):
                for name, dtype in narrow:
                    vector[self.slices[name]] = vector[self.slices[name]].astype(dtype)
        return vector

    def to_record(self, vector: F32, exact_arrays: Mapping[str, Array], missing_names: Collection[str] = ()) -> ArrayRecord:
        """Inverse of `to_vector`.

        Args:
            vector: [P] float32.
            aside: the exact arrays, by name.
            lacks: names of arrays to leave out.
        """
        return ArrayRecord(
            {
                name: exact_arrays[name]
                if exact
                else make_array(vector[self.slices[name]], shape, self.dtype_by_name.get(name))
                for name, shape, exact in self._entries
                if name not in missing_names
            }
        )

    def with_dtypes(self, dtypes: Mapping[str, str]) -> ArrayLayout:
        """Return the same model with other types of floats, by name."""
        known = {**self.dtype_by_name, **dtypes}
        return replace(self, dtypes=tuple((name, known[name]) for name in self.names if known.get(name, FLOAT32) != FLOAT32))

    def find_dtype_changes(self, arrays: Mapping[str, Array]) -> dict[str, str]:
        """Return the types of those arrays in the vector that differ from the model's, by name."""
        own = {name: arrays[name].dtype for name in self.slices if name in arrays}
        return {name: dtype for name, dtype in own.items() if dtype != self.dtype_by_name.get(name, FLOAT32)}

    def flatten_arrays(self, arrays: Mapping[str, Array]) -> dict[str, F32]:
        """Return the flat values of each array of floats, exact or not, rounded to float32, by name."""
        return {name: flatten_values(arrays[name]) for name in self.names if name in arrays and is_float(arrays[name])}

    def find_unequal_groups(self, arrays: ArrayRecord) -> TiedGroups:
        """The groups of names under which a record has different values."""
        values = {name: flatten_values(arrays[name]) for name in self._first_name}
        return tuple(
            group for group in self.tied_groups if any(not is_bit_equal(values[group[0]], values[name]) for name in group)
        )


@dataclass(frozen=True, eq=False)
class ReplyArrays:
    """Arrays of a reply, as plain Flower would average them: perhaps fewer than the model's, more, or of other shapes.

    Attributes:
        fitting: arrays that are other values of arrays of the model.
        others: arrays that travel as they are: names, shapes or packings that the model does not have.
        lacks: names of the model's arrays that are not in `model_arrays`, in the model's order.
    """

    model_arrays: Mapping[str, Array]
    other_arrays: Mapping[str, Array]
    missing_names: tuple[str, ...]

    def compute_missing_mask(self, array_layout: ArrayLayout) -> BoolArray:
        """Return True [P] for the coordinates of tensors that are in the reply under none of their names."""
        missing = np.ones(array_layout.layout.size, dtype=np.bool_)
        for name in self.model_arrays:
            if name in array_layout.slices:
                missing[array_layout.slices[name]] = False
        return missing

    @staticmethod
    def from_reply(array_layout: ArrayLayout, arrays: Mapping[str, Array], exact_arrays: Mapping[str, Array]) -> ReplyArrays:
        """Return the arrays of a reply, sorted. aside: the exact arrays that the app was given."""
        fitting = {
            name: array for name, array in arrays.items() if _is_model_array(array_layout, name, array, exact_arrays.get(name))
        }
        others = {name: array for name, array in arrays.items() if name not in fitting}
        return ReplyArrays(fitting, others, tuple(name for name in array_layout.names if name not in fitting))


def _is_model_array(array_layout: ArrayLayout, name: str, array: Array, exact_array: Array | None) -> bool:
    """Return True for another value of the array of this name. given: the model's array if it is exact."""
    if tuple(array.shape) != array_layout.shape_by_name.get(name):
        return False
    if exact_array is None:
        return is_float(array) and not has_float32_overflow(array)
    return array.stype == exact_array.stype and (
        array.stype != NUMPY_STYPE or read_packed_shape(array, exact_array.dtype) == tuple(exact_array.shape)
    )


def build_array_layout(
    arrays: Mapping[str, Array], exact_patterns: Sequence[str], tied_groups: TiedGroups = ()
) -> ArrayLayout | None:
    """Return the arrangement of a model in transit, or None for a model without a number that can be compressed.

    Args:
        arrays: the model.
        exact: patterns of names, as in shells.
        tied: groups of names that are one tensor each. A tensor that is exact under one name is exact under all.
    """
    kept = {name: is_exact(name, array, exact_patterns) for name, array in arrays.items()}
    for group in tied_groups:
        kept.update(dict.fromkeys(group, any(kept[name] for name in group)))
    if not any(math.prod(array.shape) for name, array in arrays.items() if not kept[name]):
        return None
    order = {name: i for i, name in enumerate(arrays)}
    groups = sorted(
        (tuple(sorted(group, key=order.__getitem__)) for group in tied_groups if not kept[group[0]]), key=lambda g: order[g[0]]
    )
    shapes = tuple(tuple(array.shape) for array in arrays.values())
    types = {name: array.dtype for name, array in arrays.items() if not kept[name]}
    return ArrayLayout(tuple(arrays), shapes, tuple(kept.values()), tuple(groups)).with_dtypes(types)


def is_exact(name: str, array: Array, exact_patterns: Sequence[str]) -> bool:
    """Return True for an array that does not go into the vector."""
    return not is_compressible(array) or any(fnmatchcase(name, pattern) for pattern in exact_patterns)


def guess_ties(arrays: ArrayRecord, exact_patterns: Sequence[str]) -> TiedGroups:
    """Return the groups of names that are probably one tensor each in a first model, among the arrays that are compressed."""
    return guess_groups(
        {name: flatten_values(array) for name, array in arrays.items() if not is_exact(name, array, exact_patterns)}
    )


def resolve_tied_groups(groups: TiedGroups, arrays: Mapping[str, Array]) -> TiedGroups:
    """Return the groups of the setting `tied_groups` as the model has them, without arrays that are not floats.

    Raises:
        ScenarioError: the model has no such array, or the arrays of a group have different values.
    """
    found = []
    for group in groups:
        for name in group:
            if name not in arrays:
                raise ScenarioError(f'tied: got "{name}", which the model does not have{suggest_name(name, arrays)}')
        if not all(is_float(arrays[name]) for name in group):
            continue  # exact arrays need no group: equal bytes are sent once
        for name in group[1:]:
            if not is_bit_equal(flatten_values(arrays[group[0]]), flatten_values(arrays[name])):
                names = f'"{group[0]}" and "{name}"'
                raise ScenarioError(f"tied: got {names}, which differ in the model at the start, expected the same values")
        found.append(group)
    return sort_groups(found)


def describe_dtypes(array_layout: ArrayLayout) -> str:
    """Return how many arrays of the vector have each type that is not float32, and whether a type is rounded."""
    counts = Counter(dtype for _, dtype in array_layout.dtypes)
    rounded = {dtype: " (rounded to 24 bits)" if np.dtype(dtype).itemsize > 4 else "" for dtype in counts}
    return ", ".join(f"{n} arrays of {dtype}{rounded[dtype]}" for dtype, n in counts.items())


def describe_exact_arrays(arrays: Mapping[str, Array], names: Collection[str]) -> str:
    """Return the first of some arrays, each with its type, or with the fact that it is not finite."""
    shown = [f'"{name}" of {arrays[name].dtype}' for name in itertools.islice(names, 5)]
    infinite = [name for name in names if is_float(arrays[name]) and not all_finite(flatten_values(arrays[name]))]
    return ", ".join(shown) + (f'; "{infinite[0]}" is not finite' if infinite else "")
