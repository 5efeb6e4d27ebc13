"""The laws of schemes as checks, as those of operators are in `laws`: what is said, remembered, delivered and held back.

`messages` and `repeatable` hold for all; `lost_replies` for schemes with a backlog; `telescoping` and `bounded` for schemes
that keep something back and say what.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fedsgd.arrays import F32
from fedsgd.compress.base import Context, OperatorScheme, Scheme, Sent
from fedsgd.compress.laws import ROUNDING, SMALL, TINY, contexts, gaussian, layout_of, over_the_wire, require
from fedsgd.compress.update import State
from fedsgd.errors import LawError
from fedsgd.rng import stream

STEPS = 12
MANY = 600
"""Sends of one client: more than a counter of 8 bits holds."""
COHORTS, TRAVELLED = (1, 4, 10, 3), (1.0, 0.5, 0.125, 2.0, 0.01)
"""The contexts of consecutive rounds."""


def updates_of(scheme: Scheme) -> Iterator[tuple[Context, F32, State, Sent]]:
    """(context, update, state, what is sent) over some rounds, one update being zero and one almost; every fourth is lost."""
    state: State = {}
    for ctx, rng in contexts("scheme", 1000, STEPS):
        x = gaussian(rng, 1000) * np.float32(0 if ctx.round == 5 else 1)
        x[: 990 if ctx.round == 6 else 0] = 0
        sent = scheme.send(x, state, ctx)
        yield ctx, x, state, sent
        state = sent.state_if_lost if ctx.round % 4 == 3 else sent.state


def _locked(law: str, scheme: Scheme, x: F32, state: State, ctx: Context) -> Sent:
    """What is sent, of an update and a state that cannot be written to."""
    for array in (x, *state.values()):
        array.flags.writeable = False
    try:
        return scheme.send(x, state, ctx)
    except ValueError as error:
        raise LawError(f"{law}: {scheme}: wrote to its update or its state: {error}") from error


def messages(scheme: Scheme) -> None:
    """Each message decodes, from its bytes alone, to a finite update of the right size; it carries as many coordinates as
    `kept` says, and weighs at most max_bytes. What is remembered is finite, whether the reply arrives or not."""
    for ctx, x, _, sent in updates_of(scheme):
        update = over_the_wire(scheme, sent.sections, ctx)
        dense = update.to_dense()
        good = dense.shape == x.shape and bool(np.isfinite(dense).all())
        said = f"{dense.shape} coordinates, expected {x.shape}, all finite"
        require(good, "messages", scheme, f"round {ctx.round} decodes to {said}")
        counts = scheme.kept(sent.sections, ctx), update.kept
        require(counts[0] == counts[1], "messages", scheme, f"round {ctx.round}: kept and the update say {counts}")
        n_bytes, limit = sum(len(s.data) for s in sent.sections), scheme.max_bytes(ctx.layout)
        require(n_bytes <= limit, "messages", scheme, f"round {ctx.round}: {n_bytes} bytes, max_bytes says {limit}")
        for state in (sent.state, sent.state_if_lost):
            bad = [name for name, value in state.items() if not np.isfinite(value).all()]
            require(not bad, "messages", scheme, f"round {ctx.round}: {', '.join(bad)} is not finite")


def repeatable(scheme: Scheme) -> None:
    """Equal updates and equal states give equal bytes and equal states, also in another order of calls and from copies, as of a
    client that was put away and fetched again; and neither is written to."""
    calls = [*updates_of(scheme)]
    for i in stream(0, "laws/repeatable").permutation(len(calls)):
        ctx, x, state, sent = calls[i]
        again = _locked("repeatable", scheme, x, {name: value.copy() for name, value in state.items()}, ctx)
        same = [bytes(s.data) for s in sent.sections] == [bytes(s.data) for s in again.sections]
        require(same, "repeatable", scheme, f"round {ctx.round}: bytes differ")
        for one, other in ((sent.state, again.state), (sent.state_if_lost, again.state_if_lost)):
            equal = one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
            require(equal, "repeatable", scheme, f"round {ctx.round}: states differ")


def lost_replies(scheme: Scheme) -> None:
    """After a lost reply each entry of the `backlog` is there, and not zero where the update was not zero: what was cleared
    because it was sent comes back."""
    for ctx, x, _, sent in updates_of(scheme):
        after = sent.state_if_lost
        for name in scheme.backlog:
            lost = np.count_nonzero(x if name not in after else x[after[name] == 0])
            figures = f"round {ctx.round}: {name} is zero at {lost} of the update's coordinates after a lost reply"
            require(not lost, "lost_replies", scheme, figures)


def telescoping(scheme: Scheme, updates: Sequence[F32], lost: Sequence[bool]) -> None:
    """Over updates x [P], Σ x = Σ delivered + withheld in each coordinate, whichever replies were lost, and whatever cohort and
    step sizes the contexts have."""
    layout = layout_of(len(updates[0]))
    given, delivered, magnitudes = np.zeros((3, layout.size))
    state: State = {}
    if (withheld := scheme.withheld(state, layout)) is None:
        return
    for i, (x, is_lost) in enumerate(zip(updates, lost, strict=True)):
        ctx = Context(0, i + 1, 0, layout, cohort=COHORTS[i % len(COHORTS)], travelled=TRAVELLED[i % len(TRAVELLED)])
        sent = _locked("telescoping", scheme, x, state, ctx)
        given += x
        decoded = scheme.decode(sent.sections, ctx)
        state = sent.state_if_lost if is_lost else sent.state
        if not is_lost:
            decoded.add_to(delivered, 1.0)
        withheld = scheme.withheld(state, layout)
        if withheld is None:
            raise LawError(f"telescoping: {scheme}: round {ctx.round}: withheld is None, but not before the first send")
        magnitudes += np.abs(x) + np.abs(decoded.to_dense()) + np.abs(withheld)
    off = np.abs(given - delivered - withheld)
    worst = int((off - ROUNDING * magnitudes).argmax())
    allowed = float(ROUNDING * magnitudes[worst] + len(updates) * TINY)
    figures = f"{off[worst]:.4g} of coordinate {worst} was neither delivered nor withheld after {len(updates)} updates"
    require(bool(off[worst] <= allowed), "telescoping", scheme, figures)


def bounded(scheme: Scheme) -> None:
    """What is withheld stays bounded: at most 4(1 − δ)/δ² of the largest update's energy, and 2A/δ, for a contraction
    (Karimireddy et al. 2019, lemma 3), and never more than all that was ever given."""
    steps, layout = 100, layout_of(SMALL)
    delta, floor = 0.0, 0.0
    if isinstance(scheme, OperatorScheme):
        delta, floor = scheme.op.contraction(layout), scheme.op.floor(layout)
    limit = min(float(steps**2), 4 * (1 - delta) / delta**2 if delta > 0 else np.inf)
    least = 2 * floor / delta if delta > 0 else 0.0
    state: State = {}
    largest = 0.0
    for ctx, rng in contexts("bounded", SMALL, steps):
        x = gaussian(rng, SMALL)
        largest = max(largest, float(np.square(x, dtype=np.float64).sum()))
        with np.errstate(over="ignore", invalid="ignore"):
            state = scheme.send(x, state, ctx).state
            withheld = scheme.withheld(state, layout)
            energy = 0.0 if withheld is None else float(np.square(withheld, dtype=np.float64).sum())
        allowed = limit * largest + least
        figures = f"after {ctx.round} rounds {energy:.4g} is withheld, at most {allowed:.4g} allowed"
        require(energy <= allowed * (1 + ROUNDING) + ROUNDING, "bounded", scheme, figures)


def scale(scheme: Scheme) -> None:
    """Messages and states are finite, and the telescoping law holds, for updates times 2^±100."""
    for exponent in (-100, 100):
        state: State = {}
        updates = [np.ldexp(gaussian(rng, SMALL), exponent) for _, rng in contexts("telescoping", SMALL, 8)]
        for (ctx, _), x in zip(contexts("telescoping", SMALL, 8), updates, strict=True):
            with np.errstate(all="ignore"):
                sent = scheme.send(x, state, ctx)
                values = over_the_wire(scheme, sent.sections, ctx).to_dense(), *sent.state.values()
            good = all(bool(np.isfinite(value).all()) for value in values)
            require(good, "scale", scheme, f"round {ctx.round}, updates times 2^{exponent}: a number is not finite")
            state = sent.state
        try:
            telescoping(scheme, updates, [i % 3 == 1 for i in range(8)])
        except LawError as error:
            cause = str(error).replace(f"{scheme}: ", "", 1)
            raise LawError(f"scale: {scheme}: updates times 2^{exponent}: {cause}") from error


def on_updates(scheme: Scheme) -> None:
    """The telescoping law where every third reply is lost, where the first is lost and many follow, and on magnitudes that are
    very unequal."""
    updates = [gaussian(rng, SMALL) for _, rng in contexts("telescoping", SMALL, 20)]
    telescoping(scheme, updates, [i % 3 == 1 for i in range(20)])
    unequal = np.ldexp(np.float32(1), np.where(np.arange(SMALL) % 5 == 3, 40, 0))
    telescoping(scheme, [x * unequal for x in updates], [i % 3 == 1 for i in range(20)])
    many = [gaussian(rng, 16) for _, rng in contexts("telescoping/many", 16, MANY)]
    telescoping(scheme, many, [i % 7 == 0 for i in range(MANY)])
