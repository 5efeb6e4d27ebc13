"""Conversion between an app's record of named arrays and the one vector [P] that compressors need.

- The vector has the arrays of float16, float32 and float64, as float32 and concatenated in the record's order. An app gets each
  array in the array's own type; a float64 is rounded to the 24 bits of a float32.
- Exact arrays are sent bit for bit, not in the vector: integers, complex numbers, arrays in other packings than numpy's, arrays
  that are not finite as float32, the running statistics of batch norms, and arrays whose names match a pattern of the setting
  `exact`.
- A tensor with several names is in the vector once, at the place of its first name. The tensor's value is the value of the last
  name, because a torch module loads the last name last.
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

from fedsgd.config.component import describe_value
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

BATCH_NORM_PATTERNS = ("*running_mean", "*running_var", "*num_batches_tracked")
"""Names of the running statistics of batch norms."""


@dataclass(frozen=True)
class ArrayLayout:
    """Names, shapes and types of a model's arrays, and the place of each array in the vector [P].

    Attributes:
        names: names of all arrays, in the record's order.
        shapes: shape of each array.
        exact: True for each array that is not in the vector.
        tied_groups: groups of names that are one tensor each, in the record's order.
        dtypes: name and numpy's type name of each array in the vector that is not float32.

    >>> import numpy as np
    >>> from flwr.app import Array
    >>> arrays = {"weight": Array(np.ones((2, 3), np.float32)), "steps": Array(np.array([7]))}
    >>> array_layout = build_array_layout(arrays, exact_patterns=[])
    >>> array_layout.layout.size, array_layout.exact
    (6, (False, True))
    >>> array_layout.to_vector(arrays)
    array([1., 1., 1., 1., 1., 1.], dtype=float32)
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    exact: tuple[bool, ...]
    tied_groups: TiedGroups = ()
    dtypes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        sizes = {name: math.prod(shape) for name, shape, exact in self._entries if not exact}
        tied = [name for group in self.tied_groups for name in group]
        group_sizes = [{sizes.get(name) for name in group} for group in self.tied_groups]
        if len(set(tied)) != len(tied) or any(len(group) != 1 or None in group for group in group_sizes):
            raise ModelError(f"got the tied names {tied}, expected each name once, and arrays of one size in each group")
        for name, dtype in self.dtypes:
            if name not in sizes or not is_float_type(dtype):
                raise ModelError(f'got the type "{dtype}" for "{name}", expected an array of float16, float32 or float64')

    @cached_property
    def layout(self) -> ParameterLayout:
        """Names and shapes of the arrays in the vector [P], each tensor under its first name."""
        shapes = {name: shape for name, shape, exact in self._entries if not exact and self._first_name.get(name, name) == name}
        return ParameterLayout(tuple(shapes), tuple(shapes.values()))

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        """Slice of the vector [P] for each name that is not exact."""
        slices = {name: part for name, part, _ in self.layout.list_slices()}
        return {name: slices[self._first_name.get(name, name)] for name, _, exact in self._entries if not exact}

    @cached_property
    def exact_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each exact array, by name."""
        return {name: shape for name, shape, exact in self._entries if exact}

    @cached_property
    def shape_by_name(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each array, by name."""
        return dict(zip(self.names, self.shapes, strict=True))

    @cached_property
    def dtype_by_name(self) -> Mapping[str, str]:
        """Numpy's type name of each array in the vector that is not float32, by name."""
        return dict(self.dtypes)

    @cached_property
    def _first_name(self) -> Mapping[str, str]:
        return {name: group[0] for group in self.tied_groups for name in group}

    @property
    def _entries(self) -> Iterable[tuple[str, tuple[int, ...], bool]]:
        return zip(self.names, self.shapes, self.exact, strict=True)

    def find_mismatch(self, arrays: Mapping[str, Array]) -> str | None:
        """Return the first difference from the model in names, shapes or kinds, as "got ..."; None if all agree.

        Types of floats may differ, and so may types of exact arrays.
        """
        for name in arrays:
            if name not in self.shape_by_name:
                return f'got an array "{name}", which the model does not have{suggest_name(name, self.names)}'
        for name, shape, exact in self._entries:
            if name not in arrays:
                return f'got no array "{name}", expected one of shape {shape}'
            array = arrays[name]
            if tuple(array.shape) != shape:
                return f'got "{name}" of shape {tuple(array.shape)}, expected {shape}'
            if not exact and not is_float(array):
                return f'got "{name}" of type {array.dtype}, expected float16, float32 or float64'
        return None

    def to_vector(self, arrays: Mapping[str, Array]) -> F32:
        """Return the vector [P] of a model's arrays, rounded to float32. ModelError for the arrays of another model."""
        problem = self.find_mismatch(arrays)
        if problem is not None:
            raise ModelError(problem)
        return self.fill_vector(np.empty(self.layout.size, dtype=np.float32), arrays)

    def fill_vector(self, vector: F32, arrays: Mapping[str, Array]) -> F32:
        """Write some or all arrays of the model into a vector [P] and return the vector."""
        for name, part in self.slices.items():
            if name in arrays:
                vector[part] = flatten_values(arrays[name])
        return vector

    def round_to_dtypes(self, vector: F32) -> F32:
        """Return the vector [P] with the values of float16 arrays rounded to float16, as an app gets them."""
        half_dtypes = [(name, np.dtype(dtype)) for name, dtype in self.dtypes if np.dtype(dtype).itemsize < 4]
        if half_dtypes:
            vector = vector.copy()
            with np.errstate(over="ignore"):
                for name, dtype in half_dtypes:
                    vector[self.slices[name]] = vector[self.slices[name]].astype(dtype)
        return vector

    def to_record(self, vector: F32, exact_arrays: Mapping[str, Array], missing_names: Collection[str] = ()) -> ArrayRecord:
        """Return a record of the model's arrays from the vector [P] and the exact arrays, without the missing names."""
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
        """Return the layout of the same model with other types of floats, by name."""
        dtypes = {**self.dtype_by_name, **dtypes}
        return replace(self, dtypes=tuple((name, dtypes[name]) for name in self.names if dtypes.get(name, FLOAT32) != FLOAT32))

    def find_dtype_changes(self, arrays: Mapping[str, Array]) -> dict[str, str]:
        """Return the types of arrays in the vector that differ from the model's types, by name."""
        dtypes = {name: arrays[name].dtype for name in self.slices if name in arrays}
        return {name: dtype for name, dtype in dtypes.items() if dtype != self.dtype_by_name.get(name, FLOAT32)}

    def flatten_arrays(self, arrays: Mapping[str, Array]) -> dict[str, F32]:
        """Return the flat values of each array of floats, exact or not, rounded to float32, by name."""
        return {name: flatten_values(arrays[name]) for name in self.names if name in arrays and is_float(arrays[name])}

    def find_unequal_groups(self, arrays: ArrayRecord) -> TiedGroups:
        """Return the tied groups whose names have different values in a record."""
        values = {name: flatten_values(arrays[name]) for name in self._first_name}
        return tuple(
            group for group in self.tied_groups if any(not is_bit_equal(values[group[0]], values[name]) for name in group)
        )


