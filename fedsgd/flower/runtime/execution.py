"""Execution over Flower: clients train on nodes, which keep the clients' states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

from fedsgd.errors import ScenarioError
from fedsgd.experiment.builder import Experiment
from fedsgd.experiment.evaluation import Evaluator
from fedsgd.experiment.execution import Execution
from fedsgd.experiment.state_budget import StateBudget
from fedsgd.federation.round_loop import Runtime
from fedsgd.flower.runtime.grid_runtime import FlowerRuntime


class FlowerExecution(Execution):
    """Execution over a Flower Grid. This process evaluates the model.

    Args:
        experiment: description of the run.
        grid_runtime: carrier of the messages over the Grid.
        start_seconds: seconds, time limit for all nodes to be ready.
        on_start: called with "waiting" before and with "ready" after the wait for the nodes.
        deployment: settings with which the deployment is launched again, for its checkpoints.
    """

    needs_checkpoint_each_round = True
    """The states are on the nodes, and a node can return to the beginning of its last round, but not further."""

    def __init__(
        self,
        experiment: Experiment,
        grid_runtime: FlowerRuntime,
        start_seconds: float,
        on_start: Callable[[Literal["waiting", "ready"]], None] = lambda event: None,
        deployment: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(experiment)
        self.deployment = deployment
        self._grid_runtime = grid_runtime
        self._start_seconds = start_seconds
        self._on_start = on_start

    @property
    def state_budget(self) -> StateBudget:
        """Number and size of the client states, which are on the nodes."""
        return replace(self.experiment.state_budget, location="nodes")

    def _open(self, resources: ExitStack) -> tuple[Runtime, Evaluator]:
        experiment, buffer_plan = self.experiment, self.experiment.plan.buffers
        if buffer_plan is not None and buffer_plan.has_local_state:
            key = "batch_norm" if experiment.scenario.model.batch_norm == "local" else "buffers"
            raise ScenarioError(f'model.{key}: got "local", expected another policy: local models are on the nodes alone')
        self._on_start("waiting")
        self._grid_runtime.wait_for_nodes(self._start_seconds)
        self._on_start("ready")
        return self._grid_runtime, Evaluator(experiment.evaluation, experiment.engine)
