"""Identity of a run: what a checkpoint must find unchanged to give the results of a run that was never interrupted."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsgd._version import __version__
from fedsgd.config.python_objects import fingerprint
from fedsgd.config.user_classes import digest_user_code
from fedsgd.experiment.builder import Experiment
from fedsgd.scenario.parsing import flatten_settings
from fedsgd.system.compute_device import CPU, describe_device
from fedsgd.wire import WIRE_VERSION

RESULT_NEUTRAL_KEYS = ("rounds", "checkpoint")
"""Keys and sections of a scenario that may differ: the number of rounds is checked separately."""


def collect_versions() -> dict[str, str]:
    """Return the versions and the machine with which digests can be reproduced."""
    import torch

    return {
        "fedsgd": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def fingerprint_data(experiment: Experiment) -> str:
    """Return 16 hexadecimal digits that depend on all examples, and on the number of examples of the clients."""
    dataset = experiment.dataset
    arrays = [(part.x, part.y, part.writer) for part in (dataset.train, dataset.test)]
    return fingerprint([arrays, dataset.classes, list(experiment.train.distinct_sizes())])


def describe_identity(experiment: Experiment) -> dict[str, Any]:
    """Return the versions, the data and the user's code of a run, by dotted key.

    Args:
        experiment: the run.
    """
    versions, device = collect_versions(), experiment.engine_choice.device
    return {
        **({} if device == CPU else {"engine.device": describe_device(device)}),
        **{f"versions.{name}": versions[name] for name in ("fedsgd", "torch")},
        "versions.wire format": WIRE_VERSION,
        "data.sha256": fingerprint_data(experiment),
        **{f"user_code.{path}": digest for path, digest in digest_user_code(experiment.scenario, as_loaded=True).items()},
    }


def describe_environment() -> dict[str, str]:
    """Return what may change the rounding of results, but does not in general: Python, numpy and the processor."""
    versions = collect_versions()
    return {name: versions[name] for name in ("python", "numpy", "machine")}


def list_differences(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Return a text for each key whose values differ: `KEY was VALUE, now VALUE`."""
    keys = [key for key in dict.fromkeys([*recorded, *present]) if recorded.get(key) != present.get(key)]
    return [f"{key} was {_describe(recorded, key)}, now {_describe(present, key)}" for key in keys]


def list_scenario_differences(recorded_toml: str, present_toml: str) -> list[str]:
    """Return a text for each setting in which two scenarios differ, without settings that have no effect on results."""
    recorded, present = (_flatten_toml(text) for text in (recorded_toml, present_toml))
    return list_differences(recorded, present)


def _flatten_toml(text: str) -> dict[str, Any]:
    settings = flatten_settings(tomllib.loads(text))
    return {key: value for key, value in settings if key.partition(".")[0] not in RESULT_NEUTRAL_KEYS}


def _describe(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "unset"
