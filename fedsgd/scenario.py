"""A scenario: everything that a run depends on beside the data files, as plain frozen data; and its TOML form.

Sections of the file are the fields of `Scenario`, keys are fields of the class that a section names. A wrong key, type or value
is a ScenarioError that starts with the file and the dotted key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from fedsgd.component import Coefficient, Count, FieldError, Fraction, Natural, NonNegative, Share
from fedsgd.compress import Compressor, ErrorFeedback, Operator, Plain, Scheme, Weighting
from fedsgd.compress.dense import DenseOperator
from fedsgd.data import Partitioner, Population, Source
from fedsgd.data.datasets.digits import Digits
from fedsgd.data.partitioners.iid import Iid
from fedsgd.data.partitioners.natural import Natural as ByClient
from fedsgd.engine import EngineName, Update
from fedsgd.errors import ScenarioError, did_you_mean
from fedsgd.models import Mlp, Model
from fedsgd.optim import OPTIMIZERS, SGD, Optimizer
from fedsgd.schema import Table, apply_settings, from_table, to_table


@dataclass(frozen=True)
class Data(Table):
    """[data]: the dataset's own keys, and how it is split. source is inline: its keys stand in this table.

    partition: a source that has clients of its own (a `Population`) is not split: left at its default this becomes "natural".
    held_out: the share of each client's examples that it does not train on, but is tested on.
    """

    source: Source = field(default=Digits(), metadata={"inline": True})
    partition: Partitioner = Iid()
    held_out: Coefficient = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.source, Population):
            if self.partition not in (Iid(), ByClient()):
                owns = f"{self.source.name} has clients of its own: set data.clients, and leave data.partition out"
                raise FieldError("data", "partition", f"got {self.partition}, but {owns}")
            object.__setattr__(self, "partition", ByClient())

    @property
    def n_clients(self) -> int | None:
        """N, or None where it is only found in the data."""
        return self.source.clients if isinstance(self.source, Population) else self.partition.clients


@dataclass(frozen=True)
class Client(Table):
    """[client]: local training: `epochs` passes (1 unless `steps` is given) or `steps` steps of batches of `batch_size`.

    proximal: FedProx's μ (Li et al. 2020), 0 being FedAvg: adds μ/2 · |w − w_received|² to the loss of each batch.
    """

    alternatives: ClassVar[tuple[str, ...]] = ("epochs", "steps")

    optimizer: Optimizer = SGD()
    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Count | Literal["full"] = 10
    proximal: NonNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer.server_only:
            fit = [name for name in OPTIMIZERS if not OPTIMIZERS[name].server_only]
            problem = f'got "{self.optimizer.name}", which is for the server{did_you_mean("", fit)}'
            raise FieldError("client", "optimizer.name", problem)
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 1)


@dataclass(frozen=True)
class Engine(Table):
    """[engine]: what computes the clients' training: "sequential", plain autograd, the oracle; "captured", a recording of a
    step; "stacked", the same for `stack` clients at a time; or "auto", by a rule on the model and the cohort. What was chosen
    stands in the scenario that the run folder gets.

    update: "exact" gives the oracle's numbers to the last bit (but for stacks); "fused" is quicker, and rounds otherwise.
    """

    name: EngineName = "auto"
    update: Update = "fused"
    stack: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stack is not None and self.name in ("sequential", "captured"):
            raise FieldError("engine", "stack", f"got {self.stack}, which is for stacked clients, with {self.name}")


@dataclass(frozen=True)
class Server(Table):
    """[server]: who takes part (`cohort` clients a round, or a `fraction` of all, at least one), and the server's step."""

    alternatives: ClassVar[tuple[str, ...]] = ("cohort", "fraction")

    cohort: Count | None = None
    fraction: Fraction | None = None
    optimizer: Optimizer = field(default=SGD(lr=1.0), metadata={"preset": {"lr": 1.0}})
    weighting: Weighting = "examples"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer.schedule_over == "local-steps":
            problem = 'got "local-steps", expected "rounds": the server makes one step a round'
            raise FieldError("server", "optimizer.schedule_over", problem)
        if self.cohort is None and self.fraction is None:
            object.__setattr__(self, "fraction", 1.0)


