"""Another compressor for each kind of tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.compression.base import CodecContext, CompressionOperator, OperatorKind
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.updates import SparseUpdate, Update
from fedsgd.config.component import FieldError, ValidatedConfig
from fedsgd.errors import WireError, shift_offset, suggest_name
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import shared_key
from fedsgd.wire import Section, SectionKind, Sections
from fedsgd.wire.bits import pack_varint, unpack_varint

MAX_SECTIONS_PER_GROUP = 8
"""Of one group; more is no operator's."""


def _can_be_nested(operator: type[CompressionOperator]) -> bool:
    """Return whether operators of this class may be nested in `PerLayer`."""
    return not issubclass(operator, PerLayer)


@dataclass(frozen=True)
class LayerRule(ValidatedConfig):
    """The operator for tensors whose name matches a pattern as in a shell: `fc*.weight`."""

    pattern: str
    op: CompressionOperator = field(metadata={"accepts": _can_be_nested})


@dataclass(frozen=True)
class TensorGroup:
    """Tensors that one operator treats as one vector. parts: their stretches, ascending; layout: theirs alone."""

    op: CompressionOperator
    slices: tuple[slice, ...]
    layout: ParameterLayout

    def gather(self, x: F32) -> F32:
        """Their coordinates [n]. x: [P]."""
        return np.concatenate([x[part] for part in self.slices])


@dataclass(frozen=True)
class PerLayer(CompressionOperator):
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

    op: CompressionOperator = field(default=TopK(), metadata={"accepts": _can_be_nested})
    biases: CompressionOperator | None = field(default=None, metadata={"accepts": _can_be_nested})
    rules: tuple[LayerRule, ...] = ()
    separate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(isinstance(op, PerLayer) for op in self._list_operators()):
            raise FieldError(self.name, "op", "an operator for each layer cannot be one for each layer itself; use more rules")

    @property
    def kind(self) -> OperatorKind:
        kinds = {op.kind for op in self._list_operators() if not op.lossless} or {self.op.kind}
        return kinds.pop() if len(kinds) == 1 else "neither"

    @property
    def deterministic(self) -> bool:
        return all(op.deterministic for op in self._list_operators())

    @property
    def position_invariant(self) -> bool:
        return not (self.biases or self.rules or self.separate) and self.op.position_invariant

    @property
    def has_independent_errors(self) -> bool:
        return all(op.has_independent_errors for op in self._list_operators())

    def group_tensors(self, layout: ParameterLayout) -> list[TensorGroup]:
        """The groups of a model, in the order of their first tensors."""
        members: dict[tuple[int, int], list[int]] = {}
        chosen: dict[tuple[int, int], CompressionOperator] = {}
        for i, (name, shape) in enumerate(zip(layout.names, layout.shapes, strict=True)):
            number, op = self._select_operator(name, len(shape))
            key = (number, i if self.separate else -1)
            if layout.offsets[i] < layout.offsets[i + 1]:
                members.setdefault(key, []).append(i)
                chosen[key] = op
        return [
            TensorGroup(
                chosen[key],
                tuple(slice(layout.offsets[i], layout.offsets[i + 1]) for i in tensors),
                ParameterLayout(tuple(layout.names[i] for i in tensors), tuple(layout.shapes[i] for i in tensors)),
            )
            for key, tensors in members.items()
        ]

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        groups = self.group_tensors(ctx.layout)
        made = [g.op.encode(g.gather(x), _derive_group_context(ctx, i, g)) for i, g in enumerate(groups)]
        update = GroupedUpdate(tuple(groups), tuple(part for _, part in made), len(x))
        return _merge([sections for sections, _ in made]), update

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        groups = self.group_tensors(ctx.layout)
        split = _split(sections, len(groups))
        updates = [g.op.decode(s, _derive_group_context(ctx, i, g)) for i, (g, s) in enumerate(zip(groups, split, strict=True))]
        return GroupedUpdate(tuple(groups), tuple(updates), ctx.layout.size)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return sum(group.op.max_bytes(group.layout) + 1 + 6 * MAX_SECTIONS_PER_GROUP for group in self.group_tensors(layout))

    def contraction(self, layout: ParameterLayout) -> float:
        return min(group.op.contraction(group.layout) for group in self.group_tensors(layout))

    def absolute_error(self, layout: ParameterLayout) -> float:
        return sum(group.op.absolute_error(group.layout) for group in self.group_tensors(layout))

    def check_layout(self, layout: ParameterLayout) -> None:
        for rule in self.rules:
            if not any(fnmatchcase(name, rule.pattern) for name in layout.names):
                known = suggest_name(rule.pattern, layout.names)
                raise FieldError(self.name, "rules", f'pattern "{rule.pattern}" matches no tensor of the model{known}')

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Return the warnings of each group's operator, on the group's own tensors."""
        places = [(self.op, "op"), (self.biases, "biases"), *((rule.op, f"rules[{i}].op") for i, rule in enumerate(self.rules))]
        for group in self.group_tensors(run.layout):
            place = next(place for op, place in places if op is group.op)
            yield from group.op.find_warnings(replace(run, key=f"{run.key}.{place}", layout=group.layout))

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        groups = self.group_tensors(ctx.layout)
        split = _split(sections, len(groups))
        return sum(
            g.op.n_coordinates(s, _derive_group_context(ctx, i, g)) for i, (g, s) in enumerate(zip(groups, split, strict=True))
        )

    def _list_operators(self) -> list[CompressionOperator]:
        return [self.op, *([self.biases] if self.biases else []), *(rule.op for rule in self.rules)]

    def _select_operator(self, name: str, n_dimensions: int) -> tuple[int, CompressionOperator]:
        """(which rule it is, its operator) for a tensor."""
        for number, rule in enumerate(self.rules):
            if fnmatchcase(name, rule.pattern):
                return number, rule.op
        return (-1, self.biases) if self.biases is not None and n_dimensions < 2 else (-2, self.op)


@dataclass(frozen=True, eq=False)
class GroupedUpdate(Update):
    """The updates of all groups."""

    groups: tuple[TensorGroup, ...]
    updates: tuple[Update, ...]
    size: int

    @property
    def n_coordinates(self) -> int:
        return sum(update.n_coordinates for update in self.updates)

    def add_to(self, out: NDArray[Any], weight: float) -> None:
        for group, update in zip(self.groups, self.updates, strict=True):
            if len(group.slices) == 1:
                update.add_to(out[group.slices[0]], weight)
            elif isinstance(update, SparseUpdate):
                _map_to_vector(update, group, self.size).add_to(out, weight)
            else:
                summed = np.full(group.layout.size, -0.0, dtype=out.dtype)  # which changes nothing that it is added to
                update.add_to(summed, weight)
                for part, a, b in zip(group.slices, group.layout.offsets[:-1], group.layout.offsets[1:], strict=True):
                    out[part] += summed[a:b]

    def to_dense(self) -> F32:
        out = np.zeros(self.size, dtype=np.float32)
        for group, update in zip(self.groups, self.updates, strict=True):
            values = update.to_dense()
            for part, a, b in zip(group.slices, group.layout.offsets[:-1], group.layout.offsets[1:], strict=True):
                out[part] = values[a:b]
        return out


def _map_to_vector(update: SparseUpdate, group: TensorGroup, size: int) -> SparseUpdate:
    """The same coordinates by their positions in the whole vector."""
    starts = np.array([part.start for part in group.slices], dtype=np.int64)
    offsets = np.array(group.layout.offsets[:-1], dtype=np.int64)
    tensor = np.searchsorted(offsets, update.indices, side="right") - 1
    return SparseUpdate(update.indices - offsets[tensor] + starts[tensor], update.values, size)


def _derive_group_context(ctx: CodecContext, number: int, group: TensorGroup) -> CodecContext:
    """A group's own context, with randomness of its own."""
    return replace(ctx, layout=group.layout, seed=shared_key(ctx.seed, "group", number))


