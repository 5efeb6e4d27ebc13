"""The laws of schemes as checks, as those of operators are in `laws`: what is said, remembered, delivered and held back.

`round_trip` and `deterministic_send` hold for all; `lost_replies` for schemes with a backlog; `telescoping` and
`bounded_residual` for schemes
that keep something back and say what.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fedsgd.certification.operator_laws import (
    ROUNDING_TOLERANCE,
    SMALL_SIZE,
    TINY,
    decode_through_frame,
    draw_contexts,
    draw_gaussian,
    example_layout,
    require,
)
from fedsgd.compression.base import CodecContext, CompressionScheme, EncodedUpdate, OperatorScheme
from fedsgd.compression.updates import StateArrays
from fedsgd.errors import LawError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.rng import derive_generator

N_ROUNDS = 12
N_SENDS_LONG_RUN = 600
"""Sends of one client: more than a counter of 8 bits holds."""
COHORTS, LEARNING_RATE_SUMS = (1, 4, 10, 3), (1.0, 0.5, 0.125, 2.0, 0.01)
"""The contexts of consecutive rounds."""


def sample_sends(scheme: CompressionScheme) -> Iterator[tuple[CodecContext, F32, StateArrays, EncodedUpdate]]:
    """(context, update, state, what is sent) over some rounds, one update being zero and one almost; every fourth is lost."""
    state: StateArrays = {}
    for ctx, rng in draw_contexts("scheme", 1000, N_ROUNDS):
        x = draw_gaussian(rng, 1000) * np.float32(0 if ctx.round == 5 else 1)
        x[: 990 if ctx.round == 6 else 0] = 0
        sent = scheme.send(x, state, ctx)
        yield ctx, x, state, sent
        state = sent.state_if_lost if ctx.round % 4 == 3 else sent.state


def _send_readonly(law: str, scheme: CompressionScheme, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
    """What is sent, of an update and a state that cannot be written to."""
    for array in (x, *state.values()):
        array.flags.writeable = False
    try:
        return scheme.send(x, state, ctx)
    except ValueError as error:
        raise LawError(f"{law}: {scheme}: wrote to its update or its state: {error}") from error


def round_trip(scheme: CompressionScheme) -> None:
    """Each message decodes, from its bytes alone, to a finite update of the right size; it carries as many coordinates as
    `n_coordinates` says, and weighs at most max_bytes. What is remembered is finite, whether the reply arrives or not."""
    for ctx, x, _, sent in sample_sends(scheme):
        update = decode_through_frame(scheme, sent.sections, ctx)
        dense = update.to_dense()
        good = dense.shape == x.shape and bool(np.isfinite(dense).all())
        said = f"{dense.shape} coordinates, expected {x.shape}, all finite"
        require(good, "messages", scheme, f"round {ctx.round} decodes to {said}")
        counts = scheme.n_coordinates(sent.sections, ctx), update.n_coordinates
        require(counts[0] == counts[1], "messages", scheme, f"round {ctx.round}: kept and the update say {counts}")
        n_bytes, limit = sum(len(s.data) for s in sent.sections), scheme.max_bytes(ctx.layout)
        require(n_bytes <= limit, "messages", scheme, f"round {ctx.round}: {n_bytes} bytes, max_bytes says {limit}")
        for state in (sent.state, sent.state_if_lost):
            bad = [name for name, value in state.items() if not np.isfinite(value).all()]
            require(not bad, "messages", scheme, f"round {ctx.round}: {', '.join(bad)} is not finite")


def deterministic_send(scheme: CompressionScheme) -> None:
    """Equal updates and equal states give equal bytes and equal states, also in another order of calls and from copies, as of a
    client that was put away and fetched again; and neither is written to."""
    calls = [*sample_sends(scheme)]
    for i in derive_generator(0, "laws/repeatable").permutation(len(calls)):
        ctx, x, state, sent = calls[i]
        again = _send_readonly("repeatable", scheme, x, {name: value.copy() for name, value in state.items()}, ctx)
        same = [bytes(s.data) for s in sent.sections] == [bytes(s.data) for s in again.sections]
        require(same, "repeatable", scheme, f"round {ctx.round}: bytes differ")
        for one, other in ((sent.state, again.state), (sent.state_if_lost, again.state_if_lost)):
            equal = one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
            require(equal, "repeatable", scheme, f"round {ctx.round}: states differ")


def lost_replies(scheme: CompressionScheme) -> None:
    """After a lost reply each entry of the `residual_entries` is there, and not zero where the update was not zero: what was
    cleared
    because it was sent comes back."""
    for ctx, x, _, sent in sample_sends(scheme):
        after = sent.state_if_lost
        for name in scheme.residual_entries:
            lost = np.count_nonzero(x if name not in after else x[after[name] == 0])
            figures = f"round {ctx.round}: {name} is zero at {lost} of the update's coordinates after a lost reply"
            require(not lost, "lost_replies", scheme, figures)


def telescoping(scheme: CompressionScheme, updates: Sequence[F32], lost_mask: Sequence[bool]) -> None:
    """Over updates x [P], Σ x = Σ delivered + withheld in each coordinate, whichever replies were lost, and whatever cohort and
    step sizes the contexts have."""
    layout = example_layout(len(updates[0]))
    given, delivered, magnitudes = np.zeros((3, layout.size))
    state: StateArrays = {}
    if (withheld := scheme.undelivered_update(state, layout)) is None:
        return
    for i, (x, is_lost) in enumerate(zip(updates, lost_mask, strict=True)):
        ctx = CodecContext(
            0,
            i + 1,
            0,
            layout,
            cohort=COHORTS[i % len(COHORTS)],
            learning_rate_sum=LEARNING_RATE_SUMS[i % len(LEARNING_RATE_SUMS)],
        )
        sent = _send_readonly("telescoping", scheme, x, state, ctx)
        given += x
        decoded = scheme.decode(sent.sections, ctx)
        state = sent.state_if_lost if is_lost else sent.state
        if not is_lost:
            decoded.add_to(delivered, 1.0)
        withheld = scheme.undelivered_update(state, layout)
        if withheld is None:
            raise LawError(f"telescoping: {scheme}: round {ctx.round}: withheld is None, but not before the first send")
        magnitudes += np.abs(x) + np.abs(decoded.to_dense()) + np.abs(withheld)
    off = np.abs(given - delivered - withheld)
    worst = int((off - ROUNDING_TOLERANCE * magnitudes).argmax())
    allowed = float(ROUNDING_TOLERANCE * magnitudes[worst] + len(updates) * TINY)
    figures = f"{off[worst]:.4g} of coordinate {worst} was neither delivered nor withheld after {len(updates)} updates"
    require(bool(off[worst] <= allowed), "telescoping", scheme, figures)


def bounded_residual(scheme: CompressionScheme) -> None:
    """What is withheld stays bounded: at most 4(1 − δ)/δ² of the largest update's energy, and 2A/δ, for a contraction
    (Karimireddy et al. 2019, lemma 3), and never more than all that was ever given."""
    steps, layout = 100, example_layout(SMALL_SIZE)
    delta, floor = 0.0, 0.0
    if isinstance(scheme, OperatorScheme):
        delta, floor = scheme.op.contraction(layout), scheme.op.absolute_error(layout)
    limit = min(float(steps**2), 4 * (1 - delta) / delta**2 if delta > 0 else np.inf)
    least = 2 * floor / delta if delta > 0 else 0.0
    state: StateArrays = {}
    largest = 0.0
    for ctx, rng in draw_contexts("bounded", SMALL_SIZE, steps):
        x = draw_gaussian(rng, SMALL_SIZE)
        largest = max(largest, float(np.square(x, dtype=np.float64).sum()))
        with np.errstate(over="ignore", invalid="ignore"):
            state = scheme.send(x, state, ctx).state
            withheld = scheme.undelivered_update(state, layout)
            energy = 0.0 if withheld is None else float(np.square(withheld, dtype=np.float64).sum())
        allowed = limit * largest + least
        figures = f"after {ctx.round} rounds {energy:.4g} is withheld, at most {allowed:.4g} allowed"
        require(energy <= allowed * (1 + ROUNDING_TOLERANCE) + ROUNDING_TOLERANCE, "bounded", scheme, figures)


def scale(scheme: CompressionScheme) -> None:
    """Messages and states are finite, and the telescoping law holds, for updates times 2^±100."""
    for exponent in (-100, 100):
        state: StateArrays = {}
        updates = [np.ldexp(draw_gaussian(rng, SMALL_SIZE), exponent) for _, rng in draw_contexts("telescoping", SMALL_SIZE, 8)]
        for (ctx, _), x in zip(draw_contexts("telescoping", SMALL_SIZE, 8), updates, strict=True):
            with np.errstate(all="ignore"):
                sent = scheme.send(x, state, ctx)
                values = decode_through_frame(scheme, sent.sections, ctx).to_dense(), *sent.state.values()
            good = all(bool(np.isfinite(value).all()) for value in values)
            require(good, "scale", scheme, f"round {ctx.round}, updates times 2^{exponent}: a number is not finite")
            state = sent.state
        try:
            telescoping(scheme, updates, [i % 3 == 1 for i in range(8)])
        except LawError as error:
            cause = str(error).replace(f"{scheme}: ", "", 1)
            raise LawError(f"scale: {scheme}: updates times 2^{exponent}: {cause}") from error


def check_telescoping_on_samples(scheme: CompressionScheme) -> None:
    """The telescoping law where every third reply is lost, where the first is lost and many follow, and on magnitudes that are
    very unequal."""
    updates = [draw_gaussian(rng, SMALL_SIZE) for _, rng in draw_contexts("telescoping", SMALL_SIZE, 20)]
    telescoping(scheme, updates, [i % 3 == 1 for i in range(20)])
    unequal = np.ldexp(np.float32(1), np.where(np.arange(SMALL_SIZE) % 5 == 3, 40, 0))
    telescoping(scheme, [x * unequal for x in updates], [i % 3 == 1 for i in range(20)])
    many = [draw_gaussian(rng, 16) for _, rng in draw_contexts("telescoping/many", 16, N_SENDS_LONG_RUN)]
    telescoping(scheme, many, [i % 7 == 0 for i in range(N_SENDS_LONG_RUN)])
