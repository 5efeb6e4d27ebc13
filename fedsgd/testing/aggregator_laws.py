"""Laws of aggregators. C updates of P parameters; x_i is the decoded update of client i, p_i its aggregation weight."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np

from fedsgd.aggregation import AggregationContext, Aggregator, WeightedUpdate
from fedsgd.aggregation.base import AcceptedWeights, AggregationResult
from fedsgd.aggregation.blocks import CohortAggregator, DecodedCohort
from fedsgd.certification import round_laws
from fedsgd.certification.law import Law, make_law
from fedsgd.certification.operator_laws import require
from fedsgd.certification.simulate_rounds import (
    SEED,
    decode_reference_frame,
    encode_message,
    encode_reference_frame,
    make_context,
    rebuild,
)
from fedsgd.compression import CompressionScheme, MemorylessScheme, StateArrays
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.topk import TopK
from fedsgd.config.component import FieldError
from fedsgd.errors import LawError, WireError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.rng import derive_generator
from fedsgd.testing.component_laws import arrange_laws
from fedsgd.wire import ALL_CLIENTS, decode_frame

COHORT_SIZES = (9, 33, 129)
"""Sizes C of cohorts; a law uses the smallest size that `check_cohort` accepts."""
MEMORY_COHORT_SIZE = 33
LAYOUT = ParameterLayout(("matrix", "vector"), ((5, 6), (10,)))
LARGE_LAYOUT = ParameterLayout(("matrix", "vector"), ((40, 100), (1000,)))
N_ROUNDS = 3
HOSTILE_NORMS = (1e9, 1e18, 1e30)
MAX_DISTANCE = 1e6
"""Allowed distance of the aggregate from the mean of honest updates of norm 1, under tolerated hostile updates."""
SMALL_NORM = 2.0**-7
"""Norm of equal updates, below the radius of rules that clip."""
ROUNDING = 1e-5
"""Allowed error of an aggregate, relative to the norm of the updates."""
N_WORKING_VECTORS = 10
"""Number of float64 vectors [P] that a rule may allocate in addition to `max_working_bytes`."""


# --------------------------------------------------------------------------------------------------------------------- cohorts


def draw_updates(purpose: str, n: int, size: int) -> list[F32]:
    """Return n updates of a norm of about 1 with a common mean."""
    rng = derive_generator(0, f"laws/aggregator/{purpose}")
    mean = rng.standard_normal(size)
    return [((mean + 0.5 * rng.standard_normal(size)) / np.sqrt(1.25 * size)).astype(np.float32) for _ in range(n)]


def encode_cohort(
    updates: Sequence[F32],
    scheme: CompressionScheme,
    weights: Sequence[float] | None = None,
    *,
    layout: ParameterLayout = LAYOUT,
    round: int = 1,
    server_state: StateArrays | None = None,
) -> tuple[list[WeightedUpdate], AggregationContext]:
    """Encode the updates of clients 0, 1, ... without client states.

    Args:
        updates: x_i, each [P] float32.
        scheme: scheme that encodes the updates.
        weights: p_i; None for equal weights.
        layout: tensors of the vector, P numbers.
        round: number of the round, from 1.
        server_state: the aggregator's state, from which the scheme encodes its reference frame.

    Returns:
        The encoded updates, and the context of the round.
    """
    n = len(updates)
    server_ctx = make_context(round, ALL_CLIENTS, layout, n)
    reference = decode_reference_frame(scheme, encode_reference_frame(scheme, server_state or {}, server_ctx), server_ctx)
    cohort = []
    for client, x in enumerate(updates):
        ctx = make_context(round, client, layout, n)
        frame, _ = encode_message(scheme, x, {}, replace(ctx, reference=reference))
        cohort.append(WeightedUpdate(decode_frame(frame).sections, 1 / n if weights is None else weights[client], ctx))
    return cohort, AggregationContext(SEED, round, layout, n, scheme)


def aggregate(
    aggregator: Aggregator, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext
) -> AggregationResult:
    """Aggregate as in a round: updates can be iterated over once, and overflows are no errors."""
    with np.errstate(over="ignore", invalid="ignore"):
        return aggregator.aggregate(state, iter(updates), ctx)


def _choose_cohort_size(aggregator: Aggregator, minimum: int = 0) -> int:
    """Return the smallest size C of at least `minimum` that the rule accepts; raise FieldError if it accepts none."""
    for size in COHORT_SIZES[:-1]:
        if size >= minimum:
            with suppress(FieldError):
                aggregator.check_cohort(size)
                return size
    aggregator.check_cohort(COHORT_SIZES[-1])
    return COHORT_SIZES[-1]


def _make_weights(aggregator: Aggregator, n: int) -> list[float]:
    """Return weights that add up to 1, unequal if the rule accepts such weights."""
    numbers = np.ones(n) if aggregator.accepted_weights == "equal" else np.arange(1.0, n + 1)
    return [float(weight) for weight in numbers / numbers.sum()]


def _list_schemes(aggregator: Aggregator, scheme: CompressionScheme | None) -> list[CompressionScheme]:
    """Return the schemes to encode with: the given one, the rule's own, or dense and sparse updates without memory."""
    if scheme is not None:
        return [scheme]
    if aggregator.scheme_type is not None:
        return [aggregator.scheme_type()]
    return [MemorylessScheme(Dense()), MemorylessScheme(TopK(0.25))]


