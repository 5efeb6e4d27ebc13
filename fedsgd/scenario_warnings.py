"""Settings against which the documentation of a component warns. They change neither results nor the exit status."""

from __future__ import annotations

from collections.abc import Iterator

from fedsgd.compress import Compressor
from fedsgd.compress.run_config import FeedbackPolicy, RunConfig
from fedsgd.data import ClientData
from fedsgd.engine import Recipe
from fedsgd.optim import Optimizer
from fedsgd.rounds import Plan
from fedsgd.scenario import Scenario
from fedsgd.tables import Downlink
from fedsgd.user_code import user_code


def find_warnings(scenario: Scenario, plan: Plan, train: ClientData) -> tuple[str, ...]:
    """Find the settings of a scenario that its components are not made for.

    Args:
        scenario: the scenario.
        plan: what server and clients agree on.
        train: examples of all clients, on whose number the number of local steps depends.

    Returns:
        One line for each fault: the dotted key, the reason, and what to set instead.
    """
    run = _run_config(scenario, plan, train)
    found = [*find_compressor_warnings(plan.uplink, run, scenario.downlink)]
    found += _client_warnings(plan.recipe, run.local_steps)
    if plan.normalised:
        found += _normalisation_warnings(plan.recipe)
    return tuple(dict.fromkeys(found))


def find_compressor_warnings(uplink: Compressor, run: RunConfig, downlink: Downlink) -> Iterator[str]:
    """Yield the warnings of both compressors.

    Args:
        uplink: compressor of the clients' updates.
        run: settings of the run, as the uplink has them.
        downlink: policy and compressor of the server's steps.
    """
    yield from _lines(uplink, run)
    feedback: FeedbackPolicy = "persist" if downlink.policy in ("error-feedback", "shift") else "none"
    server = RunConfig("downlink.compressor", run.layout, run.rounds, clients=1, cohort=1, error_feedback=feedback)
    yield from _lines(downlink.compressor, server)


def _lines(compressor: Compressor, run: RunConfig) -> Iterator[str]:
    """Yield a compressor's warnings, each in one line."""
    with user_code(run.key, compressor):
        found = compressor.find_warnings(run)
        yield from (" ".join(str(text).split()) for text in ([found] if isinstance(found, str) else found))


def _run_config(scenario: Scenario, plan: Plan, train: ClientData) -> RunConfig:
    recipe = plan.recipe
    sizes = [1] if recipe.epochs is None else train.distinct_sizes()[0].tolist()
    local_steps = max(recipe.n_steps(n) for n in sizes)
    return RunConfig(
        key="uplink.compressor",
        layout=plan.layout,
        rounds=scenario.rounds,
        clients=plan.clients,
        cohort=plan.cohort,
        local_steps=local_steps,
        client_momentum=_momentum(recipe.optimizer) if local_steps > 1 or recipe.carry else 0.0,
        server_momentum=_momentum(plan.optimizer),
        error_feedback=scenario.uplink.error_feedback,
    )


def _momentum(optimizer: Optimizer) -> float:
    """Return the coefficient of an optimizer's velocity or first moment, 0 for none."""
    return float(getattr(optimizer, "momentum", getattr(optimizer, "beta1", 0.0)))


def _client_warnings(recipe: Recipe, local_steps: int | None) -> Iterator[str]:
    """Warn of a velocity that never accumulates."""
    momentum = _momentum(recipe.optimizer)
    if momentum and local_steps == 1 and not recipe.carry:
        yield (
            f"client.optimizer.momentum = {momentum:g}: a client makes one local step a round, and its velocity begins at zero "
            'in each, so that it never accumulates; set client.velocity = "carry", or server.optimizer.name = "momentum"'
        )


def _normalisation_warnings(recipe: Recipe) -> Iterator[str]:
    """Warn of settings that FedNova's displacement leaves out, see `Recipe.displacement`."""
    optimizer = recipe.optimizer
    remedies = {
        "client.optimizer.clip_norm": optimizer.clip_norm is not None and "leave client.optimizer.clip_norm out",
        "client.optimizer.weight_decay": optimizer.weight_decay > 0 and "set client.optimizer.weight_decay = 0",
        "client.velocity": recipe.carry and 'set client.velocity = "restart"',
    }
    for key, remedy in remedies.items():
        if remedy:
            yield (
                f"{key}: FedNova divides an update by the length of its steps, which is computed without this setting; {remedy}"
                ', or server.normalisation = "none"'
            )
