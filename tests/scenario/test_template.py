"""New scenarios: valid for every component, with all keys, and defaults that go with the choices."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from fedsgd.compression import COMPRESSORS
from fedsgd.config.component import component_type, field_types
from fedsgd.data import DATASETS, PARTITIONERS
from fedsgd.errors import ScenarioError
from fedsgd.models import MODELS
from fedsgd.optim import OPTIMIZERS, SGD
from fedsgd.scenario.companions import find_companions
from fedsgd.scenario.scenario import Scenario, parse_scenario
from fedsgd.scenario.template import build_scenario, render_template

REQUIRED = {
    "npz": "data.path",
    "hugging-face": "data.path",
    "module": "model.module",
    "flwr-datasets": "data.partition.partitioner",
}
"""Key that a component requires."""
EXCLUSIVE_KEYS = {
    f"{section}.{key}"
    for section, annotation in field_types(Scenario).items()
    for key in getattr(component_type(annotation), "mutually_exclusive", ())
}
"""Keys that exclude other keys, which the default scenario may have."""


def build(key: str, name: str, **settings: Any) -> Scenario:
    """Build a scenario with a component, check that its text gives the same scenario, and return the scenario."""
    required = {REQUIRED[name]: "my_module:my_name"} if name in REQUIRED else {}
    scenario = build_scenario("example", {key: name, **required, **settings})
    assert parse_scenario(tomllib.loads(render_template(scenario))) == scenario
    return scenario


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("uplink.compressor.name", [*COMPRESSORS]),
        ("data.name", [*DATASETS]),
        ("data.partition.name", [*PARTITIONERS]),
        ("model.name", [*MODELS]),
        ("client.optimizer.name", [name for name in OPTIMIZERS if not OPTIMIZERS[name].server_only]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_component_gives_a_scenario_that_its_text_describes(key: str, names: list[str]) -> None:
    for name in names:
        build(key, name, **({"data.name": "shakespeare"} if name == "natural" else {}))


@pytest.mark.parametrize(
    ("compressor", "error_feedback", "weighting"),
    [
        ("top-k", "persist", "examples"),
        ("sign", "persist", "examples"),
        ("qsgd", "none", "examples"),
        ("dense", "none", "examples"),
        ("stc", "none", "examples"),
        ("ef21", "none", "uniform"),
        ("scaffold", "none", "uniform"),
    ],
)
def test_compressor_brings_the_settings_that_it_needs(compressor: str, error_feedback: str, weighting: str) -> None:
    scenario = build("uplink.compressor.name", compressor)
    assert (scenario.uplink.error_feedback, scenario.server.weighting) == (error_feedback, weighting)


@pytest.mark.slow
def test_chosen_settings_are_kept() -> None:
    assert build("uplink.compressor.name", "top-k", **{"uplink.error_feedback": "none"}).uplink.error_feedback == "none"
    with pytest.raises(ScenarioError, match="ef21 gives all clients equal weights"):
        build("uplink.compressor.name", "ef21", **{"server.weighting": "examples"})
    assert (
        build("data.partition.name", "shards", **{"data.partition.shards_per_client": 3}).data.partition.shards_per_client == 3
    )
    assert build("client.optimizer.name", "momentum", **{"client.steps": 4}).client.epochs is None


def test_companions_leave_chosen_keys() -> None:
    chosen = {"uplink.compressor.name": "scaffold", "client.optimizer.name": "momentum", "server.weighting": "uniform"}
    with pytest.raises(ScenarioError, match=r"^client.optimizer: scaffold needs the mean gradient"):
        build_scenario("x", chosen)
    plain = build("uplink.compressor.name", "scaffold", **{"data.name": "shakespeare", "client.optimizer.lr": 0.5})
    assert plain.client.optimizer == SGD(lr=0.5), "the default clip_norm is replaced, and the chosen lr is kept"
    table = build_scenario("x", {"uplink": {"compressor": "top-k", "error_feedback": "none"}})
    assert table.uplink.error_feedback == "none"
    with pytest.raises(ScenarioError, match=r'^client.optimizer.name: got "lion", expected one of'):
        build_scenario("x", {"client.optimizer.name": "lion"})


def test_numbers_of_clients_fit_together() -> None:
    few = build_scenario("x", {"clients": 4})
    assert (few.data.n_clients, few.server.cohort) == (4, 4)
    many = build_scenario("x", {"server.cohort": 60})
    assert (many.data.n_clients, many.server.cohort) == (60, 60)
    assert build_scenario("x", {"server.fraction": 0.5}).server.cohort is None
    assert build_scenario("x", {"data.name": "synthetic", "clients": 7}).data.n_clients == 7
    assert build_scenario("x", {"data.name": "shakespeare"}).data.n_clients is None
    assert (
        build_scenario("x", {"data.partition.name": "dirichlet", "data.name": "shakespeare", "clients": 9}).data.n_clients == 9
    )


def test_tables_and_exclusive_keys_replace_defaults() -> None:
    table = build_scenario("x", {"data.partition": {"name": "iid", "clients": 7}})
    assert (table.data.n_clients, table.server.cohort) == (7, 7)
    generated = build_scenario("x", {"data": {"name": "synthetic", "clients": 3}})
    assert (generated.data.n_clients, generated.server.cohort) == (3, 3)
    report = build_scenario("x", {"report.target": "loss<0.3"}).report
    assert (report.target_accuracy, str(report.target)) == (None, "loss<0.3")
    assert build_scenario("x", {"report.target": {"metric": "loss", "below": 0.2}}).report.target_accuracy is None
    assert build_scenario("x", {"server": {"fraction": 0.5}}).server.cohort is None


@pytest.mark.parametrize("table", [{"data.partition.clients": 6}, {"data.partition": {"name": "iid", "clients": 6}}])
def test_key_of_the_partition_replaces_the_number_of_clients(table: dict[str, Any]) -> None:
    assert build_scenario("x", {"clients": 5, **table}).data.n_clients == 6


def test_natural_partition_is_left_to_data_that_may_have_owners() -> None:
    natural = {"data.partition.name": "natural", "data.path": "a.csv"}
    assert build_scenario("x", {**natural, "data.name": "npz"}).data.partition.name == "natural"
    assert build_scenario("x", {**natural, "data.name": "hugging-face", "data.owner": "user"}).data.n_clients is None
    with pytest.raises(ScenarioError, match=r'^data.partition: got "natural", but hugging-face has no owners; expected '):
        build_scenario("x", {**natural, "data.name": "hugging-face"})


def test_every_commented_line_is_a_valid_setting() -> None:
    """A line without its "# " loads, alone or with the settings that it requires."""
    lines = render_template(build_scenario("example", {})).splitlines()
    section, checked = "", set()
    for i, line in enumerate(lines):
        section = line.strip("[]") if line.startswith("[") else section
        setting = re.fullmatch(r"# (\w+) = .*", line)
        if setting and f"{section}.{setting[1]}" not in EXCLUSIVE_KEYS:
            table = tomllib.loads("\n".join([*lines[:i], line.removeprefix("# "), *lines[i + 1 :]]))
            table = {**table, section: {**table[section], setting[1]: table[section][setting[1]]}}
            companions = find_companions(table, fixed_keys={f"{section}.{setting[1]}"})
            assert companions is not None, line
            checked.add(f"{section}.{setting[1]}")
    assert {"participation.dropout", "engine.name", "state.budget", "downlink.remember", "server.aggregator"} <= checked
    assert len(checked) > 25


def test_text_has_keys_of_beginners_meanings_and_short_lines() -> None:
    text = render_template(build_scenario("digits", {"rounds": 7, "participation.dropout": 0.1}))
    assert "rounds = 7  # maximum number of rounds\n" in text
    assert '\npartition = { name = "dirichlet", clients = 20, alpha = 1.0 }\n' in text
    assert "\ndropout = 0.1  # probability that a reply is lost\n" in text
    assert "\n# held_out = 0.0  # share of each client's examples" in text
    assert "\n# steps = 10  # (unset) local steps of a round, in place of `epochs`\n" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.name": "nist"}, 'data.name: got "nist", did you mean "mnist"?'),
        ({"data.partition.name": "dirichle"}, 'data.partition.name: got "dirichle", did you mean "dirichlet"?'),
        ({"uplink.compressor.name": "topk"}, 'uplink.compressor.name: got "topk", did you mean "top-k"?'),
        ({"data.name": "npz"}, "data.path: missing, expected for example path ="),
        ({"server": 0.9}, "server: expected a table, got 0.9"),
        ({"clients": 5, "server.cohort": 6}, "server.cohort: got 6 clients a round, expected at most 5"),
        ({"clients": "abc"}, 'data.partition.clients: expected a whole number of at least 1, got "abc"'),
        ({"data.partition.clients": 10**12}, "data.partition.clients: expected a whole number from 1 to 2147483647"),
        ({"server.cohort": "abc"}, "server.cohort: expected a whole number of at least 1, or the key left out, got "),
        ({"server.cohort": 10**12}, "server.cohort: expected a whole number from 1 to 2147483647"),
        ({"data.name": "synthetic", "data.clients": "x"}, 'data.clients: expected a whole number of at least 1, got "x"'),
        ({"client": {"optimizer": 3}}, "client.optimizer: "),
        ({"data.partition.name": "natural"}, 'data.partition: got "natural", but digits has no owners; expected another '),
        ({"rounds": 0}, "rounds: expected a whole number of at least 1, got 0"),
    ],
)
def test_wrong_setting_raises_an_error_with_its_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as error:
        build_scenario("example", settings)
    assert str(error.value).startswith(message)
