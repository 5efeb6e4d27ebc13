"""The law suite: every law that holds for a compressor, one by one. The tests and the certificates both go through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedsgd.compress import decoding_laws, laws, population, round_laws, scheme_laws
from fedsgd.compress.base import Compressor, Operator, OperatorScheme, Scheme
from fedsgd.compress.independence import independence
from fedsgd.compress.scale import scale
from fedsgd.generators import seeded_generators

POPULATION_LAWS: Sequence[Callable[[Operator], None]] = (
    laws.zero,
    laws.ends,
    laws.supports,
    laws.call_order,
    population.fair,
    population.mean,
    population.variance,
    independence,
    scale,
    laws.no_slack,
    laws.strict,
)
"""The laws of an operator that draw their own vectors."""
SCHEME_LAWS: Sequence[Callable[..., None]] = (
    scheme_laws.messages,
    scheme_laws.repeatable,
    scheme_laws.bounded,
    scheme_laws.telescoping,
    scheme_laws.lost_replies,
    scheme_laws.scale,
    independence,
)


@dataclass(frozen=True)
class Law:
    """One law, of one compressor. statement: what it says; check: raises LawError where it does not hold."""

    name: str
    statement: str
    check: Callable[[], None]


def laws_of(compressor: Compressor, rounds: bool = True) -> Iterator[Law]:
    """Every law that says something of an operator; of a scheme those of its operator, if it has one, and then its own.

    rounds: whether the laws of rounds and of decoding, which hold for every compressor, come last.
    """
    if isinstance(compressor, OperatorScheme):
        yield from laws_of(compressor.op, rounds=False)
    if isinstance(compressor, Operator):
        for population_law in POPULATION_LAWS:
            if _applies(population_law, compressor):
                yield _stated(population_law, partial(population_law, compressor))
        for input_law in laws.INPUT_LAWS:
            if _applies(input_law, compressor):
                yield _stated(input_law, partial(laws.on_vectors, input_law, compressor))
    if isinstance(compressor, Scheme):
        for law in SCHEME_LAWS:
            if _applies(law, compressor):
                check_law = scheme_laws.on_updates if law is scheme_laws.telescoping else law
                yield _stated(law, partial(check_law, compressor))
    for round_law in (*round_laws.ROUND_LAWS, *decoding_laws.DECODING_LAWS) if rounds else ():
        yield _stated(round_law, partial(round_law, compressor))


def _applies(law: Callable[..., None], compressor: Compressor) -> bool:
    """Whether a law's condition holds. A compressor that cannot even say so is put through it."""
    try:
        return _CONDITIONS[law](compressor) if law in _CONDITIONS else True
    except Exception:  # the user's own code
        return True


def _states_variance(op: Any) -> bool:
    return op.kind == "unbiased" and op.variance(np.ones(laws.SMALL, dtype=np.float32)) is not None


def _withholds(scheme: Any) -> bool:
    return scheme.withheld({}, laws.layout_of(laws.SMALL)) is not None


_CONDITIONS: Mapping[Callable[..., None], Callable[[Any], bool]] = {
    laws.contraction: lambda op: op.kind == "contractive",
    population.fair: lambda op: op.even,
    population.mean: lambda op: op.kind == "unbiased" or (op.kind == "contractive" and not op.deterministic),
    population.variance: _states_variance,
    independence: lambda compressor: compressor.independent,
    scheme_laws.lost_replies: lambda scheme: bool(scheme.backlog),
    scheme_laws.telescoping: _withholds,
    scheme_laws.bounded: _withholds,
}


def _stated(law: Callable[..., None], check: Callable[[], None]) -> Law:
    """The law with its name and the first paragraph of its docstring."""
    statement = " ".join((law.__doc__ or "").partition("\n\n")[0].split())
    return Law(law.__name__, statement, check)


def check(compressor: Compressor) -> None:
    """LawError for the first law that the compressor breaks. The global generators are left as they were."""
    with seeded_generators(0):
        for law in laws_of(compressor):
            law.check()
