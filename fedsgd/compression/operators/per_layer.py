"""Composition of operators: one for each group of tensors."""

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
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import shared_key
from fedsgd.wire import Section, SectionKind, Sections
from fedsgd.wire.bits import pack_varint, unpack_varint

MAX_SECTIONS_PER_GROUP = 8
"""Maximum number of sections of one group; no operator has more."""


def _can_be_nested(operator: type[CompressionOperator]) -> bool:
    return not issubclass(operator, PerLayer)


@dataclass(frozen=True)
class LayerRule(ValidatedConfig):
    """Operator for the tensors whose names match a pattern.

    Attributes:
        pattern: shell pattern, such as `fc*.weight`.
        op: operator for these tensors.
    """

    pattern: str = field(metadata={"example": '"fc*"'})
    op: CompressionOperator = field(metadata={"accepts": _can_be_nested})


@dataclass(frozen=True)
class TensorGroup:
    """Tensors that one operator compresses as one vector of n numbers: ascending slices of x [P], and a layout of their own."""

    op: CompressionOperator
    slices: tuple[slice, ...]
    layout: ParameterLayout

    def gather(self, x: F32) -> F32:
        """Return the group's coordinates [n] of a vector x [P]."""
        return np.concatenate([x[part] for part in self.slices])


@dataclass(frozen=True)
class PerLayer(CompressionOperator):
    """An operator for each group of tensors: by rules on names, for tensors with one dimension, and for all others.

    Unbiased or contractive if all its operators are, with the smallest δ among them; float32 dense goes with either kind. Each
    group has its own shared randomness. The groups' sections of one kind are joined into one section. A MANIFEST lists each
    group's sections with their lengths, in about 5 bytes a group.

    Traps: a rule that matches no tensor of the model is an error. Published figures rarely say whether a density is a share of
    each tensor or of all. The k largest coordinates of all tensors lie mostly in the layers that change most.

    Use: where tensors need different operators, such as exact biases, or to reproduce a paper that compresses each layer by
    itself.

    Avoid: separate = true in models with many small tensors: each costs at least one coordinate or scale, and its own sections.

    Attributes:
        op: operator for all tensors without a rule, except those of `biases`.
        biases: operator for tensors with at most one dimension that no rule matches; if unset, `op` compresses them.
        rules: rules in order; the first one whose pattern matches a tensor's name decides.
        separate: compress each tensor as a vector with its own k and scale, as papers do that work per layer. Otherwise the
            tensors of a rule, of `biases` and of `op` are one vector each, and a density is a share of this vector.

    >>> layout = ParameterLayout(("fc.weight", "fc.bias"), ((2, 2), (2,)))
    >>> x = np.array([5, 1, 2, 3, 0.5, 0.25], dtype=np.float32)
    >>> op = PerLayer(TopK(density=0.25), biases=TopK(density=1.0))
    >>> op.encode(x, CodecContext(seed=0, round=1, client=0, layout=layout))[1].to_dense()
    array([5.  , 0.  , 0.  , 0.  , 0.5 , 0.25], dtype=float32)
    """

    name: ClassVar[str] = "per-layer"
    codec: ClassVar[int] = 13

    op: CompressionOperator = field(default=TopK(), metadata={"accepts": _can_be_nested})
    biases: CompressionOperator | None = field(default=None, metadata={"accepts": _can_be_nested})
    rules: tuple[LayerRule, ...] = ()
    separate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        operators = [("op", self.op), ("biases", self.biases), *(("rules", rule.op) for rule in self.rules)]
        key = next((key for key, operator in operators if isinstance(operator, PerLayer)), None)
        if key is not None:
            raise FieldError(self.name, key, "per-layer cannot be nested in per-layer; use more rules")

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
        """Return the groups of a model, in the order of their first tensors.

        Args:
            layout: tensors of the vector, P numbers.
        """
        members: dict[tuple[int, int], list[int]] = {}
        operators: dict[tuple[int, int], CompressionOperator] = {}
        for i, (name, shape) in enumerate(zip(layout.names, layout.shapes, strict=True)):
            number, op = self._select_operator(name, len(shape))
            key = (number, i if self.separate else -1)
            if layout.offsets[i] < layout.offsets[i + 1]:
                members.setdefault(key, []).append(i)
                operators[key] = op
        return [
            TensorGroup(
                operators[key],
                tuple(slice(layout.offsets[i], layout.offsets[i + 1]) for i in tensors),
                ParameterLayout(tuple(layout.names[i] for i in tensors), tuple(layout.shapes[i] for i in tensors)),
            )
            for key, tensors in members.items()
        ]

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        groups = self.group_tensors(ctx.layout)
        results = [g.op.encode(g.gather(x), _derive_group_context(ctx, i, g)) for i, g in enumerate(groups)]
        update = GroupedUpdate(tuple(groups), tuple(update for _, update in results), len(x))
        return _merge([sections for sections, _ in results]), update

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
                suggestion = suggest_name(rule.pattern, layout.names)
                raise FieldError(self.name, "rules", f'pattern "{rule.pattern}" matches no tensor of the model{suggestion}')
        for group in self.group_tensors(layout):
            group.op.check_layout(group.layout)

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Return the warnings of each group's operator, for the tensors of the group."""
        keys = [(self.op, "op"), (self.biases, "biases"), *((rule.op, f"rules[{i}].op") for i, rule in enumerate(self.rules))]
        for group in self.group_tensors(run.layout):
            key = next(key for op, key in keys if op is group.op)
            yield from group.op.find_warnings(replace(run, key=f"{run.key}.{key}", layout=group.layout))

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        groups = self.group_tensors(ctx.layout)
        split = _split(sections, len(groups))
        return sum(
            g.op.n_coordinates(s, _derive_group_context(ctx, i, g)) for i, (g, s) in enumerate(zip(groups, split, strict=True))
        )

    def _list_operators(self) -> list[CompressionOperator]:
        return [self.op, *([self.biases] if self.biases else []), *(rule.op for rule in self.rules)]

    def _select_operator(self, name: str, n_dimensions: int) -> tuple[int, CompressionOperator]:
        """Return the number of a tensor's rule, negative if no rule matches, and its operator."""
        for number, rule in enumerate(self.rules):
            if fnmatchcase(name, rule.pattern):
                return number, rule.op
        return (-1, self.biases) if self.biases is not None and n_dimensions < 2 else (-2, self.op)


