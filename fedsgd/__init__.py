"""fedsgd: a federated-learning simulator in which every byte is encoded, decoded, counted and explained.

    import fedsgd

    scenario = fedsgd.load("scenarios/quickstart.toml", {"uplink.compressor.density": 0.001})
    result = fedsgd.run(scenario, on_round=print)
    result.summary["uplink_bytes"], result.history, result.ledger.table(), result.parameters

    certificate = fedsgd.certify("top-k", {"density": 0.01})
    certificate.passed, certificate.laws, certificate.traffic, certificate.errors, certificate.throughput

Names are imported when they are first used, so that `import fedsgd` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from fedsgd._version import __version__ as __version__

if TYPE_CHECKING:
    from fedsgd.certification import Certificate, certify
    from fedsgd.data import Dataset, Examples
    from fedsgd.errors import (
        DataError,
        DeploymentError,
        FedsgdError,
        LawError,
        ModelError,
        NonFiniteError,
        OutputError,
        ReportError,
        RunError,
        ScenarioError,
        ScenarioWarning,
        WireError,
    )
    from fedsgd.experiment.ledger import Ledger
    from fedsgd.experiment.options import CustomModel, ExecutionConfig, RunCallbacks
    from fedsgd.experiment.runner import Result, run
    from fedsgd.federation.round_record import RoundRecord
    from fedsgd.flower.deployment import DeploymentCallbacks, DeploymentConfig, DeploymentResult, deploy
    from fedsgd.scenario.scenario import Scenario, load
    from fedsgd.sweeps.options import SweepCallbacks, SweepConfig
    from fedsgd.sweeps.runner import sweep
    from fedsgd.trackers import Tracker

_EXPORT_MODULES = {
    "Certificate": "certification",
    "CustomModel": "experiment.options",
    "DataError": "errors",
    "Dataset": "data",
    "DeploymentCallbacks": "flower.deployment",
    "DeploymentConfig": "flower.deployment",
    "DeploymentError": "errors",
    "DeploymentResult": "flower.deployment",
    "Examples": "data",
    "ExecutionConfig": "experiment.options",
    "FedsgdError": "errors",
    "LawError": "errors",
    "Ledger": "experiment.ledger",
    "ModelError": "errors",
    "NonFiniteError": "errors",
    "OutputError": "errors",
    "ReportError": "errors",
    "Result": "experiment.runner",
    "RoundRecord": "federation.round_record",
    "RunCallbacks": "experiment.options",
    "RunError": "errors",
    "Scenario": "scenario.scenario",
    "ScenarioError": "errors",
    "ScenarioWarning": "errors",
    "SweepCallbacks": "sweeps.options",
    "SweepConfig": "sweeps.options",
    "Tracker": "trackers",
    "WireError": "errors",
    "certify": "certification",
    "deploy": "flower.deployment",
    "load": "scenario.scenario",
    "run": "experiment.runner",
    "sweep": "sweeps.runner",
}

__all__ = [
    "Certificate",
    "CustomModel",
    "DataError",
    "Dataset",
    "DeploymentCallbacks",
    "DeploymentConfig",
    "DeploymentError",
    "DeploymentResult",
    "Examples",
    "ExecutionConfig",
    "FedsgdError",
    "LawError",
    "Ledger",
    "ModelError",
    "NonFiniteError",
    "OutputError",
    "ReportError",
    "Result",
    "RoundRecord",
    "RunCallbacks",
    "RunError",
    "Scenario",
    "ScenarioError",
    "ScenarioWarning",
    "SweepCallbacks",
    "SweepConfig",
    "Tracker",
    "WireError",
    "certify",
    "deploy",
    "load",
    "run",
    "sweep",
]


def __getattr__(name: str) -> object:
    if name in _EXPORT_MODULES:
        return getattr(importlib.import_module(f"fedsgd.{_EXPORT_MODULES[name]}"), name)
    raise AttributeError(f"module 'fedsgd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
