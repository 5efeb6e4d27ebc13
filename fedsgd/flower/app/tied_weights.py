"""Arrays of a record that are one tensor under several names: tied weights, or a module that is registered twice.

Flower's records hold copies, so neither the server nor the mod can compare storage. Values are compared instead, bit for bit.

- Equal and not constant in the first model: the names are taken for one tensor. Clones of a layer begin equal, too.
- Different in a reply: the names are separate tensors.
- Equal in a reply that changed them: the names are one tensor. Zeros and ones at the start are decided here.

A reply that contradicts the server's groups travels uncompressed, so no value rests on a wrong guess.
A group is a tuple of names; the values of a group are flat float32 vectors of one size.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsgd.errors import ModelError, ScenarioError
from fedsgd.numerics.arrays import F32

TiedGroups = tuple[tuple[str, ...], ...]
ValuesByName = Mapping[str, F32]
_PREFIX_LENGTH = 16
_MIN_DISTINCT_VALUES = 8
"""Distinct values from which on equal stretches of two changed arrays are no coincidence."""

_CONSEQUENCE = (
    "such replies travel uncompressed, and the next round begins anew, without what clients held back; "
    "CompressedStrategy(tied=tied_names(module)) says it from the start"
)


def sort_groups(groups: Iterable[Iterable[str]]) -> TiedGroups:
    """Return the groups in a canonical order, without those of a single name."""
    return tuple(sorted(tuple(sorted(group)) for group in map(set, groups) if len(group) > 1))


def is_bit_equal(a: F32, b: F32) -> bool:
    """Return True for values that are equal to the last bit."""
    return a.size == b.size and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def group_equal_values(values: ValuesByName) -> TiedGroups:
    """Group the names whose values are equal to the last bit."""
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
    """Group the names that are probably one tensor in a model that nobody has trained yet: equal, and not constant."""
    return tuple(group for group in group_equal_values(values) if not _is_constant(values[group[0]]))


def observe_groups(tied_groups: TiedGroups, before: ValuesByName, after: ValuesByName) -> TiedGroups:
    """Group the names that are one tensor as far as one reply shows.

    Args:
        tied: groups that the server assumes.
        before: the values that the app was given, by name.
        after: the values that the app replied with, by the same names.

    Returns:
        What is left of `tied_groups`, and the groups that training has changed to equal values. Values that no training
        changed, and
        constants of more than one number, add nothing.
    """
    tied_to = {name: group for group in tied_groups for name in group}
    found: list[list[str]] = []
    for names in group_equal_values(after):
        if _is_trained(names, before, after):
            found.append(list(names))
            continue
        parts: dict[tuple[str, ...], list[str]] = {}
        for name in names:
            parts.setdefault(tied_to.get(name, (name,)), []).append(name)
        found += parts.values()
    return sort_groups(found)


def find_partial_sharing(changed_arrays: Mapping[str, F32], exact_names: Collection[str]) -> str | None:
    """Describe the first array that is the transpose, or some rows, of a different one; None if there is none.

    Args:
        changed: the arrays that the training changed, in their shapes. Those of few distinct values are not compared.
        exact: names of arrays that travel as they are: two of these may share what they like.
    """
    for (a, x), (b, y) in itertools.permutations(changed_arrays.items(), 2):
        if not x.ndim or (a in exact_names and b in exact_names):
            continue
        if x.ndim == 2 and x.shape == y.shape[::-1] and x[0, -1] == y[-1, 0] and np.array_equal(x, y.T):
            how = "transposed"
        elif x.ndim == y.ndim and x.shape[1:] == y.shape[1:] and len(x) < len(y) and _has_rows(y, x):
            how = "in part"
        else:
            continue
        if not np.array_equal(x.reshape(-1), y.reshape(-1)) and len(np.unique(x)) >= _MIN_DISTINCT_VALUES:
            return f'"{a}" is "{b}" {how}'
    return None


@dataclass(eq=False)
class TieState:
    """Knowledge of a strategy about the names that are one tensor.

    Attributes:
        groups: the groups that the next message assumes.
        separate: pairs of names that differed in a reply. They are never grouped again.
    """

    groups: TiedGroups
    separate_pairs: set[frozenset[str]] = field(default_factory=set)

    def add_reply(self, tied_groups: TiedGroups, values: ValuesByName, reported_groups: Iterable[tuple[str, ...]]) -> None:
        """Take over what one uncompressed reply shows.

        Args:
            tied: groups that the message assumed.
            values: the values that the app replied with, by name.
            found: groups that the node reports.
        """
        for group in tied_groups:
            for a, b in itertools.combinations(group, 2):
                if not is_bit_equal(values[a], values[b]):
                    self.separate_pairs.add(frozenset((a, b)))
        self.groups = self._merge_groups((*self.groups, *reported_groups))

    def split_unequal(self, values: ValuesByName) -> None:
        """Split the groups whose values differ, for example because the caller changed the arrays."""
        self.groups = sort_groups(
            part for group in self.groups for part in group_equal_values({name: values[name] for name in group})
        )

    def _merge_groups(self, groups: TiedGroups) -> TiedGroups:
        """Return the unions of the groups that overlap, without the pairs that are separate."""
        unions: list[set[str]] = []
        for group in map(set, groups):
            overlapping = [union for union in unions if union & group]
            unions = [union for union in unions if not union & group] + [group.union(*overlapping)]
        parts: list[list[str]] = []
        for union in unions:
            own: list[list[str]] = []
            for name in sorted(union):
                free = (part for part in own if not any(frozenset((name, other)) in self.separate_pairs for other in part))
                part = next(free, None)
                if part is None:
                    own.append([name])
                else:
                    part.append(name)
            parts += own
        return sort_groups(parts)


def parse_tied_groups(tied: object) -> TiedGroups:
    """Return the setting `tied_groups` as groups. ScenarioError for anything but groups of names."""
    expected = 'expected groups of two names or more, like [("embed.weight", "head.weight")]'
    if isinstance(tied, str) or not isinstance(tied, Sequence):
        raise ScenarioError(f"tied: got {tied!r}, {expected}")
    for group in tied:
        names = [] if isinstance(group, str) or not isinstance(group, Sequence) else list(group)
        if len(set(names)) < 2 or not all(isinstance(name, str) for name in names):
            raise ScenarioError(f"tied: got {group!r}, {expected}")
    names = [name for group in tied for name in set(group)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ScenarioError(f'tied: got "{twice}" in two groups, expected one group of all names of a tensor')
    return sort_groups(tied)


def tied_names(module: Any) -> list[tuple[str, ...]]:
    """Return the names of a module's state dict that share one tensor, for `CompressedStrategy(tied=...)`.

    Args:
        module: a torch.nn.Module.

    Raises:
        ModelError: tensors share a part of their memory, or one is a different view of it, for example transposed.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> tied_names(torch.nn.Sequential(layer, torch.nn.ReLU(), layer))
    [('0.weight', '2.weight')]
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not hasattr(tensor, "data_ptr") or not tensor.numel():  # a module may put anything into its extra state
            continue
        reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        begin = tensor.data_ptr()
        view = None if tensor.is_contiguous() else (tuple(tensor.shape), tensor.stride())
        spans.append((begin, begin + reach * tensor.element_size(), name))
        groups.setdefault((*spans[-1][:2], tensor.dtype, view), []).append(name)
    of = {name: key for key, names in groups.items() for name in names}
    for (_, end, a), (begin, _, b) in itertools.pairwise(sorted(spans)):
        if begin < end and of[a] != of[b]:
            raise ModelError(
                f'"{a}" and "{b}" share memory and are not the same view of it: name both in CompressedStrategy(exact=...), '
                "or keep one parameter and derive the other one in forward()"
            )
    return [tuple(names) for names in groups.values() if len(names) > 1]


