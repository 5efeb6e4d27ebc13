"""Divergence: the rule over a run's history, and the outputs that show its warning."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fedsgd
from fedsgd.cli import main
from fedsgd.data import Dataset
from fedsgd.experiment.divergence import detect_divergence
from fedsgd.scenario.scenario import Scenario
from fedsgd.scenario.target import parse_target
from tests.effort import nightly_unless

Make = Callable[..., Scenario]
DGC = {"uplink.compressor": {"name": "dgc", "density": 0.001}, "uplink.error_feedback": "none"}
INITIAL = {"loss": 2.31, "accuracy": 0.1}
FALLING = [2.3 * 0.95**r for r in range(1, 41)]
NO_LONGER_FALLING = [1.0] * 40


def evaluations(losses: Sequence[float], accuracy: float | None = None) -> list[tuple[int, dict[str, float]]]:
    """Return an evaluation after every round, each with this accuracy."""
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    return [(r, {"loss": loss, **metrics}) for r, loss in enumerate(losses, 1)]


def test_divergence_by_loss_above_initial_names_both_losses() -> None:
    losses = [2.31 + r / 4 for r in range(1, 41)]
    evidence = detect_divergence(evaluations(losses, 0.12), initial_metrics=INITIAL)
    assert evidence == "test loss 12.3 after round 40, 2.31 before round 1"
    without_initial = detect_divergence(evaluations(losses))
    assert without_initial == "test loss 12.3 after round 40, 2.56 after round 1"


def test_divergence_of_a_loss_that_exploded_in_round_1_is_detected_from_initial_metrics() -> None:
    losses = [2.5e7 / 2**r for r in range(20)]
    assert (
        detect_divergence(evaluations(losses, 0.1), initial_metrics=INITIAL)
        == "test loss 47.7 after round 20, 2.31 before round 1"
    )
    assert detect_divergence(evaluations(losses, 0.1)) is None, "the history alone shows no divergence"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_divergence_by_non_finite_last_loss_is_detected(loss: float) -> None:
    assert detect_divergence(evaluations([*FALLING[:-1], loss], 0.9)) == "test loss is not finite after round 40"
    assert detect_divergence(evaluations([loss, *FALLING])) is None


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([2.31 * 1.5], False),
        ([2.31 * 2.01], True),
        ([2.31 * 1.5] * 7, False),
        ([2.31 * 1.5] * 8, True),
        ([2.31 * 1.009] * 8, False),
        ([2.31 * 1.011] * 8, True),
        ([2.31 * 0.99] * 39 + [30.0], False),
        ([30.0] * 39 + [2.31 * 0.99], False),
    ],
)
def test_divergence_margin_depends_on_the_number_of_evaluations(losses: list[float], diverged: bool) -> None:
    assert (detect_divergence(evaluations(losses), initial_metrics=INITIAL) is not None) == diverged


def test_divergence_margin_of_a_negative_loss_is_relative_to_its_magnitude() -> None:
    assert detect_divergence(evaluations([-3.0] * 10), initial_metrics={"loss": -2.0}) is None
    assert detect_divergence(evaluations([-1.9] * 10), initial_metrics={"loss": -2.0}) is not None
    assert detect_divergence(evaluations([-0.5]), initial_metrics={"loss": -2.0}) is None
    assert detect_divergence(evaluations([0.5]), initial_metrics={"loss": -2.0}) is not None


@pytest.mark.parametrize(("accuracy", "diverged"), [(0.1, True), (0.32, True), (0.33, False), (0.9, False), (math.nan, True)])
def test_overfitting_model_with_enough_accuracy_is_not_divergent(accuracy: float, diverged: bool) -> None:
    """A quarter of the way from 0.1 to 1 is 0.325."""
    evidence = detect_divergence(evaluations([5.0] * 10, accuracy), initial_metrics=INITIAL)
    assert (evidence is not None) == diverged


@pytest.mark.parametrize(
    ("before", "after", "diverged"),
    [(0.9, 0.91, False), (0.9, 0.9, True), (0.9, 0.5, True), (0.59, 0.6, True), (0.6, 0.61, False)],
)
def test_pretrained_model_with_a_small_gain_is_not_divergent(before: float, after: float, diverged: bool) -> None:
    evidence = detect_divergence(evaluations([0.4] * 10, after), initial_metrics={"loss": 0.3, "accuracy": before})
    assert (evidence is not None) == diverged


@pytest.mark.parametrize(
    ("norms", "losses", "diverged"),
    [
        ([1.2**r for r in range(40)], NO_LONGER_FALLING, True),
        ([1.2**r for r in range(40)], FALLING, False),
        ([1.2**r for r in range(15)], NO_LONGER_FALLING[:15], False),
        ([1.2**r for r in range(16)], NO_LONGER_FALLING[:16], True),
        ([r**2 for r in range(1, 41)], NO_LONGER_FALLING, True),
        (list(range(1, 41)), NO_LONGER_FALLING, False),
        ([math.sqrt(r) for r in range(1, 41)], NO_LONGER_FALLING, False),
        ([1 - math.exp(-r / 10) for r in range(1, 41)], NO_LONGER_FALLING, False),
        ([1.2 ** min(r, 20) for r in range(40)], NO_LONGER_FALLING, False),
        ([math.inf] * 40, NO_LONGER_FALLING, False),
    ],
    ids=["exponential", "loss falls", "few rounds", "enough rounds", "square", "linear", "root", "plateau", "stopped", "inf"],
)
def test_divergence_by_residuals_needs_growth_faster_than_the_rounds(
    norms: list[float], losses: list[float], diverged: bool
) -> None:
    assert (detect_divergence(evaluations(losses), norms, INITIAL) is not None) == diverged


def test_divergence_by_residuals_names_the_medians() -> None:
    """For norms r² the medians of rounds 11 to 20 and 31 to 40 are (15² + 16²) / 2 and (35² + 36²) / 2."""
    evidence = detect_divergence(evaluations(NO_LONGER_FALLING), [r**2 for r in range(1, 41)], INITIAL)
    figures = "1.26e+03 in the last quarter of the rounds, 240 in the second"
    assert evidence == f"residual norm {figures}, while the test loss no longer falls"


def test_run_without_evaluations_is_not_divergent() -> None:
    assert detect_divergence([]) is None


# ------------------------------------------------------------------------------------------------------------- where it is shown


@pytest.mark.slow
def test_initial_metrics_match_the_untrained_model_in_pytorch(blobs: Dataset, scenario: Make) -> None:
    """PyTorch computes cross-entropy and accuracy from the same initial weights on the same test examples."""
    import torch

    result = fedsgd.run(scenario({"model.hidden": [5], "data.partition.clients": 4, "rounds": 1}), data=blobs)
    from fedsgd.experiment.builder import build_experiment

    weights = build_experiment(result.scenario, dataset=blobs).initial_server_state.weights
    tensors = [torch.tensor(weights[span].reshape(shape)) for _, span, shape in result.layout.list_slices()]
    x, y = (torch.tensor(values) for values in blobs.test.arrays())
    output = torch.relu(x @ tensors[0].T + tensors[1]) @ tensors[2].T + tensors[3]
    loss = torch.nn.functional.cross_entropy(output, y).item()
    accuracy = (output.argmax(1) == y).double().mean().item()
    assert result.summary["initial_metrics"] == pytest.approx({"loss": loss, "accuracy": accuracy}, rel=1e-6)
    assert result.summary["diverged"] is None


@pytest.mark.slow
def test_failure_of_initial_metrics_keeps_the_finished_run(blobs: Dataset, scenario: Make) -> None:
    rounds: list[int] = []
    failures = 0

    def fails_at_last(output: Any, target: Any) -> Any:
        nonlocal failures
        if 3 in rounds:
            failures += 1
            raise ValueError("enough")
        return (output.argmax(1) == target).float()

    settings, metrics = {"data.partition.clients": 4}, {"accuracy": fails_at_last}
    result = fedsgd.run(
        scenario(settings),
        data=blobs,
        model=fedsgd.CustomModel(metrics=metrics),
        on_round=lambda record: rounds.append(record.round),
    )
    assert rounds == [1, 2, 3]
    assert failures == 1
    assert result.summary["initial_metrics"] is None
    assert result.summary["rounds"] == 3


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of two runs of the quickstart, three rounds each: "good" learns, "bad" diverges."""
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in {"good": {}, "bad": {"client.optimizer.lr": 50.0}}.items():
        tiny = {"rounds": 3, "client.epochs": 1, **settings}
        fedsgd.run(fedsgd.load(root / "scenarios" / "quickstart.toml", tiny), out=folder / name)
    return folder


