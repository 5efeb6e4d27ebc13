"""Law suites of all component families, as functions and as tests under pytest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from fedsgd.aggregation import Aggregator
from fedsgd.certification.law import Law
from fedsgd.certification.law_suite import applicable_laws
from fedsgd.compression import CompressionScheme, Compressor
from fedsgd.config.component import Component, describe_value
from fedsgd.data import Examples, Partitioner
from fedsgd.optim import Optimizer, Schedule
from fedsgd.sampling import DurationModel, Sampler, SamplingPool
from fedsgd.testing.aggregator_laws import list_aggregator_laws
from fedsgd.testing.component_laws import list_component_laws
from fedsgd.testing.duration_laws import list_duration_laws
from fedsgd.testing.optimizer_laws import list_optimizer_laws, list_schedule_laws
from fedsgd.testing.partitioner_laws import list_partitioner_laws
from fedsgd.testing.sampler_laws import list_sampler_laws

FAMILIES = (Compressor, Aggregator, Partitioner, Sampler, Optimizer, Schedule, DurationModel)
"""Base classes of the families that have laws."""
C = TypeVar("C", bound=Callable[..., Any])


def list_laws(
    component: Component,
    *,
    scheme: CompressionScheme | None = None,
    examples: Examples | None = None,
    pool: SamplingPool | None = None,
) -> list[Law]:
    """Return the laws of a component; calling a law checks it.

    Args:
        component: compressor, aggregator, partitioner, sampler, optimizer, schedule or duration model.
        scheme: for an aggregator, the scheme that encodes the updates; None: a scheme that the rule accepts.
        examples: for a partitioner, the examples to partition; None: random examples with labels of ten classes and owners.
        pool: for a sampler, up to some thousand clients that cohorts are drawn from; None: pools of 1 to 150 clients.

    Raises:
        TypeError: the component belongs to no family that has laws.

    >>> from fedsgd.sampling.uniform import Uniform
    >>> [law.name for law in list_laws(Uniform())][:4]
    ['immutable_value', 'settings_round_trip', 'valid_cohort', 'global_generators']
    """
    if isinstance(component, Compressor):
        return [*list_component_laws(component), *applicable_laws(component)]
    if isinstance(component, Aggregator):
        return list_aggregator_laws(component, scheme)
    if isinstance(component, Partitioner):
        return list_partitioner_laws(component, examples)
    if isinstance(component, Sampler):
        return list_sampler_laws(component, pool)
    if isinstance(component, Optimizer):
        return list_optimizer_laws(component)
    if isinstance(component, Schedule):
        return list_schedule_laws(component)
    if isinstance(component, DurationModel):
        return list_duration_laws(component)
    raise _make_family_error(component, *FAMILIES)


def parametrize_laws(
    *components: Component,
    scheme: CompressionScheme | None = None,
    examples: Examples | None = None,
    pool: SamplingPool | None = None,
) -> Callable[[C], C]:
    """Return a decorator of a test function with the parameter `law`, for one test of pytest for each law.

    The test's id is the name of the component and of the law, such as "my-compressor-round_trip".

        @parametrize_laws(MyCompressor(), MyAggregator())
        def test_component_obeys_its_law(law):
            law()

    Args:
        *components: components to test.
        scheme: for aggregators, the scheme that encodes the updates; None: a scheme that the rule accepts.
        examples: for partitioners, the examples to partition; None: random examples with labels of ten classes and owners.
        pool: for samplers, the clients that cohorts are drawn from; None: pools of 1 to 150 clients.
    """
    import pytest

    laws = [law for component in components for law in list_laws(component, scheme=scheme, examples=examples, pool=pool)]
    decorator: Callable[[C], C] = pytest.mark.parametrize("law", laws, ids=_make_ids(laws))
    return decorator


def _make_ids(laws: Sequence[Law]) -> Iterator[str]:
    """Yield the name of the component and of the law; the component's settings too, if two components have one name."""
    names = {(law.component.name, str(law.component)) for law in laws}
    counts = Counter(name for name, _ in names)
    for law in laws:
        component = law.component
        yield f"{component.name if counts[component.name] == 1 else component}-{law.name}"


def check_compressor(compressor: Compressor) -> None:
    """Check the laws of an operator or a scheme: frames, decoding, errors, residuals and rounds.

    `fedsgd.certify` checks these laws too, decodes in a fresh interpreter, and measures bytes and times.

    Args:
        compressor: compressor to check.

    Raises:
        LawError: the compressor breaks a law; the message begins with the law and the compressor.

    >>> from fedsgd.compression.operators.sign import Sign
    >>> check_compressor(Sign())
    """
    _check_member(compressor, Compressor)


def check_aggregator(aggregator: Aggregator, *, scheme: CompressionScheme | None = None) -> None:
    """Check the laws of an aggregator: order of clients, equal updates, breakdown, memory, malformed updates.

    Args:
        aggregator: aggregator to check.
        scheme: scheme that encodes the updates; None: a scheme that the rule accepts.

    Raises:
        LawError: the aggregator breaks a law; the message begins with the law and the aggregator.
    """
    _check_member(aggregator, Aggregator, scheme=scheme)


def check_partitioner(partitioner: Partitioner, *, examples: Examples | None = None) -> None:
    """Check the laws of a partitioner: clients of all examples, no empty client, determinism, small datasets.

    Args:
        partitioner: partitioner to check.
        examples: examples to partition; None: random examples with labels of ten classes and owners.

    Raises:
        LawError: the partitioner breaks a law; the message begins with the law and the partitioner.
    """
    _check_member(partitioner, Partitioner, examples=examples)


def check_sampler(sampler: Sampler, *, pool: SamplingPool | None = None) -> None:
    """Check the laws of a sampler: distinct clients, size of the cohort, determinism, inclusion probabilities.

    Args:
        sampler: sampler to check.
        pool: clients that cohorts are drawn from; None: pools of 1 to 150 clients.

    Raises:
        LawError: the sampler breaks a law; the message begins with the law and the sampler.
    """
    _check_member(sampler, Sampler, pool=pool)


def check_optimizer(optimizer: Optimizer) -> None:
    """Check the laws of an optimizer: buffers, determinism, clipping, learning rate, and equal updates from all engines.

    Args:
        optimizer: optimizer to check.

    Raises:
        LawError: the optimizer breaks a law; the message begins with the law and the optimizer.
    """
    _check_member(optimizer, Optimizer)


def check_schedule(schedule: Schedule) -> None:
    """Check the laws of a learning-rate schedule: factors in [0, 1], determinism.

    Args:
        schedule: schedule to check.

    Raises:
        LawError: the schedule breaks a law; the message begins with the law and the schedule.
    """
    _check_member(schedule, Schedule)


def check_durations(model: DurationModel) -> None:
    """Check the laws of a duration model: finite durations that do not decrease with the number of steps, determinism.

    Args:
        model: duration model to check.

    Raises:
        LawError: the model breaks a law; the message begins with the law and the model.
    """
    _check_member(model, DurationModel)


def _check_member(component: Component, family: type, **options: Any) -> None:
    """Check the laws of a member of a family, up to the first that does not hold. The options are those of `list_laws`."""
    if not isinstance(component, family):
        raise _make_family_error(component, family)
    for law in list_laws(component, **options):
        law()


def _make_family_error(component: object, *families: type) -> TypeError:
    classes = ", ".join(f"{family.__module__}.{family.__qualname__}" for family in families)
    hint = f"; pass an instance, {component.__qualname__}(...)" if isinstance(component, type) else ""
    return TypeError(f"component: got {describe_value(component)}, expected an instance of a subclass of {classes}{hint}")
