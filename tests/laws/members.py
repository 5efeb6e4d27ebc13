"""One table of members: every registered compressor at its defaults and at the settings that change what it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Literal, get_args, get_origin

from fedsgd.component import field_types
from fedsgd.compress import COMPRESSORS, ErrorFeedback, Operator, Plain, Scheme

DENSITIES = (0.001, 0.1, 1.0)


def operators() -> Iterator[Operator]:
    """Found from the registry and the fields alone: each literal, each flag, and three densities."""
    for name in COMPRESSORS:
        variants: list[Operator] = [COMPRESSORS[name]()]
        for f in fields(COMPRESSORS[name]):
            variants += [replace(op, **{f.name: choice}) for op in variants for choice in _choices(COMPRESSORS[name], f.name)]
        yield from dict.fromkeys(variants)


def _choices(cls: type, field: str) -> tuple[object, ...]:
    annotation = field_types(cls)[field]
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if annotation is bool:
        return (True, False)
    return DENSITIES if field == "density" else ()


def schemes() -> Iterator[Scheme]:
    """Every operator plain, and under error feedback where it contracts."""
    for op in operators():
        yield Plain(op)
        if op.kind == "contractive":
            yield ErrorFeedback(op)


def name_of(member: object) -> str:
    """A short name for a test's id."""
    return str(member).replace(" ", "").replace("'", "")
