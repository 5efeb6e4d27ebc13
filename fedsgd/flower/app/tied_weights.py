"""Detection of tied names: names of one tensor, through tied weights or a module that is registered twice.

Flower's records contain copies, so neither the server nor the mod can compare storage. Values are compared bit for bit.

- Arrays that are equal and not constant in the initial model are assumed to be one tensor, although clones of a layer are equal
  initially, too. A reply that contradicts the assumption is sent uncompressed, so a wrong assumption changes no value.
- Arrays that differ in a reply are separate tensors.
- Arrays that training changed to equal values are one tensor. This rule decides about initial zeros and ones.

A group is a tuple of names; the values of a group are flat float32 vectors of one size.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsgd.config.component import describe_value
from fedsgd.errors import ModelError, ScenarioError
from fedsgd.numerics.arrays import F32

TiedGroups = tuple[tuple[str, ...], ...]
ValuesByName = Mapping[str, F32]
_PREFIX_LENGTH = 16
_MIN_DISTINCT_VALUES = 8
"""Minimum number of distinct values for which equal parts of two changed arrays are not a coincidence."""

_CONSEQUENCE = (
    "such replies are sent uncompressed, and the next round starts a new session without the clients' residuals; "
    "CompressedStrategy(tied=tied_names(module)) avoids this"
)


def sort_groups(groups: Iterable[Iterable[str]]) -> TiedGroups:
    """Return the groups in canonical order, without groups of a single name."""
    return tuple(sorted(tuple(sorted(group)) for group in map(set, groups) if len(group) > 1))


def is_bit_equal(a: F32, b: F32) -> bool:
    """Return True for values that are equal bit for bit."""
    return a.size == b.size and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def group_equal_values(values: ValuesByName) -> TiedGroups:
    """Group the names whose values are equal bit for bit."""
    candidates: dict[tuple[int, bytes], list[str]] = {}
    for name, value in values.items():
        if value.size:
            candidates.setdefault((value.size, value[:_PREFIX_LENGTH].tobytes()), []).append(name)
    groups: dict[bytes, list[str]] = {}
    for names in candidates.values():
        for name in names if len(names) > 1 else ():
            groups.setdefault(values[name].tobytes(), []).append(name)
    return sort_groups(groups.values())


def guess_groups(values: ValuesByName) -> TiedGroups:
    """Group the names that are probably one tensor in an initial model: their values are equal and not constant."""
    return tuple(group for group in group_equal_values(values) if not _is_constant(values[group[0]]))


def observe_groups(tied_groups: TiedGroups, before: ValuesByName, after: ValuesByName) -> TiedGroups:
    """Return the groups of tied names that one reply shows.

    The result has the parts of `tied_groups` with equal values after training, and the groups that training changed to equal
    values. Unchanged values and constants of more than one number add no groups.

    >>> import numpy as np
    >>> before, after = np.zeros(2, np.float32), np.array([1, 2], np.float32)
    >>> observe_groups((), {"a": before, "b": before}, {"a": after, "b": after})
    (('a', 'b'),)
    """
    group_of_name = {name: group for group in tied_groups for name in group}
    observed_groups: list[list[str]] = []
    for names in group_equal_values(after):
        if _is_trained(names, before, after):
            observed_groups.append(list(names))
            continue
        parts: dict[tuple[str, ...], list[str]] = {}
        for name in names:
            parts.setdefault(group_of_name.get(name, (name,)), []).append(name)
        observed_groups += parts.values()
    return sort_groups(observed_groups)


def find_partial_sharing(changed_arrays: Mapping[str, F32], exact_names: Collection[str]) -> str | None:
    """Describe the first array that is the transpose, or a range of rows, of another array; None if there is no such array.

    Arrays of few distinct values do not count, and two exact arrays may share values.
    """
    for (a, x), (b, y) in itertools.permutations(changed_arrays.items(), 2):
        if not x.ndim or (a in exact_names and b in exact_names):
            continue
        if x.ndim == 2 and x.shape == y.shape[::-1] and x[0, -1] == y[-1, 0] and np.array_equal(x, y.T):
            relation = "the transpose of"
        elif x.ndim == y.ndim and x.shape[1:] == y.shape[1:] and len(x) < len(y) and _has_rows(y, x):
            relation = "a part of"
        else:
            continue
        if not np.array_equal(x.reshape(-1), y.reshape(-1)) and len(np.unique(x)) >= _MIN_DISTINCT_VALUES:
            return f'"{a}" is {relation} "{b}"'
    return None


@dataclass(eq=False)
class TieState:
    """Tied names that a strategy has detected.

    Attributes:
        groups: groups that the next message assumes.
        separate_pairs: pairs of names that differed in a reply. The two names of a pair are never grouped again.
    """

    groups: TiedGroups
    separate_pairs: set[frozenset[str]] = field(default_factory=set)

    def add_reply(self, tied_groups: TiedGroups, values: ValuesByName, reported_groups: Iterable[tuple[str, ...]]) -> None:
        """Update the groups from the values of an uncompressed reply to a message that assumed `tied_groups`."""
        for group in tied_groups:
            for a, b in itertools.combinations(group, 2):
                if not is_bit_equal(values[a], values[b]):
                    self.separate_pairs.add(frozenset((a, b)))
        self.groups = self._merge_groups((*self.groups, *reported_groups))

    def split_unequal(self, values: ValuesByName) -> None:
        """Split the groups with different values, for example after the caller changed the arrays."""
        self.groups = sort_groups(
            part for group in self.groups for part in group_equal_values({name: values[name] for name in group})
        )

    def _merge_groups(self, groups: TiedGroups) -> TiedGroups:
        """Return the unions of overlapping groups, split so that no group contains a separate pair."""
        unions: list[set[str]] = []
        for group in map(set, groups):
            overlapping = [union for union in unions if union & group]
            unions = [union for union in unions if not union & group] + [group.union(*overlapping)]
        parts: list[list[str]] = []
        for union in unions:
            union_parts: list[list[str]] = []
            for name in sorted(union):
                compatible_parts = (
                    part for part in union_parts if not any(frozenset((name, member)) in self.separate_pairs for member in part)
                )
                part = next(compatible_parts, None)
                if part is None:
                    union_parts.append([name])
                else:
                    part.append(name)
            parts += union_parts
        return sort_groups(parts)


def parse_tied_groups(tied: object) -> TiedGroups:
    """Return the setting `tied` as groups. ScenarioError for a value that is not a list of groups of names."""
    expected = 'expected groups of two or more names, like [("embed.weight", "head.weight")]'
    if isinstance(tied, str) or not isinstance(tied, Sequence):
        raise ScenarioError(f"tied: got {tied!r}, {expected}")
    for group in tied:
        names = [] if isinstance(group, str) or not isinstance(group, Sequence) else list(group)
        if len(set(names)) < 2 or not all(isinstance(name, str) for name in names):
            raise ScenarioError(f"tied: got {group!r}, {expected}")
    names = [name for group in tied for name in set(group)]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise ScenarioError(f'tied: got "{duplicate}" in two groups, expected one group with all names of a tensor')
    return sort_groups(tied)


def tied_names(module: Any) -> list[tuple[str, ...]]:
    """Return the names of a module's state dict that share one tensor, for `CompressedStrategy(tied=...)`.

    Args:
        module: a `torch.nn.Module`.

    Raises:
        ModelError: the argument is no module, or two tensors share memory with different views, for example a part or the
            transpose.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> tied_names(torch.nn.Sequential(layer, torch.nn.ReLU(), layer))
    [('0.weight', '2.weight')]
    """
    if not hasattr(module, "state_dict"):
        raise ModelError(f"module: got {describe_value(module)}, expected an instance of torch.nn.Module")
    groups: dict[tuple[object, ...], list[str]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not hasattr(tensor, "data_ptr") or not tensor.numel():  # a module's extra state may contain any object
            continue
        reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        begin = tensor.data_ptr()
        view = None if tensor.is_contiguous() else (tuple(tensor.shape), tensor.stride())
        spans.append((begin, begin + reach * tensor.element_size(), name))
        groups.setdefault((*spans[-1][:2], tensor.dtype, view), []).append(name)
    view_of_name = {name: key for key, names in groups.items() for name in names}
    for (_, end, a), (begin, _, b) in itertools.pairwise(sorted(spans)):
        if begin < end and view_of_name[a] != view_of_name[b]:
            raise ModelError(
                f'"{a}" and "{b}" share memory with different views: put both names into CompressedStrategy(exact=[...]), or '
                "keep one parameter and compute the other in forward()"
            )
    return [tuple(names) for names in groups.values() if len(names) > 1]


def describe_changes(before: TiedGroups, after: TiedGroups) -> dict[str, str]:
    """Return warnings about a change of the groups: "apart" for separated pairs of names, "tied" for joined pairs."""
    before_pairs, after_pairs = _list_pairs(before), _list_pairs(after)
    changes = {}
    if pairs := sort_groups(before_pairs - after_pairs):
        changes["apart"] = f"{describe_pair(pairs)} were assumed to be one tensor and differ in a reply; {_CONSEQUENCE}"
    if pairs := sort_groups(after_pairs - before_pairs):
        changes["tied"] = f"{describe_pair(pairs)} were assumed to be two tensors and are one tensor in a reply; {_CONSEQUENCE}"
    return changes


def describe_pair(groups: Sequence[Sequence[str]]) -> str:
    """Return the first two names of the first group for a message, and the number of the other groups."""
    more = f" (and {len(groups) - 1} more)" if len(groups) > 1 else ""
    return f'"{groups[0][0]}" and "{groups[0][1]}"{more}'


def _list_pairs(groups: TiedGroups) -> set[tuple[str, ...]]:
    return {pair for group in groups for pair in itertools.combinations(group, 2)}


def _is_trained(names: Sequence[str], before: ValuesByName, after: ValuesByName) -> bool:
    """Return True if training changed at least one of these arrays, and the common value is one number or not constant."""
    value = after[names[0]]
    if value.size > 1 and _is_constant(value):
        return False
    return not all(is_bit_equal(before[name], after[name]) for name in names)


def _is_constant(value: F32) -> bool:
    return bool(np.all(value == value[0]))


def _has_rows(y: F32, x: F32) -> bool:
    """Return True if x is a range of rows of y. The first number of each row excludes almost all ranges quickly."""
    first_column = y.reshape(len(y), -1)[: len(y) - len(x) + 1, 0] if x.size and y.size else ()
    starts = np.flatnonzero(first_column == x.reshape(-1)[0]) if len(first_column) else ()
    return any(np.array_equal(y[start : start + len(x)], x) for start in starts)
