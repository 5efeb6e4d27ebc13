"""Sections of a scenario: their keys, defaults and checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fedsgd.aggregation import Aggregator
from fedsgd.compression import CompressionOperator, Compressor, Weighting
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
from fedsgd.config.quantities import parse_memory_size, parse_seconds
from fedsgd.data import ClientGenerator, DatasetSource, Partitioner
from fedsgd.data.datasets.digits import Digits
from fedsgd.data.partitioners.iid import Iid
from fedsgd.data.partitioners.natural import NaturalPartition
from fedsgd.errors import ScenarioError, suggest_name
from fedsgd.federation.downlink import POLICY_ALIASES, DownlinkPolicy
from fedsgd.federation.faults import HostileClients
from fedsgd.models.set_metrics import SetMetricName
from fedsgd.optim import OPTIMIZERS, SGD, Optimizer
from fedsgd.sampling import DurationModel, Sampler
from fedsgd.sampling.client_durations import LogNormalDurations
from fedsgd.sampling.uniform import Uniform
from fedsgd.scenario.parsing import SettingsSection
from fedsgd.scenario.target import Target, parse_target
from fedsgd.system.compute_device import CPU, is_device_name
from fedsgd.training import EngineName, LastBatch, UpdateMode


@dataclass(frozen=True)
class DataConfig(SettingsSection):
    """[data]: dataset and partition.

    Attributes:
        source: dataset. Its keys are keys of this table.
        partition: partitioner, which divides the training examples over the clients. For a source that has its own clients
            (`ClientGenerator`), the default becomes "natural".
        held_out: share of each client's examples that are test examples, 0 to below 1.
    """

    source: DatasetSource = field(default=Digits(), metadata={"inline": True})
    partition: Partitioner = Iid()
    held_out: FractionBelowOne = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.source, ClientGenerator) and self.partition != NaturalPartition():
            reason = f"{self.source.name} has clients of its own: set data.clients, and leave data.partition out"
            raise FieldError("data", "partition", f"got {self.partition}, but {reason}")

    @classmethod
    def resolve_defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values, with the partitioner of a source that has its own clients."""
        has_own_clients = isinstance(values["source"], ClientGenerator)
        return {**values, "partition": NaturalPartition()} if has_own_clients and values["partition"] == Iid() else values

    @property
    def n_clients(self) -> int | None:
        """Number of registered clients, N; None where only the data determine it."""
        return self.source.clients if isinstance(self.source, ClientGenerator) else self.partition.clients


def _can_train_clients(optimizer: type[Optimizer]) -> bool:
    """Return True if clients may use an optimizer of this class."""
    return not optimizer.server_only


@dataclass(frozen=True)
class ClientConfig(SettingsSection):
    """[client]: local training.

    Attributes:
        optimizer: optimizer of the local steps.
        epochs: local epochs of a round; 1 if neither `epochs` nor `steps` is set.
        steps: local steps of a round, in place of `epochs`.
        batch_size: examples in a batch; "full" for all examples of the client.
        proximal: FedProx's μ (Li et al. 2020), which adds μ/2 · |w − w_received|² to the loss of each batch; 0 is FedAvg.
        velocity: optimizer state (velocity, or moments and counts of steps) at the start of a round: zero ("restart") or the
            client's last state ("carry"). It is stored at the client and never sent.
        last_batch: use of a smaller last batch of an epoch: train on it ("keep"), omit it ("drop", PyTorch's drop_last), or
            join it to the batch before ("merge"). A client with fewer examples than `batch_size` keeps its only batch.
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
        if self.velocity == "carry" and not self.optimizer.has_state:
            raise FieldError("client", "velocity", f'got "carry", but {self.optimizer.name} has no velocity')
        if self.optimizer.server_only:
            names = [name for name in OPTIMIZERS if _can_train_clients(OPTIMIZERS[name])]
            problem = f'got "{self.optimizer.name}", which is for the server{suggest_name("", names)}'
            raise FieldError("client", "optimizer.name", problem)

    @classmethod
    def resolve_defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values, with one epoch if neither epochs nor steps are set."""
        return {**values, "epochs": 1} if values["epochs"] is None and values["steps"] is None else values


