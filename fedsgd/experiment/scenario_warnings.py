"""Warnings about settings that a component is not made for. They change neither results nor the exit status."""

from __future__ import annotations

from collections.abc import Iterator

from fedsgd.compression import Compressor
from fedsgd.compression.run_config import FeedbackPolicy, RunConfig
from fedsgd.config.user_errors import wrap_user_errors
from fedsgd.data import ClientData
from fedsgd.federation import FederationPlan
from fedsgd.models.set_metrics import find_better_direction
from fedsgd.optim import Adam, Optimizer
from fedsgd.scenario.scenario import Scenario
from fedsgd.scenario.sections import DownlinkConfig, UplinkConfig
from fedsgd.scenario.target import Target
from fedsgd.training import LocalTraining


def find_warnings(scenario: Scenario, plan: FederationPlan, training_data: ClientData) -> tuple[str, ...]:
    """Return a line (dotted key, reason and remedy) for each setting that the scenario's components are not made for."""
    run = _build_run_config(scenario, plan, training_data)
    warnings = [*find_compressor_warnings(plan.uplink, run, scenario.downlink)]
    warnings += _find_client_warnings(plan.local_training, run.local_steps)
    warnings += _find_target_warnings(scenario)
    warnings += _find_settings_without_effect(scenario)
    if plan.uses_fednova:
        warnings += _find_normalisation_warnings(plan.local_training)
    return tuple(dict.fromkeys(warnings))


def find_compressor_warnings(uplink: Compressor, run_config: RunConfig, downlink: DownlinkConfig) -> Iterator[str]:
    """Yield the warnings of the uplink's compressor, for the run in `run_config`, and of the downlink's compressor."""
    yield from _list_compressor_warnings(uplink, run_config)
    feedback: FeedbackPolicy = "persist" if downlink.policy in ("error-feedback", "ef21-p") else "none"
    server = RunConfig(
        "downlink.compressor", run_config.layout, run_config.rounds, clients=1, cohort=1, error_feedback=feedback
    )
    yield from _list_compressor_warnings(downlink.compressor, server)


def _list_compressor_warnings(compressor: Compressor, run_config: RunConfig) -> Iterator[str]:
    """Yield a compressor's warnings, each in one line."""
    with wrap_user_errors(run_config.key, compressor):
        warnings = compressor.find_warnings(run_config)
        yield from (" ".join(str(text).split()) for text in ([warnings] if isinstance(warnings, str) else warnings))


def _build_run_config(scenario: Scenario, plan: FederationPlan, training_data: ClientData) -> RunConfig:
    training = plan.local_training
    sizes = [1] if training.epochs is None else training_data.distinct_sizes()[0].tolist()
    local_steps = max(training.n_steps(n) for n in sizes)
    return RunConfig(
        key="uplink.compressor",
        layout=plan.layout,
        rounds=scenario.rounds,
        clients=plan.n_clients,
        cohort=plan.cohort_size,
        local_steps=local_steps,
        client_momentum=_momentum_coefficient(training.optimizer) if local_steps > 1 or training.keep_optimizer_state else 0.0,
        server_momentum=_momentum_coefficient(plan.server_optimizer),
        error_feedback=scenario.uplink.error_feedback,
    )


def _momentum_coefficient(optimizer: Optimizer) -> float:
    """Return the coefficient of an optimizer's velocity or first moment, 0 for none."""
    return float(getattr(optimizer, "momentum", getattr(optimizer, "beta1", 0.0)))


def _find_client_warnings(training: LocalTraining, local_steps: int | None) -> Iterator[str]:
    """Warn of a velocity that never accumulates, and of moments that never average gradients."""
    momentum = _momentum_coefficient(training.optimizer)
    if local_steps != 1 or training.keep_optimizer_state:
        return
    if isinstance(training.optimizer, Adam):
        yield (
            f'client.optimizer.name = "{training.optimizer.name}": a client makes one local step a round, and the moments '
            'begin at zero in each round: each step is −η · sign(gradient); set client.velocity = "carry", or more local steps'
        )
    elif momentum:
        yield (
            f"client.optimizer.momentum = {momentum:g}: a client makes one local step a round, and the velocity begins at zero "
            'in each round: no velocity accumulates; set client.velocity = "carry", or server.optimizer.name = "momentum"'
        )


def _find_settings_without_effect(scenario: Scenario) -> Iterator[str]:
    """Warn of settings that another setting does not use."""
    uplink, downlink, participation = scenario.uplink, scenario.downlink, scenario.participation
    if uplink.error_feedback != "decay" and uplink.residual_factor != UplinkConfig().residual_factor:
        yield f'uplink.residual_factor = {uplink.residual_factor:g}: only uplink.error_feedback = "decay" uses it'
    if uplink.error_feedback != "reset" and uplink.residual_rounds != UplinkConfig().residual_rounds:
        yield f'uplink.residual_rounds = {uplink.residual_rounds}: only uplink.error_feedback = "reset" uses it'
    if downlink.policy == "model" and downlink.remember is not None:
        yield f'downlink.remember = {downlink.remember}: clients store no model with downlink.policy = "model"'
    if participation.straggler_policy == "drop" and not participation.stragglers:
        yield 'participation.straggler_policy = "drop": there are no stragglers; set participation.stragglers'


def _find_target_warnings(scenario: Scenario) -> Iterator[str]:
    """Warn of a target that worse models reach, such as "loss>0.3"."""
    for key, target in {"report": scenario.report.resolved_target, "stop": scenario.stop.resolved_target}.items():
        problem = None if target is None else find_direction_problem(target)
        if problem is not None:
            yield f'{key}.target = "{target}": {problem}'


def find_direction_problem(target: Target) -> str | None:
    """Return why worse models reach a target, and the usual target; None for a usual target or a metric of the user.

    >>> find_direction_problem(Target("loss", above=0.3))
    'worse models reach it, because a smaller loss is better; set "loss<0.3"'

    Args:
        target: target of a run or of a report.
    """
    better = find_better_direction(target.metric)
    if better is None or better == {"above": "higher", "below": "lower"}[target.direction]:
        return None
    sign, word = ("<", "smaller") if better == "lower" else (">", "larger")
    usual = f"{target.metric}{sign}{target.threshold:g}"
    return f'worse models reach it, because a {word} {target.metric} is better; set "{usual}"'


def _find_normalisation_warnings(training: LocalTraining) -> Iterator[str]:
    """Warn of settings that `LocalTraining.fednova_normalizer` does not take into account."""
    optimizer = training.optimizer
    remedies = {
        "client.optimizer.clip_norm": optimizer.clip_norm is not None and "leave client.optimizer.clip_norm out",
        "client.optimizer.weight_decay": optimizer.weight_decay > 0 and "set client.optimizer.weight_decay = 0",
        "client.velocity": training.keep_optimizer_state and 'set client.velocity = "restart"',
    }
    for key, remedy in remedies.items():
        if remedy:
            yield (
                f"{key}: FedNova divides an update by the length of its steps, which is computed without this setting; {remedy}"
                ', or server.normalisation = "none"'
            )
