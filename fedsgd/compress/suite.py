"""The law suite: every law that holds for a compressor, one by one. The tests and the certificates both go through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from fedsgd.compress import laws
from fedsgd.compress.base import Compressor, Operator, OperatorScheme, Scheme


@dataclass(frozen=True)
class Law:
    """One law, of one compressor. statement: what it says; check: raises LawError where it does not hold."""

    name: str
    statement: str
    check: Callable[[], None]


def laws_of(compressor: Compressor) -> Iterator[Law]:
    """Every law of an operator; of a scheme those of its operator, if it has one, and then its own."""
    if isinstance(compressor, OperatorScheme):
        yield from laws_of(compressor.op)
    if isinstance(compressor, Operator):
        for population_law in laws.POPULATION_LAWS:
            yield _stated(population_law, partial(population_law, compressor))
        for input_law in laws.INPUT_LAWS:
            yield _stated(input_law, partial(laws.on_vectors, input_law, compressor))
    if isinstance(compressor, Scheme):
        yield _stated(laws.telescoping, partial(laws.on_updates, compressor))
        yield _stated(laws.bounded, partial(laws.bounded, compressor))


def _stated(law: Callable[..., None], check: Callable[[], None]) -> Law:
    """The law with its name and the first paragraph of its docstring."""
    statement = " ".join((law.__doc__ or "").partition("\n\n")[0].split())
    return Law(law.__name__, statement, check)


def check(compressor: Compressor) -> None:
    """LawError for the first law that the compressor breaks."""
    for law in laws_of(compressor):
        law.check()