@dataclass(frozen=True)
class EngineConfig(SettingsSection):
    """[engine]: implementation of local training.

    Attributes:
        name: "sequential" (plain autograd, the reference), "captured" (recorded steps), "stacked" (recorded steps of several
            clients at once), or "auto", which selects by model and cohort. A run's scenario.toml has the selected engine.
        update: "exact" gives the bits of the reference, except in stacks; "fused" is faster, and rounds differently.
        stack: clients in a stack; None for a number that fits the model, and the memory of a GPU.
        device: "cpu", "cuda" (the first GPU), "cuda:1" (a GPU by number), or "auto": the first GPU, the CPU without one. The
            scenario.toml of a run has the selected device. Results on a GPU differ from those on a CPU by rounding.
        deterministic: on a GPU, refuse operations that have no deterministic form; then equal runs on equal GPUs have equal
            results. False allows them, and summary.json says so. No effect on a CPU.
    """

    name: EngineName = "auto"
    update: UpdateMode = "fused"
    stack: PositiveInt | None = None
    device: str = CPU
    deterministic: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_device_name(self.device):
            expected = suggest_name(self.device, ("auto", "cpu", "cuda", "cuda:0"))
            raise FieldError("engine", "device", f'got "{self.device}"{expected}')
        if self.stack is not None and self.name in ("sequential", "captured"):
            raise FieldError("engine", "stack", f'got {self.stack} with {self.name}, expected it with "stacked" or "auto" only')


