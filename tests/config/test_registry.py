"""Plugins: four ways into a family, the rules for their names and codecs, and their refusal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from fedsgd.cli import main
from fedsgd.compression import COMPRESSORS, CompressionOperator, Compressor
from fedsgd.compression.base import PLUGIN_CODEC
from fedsgd.compression.operators.per_layer import LayerRule, PerLayer
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.error_feedback import ErrorFeedback
from fedsgd.config import registry as registry_module
from fedsgd.config.registry import Registry, refuse_plugins
from fedsgd.data import PARTITIONERS
from fedsgd.data.partitioners.iid import Iid
from fedsgd.errors import ScenarioError
from fedsgd.network.link import Link, Network
from fedsgd.network.profiles import NETWORKS, get_network
from fedsgd.optim import OPTIMIZERS, SGD
from fedsgd.scenario.family_listing import describe_registry
from fedsgd.scenario.key_search import explain, list_next_keys
from fedsgd.scenario.parsing import dump_table, parse_table
from fedsgd.scenario.scenario import Scenario, parse_scenario
from fedsgd.scenario.sections import UplinkConfig
from fedsgd.trackers import create_tracker

MODULE = '''
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.topk import TopK
from fedsgd.network.link import Link, Network


@dataclass(frozen=True)
class OwnTopK(TopK):
    """Top-k of my package."""

    name: ClassVar[str] = "own-top-k"


@dataclass(frozen=True)
class TakenName(TopK):
    """Top-k with the built-in name."""


@dataclass(frozen=True)
class NumpyDefault(TopK):
    name: ClassVar[str] = "numpy-default"

    scale: float = np.float32(0.5)


def fail():
    raise RuntimeError("no default")


@dataclass(frozen=True)
class FailingDefault(TopK):
    """Top-k whose default cannot be read."""

    name: ClassVar[str] = "failing-default"

    scale: float = field(default_factory=fail)


class Undecorated(Dense):
    name = "undecorated"


class Recorder:
    def begin(self, run): ...
    def round(self, record): ...
    def end(self, outcome): ...


BALLOON = Network(Link(1e6, 2e6), title="Balloon", source="measured by me")
'''
ENTRY_POINTS = """
[fedsgd.compressors]
own-top-k = own_package_of_test:OwnTopK
other-name = own_package_of_test:OwnTopK
top-k = own_package_of_test:TakenName
missing = no_such_module_of_test:Missing
exit = exiting_module_of_test:Anything
numpy-default = own_package_of_test:NumpyDefault
failing-default = own_package_of_test:FailingDefault

[fedsgd.networks]
balloon = own_package_of_test:BALLOON
4g = own_package_of_test:BALLOON
kite = own_package_of_test:OwnTopK

