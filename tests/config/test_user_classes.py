"""Classes outside fedsgd in settings: their import paths, identities and digests."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

import fedsgd
from fedsgd.compression.operators.topk import TopK
from fedsgd.config import user_classes
from fedsgd.config.user_classes import ClassIdentity, digest_user_code, find_import_paths, identify_classes
from fedsgd.errors import ScenarioError
from fedsgd.scenario.scenario import Scenario
from fedsgd.scenario.sections import UplinkConfig
from tests.flower.user_source import write_rules

Make = Callable[..., Scenario]


def unload_modules(prefix: str) -> None:
    """Remove modules from this process, so that their next import reads the files."""
    for name in [name for name in sys.modules if name.startswith(prefix)]:
        del sys.modules[name]
    importlib.invalidate_caches()


def reload_identity(path: str) -> ClassIdentity:
    """Return the identity of a class whose module has changed on the disk."""
    unload_modules("identified")
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


@pytest.mark.slow
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


def test_identity_of_a_function_changes_with_the_modules_that_it_imports(user_folder: Path) -> None:
    (user_folder / "identified_net.py").write_text("def make():\n    return 1\n")
    alone = reload_identity("identified_net:make")
    (user_folder / "identified_width.py").write_text("WIDTH = 4\n")
    (user_folder / "identified_net.py").write_text("from identified_width import WIDTH\n\ndef make():\n    return WIDTH\n")
    narrow = reload_identity("identified_net:make")
    (user_folder / "identified_width.py").write_text("WIDTH = 8\n")
    wide = reload_identity("identified_net:make")
    assert len({alone.sha256, narrow.sha256, wide.sha256}) == 3


def test_modules_that_a_torch_module_imports_have_their_own_digest(scenario: Make, user_folder: Path) -> None:
    """The digest of the module alone is that of earlier releases."""
    net, other = user_folder / "identified_part.py", user_folder / "identified_size.py"
    other.write_text("SIZE = 64\n")
    net.write_text(
        "import torch\nfrom identified_size import SIZE\n\nclass Net(torch.nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(SIZE, 10)\n"
    )
    unload_modules("identified")
    s = scenario({"model.module": "identified_part:Net"})
    content = net.read_bytes()
    alone = hashlib.sha256(f"identified_part {len(content)}\n".encode() + content).hexdigest()[:16]
    digests = digest_user_code(s, as_loaded=True)
    assert list(digests) == ["identified_part:Net", "identified_part:Net, imports"]
    assert digests["identified_part:Net"] == alone
    other.write_text("SIZE = 64 \n")
    edited = digest_user_code(s)
    assert edited["identified_part:Net"] == alone
    assert edited["identified_part:Net, imports"] != digests["identified_part:Net, imports"]
    assert digest_user_code(s, as_loaded=True) == digests


@pytest.mark.slow
def test_identity_of_an_installed_class_has_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    (identity,) = identify_classes(["numpy.random:Generator"])
    assert identity.release.startswith("numpy ")
    monkeypatch.setattr(user_classes.metadata, "version", lambda name: "9.9")
    (other,) = identify_classes(["numpy.random:Generator"])
    assert other == identity._replace(release="numpy 9.9")


def test_missing_module_is_an_error() -> None:
    with pytest.raises(ScenarioError, match='cannot import "no_such_rules": ModuleNotFoundError'):
        identify_classes(["no_such_rules:Rule"])


def test_scenario_without_user_code_has_no_digests(scenario: Make) -> None:
    assert digest_user_code(scenario()) == {}
    assert digest_user_code(scenario({"model.loss": "torch.nn.functional:cross_entropy"})) == {}


def test_digest_of_a_loaded_class_stays_that_of_its_first_run(scenario: Make, user_folder: Path) -> None:
    s = scenario({"uplink.compressor": write_rules(user_folder, "digested_rules")["uplink.compressor"]})
    digests = digest_user_code(s, as_loaded=True)
    assert digests == {item.path: item.sha256 for item in identify_classes(["digested_rules:HalfTopK"])}
    (user_folder / "digested_rules_helper.py").write_text("FACTOR = 4\n")
    assert digest_user_code(s, as_loaded=True) == digests
    edited = digest_user_code(s)
    assert edited != digests
    unload_modules("digested")
    assert digest_user_code(s, as_loaded=True) == edited


@pytest.mark.parametrize("module", ["__main__", "module_in_memory"])
def test_class_without_a_source_file_has_no_digest(scenario: Make, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = sys.modules.get(module) or ModuleType(module)
    monkeypatch.setitem(sys.modules, module, in_memory)
    cls = dataclass(frozen=True)(type("Mine", (TopK,), {"name": "mine-in-memory", "__module__": module}))
    monkeypatch.setattr(in_memory, "Mine", cls, raising=False)
    s = replace(scenario({"rounds": 1}), uplink=UplinkConfig(cls(density=0.1)))
    assert find_import_paths(s) == [f"{module}:Mine"]
    assert digest_user_code(s) == {}
    assert "user_code" not in fedsgd.run(s).summary


def test_class_inside_a_function_has_no_digest(scenario: Make) -> None:
    @dataclass(frozen=True)
    class Inner(TopK):
        name: ClassVar[str] = "inner-top-k"

    assert digest_user_code(replace(scenario(), uplink=UplinkConfig(Inner(density=0.1)))) == {}
