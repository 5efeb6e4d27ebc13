"""Groups of options of `fedsgd.run`: execution, callbacks, and the parts of a user's own model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedsgd.config.component import describe_value
from fedsgd.data import Dataset, check_dataset
from fedsgd.errors import ScenarioError
from fedsgd.models import Loss, Metric
from fedsgd.scenario.scenario import PythonObjects
from fedsgd.system.user_files import check_paths
from fedsgd.trackers import Tracker

if TYPE_CHECKING:
    from torch import nn

    from fedsgd.experiment.state_budget import StateBudget
    from fedsgd.training.selection import EngineChoice


@dataclass(frozen=True)
class ExecutionConfig:
    """Processes of a run, and its measurements. Results do not depend on these options.

    Attributes:
        workers: number of processes that train clients, with one thread each; 1 is this process. With more than one, a script
            must call `run` under `if __name__ == "__main__":`.
        profile: add the time of a round by phase to the summary.
    """

    workers: int = 1
    profile: bool = False


@dataclass(frozen=True)
class RunCallbacks:
    """Receivers of a run's events.

    Attributes:
        on_engine: called with the selected engine before the first round.
        on_state_budget: called with the location and size of the client states before the first round.
        trackers: objects that receive the run's events; a tracker that raises causes a TrackerWarning and gets no more events.
    """

    on_engine: Callable[[EngineChoice], None] | None = None
    on_state_budget: Callable[[StateBudget], None] | None = None
    trackers: Sequence[Tracker] = ()


@dataclass(frozen=True, eq=False)
class CustomModel:
    """Python objects in place of parts of a scenario's model; None: the scenario's part stays.

    Attributes:
        module: torch module in place of the one that the scenario names.
        loss: function of (output, target) of a batch that returns a scalar, in place of the scenario's.
        metrics: name → metric, in addition to the scenario's: a function of (output, target) that returns one number for each
            example, or one number for all outputs and targets of the evaluated set (macro F1, AUC, ...); or an object with
            update, compute and reset, such as a metric of torchmetrics. A metric of a whole set is computed once for all
            examples, and never averaged over batches or clients.
    """

    module: nn.Module | None = None
    loss: Loss | None = None
    metrics: Mapping[str, Metric] | None = None


def resolve_callbacks(callbacks: object) -> RunCallbacks:
    """Return the argument `callbacks` of `run` as RunCallbacks. ScenarioError for any other type."""
    if callbacks is None:
        return RunCallbacks()
    if isinstance(callbacks, RunCallbacks):
        return callbacks
    if isinstance(callbacks, list | tuple):
        return RunCallbacks(trackers=callbacks)
    raise ScenarioError(
        f"callbacks: got {describe_value(callbacks)}, expected fedsgd.RunCallbacks(on_engine=..., trackers=[...])"
        " or a list of fedsgd.Tracker"
    )


def resolve_data(data: str | Path | Dataset | None) -> tuple[str | Path | None, Dataset | None]:
    """Return the argument `data` of `run` as (folder of the data files, dataset), one of which is None."""
    if data is None or isinstance(data, str | Path):
        check_paths(data=data)
        return data, None
    return None, check_dataset(data, "data", "the path of a folder or ")


def collect_objects(dataset: Dataset | None, model: nn.Module | CustomModel | None) -> PythonObjects:
    """Return the Python objects of a run, which are checked when the experiment is built."""
    if not isinstance(model, CustomModel):
        model = CustomModel(module=model)
    return PythonObjects(dataset, model.module, model.loss, model.metrics)