def _run_rounds(
    aggregator: Aggregator, scheme: CompressionScheme
) -> Iterator[tuple[StateArrays, list[WeightedUpdate], AggregationContext]]:
    """Yield the server's state, the updates and the context of some rounds with unequal weights."""
    n = _choose_cohort_size(aggregator)
    state = aggregator.init_state(LAYOUT)
    for round in range(1, N_ROUNDS + 1):
        updates = draw_updates(f"rounds/{round}", n, LAYOUT.size)
        weights = _make_weights(aggregator, n)
        cohort, ctx = encode_cohort(updates, scheme, weights, round=round, server_state=state)
        yield state, cohort, ctx
        state = aggregate(aggregator, state, cohort, ctx)[1]


def _read_bits(result: AggregationResult) -> tuple[bytes, dict[str, bytes]]:
    """Return an aggregate and a state as bytes."""
    return result[0].tobytes(), _read_state_bits(result[1])


def _read_state_bits(state: StateArrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in state.items()}


def _require_close(law: str, aggregator: Aggregator, case: str, actual: F32, expected: F32, norm: float) -> None:
    """Raise LawError unless two aggregates are equal up to rounding of vectors with a norm of at most `norm`."""
    error = float(np.linalg.norm(actual.astype(np.float64) - expected.astype(np.float64)))
    figures = f"{case}: |difference| = {error:.3g}, at most {ROUNDING * norm:.3g} allowed"
    require(error <= ROUNDING * norm, law, aggregator, figures)


# -------------------------------------------------------------------------------------------------------- laws of every rule


def valid_aggregate(aggregator: Aggregator, scheme: CompressionScheme | None = None) -> None:
    """The aggregate is a finite float32 vector [P] for many updates, one, zero vectors, and none if the server steps then."""
    law = "valid_aggregate"
    weights = get_args(AcceptedWeights)
    is_stated = aggregator.accepted_weights in weights
    require(is_stated, law, aggregator, f"accepted_weights is {aggregator.accepted_weights!r}, expected one of {weights}")
    zero = np.zeros(LAYOUT.size, dtype=np.float32)
    for encoder in _list_schemes(aggregator, scheme):
        for state, cohort, ctx in _run_rounds(aggregator, encoder):
            zeros, _ = encode_cohort([zero] * len(cohort), encoder, round=ctx.round, server_state=state)
            cases = {f"{len(cohort)} updates": cohort, "one update": [replace(cohort[0], weight=1.0)], "zero vectors": zeros}
            if aggregator.steps_without_replies:
                cases["no update"] = []
            for case, updates in cases.items():
                vector, _ = aggregate(aggregator, copy.deepcopy(state), updates, ctx)
                is_vector = isinstance(vector, np.ndarray) and vector.shape == zero.shape and vector.dtype == zero.dtype
                figures = f"round {ctx.round}, {case}: got {_describe_array(vector)}, expected float32 of shape {zero.shape}"
                require(is_vector, law, aggregator, figures)
                require(bool(np.isfinite(vector).all()), law, aggregator, f"round {ctx.round}, {case}: not finite")


def _describe_array(value: object) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def repeated_call(aggregator: Aggregator, scheme: CompressionScheme | None = None) -> None:
    """Equal aggregators return equal bits for equal arguments, after other calls too."""
    for encoder in _list_schemes(aggregator, scheme):
        rounds = [*_run_rounds(aggregator, encoder)]
        first, second = (
            {ctx.round: _read_bits(aggregate(rule, state, cohort, ctx)) for state, cohort, ctx in order}
            for rule, order in ((aggregator, rounds), (rebuild(aggregator), rounds[::-1]))
        )
        different_rounds = [round for round in first if first[round] != second[round]]
        figures = f"rounds {different_rounds} have other bits in a second call with equal arguments"
        require(not different_rounds, "repeated_call", aggregator, figures)