def read_summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


@pytest.mark.slow
def test_summary_field_diverged_is_none_for_a_run_that_learns(runs: Path) -> None:
    bad, good = read_summary(runs / "bad"), read_summary(runs / "good")
    loss, initial = bad["final_metrics"]["loss"], bad["initial_metrics"]["loss"]
    assert loss > 2 * initial
    assert initial == good["initial_metrics"]["loss"]
    assert bad["diverged"] == f"test loss {loss:.3g} after round 3, {initial:.3g} before round 1"
    assert good["diverged"] is None
    assert good["final_metrics"]["loss"] < initial


@pytest.mark.slow
def test_divergent_run_warns_in_its_closing_table_and_exits_with_0(root: Path, tmp_path: Path) -> None:
    quick = ("--quiet", "--set", "rounds=3", "--set", "client.epochs=1")
    scenario = root / "scenarios" / "quickstart.toml"
    bad = invoke("run", scenario, *quick, "--set", "client.optimizer.lr=50.0", "--out", tmp_path / "bad")
    good = invoke("run", scenario, *quick, "--out", tmp_path / "good")
    assert bad.exit_code == good.exit_code == 0
    evidence = read_summary(tmp_path / "bad")["diverged"]
    assert f"the run diverged: {evidence}; try a smaller client.optimizer.lr\n" in bad.stdout
    assert "diverged" not in good.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "diverged"),
    nightly_unless(
        lambda case: "uplink.compressor.density" not in case[0] or case[1],
        [({}, False), ({"uplink.compressor.density": 0.001}, False), (DGC, True)],
    ),
)
def test_residuals_of_error_feedback_warn_only_under_unbounded_growth(
    root: Path, settings: dict[str, Any], diverged: bool
) -> None:
    """In 40 rounds of the quickstart, residuals of top-k reach a plateau; those of DGC with momentum at this density do not."""
    result = fedsgd.run(fedsgd.load(root / "scenarios" / "quickstart.toml", {"client.epochs": 2, **settings}))
    evidence = result.summary["diverged"]
    assert (evidence is not None) == diverged
    assert not diverged or evidence.startswith("residual norm ")