[fedsgd.trackers]
recorder = own_package_of_test:Recorder
"""


FUNCTION_PARTITION = {
    "name": "flwr-datasets",
    "partitioner": "SizePartitioner",
    "arguments": {"partition_id_to_size_fn": "own_package_of_test:size"},
}


@pytest.fixture
def installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a distribution with a module and entry points on Python's path."""
    metadata = tmp_path / "own_package-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "own_package_of_test.py").write_text(MODULE)
    (tmp_path / "exiting_module_of_test.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry_module._read_entry_points.cache_clear()
    yield
    registry_module._read_entry_points.cache_clear()
    sys.modules.pop("own_package_of_test", None)


def build_compressor(name: str) -> Any:
    return parse_scenario({"name": "s", "uplink": {"compressor": {"name": name, "density": 0.5}}}).uplink.compressor


@pytest.mark.usefixtures("installed_package")
def test_entry_point_is_a_member_by_its_name() -> None:
    compressor = build_compressor("own-top-k")
    assert type(compressor).__module__ == "own_package_of_test"
    assert compressor.density == 0.5
    assert dump_table(compressor)["name"] == "own-top-k", "every process finds an installed package"
    assert get_network("balloon").title == "Balloon"
    assert type(create_tracker("recorder")).__name__ == "Recorder"


@pytest.mark.usefixtures("installed_package")
def test_import_path_is_a_member_with_its_fields_as_keys() -> None:
    assert build_compressor("own_package_of_test:OwnTopK") == build_compressor("own-top-k")
    assert get_network("own_package_of_test:BALLOON") == get_network("balloon")
    with pytest.raises(ScenarioError, match=r'uplink.compressor.densty: unknown key, did you mean "density"\?'):
        parse_scenario({"name": "s", "uplink": {"compressor": {"name": "own-top-k", "densty": 0.5}}})


@pytest.mark.usefixtures("installed_package")
def test_listing_names_plugins_their_packages_and_their_faults() -> None:
    members = {member["name"]: member for member in describe_registry(COMPRESSORS)}
    assert members["own-top-k"]["origin"] == "own-package 1.2"
    assert members["own-top-k"]["summary"] == "Top-k of my package."
    assert 'cannot import "no_such_module_of_test"' in members["missing"]["error"]
    assert 'its class has the name "own-top-k", expected "other-name"' in members["other-name"]["error"]
    assert 'cannot import "exiting_module_of_test": SystemExit: 3' in members["exit"]["error"]
    assert "scale: got the default 0.5 (float32), expected a finite number" in members["numpy-default"]["error"]
    assert COMPRESSORS.list_conflicts() == ['"top-k" of own-package 1.2 is ignored: a built-in compressor has this name']
    assert COMPRESSORS["top-k"] is TopK


@pytest.mark.slow
@pytest.mark.usefixtures("installed_package")
def test_plugin_is_explained_and_its_faults_are_messages() -> None:
    (component,) = explain("own-top-k").components
    assert (component.class_name, component.summary) == ("OwnTopK", "Top-k of my package.")
    assert component.places == ["uplink.compressor", "downlink.compressor"]
    assert [key.meaning for key in component.keys][1] == "format of the values."
    assert "own-top-k" in explain("uplink.compressor").keys[0].options
    with pytest.raises(ScenarioError, match='cannot import "no_such_module_of_test"'):
        explain("missing")
    with pytest.raises(ScenarioError, match=r"^failing-default cannot be described: RuntimeError: no default$"):
        explain("failing-default")
    json.dumps(explain("numpy-default").to_json(), default=str)
    options = explain("uplink.compressor").keys[0].options
    assert not {"exit", "missing", "failing-default"} & {*options}, "a plugin that cannot be used is no option"


@pytest.mark.usefixtures("installed_package")
def test_completion_imports_no_plugin() -> None:
    assert "uplink.compressor.density" in [key.key for key, _ in list_next_keys("uplink.compressor.d")]
    assert "own_package_of_test" not in sys.modules


@pytest.mark.usefixtures("installed_package")
def test_listing_of_networks_names_plugins_and_their_faults() -> None:
    lines = CliRunner(env={"COLUMNS": "100"}).invoke(main, ["list", "networks"]).stdout.splitlines()
    assert any(line.startswith("  balloon (own-package 1.2): Balloon: 1 Mbit/s up, 2 Mbit/s down, ") for line in lines)
    assert any(line.startswith('  kite (own-package 1.2): cannot be used: "kite" of own-package 1.2:') for line in lines)
    assert '  "4g" of own-package 1.2 is ignored: a built-in network has this name' in lines


@pytest.mark.usefixtures("installed_package")
@pytest.mark.parametrize(
    "build",
    [
        lambda: build_compressor("own-top-k"),
        lambda: build_compressor("own_package_of_test:OwnTopK"),
        lambda: get_network("own_package_of_test:BALLOON"),
        lambda: create_tracker("own_package_of_test:Recorder"),
        lambda: parse_scenario({"name": "s", "model": {"name": "module", "module": "own_package_of_test:make"}}),
        lambda: parse_scenario({"name": "s", "model": {"name": "mlp", "loss": "own_package_of_test:loss"}}),
        lambda: parse_scenario({"name": "s", "model": {"name": "mlp", "metrics": {"m": "own_package_of_test:metric"}}}),
        lambda: parse_scenario({"name": "s", "data": {"partition": FUNCTION_PARTITION}}),
    ],
    ids=["entry point", "class path", "network", "tracker", "module", "loss", "metric", "partitioner's function"],
)
def test_refused_plugins_are_not_imported(build: Callable[[], object]) -> None:
    with (
        refuse_plugins(),
        pytest.raises(ScenarioError, match="not part of fedsgd, expected a built-in name: --no-plugins is set"),
    ):
        build()
    assert "own_package_of_test" not in sys.modules
    with refuse_plugins():
        assert build_compressor("top-k") == TopK(0.5)
        assert COMPRESSORS.list_names() == [*COMPRESSORS]


@pytest.mark.usefixtures("installed_package")
@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("own_package_of_test:TakenName", 'has the name "top-k", which a built-in compressor has; give it another name'),
        ("own_package_of_test:Undecorated", r"is not decorated with @dataclass\(frozen=True\)"),
        (
            "own_package_of_test:Recorder",
            "is a class of builtins.object, expected a frozen dataclass with a `name` that subclasses",
        ),
        ("own_package_of_test:Nothing", 'has no "Nothing"'),
        ("fedsgd.optim:SGD", "expected a frozen dataclass with a `name` that subclasses fedsgd.compression.base.Compressor"),
    ],
)
def test_class_that_cannot_be_a_member_is_refused_with_its_key(path: str, problem: str) -> None:
    with pytest.raises(ScenarioError, match=f'^uplink.compressor.name: "?.*{problem}'):
        build_compressor(path)


