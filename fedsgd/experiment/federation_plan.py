"""Plan of a scenario's federation: the settings that server and clients share."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from fedsgd.compression import CodecContext
from fedsgd.compression.trial import try_compressor
from fedsgd.config.component import FieldError
from fedsgd.config.user_errors import wrap_user_errors
from fedsgd.data import ClientData
from fedsgd.federation import BufferPlan, FederationPlan
from fedsgd.models.task import LearningTask
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.optim.trial import try_optimizer
from fedsgd.sampling import SamplingPool, StragglerModel, count_stragglers
from fedsgd.scenario.parsing import errors_in_section
from fedsgd.scenario.resolution import build_downlink
from fedsgd.scenario.scenario import Scenario
from fedsgd.training import LocalTraining
from fedsgd.wire import ALL_CLIENTS


def make_plan(scenario: Scenario, task: LearningTask, train: ClientData, data_folder: Path | None = None) -> FederationPlan:
    """Return the plan of a scenario's federation. `data_folder` has the files of a sampler; None: there is no such folder.

    A compressor that cannot encode the model, and a cohort above the number of clients, raise a ScenarioError. So does a
    compressor, optimizer or schedule of the user that fails its trial.
    """
    with errors_in_section(""):
        cohort = scenario.compute_cohort_size(len(train))
        stragglers = _build_stragglers(scenario, train, cohort, data_folder)
    scheme, aggregator = scenario.resolved_uplink.scheme, scenario.resolved_uplink.aggregator
    with errors_in_section("server.aggregator"), wrap_user_errors("server.aggregator", aggregator):
        aggregator.check_cohort(cohort)
    _check_compressors(scenario, task.shared_layout, cohort)
    _check_optimizers(scenario, task.shared_layout, train)
    return FederationPlan(
        seed=scenario.seed,
        layout=task.shared_layout,
        local_training=local_training_config(scenario),
        uplink=scheme,
        downlink=build_downlink(scenario.downlink),
        server_optimizer=scenario.server.optimizer,
        weighting=scenario.server.weighting,
        n_clients=len(train),
        cohort_size=cohort,
        n_examples=_count_examples(train) if scenario.server.sampler.yields_inclusion_probabilities else 0,
        uses_fednova=scenario.server.normalisation == "fednova",
        buffers=_build_buffer_plan(task),
        bfloat16_states=scenario.state.precision == "bfloat16",
        aggregator=aggregator,
        hostile=scenario.faults.hostile,
        stragglers=stragglers,
    )


def _build_stragglers(scenario: Scenario, train: ClientData, cohort: int, data_folder: Path | None) -> StragglerModel | None:
    """Return the model of stragglers; None for a scenario without any.

    Raises:
        FieldError: the share is rounded to no client, or to a whole cohort that is dropped.
    """
    config = scenario.participation
    if not config.stragglers:
        return None
    n_stragglers, drops = count_stragglers(config.stragglers, cohort), config.straggler_policy == "drop"
    if not n_stragglers or (drops and n_stragglers == cohort):
        share = f"got {config.stragglers:g}, which is {n_stragglers} of the {cohort} clients of a round"
        reason = "at least one" if not n_stragglers else f"at most {cohort - 1}, because stragglers are dropped"
        raise FieldError("scenario", "participation.stragglers", f"{share}, expected {reason}")
    pool = SamplingPool(scenario.seed, len(train), partial(np.asarray, train.sizes()), data_folder)
    work = local_training_config(scenario).full_work
    return StragglerModel(config.stragglers, drops, work, scenario.server.sampler, pool, cohort)


def _check_compressors(scenario: Scenario, layout: ParameterLayout, cohort: int) -> None:
    """Raise a ScenarioError for a compressor that does not fit the model, and for a user's that fails its trial."""
    scheme, aggregator = scenario.resolved_uplink.scheme, scenario.resolved_uplink.aggregator
    with wrap_user_errors("server.aggregator", aggregator):
        aggregator_state = aggregator.init_state(layout)
    for key, compressor, client in (
        ("uplink.compressor", scheme, 0),
        ("downlink.compressor", scenario.downlink.compressor, ALL_CLIENTS),
    ):
        with errors_in_section(key), wrap_user_errors(key, compressor):
            compressor.check_layout(layout)
            try_compressor(key, compressor, CodecContext(scenario.seed, 1, client, layout, cohort=cohort), aggregator_state)
            compressor.max_bytes(layout)


def _check_optimizers(scenario: Scenario, layout: ParameterLayout, train: ClientData) -> None:
    """Raise a ScenarioError for an optimizer or a schedule of the user that fails its trial."""
    example_counts, _ = train.distinct_sizes()
    n_steps = local_training_config(scenario).n_steps(int(example_counts.max()))
    for key, optimizer, n_steps_per_round in (
        ("client.optimizer", scenario.client.optimizer, n_steps),
        ("server.optimizer", scenario.server.optimizer, 1),
    ):
        last_times = {
            "rounds": scenario.rounds,
            "steps": scenario.rounds * n_steps_per_round,
            "local-steps": n_steps_per_round,
        }
        try_optimizer(key, optimizer, layout.size, last_times[optimizer.schedule_over])


def _build_buffer_plan(task: LearningTask) -> BufferPlan | None:
    """Return the buffers and local parameters that clients carry from round to round, None without any."""
    values = task.initial_buffers
    if values is None and not task.n_local_parameters:
        return None
    n_averaged = 0 if values is None else len(values) - task.n_local_buffers
    averaged_buffers = values[:n_averaged] if values is not None and n_averaged else None
    local_buffers = values[n_averaged:] if values is not None and task.n_local_buffers else None
    return BufferPlan(averaged_buffers, local_buffers, task.initial_parameters[task.shared_layout.size :])


def _count_examples(data: ClientData) -> int:
    """Return the number of examples of all clients together."""
    example_counts, client_counts = data.distinct_sizes()
    return int(example_counts @ client_counts)


def local_training_config(scenario: Scenario) -> LocalTraining:
    """Return the local training of a scenario's clients."""
    client = scenario.client
    batch_size = None if client.batch_size == "full" else client.batch_size
    return LocalTraining(
        client.optimizer,
        client.epochs,
        client.steps,
        batch_size,
        client.proximal,
        client.velocity == "carry",
        scenario.resolved_uplink.scheme.corrects_gradients,
        client.last_batch,
    )
