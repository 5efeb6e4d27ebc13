"""Names of downlink policies: "ef21-p" and "unbiased", and their earlier names "shift" and "plain"."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsgd
from fedsgd.analysis.methods import load_methods
from fedsgd.analysis.runs import load_run
from fedsgd.compression.operators.qsgd import QSGD
from fedsgd.compression.operators.topk import TopK
from fedsgd.errors import ScenarioError
from fedsgd.federation.downlink import POLICY_ALIASES, ModelBroadcast
from fedsgd.scenario.parsing import dump_table, parse_table
from fedsgd.scenario.resolution import build_downlink
from fedsgd.scenario.scenario import Scenario
from fedsgd.scenario.sections import DownlinkConfig
from fedsgd.sweeps.cells import plan_cells
from fedsgd.sweeps.directory import resume_sweep

pytestmark = pytest.mark.slow

Make = Callable[..., Scenario]
OPERATORS = {"shift": TopK(0.1), "plain": QSGD()}
SETTINGS: dict[str, dict[str, Any]] = {
    "shift": {"downlink.compressor": {"name": "top-k", "density": 0.1}},
    "plain": {"downlink.compressor": {"name": "qsgd"}},
}


@pytest.mark.parametrize(("alias", "policy"), POLICY_ALIASES.items())
def test_alias_is_normalised_in_python_and_in_tables(alias: Any, policy: Any) -> None:
    operator: Any = OPERATORS[alias]
    expected = DownlinkConfig(policy, operator)
    assert DownlinkConfig(alias, operator) == expected
    assert DownlinkConfig(alias, operator).policy == policy
    table = {**dump_table(expected), "policy": alias}
    assert parse_table(DownlinkConfig, table) == expected
    assert dump_table(parse_table(DownlinkConfig, table))["policy"] == policy
    assert build_downlink(DownlinkConfig(alias, operator)) == ModelBroadcast(policy, operator)


@pytest.mark.parametrize(("alias", "policy"), POLICY_ALIASES.items())
def test_alias_gives_the_same_run_and_scenario_file(scenario: Make, tmp_path: Path, alias: str, policy: str) -> None:
    scenarios = {name: scenario({"downlink.policy": name, **SETTINGS[alias]}) for name in (alias, policy)}
    assert scenarios[alias] == scenarios[policy]
    results = {name: fedsgd.run(s, out=tmp_path / name) for name, s in scenarios.items()}
    for digest in ("params_sha256", "ledger_sha256"):
        assert results[alias].summary[digest] == results[policy].summary[digest]
    texts = {name: (tmp_path / name / "scenario.toml").read_text() for name in scenarios}
    assert texts[alias] == texts[policy]
    assert tomllib.loads(texts[alias])["downlink"]["policy"] == policy


@pytest.mark.parametrize(("alias", "policy"), POLICY_ALIASES.items())
def test_run_folder_with_an_alias_is_read_as_the_new_name(scenario: Make, tmp_path: Path, alias: str, policy: str) -> None:
    base = scenario({"downlink.policy": policy, **SETTINGS[alias]})
    for seed, folder in enumerate(("earlier", "new")):
        fedsgd.run(base.with_settings({"seed": seed}), out=tmp_path / folder)
    path = tmp_path / "earlier" / "scenario.toml"
    text = path.read_text()
    path.write_text(text.replace(f'policy = "{policy}"', f'policy = "{alias}"'))
    assert path.read_text() != text
    assert fedsgd.load(path).downlink.policy == policy
    assert load_run(tmp_path / "earlier").settings["downlink.policy"] == policy
    methods = load_methods([("method", tmp_path / "earlier"), ("method", tmp_path / "new")])
    assert [len(method.runs) for method in methods] == [2], "both runs have the same settings"


@pytest.mark.parametrize(("alias", "policy"), POLICY_ALIASES.items())
def test_finished_cell_with_an_alias_is_not_run_again(scenario: Make, tmp_path: Path, alias: str, policy: str) -> None:
    base = scenario({"downlink.policy": policy, **SETTINGS[alias]})
    plan = plan_cells(base, {"method": {}}, {}, {}, 1, "")
    fedsgd.run(plan[0].scenario, out=tmp_path / plan[0].cell.folder)
    path = tmp_path / plan[0].cell.folder / "scenario.toml"
    path.write_text(path.read_text().replace(f'policy = "{policy}"', f'policy = "{alias}"'))
    assert [cell.state for cell in resume_sweep(tmp_path, plan, overwrite=False, retry_failed=False).cells] == ["finished"]


def test_messages_and_suggestions_have_the_new_names(scenario: Make) -> None:
    with pytest.raises(
        ScenarioError, match=r'downlink\.policy: got "shif", did you mean .*|downlink\.policy: got "shif"'
    ) as error:
        scenario({"downlink.policy": "shif"})
    assert "ef21-p" in str(error.value)
    assert "shift" not in str(error.value)
    with pytest.raises(ScenarioError, match='expected policy = "error-feedback" or "ef21-p"'):
        scenario({"downlink.policy": "plain", "downlink.compressor.name": "top-k"})
    with pytest.raises(ScenarioError, match="policy"):
        scenario({"downlink.policy": ["shift"]})