def unchanged_arguments(aggregator: Aggregator, scheme: CompressionScheme | None = None) -> None:
    """The aggregator does not write to the state that it receives."""
    for encoder in _list_schemes(aggregator, scheme):
        for state, cohort, ctx in _run_rounds(aggregator, encoder):
            original = _read_state_bits(state)
            aggregate(aggregator, state, cohort, ctx)
            is_unchanged = _read_state_bits(state) == original
            require(is_unchanged, "unchanged_arguments", aggregator, f"round {ctx.round}: writes to the server's state")


def malformed_update(aggregator: Aggregator, scheme: CompressionScheme | None = None) -> None:
    """A malformed update raises WireError before the next update is read, so that the message names its client."""
    for encoder in _list_schemes(aggregator, scheme):
        n = _choose_cohort_size(aggregator)
        cohort, ctx = encode_cohort(draw_updates("malformed", n, LAYOUT.size), encoder, _make_weights(aggregator, n))
        cohort[1] = replace(cohort[1], sections=cohort[1].sections[:0])
        read_clients: list[int] = []

        def iterate(updates: list[WeightedUpdate] = cohort, clients: list[int] = read_clients) -> Iterator[WeightedUpdate]:
            for update in updates:
                clients.append(update.ctx.client)
                yield update

        try:
            aggregate(aggregator, aggregator.init_state(LAYOUT), iterate(), ctx)
        except WireError:
            figures = f"client 1 sent no section, but clients {read_clients} were read before the WireError"
            require(read_clients == [0, 1], "malformed_update", aggregator, figures)
        else:
            raise LawError(f"malformed_update: {aggregator}: an update without sections raises no WireError")


def working_memory(aggregator: Aggregator, scheme: CompressionScheme | None = None) -> None:
    """`aggregate` allocates at most `max_working_bytes` and a few vectors."""
    n = _choose_cohort_size(aggregator, MEMORY_COHORT_SIZE)
    limit = aggregator.max_working_bytes(LARGE_LAYOUT, n) + 8 * N_WORKING_VECTORS * LARGE_LAYOUT.size
    for encoder in _list_schemes(aggregator, scheme):
        updates = draw_updates("memory", n, LARGE_LAYOUT.size)
        cohort, ctx = encode_cohort(updates, encoder, _make_weights(aggregator, n), layout=LARGE_LAYOUT)
        state = aggregator.init_state(LARGE_LAYOUT)
        aggregate(aggregator, state, cohort[:1], ctx)  # imports and compiles
        tracemalloc.start()
        try:
            aggregate(aggregator, state, cohort, ctx)
            n_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        vectors = f"{N_WORKING_VECTORS} float64 vectors"
        figures = f"{n:,} updates of {LARGE_LAYOUT.size:,} parameters take {n_bytes:,} bytes, max_working_bytes and {vectors}"
        require(n_bytes <= limit, "working_memory", aggregator, f"{figures} are {limit:,}")


def _run(aggregator: Aggregator, scheme: CompressionScheme | None) -> None:
    """Aggregate some rounds."""
    for encoder in _list_schemes(aggregator, scheme):
        for _ in _run_rounds(rebuild(aggregator), encoder):
            pass


# ---------------------------------------------------------------------------------------- laws of rules that no scheme owns


def exchanged_clients(aggregator: Aggregator, scheme: CompressionScheme | None = None) -> None:
    """If clients exchange their updates and weights, the aggregate changes by rounding only."""
    n = _choose_cohort_size(aggregator)
    updates, weights = draw_updates("exchange", n, LAYOUT.size), _make_weights(aggregator, n)
    order = derive_generator(0, "laws/aggregator/order").permutation(n)
    for encoder in _list_schemes(aggregator, scheme):
        vectors = []
        for positions in (np.arange(n), order, order[::-1]):
            cohort, ctx = encode_cohort([updates[i] for i in positions], encoder, [weights[i] for i in positions])
            vectors.append(aggregate(aggregator, aggregator.init_state(LAYOUT), cohort, ctx)[0])
        for vector in vectors[1:]:
            _require_close("exchanged_clients", aggregator, "clients in another order", vector, vectors[0], 1.0)


def equal_updates(aggregator: Aggregator, scheme: CompressionScheme | None = None) -> None:
    """If all clients send the same short update, one client or many, a rule without state returns this update."""
    (update,) = draw_updates("equal", 1, LAYOUT.size)
    update *= np.float32(SMALL_NORM)
    for encoder in _list_schemes(aggregator, scheme):
        for n in (1, _choose_cohort_size(aggregator)):
            cohort, ctx = encode_cohort([update] * n, encoder, _make_weights(aggregator, n))
            vector, state = aggregate(aggregator, aggregator.init_state(LAYOUT), cohort, ctx)
            if not state:
                expected = ctx.decode(cohort[0]).to_dense()
                case = f"{n} equal update{'s' * (n > 1)} of norm {SMALL_NORM:.3g}"
                _require_close("equal_updates", aggregator, case, vector, expected, SMALL_NORM)


