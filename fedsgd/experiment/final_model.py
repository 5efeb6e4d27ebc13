"""Models at the end of a run as state dicts, from which the evaluated model can be restored.

M is the number of clients that have test examples of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsgd.experiment.execution import Execution
from fedsgd.federation import ServerState
from fedsgd.models.task import LearningTask
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.storage.run_directory import CLIENTS_FILE, EVALUATED_FILE, LOSS_FILE, PARAMETERS_FILE, save_tensors
from fedsgd.training.flat_module import FlatModule, read_state_dicts

if TYPE_CHECKING:
    from torch import Tensor

    StateDict = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class FinalModel:
    """State dicts of a run's models. All but `clients` are complete, for `load_state_dict(state, strict=True)`.

    Attributes:
        server_model: state of the server's final model, with the averaged buffers.
        evaluated_model: state of the model that was evaluated, as clients decode it; None if it is the server's model.
        loss: state of the loss, None if training changes nothing in it.
        clients: tensors that stay at the clients, None without any: "clients" [M] int64, numbers of the clients with test
            examples, and each tensor [M, *shape] under its name. A client's model is the evaluated model with these tensors.
    """

    server_model: StateDict
    evaluated_model: StateDict | None = None
    loss: StateDict | None = None
    clients: StateDict | None = None

    @property
    def reported_file(self) -> str:
        """Name of the file with the model that was evaluated."""
        if self.clients is not None:
            return CLIENTS_FILE
        return PARAMETERS_FILE if self.evaluated_model is None else EVALUATED_FILE

    def make_file_writers(self, folder: Path) -> dict[str, Callable[[], None]]:
        """Return functions that write the files of the models into a run directory, by file name."""
        states = {
            PARAMETERS_FILE: self.server_model,
            EVALUATED_FILE: self.evaluated_model,
            LOSS_FILE: self.loss,
            CLIENTS_FILE: self.clients,
        }
        return {name: partial(save_tensors, folder / name, state) for name, state in states.items() if state is not None}


def build_final_model(execution: Execution, server: ServerState) -> FinalModel:
    """Return the final models of the server and of the clients. The execution must be open."""
    experiment = execution.experiment
    task, flat_module = experiment.task, FlatModule(experiment.task)
    buffer_plan = experiment.plan.buffers
    buffers = None if buffer_plan is None else buffer_plan.join(server.buffers, None)
    tail = task.initial_parameters[experiment.plan.layout.size :]  # local parameters
    server_model, loss = read_state_dicts(flat_module, _append(server.weights, tail), buffers)
    evaluated_model, public_weights = None, server.public_model.weights
    if public_weights is not server.weights and not np.array_equal(
        public_weights.view(np.uint32), server.weights.view(np.uint32)
    ):
        evaluated_model, loss = read_state_dicts(flat_module, _append(public_weights, tail), buffers)
    return FinalModel(server_model, evaluated_model, loss, _stack_local_tensors(execution, task))


def _append(weights: F32, tail: F32) -> F32:
    """Return the weights and the tail in one vector: the weights themselves if there is no tail."""
    return np.concatenate([weights, tail]) if tail.size else weights


def _stack_local_tensors(execution: Execution, task: LearningTask) -> StateDict | None:
    import torch

    experiment, local_model_of = execution.experiment, execution.evaluator.local_model_of
    held_out = experiment.held_out
    if local_model_of is None or held_out is None:
        return None
    clients = np.flatnonzero(held_out.sizes())
    averaged_buffers = None if experiment.plan.buffers is None else experiment.plan.buffers.averaged
    n_averaged = 0 if averaged_buffers is None else len(averaged_buffers)
    parameters, buffers = [], []
    for client in clients.tolist():
        client_parameters, client_buffers = local_model_of(client, averaged_buffers)
        parameters.append(client_parameters)
        buffers.append(np.zeros(0, np.float32) if client_buffers is None else client_buffers[n_averaged:])
    rows = _slice_last_tensors(task.layout, task.n_local_parameters, np.stack(parameters))
    if task.buffers is not None:
        rows |= _slice_last_tensors(task.buffers, task.n_local_buffers, np.stack(buffers))
    tensors = {name: torch.from_numpy(values) for name, values in rows.items()}
    return {"clients": torch.from_numpy(clients), **tensors}


def _slice_last_tensors(layout: ParameterLayout, n: int, rows: F32) -> dict[str, F32]:
    """Return the tensors [M, *shape] in the last n entries of a layout, from rows [M, n]."""
    start = layout.size - n
    return {
        name: rows[:, part.start - start : part.stop - start].reshape(len(rows), *shape)
        for name, part, shape in layout.list_slices()
        if part.start >= start
    }
