"""Reference of keys: every key has a type, a meaning and an example that loads; names are found or suggested."""

from __future__ import annotations

import dataclasses
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from fedsgd.compression import COMPRESSORS
from fedsgd.config.component import Component, FractionAboveZero, field_types
from fedsgd.data.datasets.digits import Digits
from fedsgd.errors import ScenarioError
from fedsgd.scenario.docstrings import find_description, find_meaning
from fedsgd.scenario.key_reference import (
    ComponentReference,
    KeyReference,
    KeyTable,
    describe_component,
    describe_section,
    list_sections,
)
from fedsgd.scenario.key_search import explain, list_names, list_next_keys
from fedsgd.scenario.overrides import apply_settings, parse_setting
from fedsgd.scenario.parsing import REGISTRIES
from fedsgd.scenario.scenario import Scenario, parse_scenario
from fedsgd.scenario.toml_text import format_setting, format_tables, format_toml_value


def find_one(name: str) -> KeyReference:
    """Return the only key of a name."""
    (key,) = explain(name).keys
    return key


def all_keys() -> Iterator[KeyReference]:
    for table in [KeyTable(), *KeyTable().find_members()]:
        for key in table.list_keys():
            yield from table.describe(key)


@pytest.mark.slow
def test_every_key_of_sections_and_components_has_type_meaning_and_an_example_that_loads() -> None:
    """The example is valid as TOML and as `--set`. A meaning of one symbol, such as "β.", explains nothing."""
    keys = list(all_keys())
    assert len({key.key for key in keys}) > 100
    for key in keys:
        assert key.type, key.key
        assert len(key.meaning.split()) > 1, f"{key.key} of {[*key.components]}: {key.meaning!r}"
        check_examples(key)


def check_examples(described: KeyReference | ComponentReference) -> None:
    table = tomllib.loads(format_tables(described.example))
    assert parse_scenario({"name": "example", **table})
    settings = dict(parse_setting(argument) for argument in shlex.split(" ".join(described.settings)))
    assert apply_settings(Scenario, table, settings) == table


@pytest.mark.slow
def test_members_of_the_reference_are_all_components_and_fields() -> None:
    """A component or field that the search for places misses would have no reference."""
    tables = KeyTable().find_members()
    for registry in REGISTRIES.values():
        for name in registry:
            assert any(table.cls is registry[name] for table in tables), name
    for table in tables:
        listed = {key for key in table.list_keys() if table.describe(key)}
        inline = {f.name for f in dataclasses.fields(table.cls) if f.metadata.get("inline")}
        assert set(field_types(table.cls)) - inline <= listed


@pytest.mark.slow
def test_every_component_has_an_example_that_loads() -> None:
    for registry in dict.fromkeys(REGISTRIES.values()):
        for name in registry:
            component = describe_component(registry, name)
            check_examples(component)
            assert component.places
            assert component.summary.endswith(".")


def test_sections_are_those_of_a_scenario_with_all_their_keys() -> None:
    assert list_sections()[0] == "scenario"
    assert {*list_sections()} - {"scenario"} < set(field_types(Scenario))
    assert [key.key for key in describe_section("scenario").keys] == ["name", "seed", "rounds"]
    keys = [key.key for key in describe_section("participation").keys]
    names = (
        "over_selection",
        "dropout",
        "deadline",
        "durations",
        "stragglers",
        "straggler_policy",
        "on_failure",
        "on_divergence",
    )
    assert keys == [f"participation.{name}" for name in names]
    data = describe_section("data")
    assert (data.family, [key.key for key in data.keys]) == ("datasets", ["data.name", "data.partition", "data.held_out"])
    assert describe_section("model").family == "models"
    assert "model.hidden" not in [key.key for key in describe_section("model").keys], "only a key of the mlp"


def test_key_has_its_bounds_default_and_options() -> None:
    dropout = find_one("participation.dropout")
    assert dropout.bounds == {"minimum": 0, "exclusiveMaximum": 1}
    assert (dropout.type, dropout.default, dropout.required) == ("a number of at least 0 and below 1", 0.0, False)
    assert dropout.meaning == "probability that a reply is lost."
    assert find_one("server.cohort").default is None
    assert find_one("client.batch_size").type == 'a whole number of at least 1 or "full"'
    policy = find_one("uplink.error_feedback")
    assert policy.options == ["none", "persist", "decay", "reset"]
    assert policy.settings == ["uplink.error_feedback=persist"]
    assert format_tables(policy.example) == '[uplink]\nerror_feedback = "persist"'
    assert {name: (key.required, key.default) for key in explain("data.path").keys for name in key.components} == {
        "text": (False, None),
        "npz": (True, None),
        "hugging-face": (True, None),
    }


def test_key_with_a_component_lists_what_the_key_accepts() -> None:
    assert find_one("client.optimizer").options == ["sgd", "momentum", "momentum-pytorch", "nesterov", "adam", "adamw"]
    assert "fedadam" in find_one("server.optimizer").options
    assert find_one("server.optimizer").default == {"name": "sgd", "lr": 1.0}
    assert "dgc" in find_one("uplink.compressor").options
    assert "dgc" not in find_one("downlink.compressor").options
    assert find_one("uplink.compressor.name").default == "dense"


