"""Classes outside fedsgd in settings: their import paths and identities."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsgd.errors import ScenarioError, WireError
from fedsgd.flower import user_classes
from fedsgd.flower.user_classes import (
    ClassIdentity,
    decode_identities,
    encode_identities,
    find_import_paths,
    find_mismatch,
    identify_classes,
)
from fedsgd.scenario.scenario import Scenario
from tests.flower.user_source import write_rules

Make = Callable[..., Scenario]


def reload_identity(path: str) -> ClassIdentity:
    """Return the identity of a class whose module has changed on the disk."""
    for name in [name for name in sys.modules if name.startswith("identified")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    return identify_classes([path])[0]


def test_paths_of_a_scenario_are_those_of_all_families(scenario: Make, user_folder: Path) -> None:
    assert find_import_paths(scenario()) == []
    settings: dict[str, Any] = write_rules(user_folder, "all_rules")
    (user_folder / "all_nets.py").write_text(
        "import torch\n\ndef make():\n    return torch.nn.Linear(64, 10)\n\ndef error(output, target):\n    return output.mean(1)\n"
    )
    settings |= {
        "model.module": "all_nets:make",
        "model.metrics": {"error": "all_nets:error"},
        "uplink.compressor": {"name": "per-layer", "rules": [{"pattern": "*", "op": "all_rules:HalfTopK"}]},
        "uplink.error_feedback": "persist",
        "data.partition": {
            "name": "flwr-datasets",
            "partitioner": "SizePartitioner",
            "arguments": {"partition_id_to_size_fn": "all_nets:size"},
        },
    }
    assert find_import_paths(scenario(settings)) == [
        "all_nets:error",
        "all_nets:make",
        "all_nets:size",
        "all_rules:HalfTopK",
        "all_rules:UserMean",
    ]


def test_identity_changes_with_the_source_of_the_class_and_of_its_imports(user_folder: Path) -> None:
    write_rules(user_folder, "identified_rules")
    path = "identified_rules:HalfTopK"
    identity = reload_identity(path)
    assert reload_identity(path) == identity
    assert identity.release == ""
    (user_folder / "unrelated.py").touch()
    assert reload_identity(path) == identity
    (user_folder / "identified_rules_helper.py").write_text("FACTOR = 4\n")
    other_helper = reload_identity(path)
    assert other_helper.sha256 != identity.sha256
    with (user_folder / "identified_rules.py").open("a") as file:
        file.write("# changed\n")
    assert reload_identity(path).sha256 not in (identity.sha256, other_helper.sha256)


def test_identity_of_an_installed_class_has_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    (identity,) = identify_classes(["numpy.random:Generator"])
    assert identity.release.startswith("numpy ")
    monkeypatch.setattr(user_classes.metadata, "version", lambda name: "9.9")
    (other,) = identify_classes(["numpy.random:Generator"])
    assert find_mismatch([other], [identity]) == (
        f"numpy.random:Generator is not the server's: the node has {identity.release}, source {identity.sha256}; "
        f"the server has numpy 9.9, source {identity.sha256}"
    )


def test_mismatch_is_found_in_source_release_and_name() -> None:
    here = ClassIdentity("a:B", "12", "")
    installed = ClassIdentity("a:B", "12", "a 1.0")
    assert find_mismatch([here], [here]) is None
    assert find_mismatch([here], [installed]) is None, "a module that travels in the app is not installed"
    assert find_mismatch([], [here]) is None
    assert find_mismatch([here], []) == "a:B is not among the node's classes []"
    assert find_mismatch([installed], [installed._replace(release="a 2.0")]) is not None
    assert find_mismatch([here], [here._replace(sha256="13")]) == (
        "a:B is not the server's: the node has no installed release, source 13; the server has no installed release, source 12"
    )


def test_missing_module_is_an_error() -> None:
    with pytest.raises(ScenarioError, match='cannot import "no_such_rules": ModuleNotFoundError'):
        identify_classes(["no_such_rules:Rule"])


def test_encoded_identities_are_restored_and_other_texts_refused() -> None:
    identities = [ClassIdentity("a:B", "12", "a 1.0"), ClassIdentity("c:D", "34", "")]
    assert decode_identities(encode_identities(identities)) == identities
    for text in ("", "{", "[1]", '[["a"]]', '[["a", 1, "b"]]', None, b"[]"):
        with pytest.raises(WireError, match="cannot be read"):
            decode_identities(text)