@dataclass(frozen=True)
class ServerConfig(SettingsSection):
    """[server]: cohort, aggregation weights and the server's step.

    Attributes:
        cohort: clients that are sent a message in a round, in place of `fraction`. All clients, if neither key is set.
        fraction: clients in a cohort as a share of all, in place of `cohort`; at least one client. All clients, if neither key
            is set.
        optimizer: optimizer that steps with the aggregate; SGD with learning rate 1 is FedAvg.
        weighting: aggregation weights: the clients' numbers of examples ("examples") or equal weights ("uniform").
        sampler: rule that draws the cohort.
        normalisation: "fednova" divides each update by the length of its client's steps and multiplies the mean by the average
            length, so that additional steps do not increase a client's weight (Wang et al. 2020).
        aggregator: rule that combines the updates of a round; unset, the weighted mean, or the server half of the compressor.
    """

    mutually_exclusive: ClassVar[tuple[str, ...]] = ("cohort", "fraction")

    cohort: PositiveInt | None = None
    fraction: ClosedFraction | None = None
    optimizer: Optimizer = field(default=SGD(lr=1.0), metadata={"preset": {"lr": 1.0}})
    weighting: Weighting = "examples"
    sampler: Sampler = Uniform()
    normalisation: Literal["none", "fednova"] = "none"
    aggregator: Aggregator | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer.schedule_over == "local-steps":
            problem = 'got "local-steps", expected "rounds": the server makes one step a round'
            raise FieldError("server", "optimizer.schedule_over", problem)

    @classmethod
    def resolve_defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values, with a cohort of all clients if neither its size nor its fraction is set."""
        return {**values, "fraction": 1.0} if values["cohort"] is None and values["fraction"] is None else values


@dataclass(frozen=True)
class ParticipationConfig(SettingsSection):
    """[participation]: simulated dropouts, stragglers and failures. A client whose reply is not used keeps its residual.

    Attributes:
        over_selection: clients that are sent a message, as a multiple of the cohort; the server uses the first replies.
        dropout: probability that a reply is lost.
        deadline: simulated seconds until the server closes a round; None to wait for all replies.
        durations: simulated durations of the clients' replies, for `over_selection` and `deadline`.
        stragglers: stragglers as a share of the cohort, drawn in each round. A straggler makes uniformly 1 to all of its local
            epochs or steps (Li et al. 2020, section 5.2). Not with `over_selection` and `deadline`.
        straggler_policy: use of a straggler's fewer steps: the client sends their update ("keep", FedProx), or it sends nothing
            and its state does not change ("drop", FedAvg).
        on_failure: effect of a client that fails: the run ends ("stop"), or the reply counts as lost ("continue").
        on_divergence: effect of an update that is not finite: the run ends ("stop"), or the client sends nothing in this round,
            which the ledger and the summary count ("skip"). With "stop", a test loss that is not finite ends the run, too.
    """

    over_selection: FloatAtLeastOne = 1.0
    dropout: FractionBelowOne = 0.0
    deadline: PositiveFloat | None = field(default=None, metadata={"example": "60.0"})
    durations: DurationModel = LogNormalDurations()
    stragglers: FractionBelowOne = 0.0
    straggler_policy: Literal["keep", "drop"] = "keep"
    on_failure: Literal["stop", "continue"] = "stop"
    on_divergence: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        super().__post_init__()
        timed = "deadline" if self.deadline is not None else "over_selection" if self.over_selection > 1 else ""
        if self.stragglers and timed:
            reason = f"{timed} = {getattr(self, timed):g} finds stragglers by simulated durations; leave one of the two out"
            raise FieldError("participation", "stragglers", f"got {self.stragglers:g}, expected 0, because {reason}")


@dataclass(frozen=True)
class FaultConfig(SettingsSection):
    """[faults]: simulated attacks.

    Attributes:
        hostile: clients that send updates of their own choice.
    """

    hostile: HostileClients | None = None


@dataclass(frozen=True)
class StateStoreConfig(SettingsSection):
    """[state]: location and precision of client states between rounds.

    Attributes:
        store: "memory", "disk" or "auto" (memory if the states fit into `budget`, else disk); results do not depend on it.
        budget: memory for client states and models, such as "4 GiB"; and for the outputs that metrics of a whole set need.
        folder: folder of states on disk; None for the folder of temporary files.
        precision: "bfloat16" halves the size of the states and rounds them.
    """

    store: Literal["auto", "memory", "disk"] = "auto"
    budget: str = "4 GiB"
    folder: str | None = field(default=None, metadata={"example": '"states"'})
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            parse_memory_size(self.budget)
        except ScenarioError as error:
            raise FieldError("state", "budget", str(error)) from None

    @property
    def budget_bytes(self) -> int:
        """Memory for client states and models, bytes."""
        return parse_memory_size(self.budget)


@dataclass(frozen=True)
class CheckpointConfig(SettingsSection):
    """[checkpoint]: checkpoints of a run with a run directory, from which `fedsgd resume` continues; no effect on results.

    Attributes:
        every: rounds, such as 10, or time, such as "5min", between two checkpoints. Unset: a checkpoint is written only when
            Ctrl-C stops the run. A deployment with `every` writes one after each round, whatever the value.
        keep: number of checkpoints that are kept.
    """

    every: PositiveInt | str | None = field(default=None, metadata={"example": "10"})
    keep: PositiveInt = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.every, str):
            try:
                seconds = parse_seconds(self.every)
            except ScenarioError:
                seconds = 0.0
            if not seconds:
                problem = f'got {self.every!r}, expected a number of rounds such as 10, or a time such as "5min"'
                raise FieldError("checkpoint", "every", problem)

    @property
    def every_seconds(self) -> float | None:
        """Seconds between two checkpoints; None if `every` is not a time."""
        return parse_seconds(self.every) if isinstance(self.every, str) else None

    @property
    def every_rounds(self) -> int | None:
        """Rounds between two checkpoints; None if `every` is not a number of rounds."""
        return None if isinstance(self.every, str) else self.every


@dataclass(frozen=True)
class UplinkConfig(SettingsSection):
    """[uplink]: compression of the clients' updates.

    Attributes:
        compressor: operator or scheme that encodes the updates.
        error_feedback: policy for the residual of a client over the rounds that the client misses: "none" (no error feedback),
            "persist", "decay" or "reset". A scheme with a residual of its own (DGC, STC, ...) keeps this residual under "none".
        residual_factor: factor of the residual for each missed round, under "decay".
        residual_rounds: maximum number of missed rounds after which the residual is kept, under "reset".
        feedback_decay: β, factor of the residual each time that the client takes part, under any policy but "none"; 1 keeps it.
            SparseLoCo has β = 0.95 in place of a server momentum. Only for an operator: schemes have their own rules.
    """

    compressor: Compressor = Dense()
    error_feedback: Literal["none", "persist", "decay", "reset"] = "none"
    residual_factor: FractionBelowOne = 0.9
    residual_rounds: PositiveInt = 10
    feedback_decay: FractionAboveZero = 1.0


@dataclass(frozen=True)
class DownlinkConfig(SettingsSection):
    """[downlink]: transfer of the model to the clients, by one of the policies of `fedsgd.federation.downlink`.

    Attributes:
        policy: "model" sends the whole model; "difference" the exact difference to the last round's model; "unbiased" the
            server's step through an unbiased `compressor`; "error-feedback" the step and the residual of the server; "ef21-p"
            the difference between the server's and the clients' model. Earlier names: "plain" for "unbiased", "shift" for
            "ef21-p".
        compressor: operator of the server's step; "dense" under "model" and "difference".
        remember: rounds for which clients store a model, so that a difference can be applied to it; unset for no limit.
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
        if self.policy in ("error-feedback", "ef21-p") and self.compressor.kind != "contractive":
            problem = f"{got}, which is {self.compressor.kind}, expected a contractive compressor, whose residual stays bounded"
            raise FieldError("downlink", "compressor", problem)
        if self.policy == "unbiased" and self.compressor.kind == "contractive" and not self.compressor.lossless:
            problem = f'{got} without error feedback, expected policy = "error-feedback" or "ef21-p"'
            raise FieldError("downlink", "compressor", problem)

    @classmethod
    def resolve_defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values, with the name of the policy in place of an earlier name."""
        policy = values["policy"]
        return {**values, "policy": POLICY_ALIASES.get(policy, policy)} if isinstance(policy, str) else values


@dataclass(frozen=True)
class EvaluationConfig(SettingsSection):
    """[evaluation]: evaluations of the model, which cause no traffic.

    Attributes:
        every: rounds between two evaluations on the test examples; the last round is always evaluated.
        clients: evaluate on each client's own test examples too: mean accuracy, mean of the worst tenth, standard deviation.
        training: evaluate on all training examples too.
        validation: share of each client's training examples that are validation examples, 0 to below 1: no client trains on
            them, and the model is evaluated on all of them too. None: 0, but 0.1 in a sweep that tunes (`fedsgd sweep --tune`).
        test: test examples: those of the dataset ("dataset"), or all that clients hold out by `[data] held_out` ("clients").
        metrics: built-in metrics of the whole set, in addition to those of [model]: "macro-f1", "auc" (of class 1, or mean of
            each class against the rest), "perplexity" (exp of the mean cross-entropy), "bits-per-character" (the mean
            cross-entropy / ln 2). They are not averaged over batches or clients: models that stay at clients are evaluated by
            all their outputs together.
    """

    every: PositiveInt = 1
    clients: bool = False
    training: bool = False
    validation: FractionBelowOne | None = field(default=None, metadata={"example": "0.1"})
    test: Literal["dataset", "clients"] = "dataset"
    metrics: tuple[SetMetricName, ...] | None = field(default=None, metadata={"example": '["macro-f1"]'})

    @classmethod
    def resolve_defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values, with a list of one name in place of a name, and None in place of an empty list."""
        metrics = [values["metrics"]] if isinstance(values["metrics"], str) else values["metrics"]
        return {**values, "metrics": None if isinstance(metrics, list | tuple) and not metrics else metrics}