@pytest.mark.slow
def test_compare_names_the_divergent_seed_in_every_format(runs: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"table{suffix}" for suffix in (".md", ".csv", ".json", ".tex")]
    options = [option for out in outs for option in ("--out", out)]
    result = invoke("compare", f"plain={runs / 'good'}", f"hot={runs / 'bad'}", *options)
    assert result.exit_code == 0, result.output
    note = f"hot: the run with seed 0 diverged: {read_summary(runs / 'bad')['diverged']}"
    markdown, table, plain, latex = (out.read_text() for out in outs)
    assert note in result.stdout
    assert f"- {note}\n" in markdown
    assert f"% {note}\n" in latex
    assert note in json.loads(plain)["notes"]
    assert [row["diverged"] for row in csv.DictReader(io.StringIO(table))] == ["0", "1"]
    assert "plain: the run" not in result.stdout


@pytest.mark.slow
def test_sweep_names_divergent_cells_and_counts_them_as_finished(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    grid = ("--grid", "client.optimizer.lr=0.05,50.0", "--set", "rounds=3", "--set", "client.epochs=1")
    result = invoke("sweep", root / "scenarios" / "quickstart.toml", *grid, "--out", out)
    assert result.exit_code == 0, result.output
    warnings = [line for line in result.stdout.splitlines() if "diverged" in line]
    assert len(warnings) == 1
    assert re.fullmatch(r".*lr 50, seed 0: diverged: test loss \S+ after round 3, \S+ before round 1", warnings[0])
    progress_lines = [line for line in result.stderr.splitlines() if "diverged" in line]
    assert len(progress_lines) == 1
    assert "lr 50" in progress_lines[0]


def test_page_payload_names_the_divergent_seed(runs: Path) -> None:
    from fedsgd.analysis import load_methods
    from fedsgd.analysis.page.payload import ReportOptions, build_payload
    from fedsgd.network import PricingModel, get_device, get_network

    methods = load_methods([("plain", runs / "good"), ("hot", runs / "bad")])
    payload = build_payload(
        methods,
        ReportOptions(
            "Test", parse_target(0.5), PricingModel(get_network("4g"), get_device("phone"), get_device("server")), "4g"
        ),
    )
    evidence = read_summary(runs / "bad")["diverged"]
    text = f"the run with seed 0 diverged: {evidence}; try a smaller client.optimizer.lr"
    assert [method["diverged"] for method in payload["methods"]] == [[], [text]]


def test_figure_legend_marks_the_divergent_method(runs: Path) -> None:
    from fedsgd.analysis import load_methods
    from fedsgd.analysis.figures.series import build_series
    from fedsgd.analysis.page.payload import ReportOptions
    from fedsgd.network import PricingModel, get_device, get_network

    methods = load_methods([("plain", runs / "good"), ("hot", runs / "bad")])
    series = build_series(
        methods,
        ReportOptions(
            "Test", parse_target(0.5), PricingModel(get_network("4g"), get_device("phone"), get_device("server")), "4g"
        ),
    )
    assert [curve.legend_entry()[1] for curve in series] == ["plain", "hot (diverged)"]


SPIKES = [1456.0, 22.0, 149.0, 1875.0, 255.0, 2.311]
WORSE = [2.9, 3.1, 2.7, 3.4, 2.8, 2.6]


@pytest.mark.parametrize(
    ("losses", "before", "after", "diverged"),
    [
        (SPIKES, 0.217, 0.114, True),
        ([*SPIKES[:5] * 3, 2.311], 0.217, 0.114, True),
        (SPIKES, 0.217, 0.4, False),
        ([*SPIKES[:5], 2.1], 0.217, 0.114, False),
        (WORSE, 0.217, 0.086, True),
        (WORSE, 0.217, 0.25, False),
        (WORSE[:2], 0.217, 0.086, False),
        ([3.6, 3.2, 2.9, 2.7, 2.5, 2.4], 0.217, 0.15, False),
        ([2.31, 2.30, 2.31, 2.30], 0.12, 0.10, False),
        ([40.0, 20.0, 10.0, 4.0], 0.1, 0.1, False),
    ],
)
def test_divergence_of_a_short_run_needs_high_losses_without_accuracy_gain(
    losses: list[float], before: float, after: float, diverged: bool
) -> None:
    evidence = detect_divergence(evaluations(losses, after), initial_metrics={"loss": 2.297, "accuracy": before})
    assert (evidence is not None) == diverged, evidence


def test_divergence_with_a_late_dip_names_the_median_loss() -> None:
    evidence = detect_divergence(evaluations(SPIKES, 0.114), initial_metrics={"loss": 2.297, "accuracy": 0.217})
    assert evidence == "median test loss 202 over 6 evaluations, 2.3 before round 1"
