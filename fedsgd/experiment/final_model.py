"""Models at the end of a run as complete state dicts, so that what was reported can be restored.

N clients, of which M have test examples of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsgd.experiment.builder import Experiment
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
    """State dicts of a run's models, each for `module.load_state_dict(state, strict=True)`.

    Attributes:
        server: of the server's final model, with the buffers that are averaged.
        evaluated: of the model that the reported figures are of, as clients decode it; None if it is the server's.
        loss: of the loss, if training changes anything in it.
        clients: if clients have models of their own, what never leaves them: "clients" [M] int64, those with test examples, and
            each tensor [M, *shape] under its name. Their models are the evaluated one with these tensors in it.
    """

    server_model: StateDict
    evaluated_model: StateDict | None = None
    loss: StateDict | None = None
    clients: StateDict | None = None

    @property
    def reported_file(self) -> str:
        """The file of a run directory with the model that the reported figures are of."""
        if self.clients is not None:
            return CLIENTS_FILE
        return PARAMETERS_FILE if self.evaluated_model is None else EVALUATED_FILE

    def make_file_writers(self, folder: Path) -> dict[str, Callable[[], None]]:
        """Return, for each file of a run directory that there is, what writes it."""
        states = {
            PARAMETERS_FILE: self.server_model,
            EVALUATED_FILE: self.evaluated_model,
            LOSS_FILE: self.loss,
            CLIENTS_FILE: self.clients,
        }
        return {name: partial(save_tensors, folder / name, state) for name, state in states.items() if state is not None}


def build_final_model(experiment: Experiment, server: ServerState) -> FinalModel:
    """Return the models that the server of a finished run stands for."""
    task, network = experiment.task, FlatModule(experiment.task)
    carried = experiment.plan.buffers
    buffers = None if carried is None else carried.join(server.buffers, None)
    local = task.initial_parameters[experiment.plan.layout.size :]
    of_server, of_loss = read_state_dicts(network, np.concatenate([server.weights, local]), buffers)
    evaluated = None
    if server.public_model.weights.tobytes() != server.weights.tobytes():
        evaluated, of_loss = read_state_dicts(network, np.concatenate([server.public_model.weights, local]), buffers)
    return FinalModel(of_server, evaluated, of_loss, _stack_local_tensors(experiment, task))


def _stack_local_tensors(experiment: Experiment, task: LearningTask) -> StateDict | None:
    import torch

    own, held_out = experiment.evaluator.local_model_of, experiment.held_out
    if own is None or held_out is None:
        return None
    clients = np.flatnonzero(held_out.sizes())
    sent = None if experiment.plan.buffers is None else experiment.plan.buffers.averaged
    n_sent = 0 if sent is None else len(sent)
    parameters, buffers = [], []
    for client in clients.tolist():
        mine, every = own(client, sent)
        parameters.append(mine)
        buffers.append(np.zeros(0, np.float32) if every is None else every[n_sent:])
    rows = _slice_last_tensors(task.layout, task.n_local_parameters, np.stack(parameters))
    if task.buffers is not None:
        rows |= _slice_last_tensors(task.buffers, task.n_local_buffers, np.stack(buffers))
    tensors = {name: torch.from_numpy(values) for name, values in rows.items()}
    return {"clients": torch.from_numpy(clients), **tensors}


def _slice_last_tensors(layout: ParameterLayout, n: int, rows: F32) -> dict[str, F32]:
    """Return the tensors [M, *shape] in the last n entries of a layout, from rows [M, n]."""
    start = layout.size - n
    return {
        name: rows[:, where.start - start : where.stop - start].reshape(len(rows), *shape)
        for name, where, shape in layout.list_slices()
        if where.start >= start
    }
