"""The tables of a scenario: what each section of the file may say, and what in it would contradict itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fedsgd.compression import (
    CompressionOperator,
    CompressionScheme,
    Compressor,
    ErrorFeedback,
    MemorylessScheme,
    StaleResidualPolicy,
    Weighting,
)
from fedsgd.compression.operators.dense import Dense
from fedsgd.config.component import (
    ClosedFraction,
    FieldError,
    FloatAtLeastOne,
    FractionAboveZero,
    FractionBelowOne,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)
from fedsgd.config.quantities import parse_memory_size
from fedsgd.data import ClientGenerator, DatasetSource, Partitioner
from fedsgd.data.datasets.digits import Digits
from fedsgd.data.partitioners.iid import Iid
from fedsgd.data.partitioners.natural import NaturalPartition as ByOwner
from fedsgd.errors import ScenarioError, suggest_name
from fedsgd.federation.downlink import DownlinkPolicy
from fedsgd.federation.downlink import ModelBroadcast as Link
from fedsgd.optim import OPTIMIZERS, SGD, Optimizer
from fedsgd.sampling import DurationModel, Sampler
from fedsgd.sampling.client_durations import LogNormalDurations
from fedsgd.sampling.uniform import Uniform
from fedsgd.scenario.parsing import SettingsSection
from fedsgd.training import EngineName, LastBatch, UpdateMode


@dataclass(frozen=True)
class DataConfig(SettingsSection):
    """[data]: the dataset's own keys, and how it is split. source is inline: its keys stand in this table.

    partition: a source that has clients of its own (a `ClientGenerator`) is not split: left at its default this becomes
    "natural".
    held_out: the share of each client's examples that it does not train on, but is tested on.
    """

    source: DatasetSource = field(default=Digits(), metadata={"inline": True})
    partition: Partitioner = Iid()
    held_out: FractionBelowOne = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.source, ClientGenerator):
            if self.partition not in (Iid(), ByOwner()):
                owns = f"{self.source.name} has clients of its own: set data.clients, and leave data.partition out"
                raise FieldError("data", "partition", f"got {self.partition}, but {owns}")
            object.__setattr__(self, "partition", ByOwner())

    @property
    def n_clients(self) -> int | None:
        """N, or None where it is only found in the data."""
        return self.source.clients if isinstance(self.source, ClientGenerator) else self.partition.clients


def _can_train_clients(optimizer: type[Optimizer]) -> bool:
    """Return whether a client may use an optimizer of this class."""
    return not optimizer.server_only


@dataclass(frozen=True)
class ClientConfig(SettingsSection):
    """[client]: local training: `epochs` passes (1 unless `n_steps` is given) or `n_steps` steps of batches of `batch_size`.

    proximal: FedProx's μ (Li et al. 2020), 0 being FedAvg: adds μ/2 · |w − w_received|² to the loss of each batch. velocity:
    what the optimiser remembers may "restart" at zero in each round, or be carried over from the client's last one ("carry").
    last_batch: a smaller last batch of a pass is trained on ("keep"), left out ("drop", as with PyTorch's drop_last), or joined
    to the batch before it ("merge"); a client with fewer examples than `batch_size` keeps its only batch.
    """

    mutually_exclusive: ClassVar[tuple[str, ...]] = ("epochs", "steps")

    optimizer: Optimizer = field(default=SGD(), metadata={"accepts": _can_train_clients})
    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    batch_size: PositiveInt | Literal["full"] = 10
    proximal: NonNegativeFloat = 0.0
    velocity: Literal["restart", "carry"] = "restart"
    last_batch: LastBatch = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.velocity == "carry" and not hasattr(self.optimizer, "momentum"):
            raise FieldError("client", "velocity", f'got "carry", but {self.optimizer.name} has no velocity to carry over')
        if self.optimizer.server_only:
            fit = [name for name in OPTIMIZERS if _can_train_clients(OPTIMIZERS[name])]
            problem = f'got "{self.optimizer.name}", which is for the server{suggest_name("", fit)}'
            raise FieldError("client", "optimizer.name", problem)
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 1)


@dataclass(frozen=True)
class EngineConfig(SettingsSection):
    """[engine]: what computes the clients' training: "sequential", plain autograd, the oracle; "captured", a recording of a
    step; "stacked", the same for `breakdown` clients at a time; or "auto", by a rule on the model and the cohort. What was
    chosen
    stands in the scenario that the run folder gets.

    update: "exact" gives the oracle's numbers to the last bit (but for stacks); "fused" is quicker, and rounds otherwise.
    """

    name: EngineName = "auto"
    update: UpdateMode = "fused"
    stack: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stack is not None and self.name in ("sequential", "captured"):
            raise FieldError("engine", "stack", f"got {self.stack}, which is for stacked clients, with {self.name}")


@dataclass(frozen=True)
class ServerConfig(SettingsSection):
    """[server]: who takes part (`cohort_size` clients a round, or a `fraction` of all, at least one, drawn by `sampler`), and
    the
    server's step.

    normalisation: "fednova" weighs each update down by how far its client's steps go, and the mean up by how far they go on
    average, so that who makes more steps does not count more than its weight (Wang et al. 2020).
    """

    mutually_exclusive: ClassVar[tuple[str, ...]] = ("cohort", "fraction")

    cohort: PositiveInt | None = None
    fraction: ClosedFraction | None = None
    optimizer: Optimizer = field(default=SGD(lr=1.0), metadata={"preset": {"lr": 1.0}})
    weighting: Weighting = "examples"
    sampler: Sampler = Uniform()
    normalisation: Literal["none", "fednova"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer.schedule_over == "local-steps":
            problem = 'got "local-steps", expected "rounds": the server makes one step a round'
            raise FieldError("server", "optimizer.schedule_over", problem)
        if self.cohort is None and self.fraction is None:
            object.__setattr__(self, "fraction", 1.0)


@dataclass(frozen=True)
class ParticipationConfig(SettingsSection):
    """[participation]: what becomes of the clients that are asked.

    over_selection: how many times as many as the cohort are asked; the first that reply are taken. dropout: the probability
    that a reply never arrives. deadline: how many simulated seconds a round waits; what comes later is thrown away. durations:
    how long clients take. A client whose reply was not taken still has all that it held back. on_failure: whether a client that
    breaks down ends the run ("stop") or counts as one whose reply never arrived ("continue").
    """

    over_selection: FloatAtLeastOne = 1.0
    dropout: FractionBelowOne = 0.0
    deadline: PositiveFloat | None = None
    durations: DurationModel = LogNormalDurations()
    on_failure: Literal["stop", "continue"] = "stop"


@dataclass(frozen=True)
class StateStoreConfig(SettingsSection):
    """[state]: where what clients remember lies between rounds: in "memory", on "disk" in `folder` (by default that for
    temporary files), or "auto": in memory if it fits into `budget`, else on disk. No result depends on it.

    precision: "bfloat16" halves it, by rounding what is remembered.
    """

    store: Literal["auto", "memory", "disk"] = "auto"
    budget: str = "4 GiB"
    folder: str | None = None
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            parse_memory_size(self.budget)
        except ScenarioError as error:
            raise FieldError("state", "budget", str(error)) from None

    @property
    def budget_bytes(self) -> int:
        """The budget."""
        return parse_memory_size(self.budget)


@dataclass(frozen=True)
class UplinkConfig(SettingsSection):
    """[uplink]: how clients' updates are compressed, and what happens to what was left out.

    error_feedback: "none", or the policy for what a client that sits out has not sent: it may "persist", "decay" by
    `residual_factor` for each round missed, or "reset" after more than `residual_rounds` of them. In compressors that have a
    memory of their own (DGC, STC, ...) it persists unless they are told to let it "decay" or "reset".
    """

    compressor: Compressor = Dense()
    error_feedback: Literal["none", "persist", "decay", "reset"] = "none"
    residual_factor: FractionBelowOne = 0.9
    residual_rounds: PositiveInt = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.build_scheme()
        except FieldError as error:
            raise FieldError("uplink", "error_feedback", error.problem) from None

    def build_scheme(self) -> CompressionScheme:
        """The compressor with or without memory."""
        policy = self.error_feedback
        if isinstance(self.compressor, CompressionScheme):
            scheme = self.compressor
            if policy != "none" and not scheme.residual_entries:
                problem = f'got "{policy}", expected "none": {scheme.name} has a memory of its own, which is not a residual'
                raise FieldError("uplink", "error_feedback", problem)
        elif isinstance(self.compressor, CompressionOperator):
            scheme = MemorylessScheme(self.compressor) if policy == "none" else ErrorFeedback(self.compressor)
        else:
            raise FieldError("uplink", "compressor", f"{self.compressor.name} is neither an operator nor a scheme")
        if policy == "none" or policy == "persist":
            return scheme
        return StaleResidualPolicy(scheme, policy, self.residual_factor, self.residual_rounds)


@dataclass(frozen=True)
class DownlinkConfig(SettingsSection):
    """[downlink]: how the model gets to the clients (the policies are those of `fedsgd.federation.downlink`): the "model"
    itself, whole;
    the exact "difference" to the last round's; or the server's step through `compressor`: "plain", with "error-feedback" at the
    server, or as a "shift" of the model that clients have towards the server's. remember: for how many rounds clients keep a
    model, so that a difference is of use to them; unset: for ever.
    """

    policy: DownlinkPolicy = "model"
    compressor: CompressionOperator = Dense()
    remember: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        got = f'got "{self.compressor.name}"'
        if self.policy == "model" and not isinstance(self.compressor, Dense):
            problem = f'{got}, expected "dense": dropping coordinates of a model is not compression of an update; set '
            raise FieldError(
                "downlink", "compressor.name", problem + 'policy = "error-feedback" to send the server\'s steps by it'
            )
        if self.policy == "difference" and self.compressor != Dense():
            problem = f'{got}, expected "dense" with float32 values: a difference is exact'
            raise FieldError("downlink", "compressor.name", problem)
        if self.policy in ("error-feedback", "shift") and self.compressor.kind != "contractive":
            problem = (
                f"{got}, which is {self.compressor.kind}, expected a contractive compressor: what it leaves out would grow"
            )
            raise FieldError("downlink", "compressor", problem)
        if self.policy == "plain" and self.compressor.kind == "contractive" and not self.compressor.lossless:
            problem = f'{got} without a memory of what it leaves out, expected policy = "error-feedback" or "shift"'
            raise FieldError("downlink", "compressor", problem)

    def build_downlink(self) -> Link:
        """The same, as rounds have it."""
        return Link(self.policy, self.compressor, self.remember)


@dataclass(frozen=True)
class EvaluationConfig(SettingsSection):
    """[evaluation]: test the model after every `convert_all` rounds, and after the last.

    clients: also by client, on what each holds out: mean accuracy, that of the worst tenth, standard deviation. training:
    also on all training examples. Neither crosses the wire: it is what somebody who sees all the data would measure.
    """

    every: PositiveInt = 1
    clients: bool = False
    training: bool = False


@dataclass(frozen=True)
class TargetConfig(SettingsSection):
    """[report]: what the summary answers: when `target_accuracy` is reached, by the rule of
    `fedsgd.experiment.time_to_target`."""

    target_accuracy: FractionAboveZero | None = None


@dataclass(frozen=True)
class StoppingConfig(SettingsSection):
    """[stop]: end the run after the first round that reaches `target_accuracy`."""

    target_accuracy: FractionAboveZero | None = None