@dataclass(frozen=True)
class NamesakeTopK(TopK):
    """Plugin that keeps the name of its base class."""


@dataclass(frozen=True)
class ModuleTopK(TopK):
    """Plugin that another process can import."""

    name: ClassVar[str] = "module-top-k"


def test_instance_with_a_built_in_name_is_refused() -> None:
    problem = f'"{__name__}:NamesakeTopK" has the name "top-k", which a built-in compressor has'
    with pytest.raises(ScenarioError, match=f"UplinkConfig.compressor: {problem}"):
        UplinkConfig(NamesakeTopK(0.1))
    with pytest.raises(ScenarioError, match=f"UplinkConfig.compressor.op: {problem}"):
        UplinkConfig(ErrorFeedback(NamesakeTopK(0.1)))
    with pytest.raises(ScenarioError, match=f"UplinkConfig.compressor.rules.op: {problem}"):
        UplinkConfig(PerLayer(rules=(LayerRule("*", NamesakeTopK(0.1)),)))


def test_compressor_that_is_neither_operator_nor_scheme_is_refused_with_its_key() -> None:
    @dataclass(frozen=True)
    class Neither(Compressor):
        name: ClassVar[str] = "neither"

        def decode(self, sections: Any, ctx: Any) -> Any: ...

        def max_bytes(self, layout: Any) -> int:
            return 0

    with pytest.raises(ScenarioError, match=r"^uplink\.compressor: neither is neither an operator nor a scheme"):
        Scenario(name="s", uplink=UplinkConfig(Neither()))


@pytest.fixture
def compressors() -> Registry[type[Any]]:
    return Registry("compressor", CompressionOperator, {"top-k": "fedsgd.compression.operators.topk:TopK"})


def test_registered_class_has_its_name_in_this_process_and_its_path_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(COMPRESSORS, "_registered_plugins", {})
    assert COMPRESSORS.register(ModuleTopK) is ModuleTopK
    compressor = build_compressor("module-top-k")
    assert compressor == ModuleTopK(0.5)
    assert "module-top-k" in COMPRESSORS.list_names()
    assert dump_table(compressor)["name"] == f"{__name__}:ModuleTopK"
    with pytest.raises(ScenarioError, match='got "module-topk", did you mean "module-top-k"'):
        build_compressor("module-topk")


def test_registration_of_a_taken_or_wrong_name_is_refused(compressors: Registry[type[Any]]) -> None:
    @dataclass(frozen=True)
    class Namesake(TopK):
        name: ClassVar[str] = "module-top-k"

    compressors.register(ModuleTopK)
    compressors.register(ModuleTopK)
    with pytest.raises(ScenarioError, match='the name "module-top-k" is registered already, for'):
        compressors.register(Namesake)
    with pytest.raises(ScenarioError, match='NamesakeTopK has the name "top-k", which a built-in compressor has'):
        compressors.register(NamesakeTopK)
    with pytest.raises(ScenarioError, match="expected a printable text without a colon"):
        compressors.register(ModuleTopK, name="my:top-k")
    with pytest.raises(ScenarioError, match="is 3, expected a frozen dataclass"):
        compressors.register(3)  # type: ignore[arg-type]