def describe_changes(before: TiedGroups, after: TiedGroups) -> dict[str, str]:
    """Return one sentence for pairs of names that a strategy has separated, and one for those that it has joined."""
    apart, tied = sort_groups(_list_pairs(before) - _list_pairs(after)), sort_groups(_list_pairs(after) - _list_pairs(before))
    changes = {}
    if apart:
        changes["apart"] = f"{describe_pair(apart)} were taken for one tensor and differ in a reply; {_CONSEQUENCE}"
    if tied:
        changes["tied"] = f"{describe_pair(tied)} were taken for two tensors and are one in a reply; {_CONSEQUENCE}"
    return changes


def describe_pair(groups: Sequence[Sequence[str]]) -> str:
    """Return the first two names of the first group for a message, and how many groups there are beyond it."""
    more = f" (and {len(groups) - 1} more)" if len(groups) > 1 else ""
    return f'"{groups[0][0]}" and "{groups[0][1]}"{more}'


def _list_pairs(groups: TiedGroups) -> set[tuple[str, ...]]:
    return {pair for group in groups for pair in itertools.combinations(group, 2)}


def _is_trained(names: Sequence[str], before: ValuesByName, after: ValuesByName) -> bool:
    value = after[names[0]]
    if value.size > 1 and _is_constant(value):
        return False
    return not all(is_bit_equal(before[name], after[name]) for name in names)


def _is_constant(value: F32) -> bool:
    return bool(np.all(value == value[0]))


def _has_rows(y: F32, x: F32) -> bool:
    """Return True if x is a run of rows of y. The first number of each row rules out almost all places."""
    first = y.reshape(len(y), -1)[: len(y) - len(x) + 1, 0] if x.size and y.size else ()
    places = np.flatnonzero(first == x.reshape(-1)[0]) if len(first) else ()
    return any(np.array_equal(y[at : at + len(x)], x) for at in places)