@dataclass(frozen=True, eq=False)
class ReplyArrays:
    """Arrays of a reply. Flower's strategies accept replies with fewer or more arrays than the model, or with other shapes.

    Attributes:
        model_arrays: arrays with a name, shape and packing of the model; arrays that are not exact are compressed.
        other_arrays: arrays with another name, shape or packing, or outside float32's range; these are sent uncompressed.
        missing_names: names of the model's arrays that are not in `model_arrays`, in the model's order.
    """

    model_arrays: Mapping[str, Array]
    other_arrays: Mapping[str, Array]
    missing_names: tuple[str, ...]

    def compute_missing_mask(self, array_layout: ArrayLayout) -> BoolArray:
        """Return [P] bool, True for the coordinates of tensors that the reply has under none of their names."""
        mask = np.ones(array_layout.layout.size, dtype=np.bool_)
        for name in self.model_arrays:
            if name in array_layout.slices:
                mask[array_layout.slices[name]] = False
        return mask

    @staticmethod
    def from_reply(array_layout: ArrayLayout, arrays: Mapping[str, Array], exact_arrays: Mapping[str, Array]) -> ReplyArrays:
        """Separate a reply's arrays of the model from other arrays. The app received the exact arrays `exact_arrays`."""
        model_arrays = {
            name: array for name, array in arrays.items() if _is_model_array(array_layout, name, array, exact_arrays.get(name))
        }
        other_arrays = {name: array for name, array in arrays.items() if name not in model_arrays}
        missing_names = tuple(name for name in array_layout.names if name not in model_arrays)
        return ReplyArrays(model_arrays, other_arrays, missing_names)


