"""Warnings of unsuitable settings: the rules, and the outputs that show the warnings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

import fedsgd
from fedsgd.cli import main
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.run_config import RunConfig
from fedsgd.errors import ScenarioError, ScenarioWarning
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.scenario_warnings import find_compressor_warnings
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.scenario.parsing import parse_table
from fedsgd.scenario.resolution import build_scheme
from fedsgd.scenario.scenario import Scenario
from fedsgd.scenario.sections import DownlinkConfig, UplinkConfig
from fedsgd.scenario.target import parse_target

Make = Callable[..., Scenario]
MLP = ParameterLayout(("1.weight", "1.bias", "3.weight", "3.bias"), ((64, 64), (64,), (10, 64), (10,)))
"""Layout of the quickstart's model, 4,810 parameters."""
RUN = RunConfig("uplink.compressor", MLP, rounds=100, clients=20, cohort=10, local_steps=5)
EVERYBODY, ONE_OF_A_HUNDRED = {"clients": 20, "cohort": 20}, {"clients": 100, "cohort": 1}
DGC = {"uplink.compressor": {"name": "dgc", "density": 0.01}, "uplink.error_feedback": "none"}
DGC_WARNING = (
    "uplink.compressor.momentum = 0.9: DGC corrects the momentum of one local step of every client in every round (Lin et al. "
    "2018), but clients make several local steps, 4 of 8 clients take part in a round and local training has a momentum of its "
    'own; set uplink.compressor.momentum = 0, or client.steps = 1, all clients in a round and client.optimizer.name = "sgd"'
)


def warnings_of(uplink: Mapping[str, Any], downlink: Mapping[str, Any] | None = None, **settings: Any) -> list[str]:
    """Return the warnings of both compressors in a run with these settings; `uplink` is a compressor or the table [uplink]."""
    link = parse_table(UplinkConfig, uplink if "compressor" in uplink else {"compressor": uplink})
    run = replace(RUN, error_feedback=link.error_feedback, **settings)
    return list(find_compressor_warnings(build_scheme(link), run, parse_table(DownlinkConfig, downlink or {})))


def with_feedback(policy: str, **compressor: Any) -> dict[str, Any]:
    return {"compressor": compressor, "error_feedback": policy}


# -------------------------------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    ("settings", "reason", "remedy"),
    [
        ({"local_steps": 2}, "clients make several local steps", "client.steps = 1"),
        ({"cohort": 19}, "19 of 20 clients take part in a round", "all clients in a round"),
        ({"client_momentum": 0.9}, "local training has a momentum of its own", 'client.optimizer.name = "sgd"'),
        ({"server_momentum": 0.9}, "the server's optimizer has a momentum of its own", 'server.optimizer.name = "sgd"'),
    ],
)
def test_dgc_momentum_outside_its_rule_warns_with_the_remedy(settings: dict[str, Any], reason: str, remedy: str) -> None:
    by_rule = {**EVERYBODY, "local_steps": 1}
    assert warnings_of({"name": "dgc", "momentum": 0.9}, **by_rule) == []
    assert warnings_of({"name": "dgc", "momentum": 0.9}, **{**by_rule, "local_steps": None}) == [], (
        "the number of steps is unknown"
    )
    (text,) = warnings_of({"name": "dgc", "momentum": 0.9}, **{**by_rule, **settings})
    assert text.startswith("uplink.compressor.momentum = 0.9: ")
    assert text.endswith(f", but {reason}; set uplink.compressor.momentum = 0, or {remedy}")
    assert warnings_of({"name": "dgc", "momentum": 0.0}, **{**by_rule, **settings}) == []


TOP_K, RAND_K = {"name": "top-k", "density": 0.01}, {"name": "rand-k", "density": 0.01, "scaled": False}


