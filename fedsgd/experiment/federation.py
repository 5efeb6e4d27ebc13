"""Federation of a scenario whose caller owns the loop over rounds; `fedsgd.run` is such a caller."""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from fedsgd.compression import CodecContext
from fedsgd.compression.operators.dense import Dense
from fedsgd.config.argument_checks import resolve_config
from fedsgd.data import Dataset
from fedsgd.errors import ModelWarning, NonFiniteError, RunError, ScenarioError, ScenarioWarning, warn_once
from fedsgd.experiment.builder import Experiment, build_experiment
from fedsgd.experiment.execution import Execution, make_execution
from fedsgd.experiment.ledger import Ledger
from fedsgd.experiment.options import CustomModel, ExecutionConfig, collect_objects, resolve_data
from fedsgd.federation import FederationPlan, ServerState
from fedsgd.federation.round_loop import RoundParticipants, as_run_error, run_round
from fedsgd.federation.round_record import ResidualStatistics, RoundRecord
from fedsgd.numerics.arrays import F64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.scenario.scenario import Scenario, open_scenario
from fedsgd.system.forkserver import preload_workers
from fedsgd.system.profiling import timed
from fedsgd.system.torch_determinism import isolate_global_state, use_caller_state
from fedsgd.system.user_files import search_scenario_folder
from fedsgd.training import explain_restart
from fedsgd.wire import Frame, FrameKind, Header, encode_frame

if TYPE_CHECKING:
    from torch import nn


