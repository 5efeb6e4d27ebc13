"""fedsgd: a federated-learning simulator in which every byte is encoded, decoded, counted and explained.

A scenario describes a run. Each component is an object, or a name in a TOML file:

>>> import fedsgd as fs
>>> scenario = fs.Scenario(
...     name="digits-topk",
...     rounds=2,
...     data=fs.DataConfig(fs.datasets.Digits(), partition=fs.partitioners.Dirichlet(clients=20, alpha=1.0)),
...     model=fs.models.Mlp(hidden=(64,)),
...     client=fs.ClientConfig(optimizer=fs.optim.Momentum(lr=0.05), epochs=5),
...     server=fs.ServerConfig(cohort=10, aggregator=fs.aggregators.WeightedMean()),
...     uplink=fs.UplinkConfig(fs.compressors.TopK(density=0.01), error_feedback="persist"),
... )
>>> result = fs.run(scenario, on_round=lambda record: print(record.round, len(record.accepted)))
1 10
2 10
>>> result.parameters.shape, result.summary["uplink_ratio"] > 50
((4810,), True)

The same from a file, and the laws of a compressor:

    scenario = fs.load("scenarios/quickstart.toml", {"uplink.compressor.density": 0.001})
    result = fs.run(scenario)
    result.history, result.to_pandas(), result.ledger.table(), result.load_into(module)

    certificate = fs.certify("top-k", {"density": 0.01})
    certificate.passed, certificate.laws, certificate.traffic, certificate.errors, certificate.throughput

Component families are namespaces: `datasets`, `partitioners`, `models`, `optim`, `schedules`, `compressors`, `aggregators`,
`samplers`, `durations` and `networks`. Names are imported when they are first used, so that `import fedsgd` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from fedsgd._version import __version__ as __version__

if TYPE_CHECKING:
    from fedsgd import models as models
    from fedsgd import optim as optim
    from fedsgd.aggregation import aggregators as aggregators
    from fedsgd.analysis.fleet import FleetConfig
    from fedsgd.analysis.fleet_result import price_fleet
    from fedsgd.analysis.replication.plan import ReplicationConfig
    from fedsgd.analysis.replication.replicate import replicate
    from fedsgd.analysis.run_prices import compare, price
    from fedsgd.analysis.runs import read_run
    from fedsgd.certification import Certificate, certify
    from fedsgd.compression import compressors as compressors
    from fedsgd.data import Dataset, Examples
    from fedsgd.data import datasets as datasets
    from fedsgd.data import partitioners as partitioners
    from fedsgd.errors import (
        CheckpointError,
        DataError,
        DeploymentError,
        FedsgdError,
        LawError,
        ModelError,
        NonFiniteError,
        OutputError,
        ReportError,
        ResumeWarning,
        RunError,
        RunInterrupted,
        ScenarioError,
        ScenarioWarning,
        WireError,
    )
    from fedsgd.experiment.federation import Federation, build
    from fedsgd.experiment.ledger import Ledger
    from fedsgd.experiment.options import CustomModel, ExecutionConfig, RunCallbacks
    from fedsgd.experiment.planning.run_plan import RunPlan, plan
    from fedsgd.experiment.result import Result
    from fedsgd.experiment.resume import resume
    from fedsgd.experiment.runner import run
    from fedsgd.experiment.trained_model import load_model, load_parameters
    from fedsgd.federation.round_record import RoundRecord
    from fedsgd.flower.deployment import DeploymentCallbacks, DeploymentConfig, DeploymentResult, deploy
    from fedsgd.network import networks as networks
    from fedsgd.optim import schedules as schedules
    from fedsgd.sampling import durations as durations
    from fedsgd.sampling import samplers as samplers
    from fedsgd.scenario.scenario import Scenario, load
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
    from fedsgd.scenario.target import Target
    from fedsgd.sweeps.options import SweepCallbacks, SweepConfig
    from fedsgd.sweeps.runner import sweep
    from fedsgd.trackers import Tracker

_EXPORT_MODULES = {
    "Certificate": "certification",
    "CheckpointConfig": "scenario.sections",
    "CheckpointError": "errors",
    "ClientConfig": "scenario.sections",
    "CustomModel": "experiment.options",
    "DataConfig": "scenario.sections",
    "DataError": "errors",
    "Dataset": "data",
    "DeploymentCallbacks": "flower.deployment",
    "DeploymentConfig": "flower.deployment",
    "DeploymentError": "errors",
    "DeploymentResult": "flower.deployment",
    "DownlinkConfig": "scenario.sections",
    "EngineConfig": "scenario.sections",
    "EvaluationConfig": "scenario.sections",
    "Examples": "data",
    "ExecutionConfig": "experiment.options",
    "FaultConfig": "scenario.sections",
    "Federation": "experiment.federation",
    "FedsgdError": "errors",
    "FleetConfig": "analysis.fleet",
    "LawError": "errors",
    "Ledger": "experiment.ledger",
    "ModelError": "errors",
    "NonFiniteError": "errors",
    "OutputError": "errors",
    "ParticipationConfig": "scenario.sections",
    "ReplicationConfig": "analysis.replication.plan",
    "ReportError": "errors",
    "ResumeWarning": "errors",
    "Result": "experiment.result",
    "RoundRecord": "federation.round_record",
    "RunCallbacks": "experiment.options",
    "RunError": "errors",
    "RunInterrupted": "errors",
    "RunPlan": "experiment.planning.run_plan",
    "Scenario": "scenario.scenario",
    "ScenarioError": "errors",
    "ScenarioWarning": "errors",
    "ServerConfig": "scenario.sections",
    "StateStoreConfig": "scenario.sections",
    "StoppingConfig": "scenario.sections",
    "SweepCallbacks": "sweeps.options",
    "SweepConfig": "sweeps.options",
    "Target": "scenario.target",
    "TargetConfig": "scenario.sections",
    "Tracker": "trackers",
    "UplinkConfig": "scenario.sections",
    "WireError": "errors",
    "build": "experiment.federation",
    "certify": "certification",
    "deploy": "flower.deployment",
    "compare": "analysis.run_prices",
    "load": "scenario.scenario",
    "load_model": "experiment.trained_model",
    "load_parameters": "experiment.trained_model",
    "plan": "experiment.planning.run_plan",
    "price": "analysis.run_prices",
    "price_fleet": "analysis.fleet_result",
    "read_run": "analysis.runs",
    "replicate": "analysis.replication.replicate",
    "resume": "experiment.resume",
    "run": "experiment.runner",
    "sweep": "sweeps.runner",
}
"""Module of each class and function."""
_NAMESPACES = {
    "aggregators": "aggregation.aggregators",
    "compressors": "compression.compressors",
    "datasets": "data.datasets",
    "durations": "sampling.durations",
    "models": "models",
    "networks": "network.networks",
    "optim": "optim",
    "partitioners": "data.partitioners",
    "samplers": "sampling.samplers",
    "schedules": "optim.schedules",
}
"""Module of each component family."""

__all__ = [
    "Certificate",
    "CheckpointConfig",
    "CheckpointError",
    "ClientConfig",
    "CustomModel",
    "DataConfig",
    "DataError",
    "Dataset",
    "DeploymentCallbacks",
    "DeploymentConfig",
    "DeploymentError",
    "DeploymentResult",
    "DownlinkConfig",
    "EngineConfig",
    "EvaluationConfig",
    "Examples",
    "ExecutionConfig",
    "FaultConfig",
    "Federation",
    "FedsgdError",
    "FleetConfig",
    "LawError",
    "Ledger",
    "ModelError",
    "NonFiniteError",
    "OutputError",
    "ParticipationConfig",
    "ReplicationConfig",
    "ReportError",
    "Result",
    "ResumeWarning",
    "RoundRecord",
    "RunCallbacks",
    "RunError",
    "RunInterrupted",
    "RunPlan",
    "Scenario",
    "ScenarioError",
    "ScenarioWarning",
    "ServerConfig",
    "StateStoreConfig",
    "StoppingConfig",
    "SweepCallbacks",
    "SweepConfig",
    "Target",
    "TargetConfig",
    "Tracker",
    "UplinkConfig",
    "WireError",
    "aggregators",
    "build",
    "certify",
    "compare",
    "compressors",
    "datasets",
    "deploy",
    "durations",
    "load",
    "load_model",
    "load_parameters",
    "models",
    "networks",
    "optim",
    "partitioners",
    "plan",
    "price",
    "price_fleet",
    "read_run",
    "replicate",
    "resume",
    "run",
    "samplers",
    "schedules",
    "sweep",
]


def __getattr__(name: str) -> object:
    if name in _NAMESPACES:
        return importlib.import_module(f"fedsgd.{_NAMESPACES[name]}")
    if name in _EXPORT_MODULES:
        return getattr(importlib.import_module(f"fedsgd.{_EXPORT_MODULES[name]}"), name)
    raise AttributeError(f"module 'fedsgd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
