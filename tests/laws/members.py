"""One table of members: every registered compressor at its defaults and at the settings that change what it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin

from fedsgd.component import field_types
from fedsgd.compress import COMPRESSORS, ErrorFeedback, Operator, Plain, Scheme
from fedsgd.compress.topk import TopK

DENSITIES = (0.001, 0.1, 1.0)


def operators() -> Iterator[Operator]:
    """Found from the registry and the fields alone: each literal, each flag, and three densities."""
    for name in COMPRESSORS:
        if issubclass(COMPRESSORS[name], Operator):
            yield from variants(COMPRESSORS[name])


def variants(cls: type) -> list[Any]:
    """A class at its defaults, and with one field after the other at each of its choices."""
    made: list[Any] = [cls()]
    for f in fields(cls):
        made += [replace(member, **{f.name: choice}) for member in made for choice in _choices(cls, f.name)]
    return [*dict.fromkeys(made)]


def _choices(cls: type, field: str) -> tuple[object, ...]:
    annotation = field_types(cls)[field]
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if annotation is bool:
        return (True, False)
    return DENSITIES if field == "density" else ()


def schemes() -> Iterator[Scheme]:
    """Every operator plain, and under error feedback where it contracts; and every scheme of the registry."""
    for op in operators():
        yield Plain(op)
        if op.kind == "contractive":
            yield ErrorFeedback(op)
    yield from (ErrorFeedback(TopK(density=0.1), policy) for policy in ("decay", "reset"))
    for name in COMPRESSORS:
        if issubclass(COMPRESSORS[name], Scheme):
            yield from variants(COMPRESSORS[name])


def name_of(member: object) -> str:
    """A short name for a test's id."""
    return str(member).replace(" ", "").replace("'", "")
