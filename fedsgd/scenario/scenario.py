"""Scenario: settings of a run as frozen dataclasses, and their TOML form.

Each field of `Scenario` is a key or a section of the file. The keys of a section are the fields of its class; [data] also has
the keys of `data.source`. A wrong key, type or value raises a ScenarioError with the file, if there is one, and the dotted key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unicodedata import category

from fedsgd.config.component import FieldError, PositiveInt, Seed, describe_value, format_changed_fields
from fedsgd.config.python_objects import (
    check_marker,
    describe_digest_mismatch,
    describe_missing_objects,
    find_markers,
    find_missing_objects,
    get_object_digest,
    get_path_or_marker,
)
from fedsgd.data import ClientGenerator, Dataset, check_dataset
from fedsgd.data.datasets.python_object import PythonObjectDataset
from fedsgd.errors import ScenarioError, suggest_name
from fedsgd.models import Loss, Metric, Mlp, Model
from fedsgd.models.argument_checks import check_python_arguments
from fedsgd.models.custom import PythonObjectModule
from fedsgd.scenario.overrides import apply_settings, check_settings
from fedsgd.scenario.parsing import SettingsSection, dump_table, errors_in_section, parse_table
from fedsgd.scenario.resolution import ResolvedUplink, resolve_uplink
from fedsgd.scenario.sections import (
    CheckpointConfig,
    ClientConfig,
    DataConfig,
    DownlinkConfig,
    EngineConfig,
    EvaluationConfig,
    FaultConfig,
    ParticipationConfig,
    ServerConfig,
    StateStoreConfig,
    StoppingConfig,
    TargetConfig,
    UplinkConfig,
)
from fedsgd.system.user_files import expand_user_path, read_text, search_scenario_folder


@dataclass(frozen=True)
class Scenario(SettingsSection):
    """Description of a run.

    Attributes:
        name: name of the scenario, also of its run directories.
        seed: seed of generated data, partition, initial model, participation, local training and compression.
        rounds: maximum number of rounds.
        data: dataset and its partition.
        model: model, loss and metrics.
        client: optimizer, batches and epochs of local training.
        engine: implementation of local training.
        server: cohort, sampler, weighting and optimizer of the server.
        participation: dropouts, durations and deadline.
        faults: hostile clients.
        uplink: compressor of the clients' updates.
        downlink: policy and compressor of the server's messages.
        state: location and precision of client states.
        evaluation: interval of evaluations in rounds, and sets of examples that are evaluated.
        report: target whose cost is reported.
        stop: target that ends the run.
        checkpoint: interval of checkpoints.
    """

    name: str = field(metadata={"example": '"my-scenario"'})
    seed: Seed = 0
    rounds: PositiveInt = 10
    data: DataConfig = DataConfig()
    model: Model = Mlp()
    client: ClientConfig = ClientConfig()
    engine: EngineConfig = EngineConfig()
    server: ServerConfig = ServerConfig()
    participation: ParticipationConfig = ParticipationConfig()
    faults: FaultConfig = FaultConfig()
    uplink: UplinkConfig = UplinkConfig()
    downlink: DownlinkConfig = DownlinkConfig()
    state: StateStoreConfig = StateStoreConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: TargetConfig = TargetConfig()
    stop: StoppingConfig = StoppingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    def __repr__(self) -> str:
        return format_changed_fields(self)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name in ("", ".", "..") or not all(map(_is_allowed_in_name, self.name)):
            expected = 'a non-empty printable text without "/" and "\\", other than "." and ".."'
            raise FieldError("scenario", "name", f"got {self.name!r}, expected {expected}")
        self._check_consistency()
        if self.data.n_clients is not None:
            self.compute_cohort_size(self.data.n_clients)

    @cached_property
    def resolved_uplink(self) -> ResolvedUplink:
        """Scheme and aggregator of the uplink, which the checks of the scenario and the federation share."""
        return resolve_uplink(self.uplink, self.server)

    def _check_consistency(self) -> None:
        """Raise FieldError if settings of different sections contradict each other."""
        name, server, client = self.uplink.compressor.name, self.server, self.client
        scheme, aggregator = self.resolved_uplink.scheme, self.resolved_uplink.aggregator
        if aggregator.accepted_weights == "equal" and server.weighting != "uniform":
            problem = f'got "{server.weighting}", expected "uniform": {aggregator.name} gives all clients equal weights'
            raise FieldError("scenario", "server.weighting", problem)
        if aggregator.accepted_weights != "any" and (
            server.sampler.yields_inclusion_probabilities or server.normalisation != "none"
        ):
            key, value, expected = (
                ("sampler", server.sampler.name, "a sampler without inclusion probabilities")
                if server.sampler.yields_inclusion_probabilities
                else ("normalisation", server.normalisation, '"none"')
            )
            problem = f'got "{value}", expected {expected}: {aggregator.name} needs aggregation weights that sum to 1'
            raise FieldError("scenario", f"server.{key}", problem)
        is_plain = client.optimizer.name == "sgd" and client.optimizer.clip_norm is None and not client.optimizer.weight_decay
        if scheme.corrects_gradients and not (is_plain and not client.proximal):
            problem = f'{name} needs the mean gradient, expected "sgd" without clip_norm, weight_decay and client.proximal'
            raise FieldError("scenario", "client.optimizer", problem)
        participation, local_work = self.participation, client.epochs if client.steps is None else client.steps
        if participation.stragglers and participation.straggler_policy == "keep" and local_work == 1:
            key = "client.epochs" if client.steps is None else "client.steps"
            problem = f"got {participation.stragglers:g}, expected 0: {key} is 1, of which a straggler cannot make fewer"
            raise FieldError("scenario", "participation.stragglers", problem)
        if scheme.server_mirrors_clients and self.state.precision != "float32":
            reason = f"the server of {name} stores the sum of the clients' states"
            problem = f'got "{self.state.precision}", expected "float32": {reason}'
            raise FieldError("scenario", "state.precision", problem)

    def compute_cohort_size(self, n_clients: int) -> int:
        """Return the size of the cohort: `server.cohort`, or max(1, round(fraction · N)) (McMahan et al. 2017).

        Args:
            n_clients: number of registered clients, N.

        Raises:
            FieldError: `server.cohort` is larger than N.
        """
        if self.server.cohort is None:
            return max(1, round((self.server.fraction or 0.0) * n_clients))
        if self.server.cohort > n_clients:
            key = "data.clients" if isinstance(self.data.source, ClientGenerator) else "data.partition"
            problem = f"got {self.server.cohort} clients a round, expected at most {n_clients}, the number that {key} gives"
            raise FieldError("scenario", "server.cohort", problem)
        return self.server.cohort

    def to_toml(self) -> str:
        """Return the scenario as TOML. Loading the text gives an equal scenario if all its components can be imported."""
        import tomli_w

        return tomli_w.dumps(dump_table(self))

    def with_settings(self, settings: Mapping[str, Any]) -> Scenario:
        """Return the scenario with some keys set, as `--set` does.

        Args:
            settings: value or component by dotted key, such as `{"uplink.compressor.density": 0.1}`.
        """
        check_settings(settings)
        return parse_scenario(apply_settings(Scenario, dump_table(self), settings))


def _is_allowed_in_name(character: str) -> bool:
    """Return True for a printable character, a space of any width, and a joiner of letters or emoji, but for slashes."""
    return character not in "/\\" and (character.isprintable() or category(character) == "Zs" or character in "\u200c\u200d")


def load(path: str | Path, settings: Mapping[str, Any] | None = None) -> Scenario:
    """Load a scenario from a TOML file. Its classes may be in modules next to the file.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "digits.toml")
    ...     _ = path.write_text('name = "digits"')
    ...     load(path, {"rounds": 3}).rounds
    3

    Args:
        path: TOML file.
        settings: values that override the file's, by dotted key.

    Raises:
        ScenarioError: the file is missing, or a key or value is wrong (`path: key: got ..., expected ...`).
    """
    path = expand_user_path(path, "scenario")
    check_settings(settings)
    try:
        table = tomllib.loads(read_text(path))
    except OSError as error:
        other_names = sorted(p.name for p in path.parent.glob("*.toml") if p.name != path.name)
        hint = suggest_name(path.name, other_names) if other_names else ""
        raise ScenarioError(f"{path}: cannot be read ({error.strerror}){hint}") from None
    except (ValueError, RecursionError) as error:  # undecodable text, wrong TOML, a number with too many digits
        raise ScenarioError(f"{path}: not valid TOML: {error}") from None
    with errors_in_file(path), search_scenario_folder(path):
        return parse_scenario(apply_settings(Scenario, table, settings or {}))


@contextmanager
def errors_in_file(path: Path) -> Iterator[None]:
    """Prefix a ScenarioError of the body with the file of the scenario."""
    try:
        yield
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from error.__cause__


def open_scenario(scenario: Scenario | str | Path) -> tuple[AbstractContextManager[None], Scenario]:
    """Return (context, scenario). If `scenario` is a path, the context prefixes errors with the path."""
    if isinstance(scenario, Scenario):
        return nullcontext(), scenario
    if isinstance(scenario, str | Path):
        return errors_in_file(expand_user_path(scenario)), load(scenario)
    raise ScenarioError(
        f"scenario: got {describe_value(scenario)}, expected a fedsgd.Scenario, or the path of a TOML file"
        "; fedsgd.scenario.scenario.parse_scenario(tables) makes a scenario from tables"
    )


def parse_scenario(toml_table: Mapping[str, Any]) -> Scenario:
    """Create a scenario from nested tables, as TOML gives them."""
    return parse_table(Scenario, toml_table)


@dataclass(frozen=True, eq=False)
class PythonObjects:
    """Python objects that replace components of a scenario, as passed to `fedsgd.run`; None: the component is not replaced."""

    dataset: Dataset | None = None
    module: Any = None  # torch.nn.Module
    loss: Loss | None = None
    metrics: Mapping[str, Metric] | None = None

    def as_arguments(self) -> dict[str, Any]:
        """Return the objects by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def check(self, scenario: Scenario, require_importable: bool = False) -> None:
        """Raise an error if an object is missing, has a wrong type, or differs from the object that its marker describes.

        With `require_importable`, an error is raised also for a component that another process cannot import.
        """
        names = [name for name in ("dataset", "module", "loss") if getattr(self, name) is not None]
        missing_objects = find_missing_objects(
            find_markers(dump_table(scenario, use_import_paths=require_importable)), names, self.metrics or ()
        )
        if missing_objects:
            raise ScenarioError(f"{next(iter(missing_objects))}: {describe_missing_objects(missing_objects)}")
        check_python_arguments(self.module, self.loss, self.metrics)
        if self.dataset is not None:
            check_dataset(self.dataset)
        self._check_fingerprints(scenario)

    def _check_fingerprints(self, scenario: Scenario) -> None:
        """Raise a ScenarioError if an object differs from the object that its marker describes."""
        source, model = scenario.data.source, scenario.model
        if isinstance(source, PythonObjectDataset) and self.dataset is not None:
            _check_dataset_digest(source, self.dataset)
        with errors_in_section("model"):
            if isinstance(model, PythonObjectModule) and self.module is not None:
                model.check_fingerprint(self.module)
            if self.loss is not None:
                _check_function_digest("loss", model.loss, self.loss, "loss")
            for name, metric in (self.metrics or {}).items():
                _check_function_digest(f"metrics.{name}", model.metrics.get(name), metric, f'metric "{name}"')

    def make_references(self, scenario: Scenario) -> dict[str, Any]:
        """Return the sections "data" and "model" with a reference to each object: a marker, or the import path of a function.

        Markers of the dataset and the module that have fingerprints are not replaced.
        """
        data, model = scenario.data, scenario.model
        if self.dataset is not None and not (
            isinstance(data.source, PythonObjectDataset) and get_object_digest(data.source.sha256)
        ):
            data = replace(data, source=PythonObjectDataset.from_dataset(self.dataset))
        if self.module is not None and not (isinstance(model, PythonObjectModule) and model.sha256 and model.initial_sha256):
            model = PythonObjectModule.from_module(self.module, model)
        if self.loss is not None:
            model = replace(model, loss=get_path_or_marker(self.loss))
        if self.metrics:
            model = replace(
                model, metrics={**model.metrics, **{name: get_path_or_marker(metric) for name, metric in self.metrics.items()}}
            )
        return {"data": data, "model": model}


def _check_dataset_digest(marker: PythonObjectDataset, dataset: Dataset) -> None:
    """Raise a ScenarioError if a dataset differs from the dataset that a marker with a fingerprint describes."""
    expected = get_object_digest(marker.sha256)
    value = marker.from_dataset(dataset).sha256 if expected else ""
    if value != expected:
        remedy = "to use another dataset, remove data.sha256 from the scenario"
        raise ScenarioError(f"data.sha256: {describe_digest_mismatch('dataset', value, expected, remedy)}")


def _check_function_digest(key: str, path_or_marker: str | None, value: object, label: str) -> None:
    """Raise a FieldError for a key of [model] if a loss or metric differs from the function that its marker describes."""
    try:
        check_marker(path_or_marker or "", value, label)
    except ValueError as error:
        raise FieldError("model", key, str(error)) from None