@pytest.mark.parametrize(
    ("uplink", "settings", "starts"),
    [
        (TOP_K, {}, 'uplink.error_feedback = "none": top-k is biased'),
        ({"name": "sign"}, {}, 'uplink.error_feedback = "none": sign is biased'),
        ({"name": "threshold"}, {}, 'uplink.error_feedback = "none": threshold is biased'),
        (RAND_K, {}, 'uplink.error_feedback = "none": rand-k is biased'),
        ({"name": "scheduled", "op": TOP_K}, {}, 'uplink.error_feedback = "none": top-k is biased'),
        ({"name": "per-layer", "op": TOP_K, "biases": "dense"}, {}, 'uplink.error_feedback = "none": top-k is biased'),
        ({"name": "scaffold", "op": TOP_K}, {}, "uplink.compressor.op: top-k is biased"),
        ({"name": "scaffold"}, {}, None),
        (with_feedback("persist", **TOP_K), {}, None),
        (with_feedback("decay", name="sign"), {}, None),
        (TOP_K, ONE_OF_A_HUNDRED, None),
        ({"name": "top-k", "density": 0.5}, {}, None),
        ({"name": "dense", "values": "bfloat16"}, {}, None),
        ({"name": "integer", "bits": 4, "rounding": "nearest"}, {}, None),
        ({"name": "drive", "scale": "least-squares"}, {}, None),
        ({"name": "qsgd"}, {}, None),
        ({"name": "ef21", "op": TOP_K}, {}, None),
        ({"name": "cafe", "op": TOP_K}, {}, None),
    ],
)
def test_biased_operator_without_error_feedback_warns(
    uplink: dict[str, Any], settings: dict[str, Any], starts: str | None
) -> None:
    texts = warnings_of(uplink, **settings)
    assert len(texts) == (starts is not None), texts
    assert starts is None or texts[0].startswith(starts)


@pytest.mark.parametrize(
    ("uplink", "settings", "stale"),
    [
        (with_feedback("persist", **TOP_K), ONE_OF_A_HUNDRED, True),
        ({"name": "stc"}, ONE_OF_A_HUNDRED, True),
        ({"name": "dgc", "momentum": 0.0}, ONE_OF_A_HUNDRED, True),
        ({"name": "power-sgd"}, ONE_OF_A_HUNDRED, True),
        (with_feedback("persist", **TOP_K), {**ONE_OF_A_HUNDRED, "rounds": None}, True),
        (with_feedback("persist", **TOP_K), {**ONE_OF_A_HUNDRED, "rounds": 99}, False),
        (with_feedback("persist", **TOP_K), {"clients": 100, "cohort": 10}, False),
        (with_feedback("decay", **TOP_K), ONE_OF_A_HUNDRED, False),
        (with_feedback("reset", name="stc"), ONE_OF_A_HUNDRED, False),
        ({"name": "cafe"}, ONE_OF_A_HUNDRED, False),
    ],
)
def test_persistent_residuals_at_tiny_cohorts_warn(uplink: dict[str, Any], settings: dict[str, Any], stale: bool) -> None:
    texts = warnings_of(uplink, **settings)
    expected = (
        "uplink.error_feedback: a client takes part every 100 rounds on average, and residuals that persist are 100 rounds old; "
        'set uplink.error_feedback = "decay" or "reset", or sample more clients in a round'
    )
    assert texts == [expected] * stale