@dataclass(frozen=True)
class Uplink(Table):
    """[uplink]: how clients' updates are compressed, and what happens to what was left out.

    error_feedback: "none", or the policy for the residual of a client that sits out: it may "persist", "decay" by
    `residual_factor` for each round missed, or "reset" after more than `residual_rounds` of them. Compressors that have a
    memory of their own (DGC, EF21, ...) take "none".
    """

    compressor: Compressor = DenseOperator()
    error_feedback: Literal["none", "persist", "decay", "reset"] = "none"
    residual_factor: Coefficient = 0.9
    residual_rounds: Count = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.scheme()
        except FieldError as error:
            raise FieldError("uplink", "error_feedback", error.problem) from None

    def scheme(self) -> Scheme:
        """The compressor with or without memory."""
        if isinstance(self.compressor, Scheme):
            if self.error_feedback != "none":
                problem = f'got "{self.error_feedback}", expected "none": {self.compressor.name} has a memory of its own'
                raise FieldError("uplink", "error_feedback", problem)
            return self.compressor
        if not isinstance(self.compressor, Operator):
            raise FieldError("uplink", "compressor", f"{self.compressor.name} is neither an operator nor a scheme")
        if self.error_feedback == "none":
            return Plain(self.compressor)
        return ErrorFeedback(self.compressor, self.error_feedback, self.residual_factor, self.residual_rounds)


@dataclass(frozen=True)
class Downlink(Table):
    """[downlink]: how the model is sent to the clients: whole, by "dense", so far."""

    compressor: Operator = DenseOperator()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.compressor, DenseOperator):
            raise FieldError(
                "downlink",
                "compressor.name",
                f'got "{self.compressor.name}", expected "dense": the downlink carries the whole model, and dropping '
                "coordinates of a model is not compression of an update",
            )


@dataclass(frozen=True)
class Evaluation(Table):
    """[evaluation]: test the model after every `every` rounds, and after the last.

    clients: also by client, on what each holds out: mean accuracy, that of the worst tenth, standard deviation. training:
    also on all training examples. Neither crosses the wire: it is what somebody who sees all the data would measure.
    """

    every: Count = 1
    clients: bool = False
    training: bool = False


@dataclass(frozen=True)
class Report(Table):
    """[report]: what the summary answers: the first round that reaches `target_accuracy`."""

    target_accuracy: Share | None = None


@dataclass(frozen=True)
class Stop(Table):
    """[stop]: end the run after the first round that reaches `target_accuracy`."""

    target_accuracy: Share | None = None


@dataclass(frozen=True)
class Scenario(Table):
    """One experiment. name: what it is called; seed: of all randomness; rounds: how many at most."""

    name: str
    seed: Natural = 0
    rounds: Count = 10
    data: Data = Data()
    model: Model = Mlp()
    client: Client = Client()
    engine: Engine = Engine()
    server: Server = Server()
    uplink: Uplink = Uplink()
    downlink: Downlink = Downlink()
    evaluation: Evaluation = Evaluation()
    report: Report = Report()
    stop: Stop = Stop()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or any(c in self.name for c in "/\\\0"):
            raise FieldError("scenario", "name", f"got {self.name!r}, expected a word that can name a folder")
        if self.uplink.scheme().uniform and self.server.weighting != "uniform":
            name = self.uplink.compressor.name
            problem = f'got "{self.server.weighting}", expected "uniform": {name} averages over all clients alike'
            raise FieldError("scenario", "server.weighting", problem)
        if self.data.n_clients is not None:
            self.cohort_size(self.data.n_clients)

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
        return from_dict(apply_settings(Scenario, to_table(self), settings))


def load(path: str | Path, settings: Mapping[str, Any] | None = None) -> Scenario:
    """The scenario in a TOML file, with dotted keys overridden by `settings`.

    ScenarioError (`path: key: got ..., expected ...`) if the file is missing or anything in it is wrong.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = sorted(p.name for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near) if near else ""
        raise ScenarioError(f"{path}: cannot be read ({error.strerror}){hint}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
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


def from_dict(raw: Mapping[str, Any]) -> Scenario:
    """A scenario from nested tables, as TOML gives them."""
    return from_table(Scenario, raw)
