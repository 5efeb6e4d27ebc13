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

if TYPE_CHECKING:
    from fedsgd.certificate import Certificate, certify
    from fedsgd.data import Dataset, Examples
    from fedsgd.deployment import Deployed, deploy
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
    from fedsgd.experiment import Result, run
    from fedsgd.ledger import Ledger
    from fedsgd.record import Round
    from fedsgd.scenario import Scenario, load
    from fedsgd.sweeps import sweep
    from fedsgd.track import Tracker

__version__ = "0.1.0"

_HOME = {
    "Certificate": "certificate",
    "DataError": "errors",
    "Dataset": "data",
    "Deployed": "deployment",
    "DeploymentError": "errors",
    "Examples": "data",
    "FedsgdError": "errors",
    "LawError": "errors",
    "Ledger": "ledger",
    "ModelError": "errors",
    "NonFiniteError": "errors",
    "OutputError": "errors",
    "ReportError": "errors",
    "Result": "experiment",
    "Round": "record",
    "RunError": "errors",
    "Scenario": "scenario",
    "ScenarioError": "errors",
    "ScenarioWarning": "errors",
    "Tracker": "track",
    "WireError": "errors",
    "certify": "certificate",
    "deploy": "deployment",
    "load": "scenario",
    "run": "experiment",
    "sweep": "sweeps",
}

__all__ = [
    "Certificate",
    "DataError",
    "Dataset",
    "Deployed",
    "DeploymentError",
    "Examples",
    "FedsgdError",
    "LawError",
    "Ledger",
    "ModelError",
    "NonFiniteError",
    "OutputError",
    "ReportError",
    "Result",
    "Round",
    "RunError",
    "Scenario",
    "ScenarioError",
    "ScenarioWarning",
    "Tracker",
    "WireError",
    "certify",
    "deploy",
    "load",
    "run",
    "sweep",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"fedsgd.{_HOME[name]}"), name)
    raise AttributeError(f"module 'fedsgd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