@pytest.mark.parametrize(
    ("uplink", "settings", "key"),
    [
        ({"name": "rand-k", "density": 0.01}, {}, "uplink.compressor.density"),
        ({"name": "rand-k", "density": 0.1}, {}, None),
        ({"name": "rand-k", "density": 0.1}, ONE_OF_A_HUNDRED, "uplink.compressor.density"),
        ({"name": "count-sketch", "density": 0.02}, {}, "uplink.compressor.density"),
        ({"name": "count-sketch", "density": 0.1}, {}, None),
        (with_feedback("persist", **RAND_K), {}, "uplink.compressor.density = 0.01"),
        (with_feedback("persist", **RAND_K), {"rounds": 400}, None),
        ({"name": "ef21", "op": RAND_K}, {}, "uplink.compressor.op.density = 0.01"),
        ({"name": "eden"}, {}, None),
        ({"name": "eden"}, {"layout": ParameterLayout.from_size(100)}, "uplink.compressor"),
        ({"name": "drive"}, {"layout": ParameterLayout.from_size(100)}, "uplink.compressor"),
        ({"name": "per-layer", "op": "eden", "biases": "eden"}, {}, "uplink.compressor.biases"),
        ({"name": "ef21"}, {}, None),
        ({"name": "ef21"}, {**ONE_OF_A_HUNDRED, "rounds": 200}, None),
        ({"name": "ef21"}, ONE_OF_A_HUNDRED, "uplink.compressor"),
        ({"name": "fetch-sgd", "density": 0.5, "momentum": 0.0}, {"layout": ParameterLayout.from_size(10_000)}, None),
        (
            {"name": "fetch-sgd", "density": 0.5, "momentum": 0.0},
            {"layout": ParameterLayout.from_size(9_990)},
            "uplink.compressor.density = 0.5",
        ),
        ({"name": "fetch-sgd", "density": 1.0}, {"layout": ParameterLayout.from_size(10_000)}, None),
        (
            {"name": "fetch-sgd", "density": 1.0},
            {"layout": ParameterLayout.from_size(10_000), "client_momentum": 0.5},
            "uplink.compressor.momentum = 0.9",
        ),
        (
            {"name": "fetch-sgd", "density": 1.0},
            {"layout": ParameterLayout.from_size(10_000), "server_momentum": 0.5},
            "uplink.compressor.momentum = 0.9",
        ),
        ({"name": "fetch-sgd", "kept_share": 0.002, "momentum": 0.0}, {"layout": ParameterLayout.from_size(100_000)}, None),
        (
            {"name": "fetch-sgd", "kept_share": 0.0021, "momentum": 0.0},
            {"layout": ParameterLayout.from_size(100_000)},
            "uplink.compressor.density = 0.1",
        ),
    ],
)
def test_warning_begins_with_its_key(uplink: dict[str, Any], settings: dict[str, Any], key: str | None) -> None:
    texts = warnings_of(uplink, **settings)
    assert [text.partition(":")[0] for text in texts] == ([] if key is None else [key])


def test_warning_has_its_share_in_percent_without_an_exponent() -> None:
    (text,) = warnings_of(with_feedback("persist", **RAND_K), rounds=20, **EVERYBODY)
    assert "takes part 20 times on average and sends 18 % of its coordinates in the whole run" in text
    (text,) = warnings_of({"name": "ef21"}, rounds=80, **ONE_OF_A_HUNDRED)
    assert "over all 100 clients, but 33 % of them take part in the first half" in text


def test_downlink_warnings_ignore_client_participation() -> None:
    rand_k = {"policy": "plain", "compressor": {"name": "rand-k", "density": 0.1}}
    (text,) = warnings_of({"name": "dense"}, rand_k)
    assert text.startswith("downlink.compressor.density: one message has an error of 9 times")
    top_k = {"policy": "error-feedback", "compressor": TOP_K}
    assert warnings_of({"name": "dense"}, top_k, **ONE_OF_A_HUNDRED) == []


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, None),
        ({"client.steps": 1}, "client.optimizer.momentum = 0.9"),
        ({"client.steps": 1, "client.optimizer.name": "sgd"}, None),
        ({"client.steps": 1, "client.velocity": "carry"}, None),
        ({"client.steps": 1, "client.optimizer.name": "adamw"}, 'client.optimizer.name = "adamw"'),
        ({"client.steps": 2, "client.optimizer.name": "adamw"}, None),
        ({"client.steps": 1, "client.optimizer.name": "adamw", "client.velocity": "carry"}, None),
        ({"server.normalisation": "fednova", "client.optimizer.name": "adamw"}, "client.optimizer.weight_decay"),
        ({"client.epochs": 1, "client.batch_size": "full"}, "client.optimizer.momentum = 0.9"),
        ({"server.normalisation": "fednova"}, None),
        ({"server.normalisation": "fednova", "client.velocity": "carry"}, "client.velocity"),
        ({"server.normalisation": "fednova", "client.optimizer.clip_norm": 1.0}, "client.optimizer.clip_norm"),
        ({"client.velocity": "carry", "client.optimizer.clip_norm": 1.0}, None),
        ({"report.target": "loss<0.3"}, None),
        ({"stop.target": "macro_f1>0.3", "evaluation.metrics": ["macro-f1"]}, None),
        ({"report.target": "loss>0.3"}, 'report.target = "loss>0.3"'),
        ({"uplink.residual_factor": 0.5}, "uplink.residual_factor = 0.5"),
        ({"uplink.residual_factor": 0.5, "uplink.error_feedback": "decay"}, None),
        ({"uplink.residual_rounds": 3, "uplink.error_feedback": "decay"}, "uplink.residual_rounds = 3"),
        ({"uplink.residual_rounds": 3, "uplink.error_feedback": "reset"}, None),
        ({"downlink.remember": 3}, "downlink.remember = 3"),
        ({"downlink.remember": 3, "downlink.policy": "difference"}, None),
        ({"participation.straggler_policy": "drop"}, 'participation.straggler_policy = "drop"'),
        ({"stop.target": "accuracy<0.1"}, 'stop.target = "accuracy<0.1"'),
    ],
)
def test_setting_without_effect_warns(scenario: Make, settings: dict[str, Any], key: str | None) -> None:
    texts = build_experiment(scenario(settings)).warnings
    assert [text.partition(":")[0] for text in texts] == ([] if key is None else [key])