def test_registration_of_a_class_defined_again_takes_its_place(compressors: Registry[type[Any]]) -> None:
    def define() -> type[TopK]:
        @dataclass(frozen=True)
        class Again(TopK):
            name: ClassVar[str] = "again"

        return Again

    compressors.register(define())
    second = define()
    compressors.register(second)
    assert compressors["again"] is second


def test_registered_network_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NETWORKS, "_registered_plugins", {})
    network = Network(Link(1e6, 2e6), title="Lab", source="measured by me")
    NETWORKS.register(network, "lab")
    assert get_network("lab") is network
    NETWORKS.register(replace(network), "lab")  # a notebook's cell that runs twice
    with pytest.raises(ScenarioError, match='the name "lab" is registered already'):
        NETWORKS.register(replace(network, title="Other"), "lab")
    with pytest.raises(ScenarioError, match='has the name "4g", which a built-in network has'):
        NETWORKS.register(network, "4g")
    with pytest.raises(ScenarioError, match=r'got the name None, expected a text: register\(..., name="my-network"\)'):
        NETWORKS.register(network)


def test_plugin_with_an_own_decoder_has_the_plugin_codec() -> None:
    @dataclass(frozen=True)
    class OwnDecoder(TopK):
        name: ClassVar[str] = "own-decoder"
        codec: ClassVar[int] = 7

        def decode(self, sections: Any, ctx: Any) -> Any:
            return super().decode(sections, ctx)

    @dataclass(frozen=True)
    class Heir(OwnDecoder):
        name: ClassVar[str] = "heir"

    assert OwnDecoder(0.1).codec == Heir(0.1).codec == ErrorFeedback(OwnDecoder(0.1)).codec == PLUGIN_CODEC


def test_plugin_that_inherits_a_built_in_decoder_has_its_codec() -> None:
    @dataclass(frozen=True)
    class OtherId(TopK):
        name: ClassVar[str] = "other-id"
        codec: ClassVar[int] = 7

    assert ModuleTopK(0.1).codec == OtherId(0.1).codec == TopK.codec


def test_partitioner_family_has_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PARTITIONERS, "_registered_plugins", {})

    @PARTITIONERS.register
    @dataclass(frozen=True)
    class Alternating(Iid):
        name: ClassVar[str] = "alternating"

    scenario = parse_scenario({"name": "s", "data": {"partition": {"name": "alternating", "clients": 3}}})
    assert scenario.data.partition == Alternating(clients=3)


def test_plugin_with_a_required_key_that_its_field_presets_reports_the_missing_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPTIMIZERS, "_registered_plugins", {})

    @OPTIMIZERS.register
    @dataclass(frozen=True)
    class RequiredRate(SGD):
        name: ClassVar[str] = "required-rate"
        lr: float = field(kw_only=True)

    with pytest.raises(ScenarioError, match=r"^server\.optimizer\.lr: missing"):
        parse_scenario({"name": "s", "server": {"optimizer": "required-rate"}})
    scenario = parse_scenario({"name": "s", "server": {"optimizer": {"name": "required-rate", "lr": 0.5}}})
    assert scenario.server.optimizer == RequiredRate(lr=0.5)


@pytest.mark.usefixtures("installed_package")
def test_settings_of_a_server_import_only_the_allowed_plugins() -> None:
    table = {"compressor": {"name": "own-top-k", "density": 0.5}}
    with pytest.raises(ScenarioError, match=r'compressor\.name: got "own-top-k"'):
        parse_table(UplinkConfig, table, allowed_paths=())
    assert "own_package_of_test" not in sys.modules
    allowed_config = parse_table(UplinkConfig, table, allowed_paths=["own_package_of_test:OwnTopK"])
    assert type(allowed_config.compressor).__module__ == "own_package_of_test"


def test_name_that_is_a_field_is_refused() -> None:
    @dataclass(frozen=True)
    class FieldName(TopK):
        name: str = "field-name"  # type: ignore[misc]

    with pytest.raises(ScenarioError, match="has a field `name`, expected"):
        COMPRESSORS.check_plugin(FieldName)


@pytest.mark.parametrize("name", ["my_package.compressors.Own", "compressors.Own"])
def test_dotted_name_is_answered_with_the_spelling_of_a_class(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    with pytest.raises(ScenarioError, match=f'a class of your own is named "{module}:{attribute}"'):
        build_compressor(name)