def _merge(sections: Sequence[Sections]) -> Sections:
    """A MANIFEST, and one section for each part that occurs.

    The manifest: for each group the number of its sections u8, and for each of these its part u8 and its length as a varint.
    """
    manifest = bytearray()
    bodies: dict[SectionKind, list[bytes | memoryview]] = {}
    for group in sections:
        manifest.append(len(group))
        for section in group:
            manifest += bytes([section.kind]) + pack_varint(len(section.data))
            bodies.setdefault(section.kind, []).append(section.data)
    merged = [Section(part, b"".join(bodies[part])) for part in sorted(bodies)]
    return (Section(SectionKind.MANIFEST, bytes(manifest)), *merged)


def _split(sections: Sections, n_groups: int) -> list[Sections]:
    """Inverse of `_merge`; WireError unless the manifest accounts for every byte."""
    parts = [section.kind for section in sections]
    if not parts or parts[0] != SectionKind.MANIFEST or parts[1:] != sorted(set(parts[1:]) - {SectionKind.MANIFEST}):
        raise WireError(sections[0].offset if sections else 0, "expected a MANIFEST and one section of each part, in order")
    manifest, at = sections[0], 0
    bodies = {section.kind: section for section in sections[1:]}
    used = dict.fromkeys(bodies, 0)
    split: list[Sections] = []
    for _ in range(n_groups):
        if at >= len(manifest.data) or manifest.data[at] > MAX_SECTIONS_PER_GROUP:
            raise WireError(manifest.offset + at, "the manifest ends early, or gives a group too many sections")
        group = []
        count, at = manifest.data[at], at + 1
        for _ in range(count):
            part = manifest.data[at] if at < len(manifest.data) else 0
            with shift_offset(manifest.offset):
                length, at = unpack_varint(manifest.data, at + 1)
            if part not in used or length > len(bodies[SectionKind(part)].data) - used[SectionKind(part)]:
                raise WireError(manifest.offset + at, f"{length} bytes of part {part}, which are not there")
            body, start = bodies[SectionKind(part)], used[SectionKind(part)]
            group.append(Section(SectionKind(part), body.data[start : start + length], body.offset + start))
            used[SectionKind(part)] += length
        split.append(tuple(group))
    named = {section.kind for sections in split for section in sections}
    if at != len(manifest.data) or named != set(bodies) or any(used[part] != len(bodies[part].data) for part in bodies):
        raise WireError(manifest.offset + at, "the manifest does not account for every byte")
    return split