def test_warning_of_a_target_in_the_wrong_direction_names_the_other(scenario: Make) -> None:
    (text,) = build_experiment(scenario({"evaluation.metrics": ["macro-f1"], "stop.target": "macro_f1<0.5"})).warnings
    assert (
        text == 'stop.target = "macro_f1<0.5": worse models reach it, because a larger macro_f1 is better; set "macro_f1>0.5"'
    )


@pytest.mark.slow
def test_dgc_without_momentum_equals_error_feedback_over_top_k(scenario: Make) -> None:
    dgc = fedsgd.run(scenario({**DGC, "uplink.compressor.momentum": 0.0})).summary
    top_k = fedsgd.run(scenario()).summary
    assert dgc["warnings"] == []
    assert dgc["params_sha256"] == top_k["params_sha256"]
    assert dgc["uplink"]["n_bytes"] == top_k["uplink"]["n_bytes"]


# ------------------------------------------------------------------------------------------------------ a compressor of the user


@dataclass(frozen=True)
class MinimumCohort(TopK):
    name: ClassVar[str] = "mine"

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        yield from super().find_warnings(run)
        if run.cohort < 5:
            yield f"{run.key}.density:\n  {run.cohort} clients are too few; set server.cohort = 5"


@dataclass(frozen=True)
class FailingWarnings(TopK):
    name: ClassVar[str] = "broken"

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        yield str(1 // (run.cohort - 4))


def test_user_compressor_warns_in_one_line(scenario: Make) -> None:
    custom = scenario({"uplink.compressor.name": f"{__name__}:MinimumCohort"})
    assert build_experiment(custom).warnings == ("uplink.compressor.density: 4 clients are too few; set server.cohort = 5",)
    assert build_experiment(custom.with_settings({"server.cohort": 5})).warnings == ()
    with pytest.raises(ScenarioError, match=rf"uplink.compressor \({__name__}:FailingWarnings\): ZeroDivisionError"):
        build_experiment(scenario({"uplink.compressor.name": f"{__name__}:FailingWarnings"}))


# ----------------------------------------------------------------------------------------------------- where warnings are shown


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def write_scenario(scenario: Make, folder: Path, settings: Mapping[str, Any] = DGC) -> Path:
    path = folder / "mine.toml"
    path.write_text(scenario({"rounds": 1, **settings}).to_toml())
    return path


@pytest.mark.slow
def test_run_in_python_issues_the_warning_and_summarizes_it(scenario: Make, tmp_path: Path) -> None:
    with pytest.warns(ScenarioWarning, match=re.escape(DGC_WARNING)) as records:
        result = fedsgd.run(scenario({"rounds": 1, **DGC}), out=tmp_path / "run")
    assert len(records) == 1
    assert result.summary["warnings"] == [DGC_WARNING]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"] == [DGC_WARNING]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScenarioWarning)
        assert fedsgd.run(scenario({"rounds": 1})).summary["warnings"] == []


@pytest.mark.slow
@pytest.mark.nightly
def test_script_shows_a_repeated_warning_once_at_its_line(scenario: Make, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    path = write_scenario(scenario, tmp_path)
    script.write_text(f"import fedsgd\nfor seed in (0, 1):\n    fedsgd.run(fedsgd.load({str(path)!r}, {{'seed': seed}}))\n")
    process = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    assert process.stderr.splitlines()[0] == f"{script}:3: ScenarioWarning: {DGC_WARNING}"
    assert process.stderr.count("ScenarioWarning") == 1


@pytest.mark.slow
def test_command_line_prints_the_warning_first_and_in_its_summary(scenario: Make, tmp_path: Path) -> None:
    path = write_scenario(scenario, tmp_path)
    plain, quiet, as_json = (
        invoke("run", path, "--out", tmp_path / name, *options)
        for name, options in (("plain", ()), ("quiet", ("--quiet",)), ("json", ("--json", "--quiet")))
    )
    assert plain.exit_code == quiet.exit_code == as_json.exit_code == 0, plain.output
    assert f"fedsgd: warning: {DGC_WARNING}" in plain.stderr.splitlines()[:2]
    assert f"\nwarning: {DGC_WARNING}\n" in plain.stdout
    assert quiet.stderr == as_json.stderr == ""
    assert f"\nwarning: {DGC_WARNING}\n" in quiet.stdout
    assert json.loads(as_json.stdout)["warnings"] == [DGC_WARNING]


@pytest.mark.nightly
@pytest.mark.slow
def test_sweep_prints_a_shared_warning_once_with_the_cell_labels(scenario: Make, tmp_path: Path) -> None:
    path, methods = write_scenario(scenario, tmp_path, {}), tmp_path / "methods.toml"
    table = 'uplink.error_feedback = "none"\nuplink.compressor = {{ name = "dgc", density = {} }}\n'
    methods.write_text(f'["DGC 1 %"]\n{table.format(0.01)}["DGC 5 %"]\n{table.format(0.05)}')
    result = invoke("sweep", path, "--methods", methods, "--jobs", 2, "--out", tmp_path / "sweep")
    assert result.exit_code == 0, result.output
    (progress_line,) = (line for line in result.stderr.splitlines() if DGC_WARNING in line)
    assert re.fullmatch(r"fedsgd: warning: DGC [15] %: ", progress_line.removesuffix(DGC_WARNING))
    (summary_line,) = (line for line in result.stdout.splitlines() if DGC_WARNING in line)
    assert summary_line == f"warning: DGC 1 %, DGC 5 %: {DGC_WARNING}"


def test_quiet_sweep_leaves_standard_error_empty(scenario: Make, tmp_path: Path) -> None:
    result = invoke("sweep", write_scenario(scenario, tmp_path), "--quiet", "--out", tmp_path / "sweep")
    assert result.stderr == ""
    assert f"warning: quickstart: {DGC_WARNING}\n" in result.stdout


def test_sweep_with_a_failing_cell_warns(scenario: Make, tmp_path: Path) -> None:
    path = write_scenario(scenario, tmp_path)
    with pytest.warns(ScenarioWarning, match=f"quickstart: {re.escape(DGC_WARNING)}") as records:
        result = fedsgd.sweep(path, tune={"client.optimizer.lr": [1e38]}, out=tmp_path / "sweep")
    assert [cell.state for cell in result.cells] == ["failed"]
    assert len(records) == 1


@pytest.mark.slow
def test_comparison_and_page_payload_name_the_warning(scenario: Make, tmp_path: Path) -> None:
    from fedsgd.analysis import compare, load_methods
    from fedsgd.analysis.page.payload import ReportOptions, build_payload
    from fedsgd.analysis.tables import collect_notes
    from fedsgd.network import PricingModel, get_device, get_network

    for name, settings in (("plain", {}), ("hot", DGC)):
        fedsgd.run(scenario({"rounds": 1, **settings}), out=tmp_path / name)
    methods = load_methods([("plain", tmp_path / "plain"), ("hot", tmp_path / "hot")])
    assert f"hot: warning: {DGC_WARNING}" in collect_notes(compare(methods))
    payload = build_payload(
        methods,
        ReportOptions(
            "Test", parse_target(0.5), PricingModel(get_network("4g"), get_device("phone"), get_device("server")), "4g"
        ),
    )
    assert [method["warnings"] for method in payload["methods"]] == [[], [f"warning: {DGC_WARNING}"]]