class Federation:
    """Server and clients of a scenario, for a caller that owns the loop over rounds.

    Use it as a context manager, or call `close` at the end. Client states are stored between rounds, so only the latest state
    of the server fits them.

    Args:
        execution: open execution of the scenario's experiment.
        ledger: ledger that gets the frames of all rounds.

    Attributes:
        execution: runtime, evaluation and description of the experiment.
        ledger: table of all frames so far.
        residuals: statistics of the clients' residuals so far.
        client_accuracy: [N] float64, accuracy by client after the last round; None if the round did not measure it.
        is_over: True after the scenario's last round, and after the round that reaches the target of `[stop]`.
    """

    def __init__(self, execution: Execution, ledger: Ledger) -> None:
        self.execution = execution
        self.ledger = ledger
        self.residuals = ResidualStatistics()
        self.client_accuracy: F64 | None = None
        self.is_over = False
        self._latest_state: ServerState | None = self.initial_state()
        self._round = self.initial_state().round
        self._dense_bytes = dense_frame_bytes(self.plan)
        self._n_replies = 0
        self._n_messages = 0

    @property
    def experiment(self) -> Experiment:
        """Data, model, engine and settings of the federation."""
        return self.execution.experiment

    @property
    def scenario(self) -> Scenario:
        """Scenario of the federation, with the selected engine."""
        return self.experiment.scenario

    @property
    def plan(self) -> FederationPlan:
        """Settings that server and clients share."""
        return self.experiment.plan

    @property
    def layout(self) -> ParameterLayout:
        """Names and shapes of the parameters in `ServerState.weights`."""
        return self.plan.layout

    def initial_state(self) -> ServerState:
        """Return the state of the server before round 1."""
        return self.experiment.initial_server_state

    def step(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """Run one round: broadcast, exchange, aggregation, and an evaluation if `[evaluation] every` asks for one.

        Python's, numpy's and torch's global settings and generators are the caller's again after the round.

        Args:
            state: latest state of the server, from the last `step`, or from `initial_state` before round 1.

        Returns:
            State of the server before the next round, and record of this round.

        Raises:
            ScenarioError: `state` is not the latest state, or the scenario has no further round.
            RunError: the server or a client failed; a client's failure only with `[participation] on_failure = "stop"`.
            NonFiniteError: an update, the model or the test loss is not finite; with `[participation] on_divergence = "skip"`,
                only the model.
                The federation cannot be used further.
        """
        self._check_latest(state)
        self._latest_state = None  # after an error, the clients' states fit no state of the server
        start, participation = time.perf_counter(), self.scenario.participation
        with isolate_global_state():
            next_state, participants = run_round(
                self.plan,
                state,
                self.execution.runtime,
                self.experiment.participation,
                self.ledger,
                on_failure=participation.on_failure,
                on_divergence=participation.on_divergence,
            )
            metrics, self.client_accuracy = self._evaluate(next_state) if self.evaluates_in(state.round) else (None, None)
        if metrics is not None and participation.on_divergence == "stop" and not math.isfinite(metrics["loss"]):
            raise NonFiniteError(state.round, None, f"the test loss is {metrics['loss']}; is the learning rate too large?")
        record = self._build_record(state.round, participants, metrics, time.perf_counter() - start)
        self.is_over = self.is_over or self._is_last(state.round, metrics)
        self._latest_state, self._round = next_state, next_state.round
        return next_state, record

    def restore(self, state: ServerState, history: Sequence[RoundRecord], residuals: ResidualStatistics) -> None:
        """Continue after the rounds of an earlier process, whose client states are in the storage of the execution.

        Args:
            state: state of the server before the next round.
            history: records of all rounds so far, at least one.
            residuals: statistics of the clients' residuals so far.

        Raises:
            RunError: the evaluation of a run that has no further round fails.
        """
        last, self.residuals = history[-1], residuals
        self._latest_state, self._round = state, state.round
        self._n_replies = last.dense_uplink_bytes // self._dense_bytes
        self._n_messages = last.dense_downlink_bytes // self._dense_bytes
        self.is_over = self._is_last(last.round, last.metrics)
        if self.is_over:  # only the accuracy of each client is not in the records
            with isolate_global_state():
                self.client_accuracy = self._evaluate(state)[1]

    def close(self) -> None:
        """End worker processes and remove the client states. A closed federation runs no further round."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._latest_state = None
        self.execution.__exit__(kind, error, traceback)

    def _check_latest(self, state: ServerState) -> None:
        """Raise a ScenarioError unless `state` is the latest state of a federation that has a further round."""
        if not isinstance(state, ServerState):
            raise ScenarioError(
                f"state: got {type(state).__name__}, expected the ServerState that initial_state or step returned"
            )
        if self._latest_state is None:
            raise ScenarioError(
                f"state: the federation ended before round {self._round}, by an error in step or by close; build it again"
            )
        if state is not self._latest_state:
            raise ScenarioError(
                f"state: got a state before round {state.round}, expected the latest state, before round {self._round}: the "
                "stored states of the clients fit only the latest state; to begin again, build the federation again"
            )
        if self._round > self.scenario.rounds:
            raise ScenarioError(f"rounds: got a step of round {self._round}, expected at most {self.scenario.rounds} rounds")

    def _is_last(self, round: int, metrics: Mapping[str, float] | None) -> bool:
        """Return whether a finished round is the last: the scenario's last round, or a round that reached the target."""
        target = self.scenario.stop.resolved_target
        is_target_reached = target is not None and metrics is not None and target.is_reached_by(metrics[target.metric])
        return is_target_reached or round == self.scenario.rounds

    def evaluates_in(self, round: int) -> bool:
        """Return whether the model is evaluated after a round.

        Args:
            round: number of the round, from 1.
        """
        return round == self.scenario.rounds or round % self.scenario.evaluation.every == 0

    @timed("evaluate")
    def _evaluate(self, server: ServerState) -> tuple[Mapping[str, float], F64 | None]:
        """Return the metrics, and the accuracy by client [N], of the model that the clients of the next round decode."""
        try:
            return self.execution.evaluator(server.public_model.weights, server.buffers)
        except Exception as error:  # the user's module, loss or metrics
            raise RunError(server.round - 1, None, f"evaluation: {type(error).__name__}: {error}") from error

    def _build_record(
        self, round: int, participants: RoundParticipants, metrics: Mapping[str, float] | None, seconds: float
    ) -> RoundRecord:
        """Return the record of a round, and add the round to the sums over all rounds."""
        up, down, optimizer = self.ledger.totals["up"], self.ledger.totals["down"], self.plan.local_training.optimizer
        self._n_replies += len(participants.replies)
        self._n_messages += len(participants.cohort)
        residual_norm, rounds_missed = self.residuals.add(participants.replies, participants.accepted)
        return RoundRecord(
            round=round,
            lr=optimizer.learning_rate(round) if optimizer.schedule_over == "rounds" else None,
            cohort=participants.cohort,
            accepted=participants.accepted,
            uplink_bytes=up.n_bytes,
            uplink_received_bytes=up.received,
            downlink_bytes=down.n_bytes,
            downlink_broadcast_bytes=down.broadcast,
            dense_uplink_bytes=self._dense_bytes * self._n_replies,
            dense_downlink_bytes=self._dense_bytes * self._n_messages,
            residual_norm=residual_norm,
            rounds_missed=rounds_missed,
            metrics=metrics,
            seconds=seconds,
            failures=tuple(str(as_run_error(round, failure)) for failure in participants.failures),
            diverged=participants.diverged,
            dropped=participants.dropped,
        )


def dense_frame_bytes(plan: FederationPlan) -> int:
    """Return the length of a frame with all P coordinates as float32, the base of all compression ratios."""
    zeros = np.zeros(plan.layout.size, dtype=np.float32)
    sections, _ = Dense().encode(zeros, CodecContext(plan.seed, 1, 0, plan.layout))
    return len(encode_frame(Frame(Header(FrameKind.UPDATE, 1, Dense.codec), sections)))


def build(
    scenario: Scenario | str | Path,
    *,
    data: str | Path | Dataset | None = None,
    model: nn.Module | CustomModel | None = None,
    execution: ExecutionConfig | None = None,
) -> Federation:
    """Build the federation of a scenario, whose rounds the caller runs one by one.

    All rounds give the results of `fedsgd.run`, bit for bit. Nothing is written to disk but client states of
    `[state] store = "disk"`.

    >>> import fedsgd
    >>> from fedsgd.scenario.scenario import parse_scenario
    >>> scenario = parse_scenario({"name": "digits", "rounds": 2, "data": {"partition": {"name": "iid", "clients": 4}}})
    >>> with fedsgd.build(scenario) as federation:
    ...     state = federation.initial_state()
    ...     while not federation.is_over:
    ...         state, record = federation.step(state)
    >>> record.round, state.weights.dtype, federation.ledger.totals["up"].frames
    (2, dtype('float32'), 8)

    Args:
        scenario: scenario, or the path of its TOML file.
        data: as for `fedsgd.run`.
        model: as for `fedsgd.run`.
        execution: worker processes, as for `fedsgd.run`; nothing is profiled.

    Raises:
        ScenarioError: a setting is wrong, or does not fit the data or the model.
        DataError: the data cannot be read or partitioned.
        ModelError: the model, its loss or a metric cannot be used.
        RunError: a worker process did not start.

    Warns:
        ScenarioWarning: a component is not made for a setting.
        ModelWarning: the module has state that clients do not carry from round to round.
    """
    workers = resolve_config("execution", execution, ExecutionConfig).workers
    preload_workers(workers)
    folder, dataset = resolve_data(data)
    objects = collect_objects(dataset, model)
    with search_scenario_folder(scenario), isolate_global_state():
        located_errors, scenario = open_scenario(scenario)
        folder = folder or os.environ.get("FEDSGD_DATA") or None
        with located_errors:
            experiment = build_experiment(scenario, folder, **objects.as_arguments(), workers=workers)
        with use_caller_state():
            if experiment.task.reset_attribute is not None:
                warn_once(explain_restart(experiment.task.reset_attribute), ModelWarning, stacklevel=2)
            for text in experiment.warnings:
                warn_once(text, ScenarioWarning, stacklevel=2)
        open_execution = make_execution(experiment, workers).__enter__()
        federation = Federation(open_execution, Ledger())
        # without `close`, worker processes end with the object, and before the interpreter removes its modules
        weakref.finalize(federation, open_execution.__exit__, None, None, None)
        return federation