def breakdown(aggregator: Aggregator, scheme: CompressionScheme | None = None) -> None:
    """With `tolerated(C)` hostile updates of any size, the aggregate stays near the mean of the honest updates."""
    n = _choose_cohort_size(aggregator)
    tolerated = aggregator.tolerated(n)
    require(0 <= tolerated <= n, "breakdown", aggregator, f"tolerated({n}) is {tolerated}, expected 0 to {n}")
    n_hostile = min(tolerated, n - 1)
    honest = draw_updates("honest", n - n_hostile, LAYOUT.size)
    for norm in HOSTILE_NORMS if n_hostile else ():
        for attack, directions in _draw_attacks(n_hostile, honest[0]).items():
            hostile = [(norm * direction).astype(np.float32) for direction in directions]
            for place, updates in (("first", [*hostile, *honest]), ("last", [*honest, *hostile])):
                cohort, ctx = encode_cohort(updates, scheme or MemorylessScheme(Dense()))
                vector, _ = aggregate(aggregator, aggregator.init_state(LAYOUT), cohort, ctx)
                distance = float(np.linalg.norm(vector - np.mean(honest, axis=0, dtype=np.float64)))
                case = f"{n_hostile} of {n} updates, the {place}, are {attack} of norm {norm:g}"
                figures = f"{case}; the aggregate is {distance:.3g} from the honest mean, at most {MAX_DISTANCE:g} allowed"
                require(distance <= MAX_DISTANCE, "breakdown", aggregator, figures)


def _draw_attacks(n_hostile: int, honest_update: F32) -> dict[str, list[F32]]:
    """Return directions [P] of n hostile updates by the name of the attack; their norms are 1."""
    constant = np.full(LAYOUT.size, LAYOUT.size**-0.5, dtype=np.float32)
    opposite = -honest_update / np.float32(np.linalg.norm(honest_update))
    scattered = [x / np.float32(np.linalg.norm(x)) for x in draw_updates("scattered", n_hostile, LAYOUT.size)]
    alternating = [x * np.float32(-1 if i % 2 else 1) for i, x in enumerate(scattered)]
    return {"constant": [constant] * n_hostile, "opposite": [opposite] * n_hostile, "scattered": alternating}


def coordinate_blocks(aggregator: Aggregator, scheme: CompressionScheme | None = None) -> None:
    """A rule that needs all updates at once returns the same aggregate in blocks of few coordinates."""
    assert isinstance(aggregator, CohortAggregator)
    for encoder in _list_schemes(aggregator, scheme):
        for state, cohort, ctx in _run_rounds(aggregator, encoder):
            whole, _ = aggregate(aggregator, state, cohort, ctx)
            blocks = DecodedCohort(iter(cohort), ctx, 4 * len(cohort) * 7)  # seven coordinates; no update is stored
            in_blocks, _ = aggregator.aggregate_cohort(state, blocks)
            _require_close("coordinate_blocks", aggregator, f"round {ctx.round}, blocks of 7", in_blocks, whole, 1.0)


RULE_LAWS = (valid_aggregate, unchanged_arguments, repeated_call, malformed_update, working_memory)
"""Laws of every aggregator."""
FREE_RULE_LAWS = (exchanged_clients, equal_updates, breakdown)
"""Laws of an aggregator that is no scheme's server half."""


def list_aggregator_laws(aggregator: Aggregator, scheme: CompressionScheme | None = None) -> list[Law]:
    """Return the laws of an aggregator; `scheme` encodes the updates, by default a scheme that the rule accepts."""
    functions = [*RULE_LAWS, *(FREE_RULE_LAWS if aggregator.scheme_type is None else ())]
    if isinstance(aggregator, CohortAggregator):
        functions.append(coordinate_blocks)
    laws = [make_law(law, aggregator, partial(law, aggregator, scheme)) for law in functions]
    if aggregator.scheme_type is not None:
        check = partial(_check_with_schemes, aggregator, scheme)
        laws.append(make_law(round_laws.aggregation, aggregator, check))
    return arrange_laws(aggregator, laws, partial(_run, aggregator, scheme))


def _check_with_schemes(aggregator: Aggregator, scheme: CompressionScheme | None) -> None:
    for encoder in _list_schemes(aggregator, scheme):
        round_laws.aggregation(encoder)
