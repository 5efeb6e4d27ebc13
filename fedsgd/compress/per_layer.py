"""Another compressor for each kind of tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F32
from fedsgd.component import Checked, FieldError
from fedsgd.compress.base import Context, Kind, Operator
from fedsgd.compress.run_config import RunConfig
from fedsgd.compress.topk import TopK
from fedsgd.compress.update import Sparse, Update
from fedsgd.errors import WireError, did_you_mean, within
from fedsgd.layout import Layout
from fedsgd.rng import shared_key
from fedsgd.wire import Part, Section, Sections
from fedsgd.wire.bits import pack_varint, unpack_varint

MOST_SECTIONS = 8
"""Of one group; more is no operator's."""


def _treats_one_vector(operator: type[Operator]) -> bool:
    """Return whether operators of this class may be nested in `PerLayer`."""
    return not issubclass(operator, PerLayer)


@dataclass(frozen=True)
class Rule(Checked):
    """The operator for tensors whose name matches a pattern as in a shell: `fc*.weight`."""

    pattern: str
    op: Operator = field(metadata={"accepts": _treats_one_vector})


@dataclass(frozen=True)
class Group:
    """Tensors that one operator treats as one vector. parts: their stretches, ascending; layout: theirs alone."""

    op: Operator
    parts: tuple[slice, ...]
    layout: Layout

    def gather(self, x: F32) -> F32:
        """Their coordinates [n]. x: [P]."""
        return np.concatenate([x[part] for part in self.parts])


@dataclass(frozen=True)
class PerLayer(Operator):
    """An operator for each group of tensors: by rules on their names, for those with one dimension, and for all others.

    rules: the first whose pattern matches a tensor's name decides. biases: for tensors with at most one dimension that no rule
    matches; unset, they go with the others. op: for all others. The tensors of a rule are one vector, so a density is a share
    of all of them; separate: each tensor is a vector of its own, with its own k and its own scale, as in papers that work per
    layer. Published figures rarely say which, and it matters: k largest of all gives most to the layers that move most.

    It is unbiased or contractive where all its operators are (float32 dense goes with either), with the least δ of theirs. A
    rule that matches no tensor of the model is an error. Each group has its own shared
    randomness. The sections of all groups stand one behind the other in one section for each part; a MANIFEST says which is
    whose, in about 5 bytes a group.
    """

    name: ClassVar[str] = "per-layer"
    codec: ClassVar[int] = 13

    op: Operator = field(default=TopK(), metadata={"accepts": _treats_one_vector})
    biases: Operator | None = field(default=None, metadata={"accepts": _treats_one_vector})
    rules: tuple[Rule, ...] = ()
    separate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(isinstance(op, PerLayer) for op in self._operators()):
            raise FieldError(self.name, "op", "an operator for each layer cannot be one for each layer itself; use more rules")

    @property
    def kind(self) -> Kind:
        kinds = {op.kind for op in self._operators() if not op.exact} or {self.op.kind}
        return kinds.pop() if len(kinds) == 1 else "neither"

    @property
    def deterministic(self) -> bool:
        return all(op.deterministic for op in self._operators())

    @property
    def even(self) -> bool:
        return not (self.biases or self.rules or self.separate) and self.op.even

    @property
    def independent(self) -> bool:
        return all(op.independent for op in self._operators())

    def groups(self, layout: Layout) -> list[Group]:
        """The groups of a model, in the order of their first tensors."""
        members: dict[tuple[int, int], list[int]] = {}
        chosen: dict[tuple[int, int], Operator] = {}
        for i, (name, shape) in enumerate(zip(layout.names, layout.shapes, strict=True)):
            number, op = self._choice(name, len(shape))
            key = (number, i if self.separate else -1)
            if layout.offsets[i] < layout.offsets[i + 1]:
                members.setdefault(key, []).append(i)
                chosen[key] = op
        return [
            Group(
                chosen[key],
                tuple(slice(layout.offsets[i], layout.offsets[i + 1]) for i in tensors),
                Layout(tuple(layout.names[i] for i in tensors), tuple(layout.shapes[i] for i in tensors)),
            )
            for key, tensors in members.items()
        ]

    def encode(self, x: F32, ctx: Context) -> tuple[Sections, Update]:
        groups = self.groups(ctx.layout)
        made = [g.op.encode(g.gather(x), _within_group(ctx, i, g)) for i, g in enumerate(groups)]
        update = Joined(tuple(groups), tuple(part for _, part in made), len(x))
        return _merge([sections for sections, _ in made]), update

    def decode(self, sections: Sections, ctx: Context) -> Update:
        groups = self.groups(ctx.layout)
        split = _split(sections, len(groups))
        updates = [g.op.decode(s, _within_group(ctx, i, g)) for i, (g, s) in enumerate(zip(groups, split, strict=True))]
        return Joined(tuple(groups), tuple(updates), ctx.layout.size)

    def max_bytes(self, layout: Layout) -> int:
        return sum(group.op.max_bytes(group.layout) + 1 + 6 * MOST_SECTIONS for group in self.groups(layout))

    def contraction(self, layout: Layout) -> float:
        return min(group.op.contraction(group.layout) for group in self.groups(layout))

    def floor(self, layout: Layout) -> float:
        return sum(group.op.floor(group.layout) for group in self.groups(layout))

    def check_layout(self, layout: Layout) -> None:
        for rule in self.rules:
            if not any(fnmatchcase(name, rule.pattern) for name in layout.names):
                known = did_you_mean(rule.pattern, layout.names)
                raise FieldError(self.name, "rules", f'pattern "{rule.pattern}" matches no tensor of the model{known}')

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Return the warnings of each group's operator, on the group's own tensors."""
        places = [(self.op, "op"), (self.biases, "biases"), *((rule.op, f"rules[{i}].op") for i, rule in enumerate(self.rules))]
        for group in self.groups(run.layout):
            place = next(place for op, place in places if op is group.op)
            yield from group.op.find_warnings(replace(run, key=f"{run.key}.{place}", layout=group.layout))

    def kept(self, sections: Sections, ctx: Context) -> int:
        groups = self.groups(ctx.layout)
        split = _split(sections, len(groups))
        return sum(g.op.kept(s, _within_group(ctx, i, g)) for i, (g, s) in enumerate(zip(groups, split, strict=True)))

    def _operators(self) -> list[Operator]:
        return [self.op, *([self.biases] if self.biases else []), *(rule.op for rule in self.rules)]

    def _choice(self, name: str, dimensions: int) -> tuple[int, Operator]:
        """(which rule it is, its operator) for a tensor."""
        for number, rule in enumerate(self.rules):
            if fnmatchcase(name, rule.pattern):
                return number, rule.op
        return (-1, self.biases) if self.biases is not None and dimensions < 2 else (-2, self.op)


@dataclass(frozen=True, eq=False)
class Joined(Update):
    """The updates of all groups."""

    groups: tuple[Group, ...]
    updates: tuple[Update, ...]
    size: int

    @property
    def kept(self) -> int:
        return sum(update.kept for update in self.updates)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        for group, update in zip(self.groups, self.updates, strict=True):
            if len(group.parts) == 1:
                update.add_to(out[group.parts[0]], weight)
            elif isinstance(update, Sparse):
                _placed(update, group, self.size).add_to(out, weight)
            else:
                summed = np.full(group.layout.size, -0.0, dtype=out.dtype)  # which changes nothing that it is added to
                update.add_to(summed, weight)
                for part, a, b in zip(group.parts, group.layout.offsets[:-1], group.layout.offsets[1:], strict=True):
                    out[part] += summed[a:b]

    def to_dense(self) -> F32:
        out = np.zeros(self.size, dtype=np.float32)
        for group, update in zip(self.groups, self.updates, strict=True):
            values = update.to_dense()
            for part, a, b in zip(group.parts, group.layout.offsets[:-1], group.layout.offsets[1:], strict=True):
                out[part] = values[a:b]
        return out


def _placed(update: Sparse, group: Group, size: int) -> Sparse:
    """The same coordinates by their positions in the whole vector."""
    starts = np.array([part.start for part in group.parts], dtype=np.int64)
    offsets = np.array(group.layout.offsets[:-1], dtype=np.int64)
    tensor = np.searchsorted(offsets, update.indices, side="right") - 1
    return Sparse(update.indices - offsets[tensor] + starts[tensor], update.values, size)


def _within_group(ctx: Context, number: int, group: Group) -> Context:
    """A group's own context, with randomness of its own."""
    return replace(ctx, layout=group.layout, seed=shared_key(ctx.seed, "group", number))


