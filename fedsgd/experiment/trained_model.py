"""Trained parameters and buffers of a run in a torch module."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fedsgd.errors import ModelError, ReportError
from fedsgd.experiment.partition_summary import load_client_data
from fedsgd.models.argument_checks import check_module
from fedsgd.models.custom import PythonObjectModule
from fedsgd.models.task import ModuleSource
from fedsgd.scenario.scenario import Scenario, errors_in_file, parse_scenario
from fedsgd.storage.run_directory import CLIENTS_FILE, EVALUATED_FILE, PARAMETERS_FILE, read_tensors
from fedsgd.system.user_files import expand_user_path, read_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    Module = TypeVar("Module", bound=nn.Module)

_MODEL_KEYS = ("name", "seed", "data", "model")
_EXTRA_STATE = "_extra_state"
_MAX_NAMES = 3


def load_parameters(run: str | Path, module: Module, *, client: int | None = None) -> Module:
    """Load the trained parameters and buffers of a finished run into a torch module, and return the module.

    The values are those of the model that the run evaluated last, as clients decode it.

    Args:
        run: run directory.
        module: module with the tensors of the run's model, whose values are replaced.
        client: number of a client with test examples, whose own tensors are loaded in addition, for a model with
            `batch_norm = "local"` or `buffers = "local"`. None: these tensors get their initial values.

    Raises:
        ReportError: the directory has no finished run, or no tensors of the client.
        ModelError: names or shapes of the tensors differ.
    """
    check_module(module, "module")
    folder = expand_user_path(run, "run")
    state = _read_state(folder)
    if client is not None:
        state |= _read_client_state(folder, client)
    load_state(module, state)
    return module


def load_model(run: str | Path, *, data: str | Path | None = None) -> nn.Module:
    """Build the model that the scenario of a finished run names, with the trained parameters and buffers.

    Of the user's modules, only those of the data and of the model are imported.

    Args:
        run: run directory.
        data: folder of the data files, which give the shape of the model; None for the folder that FEDSGD_DATA names.

    Raises:
        ReportError: the directory has no finished run.
        ModelError: the model is a Python object, which `load_parameters` takes.
        ScenarioError, DataError: the model or the dataset of the scenario cannot be built or read.
    """
    folder = expand_user_path(run, "run")
    state = _read_state(folder)
    scenario = _load_data_and_model(folder / "scenario.toml")
    if isinstance(scenario.model, PythonObjectModule):
        raise ModelError(f"{folder}: the model is a Python object, expected fedsgd.load_parameters({str(run)!r}, module)")
    dataset, *_ = load_client_data(scenario, data or os.environ.get("FEDSGD_DATA") or None)
    module = ModuleSource(scenario.model, dataset.shape, dataset.classes, scenario.seed).build()
    load_state(module, state)
    return module


def _load_data_and_model(path: Path) -> Scenario:
    """Return a run's scenario with defaults in place of the sections that do not describe the data or the model."""
    try:
        table = tomllib.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: cannot be read: {error}") from None
    with errors_in_file(path):
        return parse_scenario({key: table[key] for key in _MODEL_KEYS if key in table})


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module; ModelError, with names and shapes, unless they are exactly the tensors of the module."""
    shapes = {name: list(value.shape) for name, value in module.state_dict().items() if not name.endswith(_EXTRA_STATE)}
    expected_shapes = {name: list(value.shape) for name, value in state.items()}
    problems = [
        _list_names("has no tensor", sorted(expected_shapes.keys() - shapes.keys())),
        _list_names("has the additional tensor", sorted(shapes.keys() - expected_shapes.keys())),
        *(
            f"has {name} of shape {shape}, expected {expected_shapes[name]}"
            for name, shape in shapes.items()
            if name in expected_shapes and shape != expected_shapes[name]
        ),
    ]
    differences = [problem for problem in problems if problem]
    if differences:
        more = f"; and {len(differences) - _MAX_NAMES} more" if len(differences) > _MAX_NAMES else ""
        raise ModelError(f"the module differs from the run's model: it {'; '.join(differences[:_MAX_NAMES])}{more}")
    module.load_state_dict(state, strict=False)


def _list_names(verb: str, names: list[str]) -> str:
    """Return "has no tensor a, b, c and 2 more", "" without names."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{verb} {', '.join(names[:_MAX_NAMES])}{more}" if names else ""


def _read_state(folder: Path) -> dict[str, Tensor]:
    """Return the state of the model that a run evaluated last."""
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ReportError(f"{folder}: has no finished run (summary.json: {error})") from None
    file = summary.get("reported_model", PARAMETERS_FILE)
    if file == CLIENTS_FILE:
        file = EVALUATED_FILE if (folder / EVALUATED_FILE).exists() else PARAMETERS_FILE
    return read_tensors(folder / file)


def _read_client_state(folder: Path, client: int) -> dict[str, Tensor]:
    """Return the tensors that stay at a client."""
    path = folder / CLIENTS_FILE
    if not path.exists():
        raise ReportError(f"{folder}: has no {CLIENTS_FILE}: no tensors stay at the clients, expected client=None")
    tensors = read_tensors(path)
    clients = tensors.pop("clients").tolist()
    if client not in clients:
        raise ReportError(f"{path}: has no client {client!r}, expected one of the {len(clients)} clients with test examples")
    return {name: rows[clients.index(client)] for name, rows in tensors.items()}