@dataclass(frozen=True, eq=False)
class GroupedUpdate(Update):
    """Update of P = `size` coordinates in several groups of tensors, with one of `updates` for each of `groups`."""

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
                summed = np.full(group.layout.size, -0.0, dtype=out.dtype)  # adding -0.0 leaves every number unchanged
                update.add_to(summed, weight)
                for part, a, b in zip(group.slices, group.layout.offsets[:-1], group.layout.offsets[1:], strict=True):
                    out[part] += summed[a:b]

    def add_support_to(self, out: F64, weight: float) -> None:
        for group, update in zip(self.groups, self.updates, strict=True):
            counts = np.zeros(group.layout.size)
            update.add_support_to(counts, weight)
            for part, a, b in zip(group.slices, group.layout.offsets[:-1], group.layout.offsets[1:], strict=True):
                out[part] += counts[a:b]

    def to_dense(self) -> F32:
        out = np.zeros(self.size, dtype=np.float32)
        for group, update in zip(self.groups, self.updates, strict=True):
            values = update.to_dense()
            for part, a, b in zip(group.slices, group.layout.offsets[:-1], group.layout.offsets[1:], strict=True):
                out[part] = values[a:b]
        return out


def _map_to_vector(update: SparseUpdate, group: TensorGroup, size: int) -> SparseUpdate:
    """Return a group's update with positions in the whole vector of `size` numbers."""
    starts = np.array([part.start for part in group.slices], dtype=np.int64)
    offsets = np.array(group.layout.offsets[:-1], dtype=np.int64)
    tensor = np.searchsorted(offsets, update.indices, side="right") - 1
    return SparseUpdate(update.indices - offsets[tensor] + starts[tensor], update.values, size)


def _derive_group_context(ctx: CodecContext, number: int, group: TensorGroup) -> CodecContext:
    """Return the context of a group, with its own layout and its own randomness."""
    return replace(ctx, layout=group.layout, seed=shared_key(ctx.seed, "group", number))


def _merge(sections: Sequence[Sections]) -> Sections:
    """Return a MANIFEST and one section of each kind that occurs; `wire-format-values.md` describes the manifest."""
    manifest = bytearray()
    bodies: dict[SectionKind, list[bytes | memoryview]] = {}
    for group in sections:
        manifest.append(len(group))
        for section in group:
            manifest += bytes([section.kind]) + pack_varint(len(section.data))
            bodies.setdefault(section.kind, []).append(section.data)
    merged_sections = [Section(kind, b"".join(bodies[kind])) for kind in sorted(bodies)]
    return (Section(SectionKind.MANIFEST, bytes(manifest)), *merged_sections)


def _split(sections: Sections, n_groups: int) -> list[Sections]:
    """Invert `_merge`; raise WireError unless the manifest accounts for every byte."""
    kinds = [section.kind for section in sections]
    if not kinds or kinds[0] != SectionKind.MANIFEST or kinds[1:] != sorted(set(kinds[1:]) - {SectionKind.MANIFEST}):
        raise WireError(sections[0].offset if sections else 0, "expected a MANIFEST and one section of each kind, in order")
    manifest, at = sections[0], 0
    bodies = {section.kind: section for section in sections[1:]}
    ends = dict.fromkeys(bodies, 0)
    split: list[Sections] = []
    for _ in range(n_groups):
        if at >= len(manifest.data) or manifest.data[at] > MAX_SECTIONS_PER_GROUP:
            raise WireError(manifest.offset + at, "the manifest ends early, or lists too many sections for a group")
        group = []
        count, at = manifest.data[at], at + 1
        for _ in range(count):
            kind = manifest.data[at] if at < len(manifest.data) else 0
            with shift_offset(manifest.offset):
                length, at = unpack_varint(manifest.data, at + 1)
            if kind not in ends or length > len(bodies[SectionKind(kind)].data) - ends[SectionKind(kind)]:
                raise WireError(manifest.offset + at, f"the manifest lists {length} bytes of kind {kind} that are missing")
            body, start = bodies[SectionKind(kind)], ends[SectionKind(kind)]
            group.append(Section(SectionKind(kind), body.data[start : start + length], body.offset + start))
            ends[SectionKind(kind)] += length
        split.append(tuple(group))
    listed_kinds = {section.kind for sections in split for section in sections}
    if at != len(manifest.data) or listed_kinds != set(bodies) or any(ends[kind] != len(bodies[kind].data) for kind in bodies):
        raise WireError(manifest.offset + at, "the manifest does not account for every byte")
    return split
