"""Laws of schemes: messages, states, delivered and undelivered updates.

`round_trip`, `deterministic_send` and `scale` hold for all schemes, and `lost_replies` for schemes with a residual.
`telescoping` and `bounded_residual` hold for schemes that define `undelivered_update`.
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
"""Number of sends of one client, above the range of a counter of 8 bits."""
COHORTS, LEARNING_RATE_SUMS = (1, 4, 10, 3), (1.0, 0.5, 0.125, 2.0, 0.01)
"""Values in the contexts of consecutive rounds."""


def sample_sends(scheme: CompressionScheme) -> Iterator[tuple[CodecContext, F32, StateArrays, EncodedUpdate]]:
    """Yield context, update, state and encoded update of each round. One update is zero, one sparse; every fourth is lost."""
    state: StateArrays = {}
    for ctx, rng in draw_contexts("scheme", 1000, N_ROUNDS):
        x = draw_gaussian(rng, 1000) * np.float32(0 if ctx.round == 5 else 1)
        x[: 990 if ctx.round == 6 else 0] = 0
        encoded_update = scheme.send(x, state, ctx)
        yield ctx, x, state, encoded_update
        state = encoded_update.state_if_lost if ctx.round % 4 == 3 else encoded_update.state


def _send_readonly(law: str, scheme: CompressionScheme, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
    """Encode a read-only update with a read-only state."""
    for array in (x, *state.values()):
        array.flags.writeable = False
    try:
        return scheme.send(x, state, ctx)
    except ValueError as error:
        raise LawError(f"{law}: {scheme}: wrote to its update or its state: {error}") from error


def round_trip(scheme: CompressionScheme) -> None:
    """Each message decodes, from its bytes alone, to P finite coordinates.

    `n_coordinates` is the number of coordinates of the decoded update. The message has at most `max_bytes` bytes. The client's
    state is finite, for an acknowledged and for a lost reply.
    """
    for ctx, x, _, encoded in sample_sends(scheme):
        update = decode_through_frame(scheme, encoded.sections, ctx)
        dense = update.to_dense()
        is_valid = dense.shape == x.shape and bool(np.isfinite(dense).all())
        figures = f"round {ctx.round} decodes to {dense.shape} coordinates, expected {x.shape}, all finite"
        require(is_valid, "round_trip", scheme, figures)
        counts = scheme.n_coordinates(encoded.sections, ctx), update.n_coordinates
        figures = f"round {ctx.round}: n_coordinates of the scheme and the update: {counts}"
        require(counts[0] == counts[1], "round_trip", scheme, figures)
        n_bytes, limit = sum(len(s.data) for s in encoded.sections), scheme.max_bytes(ctx.layout)
        require(n_bytes <= limit, "round_trip", scheme, f"round {ctx.round}: {n_bytes} bytes, but max_bytes is {limit}")
        for state in (encoded.state, encoded.state_if_lost):
            names = [name for name, value in state.items() if not np.isfinite(value).all()]
            require(not names, "round_trip", scheme, f"round {ctx.round}: {', '.join(names)} is not finite")


def deterministic_send(scheme: CompressionScheme) -> None:
    """Equal updates and equal states give equal bytes and equal states, in any order of calls.

    Copies of a state, as of a client whose state was stored and loaded, give equal results. `send` writes neither to the update
    nor to the state.
    """
    law, calls = "deterministic_send", [*sample_sends(scheme)]
    for i in derive_generator(0, "laws/repeatable").permutation(len(calls)):
        ctx, x, state, first = calls[i]
        second = _send_readonly(law, scheme, x, {name: value.copy() for name, value in state.items()}, ctx)
        equal_bytes = [bytes(s.data) for s in first.sections] == [bytes(s.data) for s in second.sections]
        require(equal_bytes, law, scheme, f"round {ctx.round}: bytes differ")
        for a, b in ((first.state, second.state), (first.state_if_lost, second.state_if_lost)):
            equal_states = a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)
            require(equal_states, law, scheme, f"round {ctx.round}: states differ")


def lost_replies(scheme: CompressionScheme) -> None:
    """After a lost reply, each of `residual_entries` is nonzero where the update was nonzero.

    So coordinates that `send` cleared because they were sent are restored.
    """
    for ctx, x, _, encoded in sample_sends(scheme):
        state = encoded.state_if_lost
        for name in scheme.residual_entries:
            n_zeros = np.count_nonzero(x if name not in state else x[state[name] == 0])
            figures = f"round {ctx.round}: {name} is zero at {n_zeros} of the update's coordinates after a lost reply"
            require(not n_zeros, "lost_replies", scheme, figures)


def telescoping(scheme: CompressionScheme, updates: Sequence[F32], lost_mask: Sequence[bool]) -> None:
    """The sum of all updates is the sum of all delivered updates plus the undelivered update, in each coordinate.

    The law holds for any lost replies, and for any cohorts and learning rates in the contexts. There is one update [P] for each
    round. A scheme without `undelivered_update` is not checked.
    """
    layout = example_layout(len(updates[0]))
    update_sum, delivered_sum, magnitudes = np.zeros((3, layout.size))
    state: StateArrays = {}
    if (undelivered_update := scheme.undelivered_update(state, layout)) is None:
        return
    for i, (x, is_lost) in enumerate(zip(updates, lost_mask, strict=True)):
        cohort, learning_rate_sum = COHORTS[i % len(COHORTS)], LEARNING_RATE_SUMS[i % len(LEARNING_RATE_SUMS)]
        ctx = CodecContext(0, i + 1, 0, layout, cohort=cohort, learning_rate_sum=learning_rate_sum)
        encoded_update = _send_readonly("telescoping", scheme, x, state, ctx)
        update_sum += x
        decoded_update = scheme.decode(encoded_update.sections, ctx)
        state = encoded_update.state_if_lost if is_lost else encoded_update.state
        if not is_lost:
            decoded_update.add_to(delivered_sum, 1.0)
        undelivered_update = scheme.undelivered_update(state, layout)
        if undelivered_update is None:
            cause = "undelivered_update returns None, but it returned an update before the first send"
            raise LawError(f"telescoping: {scheme}: round {ctx.round}: {cause}")
        magnitudes += np.abs(x) + np.abs(decoded_update.to_dense()) + np.abs(undelivered_update)
    errors = np.abs(update_sum - delivered_sum - undelivered_update)
    worst = int((errors - ROUNDING_TOLERANCE * magnitudes).argmax())
    limit = float(ROUNDING_TOLERANCE * magnitudes[worst] + len(updates) * TINY)
    sums = f"delivered and undelivered updates add up to another value than the {len(updates)} updates"
    figures = f"coordinate {worst}: {sums}, by {errors[worst]:.4g}"
    require(bool(errors[worst] <= limit), "telescoping", scheme, figures)


def bounded_residual(scheme: CompressionScheme) -> None:
    """The undelivered update has at most 4(1 − δ)/δ² times the energy of the largest update, plus 2A/δ.

    This bound is lemma 3 of Karimireddy et al. (2019), for an operator with contraction δ and absolute error A. A second bound,
    also for other schemes, is the maximum energy that the sum of all updates can have.
    """
    steps, layout = 100, example_layout(SMALL_SIZE)
    delta, absolute_error = 0.0, 0.0
    if isinstance(scheme, OperatorScheme):
        delta, absolute_error = scheme.op.contraction(layout), scheme.op.absolute_error(layout)
    factor = min(float(steps**2), 4 * (1 - delta) / delta**2 if delta > 0 else np.inf)
    offset = 2 * absolute_error / delta if delta > 0 else 0.0
    state: StateArrays = {}
    largest = 0.0
    for ctx, rng in draw_contexts("bounded", SMALL_SIZE, steps):
        x = draw_gaussian(rng, SMALL_SIZE)
        largest = max(largest, float(np.square(x, dtype=np.float64).sum()))
        with np.errstate(over="ignore", invalid="ignore"):
            state = scheme.send(x, state, ctx).state
            undelivered_update = scheme.undelivered_update(state, layout)
            energy = 0.0 if undelivered_update is None else float(np.square(undelivered_update, dtype=np.float64).sum())
        limit = factor * largest + offset
        figures = f"after {ctx.round} rounds, |undelivered update|² is {energy:.4g}, at most {limit:.4g} allowed"
        require(energy <= limit * (1 + ROUNDING_TOLERANCE) + ROUNDING_TOLERANCE, "bounded_residual", scheme, figures)


def scale(scheme: CompressionScheme) -> None:
    """Messages and states are finite, and the telescoping law holds, for updates times 2^±100."""
    for exponent in (-100, 100):
        state: StateArrays = {}
        updates = [np.ldexp(draw_gaussian(rng, SMALL_SIZE), exponent) for _, rng in draw_contexts("telescoping", SMALL_SIZE, 8)]
        for (ctx, _), x in zip(draw_contexts("telescoping", SMALL_SIZE, 8), updates, strict=True):
            with np.errstate(all="ignore"):
                encoded_update = scheme.send(x, state, ctx)
                arrays = decode_through_frame(scheme, encoded_update.sections, ctx).to_dense(), *encoded_update.state.values()
            is_finite = all(bool(np.isfinite(array).all()) for array in arrays)
            require(is_finite, "scale", scheme, f"round {ctx.round}, updates times 2^{exponent}: a number is not finite")
            state = encoded_update.state
        try:
            telescoping(scheme, updates, [i % 3 == 1 for i in range(8)])
        except LawError as error:
            cause = str(error).replace(f"{scheme}: ", "", 1)
            raise LawError(f"scale: {scheme}: updates times 2^{exponent}: {cause}") from error


def check_telescoping_on_samples(scheme: CompressionScheme) -> None:
    """Check the telescoping law, with lost replies, on Gaussian updates, on very unequal magnitudes and on a long series."""
    updates = [draw_gaussian(rng, SMALL_SIZE) for _, rng in draw_contexts("telescoping", SMALL_SIZE, 20)]
    telescoping(scheme, updates, [i % 3 == 1 for i in range(20)])
    unequal = np.ldexp(np.float32(1), np.where(np.arange(SMALL_SIZE) % 5 == 3, 40, 0))
    telescoping(scheme, [x * unequal for x in updates], [i % 3 == 1 for i in range(20)])
    long_series = [draw_gaussian(rng, 16) for _, rng in draw_contexts("telescoping/many", 16, N_SENDS_LONG_RUN)]
    telescoping(scheme, long_series, [i % 7 == 0 for i in range(N_SENDS_LONG_RUN)])
