"""Groups of public names, one page each."""

from __future__ import annotations

from typing import NamedTuple


class ApiGroup(NamedTuple):
    """Names that one page describes.

    Attributes:
        page: name of the page.
        title: its title.
        intro: its first paragraph.
        names: dotted names, in order.
    """

    page: str
    title: str
    intro: str
    names: tuple[str, ...]


def _in_fedsgd(text: str) -> tuple[str, ...]:
    return tuple(f"fedsgd.{name}" for name in text.split())


GROUPS = (
    ApiGroup(
        "run",
        "Run a scenario",
        "`fedsgd.run` runs a scenario and returns a `Result`. [First run](../../guides/first-run.md) uses it.",
        _in_fedsgd("run resume Result RoundRecord Ledger ExecutionConfig RunCallbacks"),
    ),
    ApiGroup(
        "scenario",
        "Describe a scenario",
        "A `Scenario` has one attribute for each section of a TOML file. [Scenarios](../../guides/scenarios.md) explains them.",
        _in_fedsgd(
            "load Scenario DataConfig ClientConfig EngineConfig ServerConfig ParticipationConfig FaultConfig UplinkConfig "
            "DownlinkConfig StateStoreConfig EvaluationConfig TargetConfig StoppingConfig CheckpointConfig Target"
        ),
    ),
    ApiGroup(
        "data-and-models",
        "Data and models of your own",
        "See [Own data](../../guides/own-data.md) and [Own model](../../guides/own-model.md).",
        _in_fedsgd("Dataset Examples CustomModel load_model load_parameters"),
    ),
    ApiGroup(
        "federation",
        "Step through a run",
        "`fedsgd.build` returns a `Federation`, whose rounds a program runs one by one.",
        _in_fedsgd("build Federation"),
    ),
    ApiGroup(
        "plan",
        "Plan a run",
        "`fedsgd.plan` estimates the cost of a run before it begins. [Plan a run](../../guides/plan.md) explains the estimates.",
        (
            *_in_fedsgd("plan RunPlan"),
            *(f"fedsgd.experiment.planning.run_plan.{name}" for name in ("TrafficPlan", "MemoryPlan", "DiskPlan", "TimePlan")),
        ),
    ),
    ApiGroup(
        "sweep",
        "Sweep over settings",
        "See [Compare methods](../../guides/compare-methods.md).",
        _in_fedsgd("sweep SweepConfig SweepCallbacks"),
    ),
    ApiGroup(
        "replicate",
        "Replicate a published table",
        "`fedsgd.replicate` runs the cells of a study. [Replicate a published table](../../guides/replicate.md) explains studies.",
        (
            *_in_fedsgd("replicate ReplicationConfig"),
            *(f"fedsgd.analysis.replication.study.{name}" for name in ("Study", "StudyCell", "Claim")),
            *(f"fedsgd.analysis.replication.verdicts.{name}" for name in ("Replication", "CellResult", "ClaimResult")),
        ),
    ),
    ApiGroup(
        "analysis",
        "Compare and price finished runs",
        "See [Price on networks](../../guides/price-networks.md) and [A fleet](../../guides/fleet.md).",
        (
            *_in_fedsgd("compare price price_fleet FleetConfig read_run"),
            *_in_fedsgd("analysis.load_methods analysis.compare network.build_pricing_model"),
        ),
    ),
    ApiGroup(
        "certify",
        "Certify a compressor",
        "See [Certify](../../guides/certify.md). `fedsgd.testing` has the laws of all families for a test suite of your own.",
        (
            *_in_fedsgd("certify Certificate"),
            *_in_fedsgd(
                "testing.parametrize_laws testing.list_laws testing.check_compressor testing.check_aggregator "
                "testing.check_partitioner testing.check_sampler testing.check_durations testing.check_optimizer "
                "testing.check_schedule testing.Law"
            ),
        ),
    ),
    ApiGroup(
        "deploy",
        "Deploy over Flower",
        "See [Flower deployment](../../guides/flower-deployment.md).",
        _in_fedsgd("deploy DeploymentConfig DeploymentCallbacks DeploymentResult"),
    ),
    ApiGroup(
        "flower",
        "Compress a Flower app",
        "See [Compression for your Flower app](../../guides/flower-app.md).",
        _in_fedsgd("flower.CompressedStrategy flower.compression_mod flower.tied_names"),
    ),
    ApiGroup(
        "trackers",
        "Track a run",
        "See [Track a run](../../guides/track.md).",
        ("fedsgd.Tracker", "fedsgd.trackers.RunStarted", "fedsgd.trackers.RunFinished"),
    ),
    ApiGroup(
        "errors",
        "Errors and warnings",
        "Every error of fedsgd is a `FedsgdError`. [Troubleshooting](../../guides/troubleshooting.md) starts from the symptom.",
        _in_fedsgd(
            "FedsgdError ScenarioError DataError ModelError RunError NonFiniteError WireError LawError OutputError CheckpointError "
            "ReportError DeploymentError RunInterrupted ScenarioWarning ResumeWarning"
        ),
    ),
)
"""Pages of names that are no components."""
BASE_CLASSES = (
    "fedsgd.compression.CompressionOperator",
    "fedsgd.compression.CompressionScheme",
    "fedsgd.compression.Compressor",
    "fedsgd.compression.CodecContext",
    "fedsgd.compression.EncodedUpdate",
    "fedsgd.compression.Update",
    "fedsgd.compression.DenseUpdate",
    "fedsgd.compression.SparseUpdate",
    "fedsgd.aggregation.CohortAggregator",
    "fedsgd.aggregation.Aggregator",
    "fedsgd.aggregation.AggregationContext",
    "fedsgd.aggregation.WeightedUpdate",
    "fedsgd.data.Partitioner",
    "fedsgd.data.DatasetSource",
    "fedsgd.data.ClientGenerator",
    "fedsgd.sampling.Sampler",
    "fedsgd.sampling.DurationModel",
    "fedsgd.optim.Optimizer",
    "fedsgd.optim.Schedule",
    "fedsgd.models.Model",
)
"""Classes that components of a user extend, and the types of their methods."""
NAMESPACE_FAMILIES = {"optim": "optimizers"}
"""Family of each namespace that is not named after it."""