def test_key_of_several_components_is_described_once_for_each_difference() -> None:
    described = {tuple(key.components): key.default for key in explain("uplink.compressor.density").keys}
    assert described == {("top-k", "rand-k", "stc"): 0.01, ("count-sketch", "fetch-sgd"): 0.1, ("dgc",): 0.001}
    rates = {key.key: (key.default, *key.components) for key in explain("lr").keys if "sgd" in key.components}
    assert rates["client.optimizer.lr"][0] == 0.1
    assert rates["server.optimizer.lr"][0] == 1.0, "the server's default differs from the optimizer's"


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("[uplink]", []),
        ("error_feedback", ["uplink.error_feedback"]),
        ("top-k.density", ["uplink.compressor.density", "downlink.compressor.density"]),
        ("uplink.compressor.rules.pattern", ["uplink.compressor.rules.pattern"]),
        ("client.optimizer.schedule.then.every", ["client.optimizer.schedule.then.every"]),
        ("faults.hostile.share", ["faults.hostile.share"]),
        ("model.metrics.f1", ["model.metrics"]),
        ("model.hidden", ["model.hidden"]),
        ("data.alpha", ["data.alpha"]),
        ("seed", ["seed"]),
    ],
)
def test_name_is_found_as_section_dotted_key_or_last_part(name: str, keys: list[str]) -> None:
    assert [key.key for key in explain(name).keys] == keys
    assert [section.section for section in explain(name).sections] == ["uplink"] * (not keys)


def test_component_is_found_in_all_families_and_by_alias() -> None:
    assert [c.family for c in explain("ef21").components] == ["aggregator", "compressor"]
    (sgd,) = explain("fedavg").components
    assert (sgd.name, sgd.aliases, sgd.places) == ("sgd", ["fedavg"], ["client.optimizer", "server.optimizer"])
    momentum = explain("momentum")
    assert momentum.components[0].family == "optimizer"
    assert "uplink.compressor.momentum" in [key.key for key in momentum.keys], "dgc has a key of this name"
    (custom,) = explain("fedsgd.compression.operators.topk:TopK").components
    assert custom.places == ["uplink.compressor", "downlink.compressor"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("uplink.eror_feedback", '"uplink.error_feedback"'),
        ("uplnk.error_feedback", '"uplink.error_feedback"'),
        ("topk", '"top-k"'),
        ("compresor", '"compressor", "uplink.compressor"'),
        ("uplink.compressor.op.densty", '"uplink.compressor.op.density"'),
        ("zzzz", "`fedsgd list` shows sections"),
        ("nowhere_at_all:Thing", 'cannot import "nowhere_at_all"'),
    ],
)
def test_unknown_name_raises_one_line_with_the_nearest_names(name: str, nearest: str) -> None:
    with pytest.raises(ScenarioError) as error:
        explain(name)
    assert nearest in str(error.value)
    assert "\n" not in str(error.value)


def test_all_listed_names_are_explained() -> None:
    names = list_names()
    assert {"uplink.error_feedback", "top-k", "density", "participation"} <= set(names)
    for name in names[::25]:
        explanation = explain(name)
        assert explanation.sections or explanation.components or explanation.keys


def test_next_keys_follow_a_prefix_to_any_depth() -> None:
    def find(prefix: str) -> dict[str, bool]:
        return {key.key: has_keys for key, has_keys in list_next_keys(prefix)}

    assert find("up") == {"uplink": True}
    assert find("uplink.comp") == {"uplink.compressor": True}
    assert find("uplink.compressor.d") == {"uplink.compressor.density": False, "uplink.compressor.densities": False}
    assert "client.optimizer.schedule.then.every" in find("client.optimizer.schedule.then.")
    assert find("nothing.here") == {}


@dataclass(frozen=True)
class UndescribedTopK(Component):
    """Component of a user.

    Attributes:
        density: None or True.
    """

    name: ClassVar[str] = "undescribed"

    density: FractionAboveZero = 0.1
    free: object = field(default=None)


def test_meaning_is_spelled_as_in_a_file_and_missing_without_a_docstring() -> None:
    assert find_meaning(UndescribedTopK, "density") == "unset or true."
    assert find_meaning(UndescribedTopK, "free") == ""
    assert find_meaning(COMPRESSORS["count-sketch"], "rows") == "rows of the table."


def test_description_has_paragraphs_entries_and_formulas() -> None:
    blocks = find_description(COMPRESSORS["dgc"])
    assert blocks[0].startswith("Lin, Han, Mao, Wang and Dally")
    assert blocks[1].startswith("    u ← βu + g;")
    assert any(block.startswith("* with a part of the clients in a round") for block in blocks)
    assert not any("Attributes" in block or ">>>" in block for block in blocks)
    assert find_description(Digits)[0].startswith("Source: ")


def test_toml_text_is_read_back() -> None:
    value = {"name": 'a "b" \\ ü\x7f', "list": [1, 2.5, True], "table": {"a b": {}}, "tiny": 1e-6}
    assert tomllib.loads(f"value = {format_toml_value(value)}") == {"value": value}
    table = {"seed": 1, "uplink": {"compressor": {"name": "top-k", "density": 0.01}}}
    assert tomllib.loads(format_tables(table)) == table
    assert format_tables(table, 20).splitlines()[2:] == ['compressor.name = "top-k"', "compressor.density = 0.01"]
    assert tomllib.loads(format_tables(table, 20)) == table


@pytest.mark.parametrize("value", ["persist", "4 GiB", "true", "1", "inf", "it's", " x", [1, 2], {"a": "b"}, 1e-6, False])
def test_setting_is_read_back_from_a_shell(value: object) -> None:
    (argument,) = shlex.split(format_setting("a.b", value))
    assert parse_setting(argument) == ("a.b", value)