def _merge(sections: Sequence[Sections]) -> Sections:
    """A MANIFEST, and one section for each part that occurs.

    The manifest: for each group the number of its sections u8, and for each of these its part u8 and its length as a varint.
    """
    manifest = bytearray()
    bodies: dict[Part, list[bytes | memoryview]] = {}
    for group in sections:
        manifest.append(len(group))
        for section in group:
            manifest += bytes([section.part]) + pack_varint(len(section.data))
            bodies.setdefault(section.part, []).append(section.data)
    merged = [Section(part, b"".join(bodies[part])) for part in sorted(bodies)]
    return (Section(Part.MANIFEST, bytes(manifest)), *merged)


def _split(sections: Sections, n_groups: int) -> list[Sections]:
    """Inverse of `_merge`; WireError unless the manifest accounts for every byte."""
    parts = [section.part for section in sections]
    if not parts or parts[0] != Part.MANIFEST or parts[1:] != sorted(set(parts[1:]) - {Part.MANIFEST}):
        raise WireError(sections[0].offset if sections else 0, "expected a MANIFEST and one section of each part, in order")
    manifest, at = sections[0], 0
    bodies = {section.part: section for section in sections[1:]}
    used = dict.fromkeys(bodies, 0)
    split: list[Sections] = []
    for _ in range(n_groups):
        if at >= len(manifest.data) or manifest.data[at] > MOST_SECTIONS:
            raise WireError(manifest.offset + at, "the manifest ends early, or gives a group too many sections")
        group = []
        count, at = manifest.data[at], at + 1
        for _ in range(count):
            part = manifest.data[at] if at < len(manifest.data) else 0
            with within(manifest.offset):
                length, at = unpack_varint(manifest.data, at + 1)
            if part not in used or length > len(bodies[Part(part)].data) - used[Part(part)]:
                raise WireError(manifest.offset + at, f"{length} bytes of part {part}, which are not there")
            body, start = bodies[Part(part)], used[Part(part)]
            group.append(Section(Part(part), body.data[start : start + length], body.offset + start))
            used[Part(part)] += length
        split.append(tuple(group))
    named = {section.part for sections in split for section in sections}
    if at != len(manifest.data) or named != set(bodies) or any(used[part] != len(bodies[part].data) for part in bodies):
        raise WireError(manifest.offset + at, "the manifest does not account for every byte")
    return split