@dataclass(frozen=True)
class TargetSection(SettingsSection):
    """Section with a target, given as an accuracy or for any metric.

    Attributes:
        target_accuracy: test accuracy, a short form of `target`.
        target: threshold on a metric; a text such as "loss<0.3", or a number for an accuracy, becomes a `Target`.
    """

    mutually_exclusive: ClassVar[tuple[str, ...]] = ("target_accuracy", "target")

    target_accuracy: FractionAboveZero | None = None
    target: Target | None = field(default=None, metadata={"example": '{ metric = "loss", below = 0.3 }'})

    @classmethod
    def resolve_defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values, with a `Target` in place of a number or text."""
        try:
            return {**values, "target": None if values["target"] is None else parse_target(values["target"])}
        except ScenarioError as error:
            raise FieldError(cls.__name__, "target", str(error)) from None

    @property
    def resolved_target(self) -> Target | None:
        """Target of either key, None without a target."""
        return self.target if self.target_accuracy is None else Target("accuracy", above=self.target_accuracy)

    @property
    def target_key(self) -> str:
        """Key that has the target."""
        return "target_accuracy" if self.target is None else "target"


@dataclass(frozen=True)
class TargetConfig(TargetSection):
    """[report]: target whose cost is reported.

    Attributes:
        target_accuracy: test accuracy whose rounds and bytes the summary has, by the rule of
            `fedsgd.experiment.time_to_target`; None: no target, or `target`.
        target: target on any metric, in place of `target_accuracy`: { metric = "loss", below = 0.3 }, or "loss<0.3".
    """


@dataclass(frozen=True)
class StoppingConfig(TargetSection):
    """[stop]: stopping rule.

    Attributes:
        target_accuracy: test accuracy; the first round that reaches it is the last one. None: `target`, or all rounds are run.
        target: target on any metric, in place of `target_accuracy`: { metric = "loss", below = 0.3 }, or "loss<0.3".
    """