def _is_model_array(array_layout: ArrayLayout, name: str, array: Array, exact_array: Array | None) -> bool:
    """Return True if an array has the shape and packing of the model's array, and is in float32's range if not exact.

    `exact_array` is the model's array if the array is exact, None otherwise.
    """
    if tuple(array.shape) != array_layout.shape_by_name.get(name):
        return False
    if exact_array is None:
        return is_float(array) and not has_float32_overflow(array)
    return array.stype == exact_array.stype and (
        array.stype != NUMPY_STYPE or read_packed_shape(array, exact_array.dtype) == tuple(exact_array.shape)
    )


def parse_exact_patterns(exact: object) -> tuple[str, ...]:
    """Return the patterns of exact arrays: those of the setting `exact`, and those of batch norm's statistics.

    A lossy compressor can make a running variance negative.

    Raises:
        ScenarioError: the setting is not a list of texts.
    """
    if isinstance(exact, str) or not isinstance(exact, Sequence) or not all(isinstance(pattern, str) for pattern in exact):
        raise ScenarioError(f'exact: got {describe_value(exact)}, expected a list of patterns of names, like ["*.mask"]')
    return (*BATCH_NORM_PATTERNS, *exact)


def build_array_layout(
    arrays: Mapping[str, Array], exact_patterns: Sequence[str], tied_groups: TiedGroups = ()
) -> ArrayLayout | None:
    """Return the layout of a model; None if the model has no number that can be compressed.

    `exact_patterns` match as in a shell ("*running_mean"). A tensor that is exact under one name is exact under all names.
    """
    exact = {name: is_exact(name, array, exact_patterns) for name, array in arrays.items()}
    for group in tied_groups:
        exact.update(dict.fromkeys(group, any(exact[name] for name in group)))
    if not any(math.prod(array.shape) for name, array in arrays.items() if not exact[name]):
        return None
    order = {name: i for i, name in enumerate(arrays)}
    groups = sorted(
        (tuple(sorted(group, key=order.__getitem__)) for group in tied_groups if not exact[group[0]]), key=lambda g: order[g[0]]
    )
    shapes = tuple(tuple(array.shape) for array in arrays.values())
    dtypes = {name: array.dtype for name, array in arrays.items() if not exact[name]}
    return ArrayLayout(tuple(arrays), shapes, tuple(exact.values()), tuple(groups)).with_dtypes(dtypes)


def is_exact(name: str, array: Array, exact_patterns: Sequence[str]) -> bool:
    """Return True for an array that is sent bit for bit and not in the vector."""
    return not is_compressible(array) or any(fnmatchcase(name, pattern) for pattern in exact_patterns)


def guess_ties(arrays: ArrayRecord, exact_patterns: Sequence[str]) -> TiedGroups:
    """Return the groups of names that are probably one tensor each in an initial model, without exact arrays."""
    return guess_groups(
        {name: flatten_values(array) for name, array in arrays.items() if not is_exact(name, array, exact_patterns)}
    )


def resolve_tied_groups(groups: TiedGroups, arrays: Mapping[str, Array]) -> TiedGroups:
    """Check the setting `tied` for a model, and return its groups of float arrays in canonical order."""
    float_groups = []
    for group in groups:
        for name in group:
            if name not in arrays:
                raise ScenarioError(f'tied: got "{name}", which the model does not have{suggest_name(name, arrays)}')
        if not all(is_float(arrays[name]) for name in group):
            continue  # exact arrays need no group: equal bytes are sent once
        for name in group[1:]:
            if not is_bit_equal(flatten_values(arrays[group[0]]), flatten_values(arrays[name])):
                names = f'"{group[0]}" and "{name}"'
                raise ScenarioError(f"tied: got {names}, whose initial values differ, expected equal values")
        float_groups.append(group)
    return sort_groups(float_groups)


def describe_dtypes(array_layout: ArrayLayout) -> str:
    """Return the number of arrays of each type in the vector other than float32, with a note where values are rounded."""
    counts = Counter(dtype for _, dtype in array_layout.dtypes)
    notes = {dtype: " (rounded to 24 bits)" if np.dtype(dtype).itemsize > 4 else "" for dtype in counts}
    return ", ".join(f"{n} arrays of {dtype}{notes[dtype]}" for dtype, n in counts.items())


def describe_exact_arrays(arrays: Mapping[str, Array], names: Collection[str]) -> str:
    """Return the names and types of the first five arrays, and the name of the first array that is not finite."""
    labels = [f'"{name}" of {arrays[name].dtype}' for name in itertools.islice(names, 5)]
    nonfinite_names = (name for name in names if is_float(arrays[name]) and not all_finite(flatten_values(arrays[name])))
    name = next(nonfinite_names, None)
    return ", ".join(labels) + ("" if name is None else f'; "{name}" is not finite')
