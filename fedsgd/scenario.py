"""A scenario: everything that a run depends on beside the data files, as plain frozen data; and its TOML form.

Sections of the file are the fields of `Scenario`, keys are fields of the class that a section names. A wrong key, type or value
is a ScenarioError that starts with the file and the dotted key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsgd.component import Count, FieldError, Seed, value_text
from fedsgd.compress import Scheme
from fedsgd.data import Dataset, Population, check_dataset
from fedsgd.data.datasets.given import GivenDataset
from fedsgd.errors import ScenarioError, did_you_mean
from fedsgd.models import Loss, Metric, Mlp, Model
from fedsgd.models.given import check_given
from fedsgd.models.user import GivenModule
from fedsgd.overrides import apply_settings, check_settings
from fedsgd.python_objects import ask_for, check_marker, drop_given, expected_digest, explain_other, find_markers, reference
from fedsgd.schema import Table, from_table, placed, to_table
from fedsgd.tables import (
    Client,
    Data,
    Downlink,
    Engine,
    Evaluation,
    Participation,
    Report,
    Server,
    State,
    Stop,
    Uplink,
)
from fedsgd.user_files import read_text, user_path


@dataclass(frozen=True)
class Scenario(Table):
    """One experiment. name: what it is called; seed: of all randomness; rounds: how many at most."""

    name: str
    seed: Seed = 0
    rounds: Count = 10
    data: Data = Data()
    model: Model = Mlp()
    client: Client = Client()
    engine: Engine = Engine()
    server: Server = Server()
    participation: Participation = Participation()
    uplink: Uplink = Uplink()
    downlink: Downlink = Downlink()
    state: State = State()
    evaluation: Evaluation = Evaluation()
    report: Report = Report()
    stop: Stop = Stop()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or any(c in self.name for c in "/\\\0"):
            raise FieldError("scenario", "name", f"got {self.name!r}, expected a word that can name a folder")
        self._check_weights(self.uplink.scheme())
        if self.data.n_clients is not None:
            self.cohort_size(self.data.n_clients)

    def _check_weights(self, scheme: Scheme) -> None:
        """FieldError for settings that contradict each other across tables."""
        name, server, client = self.uplink.compressor.name, self.server, self.client
        if scheme.uniform and server.weighting != "uniform":
            problem = f'got "{server.weighting}", expected "uniform": {name} averages over all clients alike'
            raise FieldError("scenario", "server.weighting", problem)
        if scheme.convex and (server.sampler.corrects or server.normalisation != "none"):
            key, got = ("sampler", server.sampler.name) if server.sampler.corrects else ("normalisation", server.normalisation)
            problem = f'got "{got}", which weighs updates so that they do not add up to one mean, as {name} needs'
            raise FieldError("scenario", f"server.{key}", problem)
        plain = client.optimizer.name == "sgd" and client.optimizer.clip_norm is None and not client.optimizer.weight_decay
        if scheme.corrects and not (plain and not client.proximal):
            problem = (
                f"{name} reads the mean gradient off the update, expected plain sgd: no momentum, clipping, decay or proximal"
            )
            raise FieldError("scenario", "client.optimizer", problem)
        if scheme.mirrored and self.state.precision != "float32":
            problem = (
                f'got "{self.state.precision}", expected "float32": the server keeps the sum of what clients of {name} keep'
            )
            raise FieldError("scenario", "state.precision", problem)

    def cohort_size(self, clients: int) -> int:
        """m, the clients a round of `clients` in all: `cohort`, or max(1, round(fraction · N)) (McMahan et al. 2017; a fraction
        of 0 means one client)."""
        if self.server.cohort is None:
            return max(1, round((self.server.fraction or 0.0) * clients))
        if self.server.cohort > clients:
            key = "data.clients" if isinstance(self.data.source, Population) else "data.partition"
            raise FieldError(
                "scenario", "server.cohort", f"got {self.server.cohort} clients a round, but {key} gives {clients}"
            )
        return self.server.cohort

    def to_toml(self) -> str:
        """The resolved scenario: every key that has a value, defaults included. Loading it gives an equal scenario."""
        import tomli_w

        return tomli_w.dumps(to_table(self))

    def replace(self, settings: Mapping[str, Any]) -> Scenario:
        """This scenario with dotted keys set, as `--set` does: `{"uplink.compressor.density": 0.1}`."""
        check_settings(settings)
        return from_dict(apply_settings(Scenario, to_table(self), settings))


def load(path: str | Path, settings: Mapping[str, Any] | None = None) -> Scenario:
    """The scenario in a TOML file, with dotted keys overridden by `settings`.

    ScenarioError (`path: key: got ..., expected ...`) if the file is missing or anything in it is wrong.
    """
    path = user_path(path, "scenario")
    check_settings(settings)
    try:
        raw = tomllib.loads(read_text(path))
    except OSError as error:
        near = sorted(p.name for p in path.parent.glob("*.toml") if p.name != path.name)
        hint = did_you_mean(path.name, near) if near else ""
        raise ScenarioError(f"{path}: cannot be read ({error.strerror}){hint}") from None
    except (ValueError, RecursionError) as error:  # of decoding, of TOML, and of numbers with too many digits
        raise ScenarioError(f"{path}: not valid TOML: {error}") from None
    with in_file(path):
        return from_dict(apply_settings(Scenario, raw, settings or {}))


@contextmanager
def in_file(path: Path) -> Iterator[None]:
    """Puts the file in front of what is wrong in it, also where that turns out later, when something is built."""
    try:
        yield
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from error.__cause__


def open_scenario(scenario: Scenario | str | Path) -> tuple[AbstractContextManager[None], Scenario]:
    """Return (a context that puts the file in front of errors, the scenario), for a scenario or the file that holds one.

    Raises:
        ScenarioError: it is neither, or the file is wrong.
    """
    if isinstance(scenario, Scenario):
        return nullcontext(), scenario
    if isinstance(scenario, str | Path):
        return in_file(user_path(scenario)), load(scenario)
    raise ScenarioError(
        f"scenario: got {value_text(scenario)}, expected a fedsgd.Scenario, or the path of a TOML file"
        "; fedsgd.scenario.from_dict(tables) makes one of tables"
    )


def from_dict(raw: Mapping[str, Any]) -> Scenario:
    """A scenario from nested tables, as TOML gives them."""
    return from_table(Scenario, raw)


@dataclass(frozen=True, eq=False)
class PythonObjects:
    """Objects that take the place of what a scenario names: arguments of `fedsgd.run`; module: a torch.nn.Module."""

    dataset: Dataset | None = None
    module: Any = None
    loss: Loss | None = None
    metrics: Mapping[str, Metric] | None = None

    def check(self, scenario: Scenario, elsewhere: bool = False) -> None:
        """Raise a ScenarioError if the scenario needs Python objects that are not among these, or was run with others.

        elsewhere: another process is to read the scenario, so that its components must be importable too.
        """
        given = [name for name in ("dataset", "module", "loss") if getattr(self, name) is not None]
        missing = drop_given(find_markers(to_table(scenario, by_path=elsewhere)), given, self.metrics or ())
        if missing:
            raise ScenarioError(f"{next(iter(missing))}: {ask_for(missing)}")
        check_given(self.module, self.loss, self.metrics)
        if self.dataset is not None:
            check_dataset(self.dataset)
        self._check_fingerprints(scenario)

    def _check_fingerprints(self, scenario: Scenario) -> None:
        """Raise a ScenarioError if an object is another than the one whose marker the scenario holds."""
        source, model = scenario.data.source, scenario.model
        if isinstance(source, GivenDataset) and self.dataset is not None:
            _check_arrays(source, self.dataset)
        with placed("model"):
            if isinstance(model, GivenModule) and self.module is not None:
                model.check(self.module)
            if self.loss is not None:
                _check_function("loss", model.loss, self.loss, "loss")
            for name, metric in (self.metrics or {}).items():
                _check_function(f"metrics.{name}", model.metrics.get(name), metric, f'metric "{name}"')

    def describe(self, scenario: Scenario) -> Scenario:
        """Return the scenario that says what runs: each object by its import path, or by a marker.

        A marker that `check` has compared stays as it is.
        """
        data, model = scenario.data, scenario.model
        if self.dataset is not None and not (isinstance(data.source, GivenDataset) and expected_digest(data.source.sha256)):
            data = replace(data, source=GivenDataset.of(self.dataset))
        if self.module is not None and not (isinstance(model, GivenModule) and model.sha256 and model.initial_sha256):
            model = GivenModule.of(self.module, model)
        if self.loss is not None:
            model = replace(model, loss=reference(self.loss))
        if self.metrics:
            model = replace(model, metrics={**model.metrics, **{name: reference(one) for name, one in self.metrics.items()}})
        return replace(scenario, data=data, model=model)


def _check_arrays(marker: GivenDataset, dataset: Dataset) -> None:
    """Raise a ScenarioError if a dataset is not the one that a marker with a fingerprint stands for."""
    expected = expected_digest(marker.sha256)
    value = marker.of(dataset).sha256 if expected else ""
    if value != expected:
        way = "to use another one, remove data.sha256 from the scenario"
        raise ScenarioError(f"data.sha256: {explain_other('dataset', value, expected, way)}")


def _check_function(key: str, path: str | None, value: object, what: str) -> None:
    """Raise a FieldError if a loss or a metric is not the one whose marker the scenario holds; key: of [model]."""
    try:
        check_marker(path or "", value, what)
    except ValueError as error:
        raise FieldError("model", key, str(error)) from None
