"""Prices and comparisons of run directories from Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import fedsgd
from fedsgd.analysis import compare as compare_methods
from fedsgd.analysis import load_methods, load_run
from fedsgd.analysis import price as price_run
from fedsgd.errors import FedsgdError, ScenarioWarning
from fedsgd.network import build_pricing_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    fedsgd.run(fedsgd.Scenario(name="d", rounds=3), out=path)
    return path


@pytest.mark.slow
def test_price_of_a_directory_is_that_of_the_pricing_model(folder: Path) -> None:
    model = build_pricing_model("3g", device_name="laptop", deadline="30 s")
    (expected,) = price_run(load_run(folder), [model])
    for network in ("3g", fedsgd.networks.get_network("3g"), fedsgd.networks.get_network("3g").link):
        priced = fedsgd.price(str(folder), network, device="laptop", deadline="30 s")
        assert priced.cumulative_seconds.tolist() == expected.cumulative_seconds.tolist()
    assert priced.pricing_model.deadline_seconds == 30.0


@pytest.mark.slow
def test_slower_device_makes_a_run_slower(folder: Path) -> None:
    devices = [fedsgd.networks.Device(compute=f"{rate} MFLOP/s", copy="1 GB/s") for rate in (1, 1000)]
    slow, fast = (fedsgd.price(folder, "1g", device=device).cumulative_seconds[-1] for device in devices)
    assert slow > fast


def test_comparison_is_that_of_the_pricing_models(folder: Path) -> None:
    models = {"4g": build_pricing_model("4g"), "mine": build_pricing_model(up="1 Mbit/s", down="2 Mbit/s")}
    expected = compare_methods(load_methods([("a", folder)]), None, models)
    networks = {"4g": "4g", "mine": fedsgd.networks.Link(up="1 Mbit/s", down="2 Mbit/s")}
    assert fedsgd.compare([("a", folder)], networks=networks).rows == expected.rows
    assert [*fedsgd.compare([folder], networks=["3g", "4g"]).pricing_models] == ["3g", "4g"]
    assert fedsgd.compare([folder], target=0.1).rows[0].network_costs == {}


@pytest.mark.filterwarnings("always::fedsgd.errors.ScenarioWarning")
def test_target_that_worse_models_reach_warns(folder: Path) -> None:
    with pytest.warns(ScenarioWarning, match=r'^target = "loss>0.1": worse models reach it.*set "loss<0.1"$'):
        fedsgd.compare([folder], "loss>0.1")
    with warnings.catch_warnings(action="error"):
        fedsgd.compare([folder], "loss<100")


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "network": (lambda f: fedsgd.price(f, cast("Any", 3)), 'network: got 3, expected a name such as "4g", or fedsgd.networks'),
    "name": (lambda f: fedsgd.price(f, "4gg"), 'network: got "4gg", did you mean "4g"?'),
    "device": (lambda f: fedsgd.price(f, "4g", device=cast("Any", 3)), 'device: got 3, expected a name such as "phone"'),
    "device's name": (lambda f: fedsgd.price(f, "4g", device="phon"), 'device: got "phon", did you mean "phone"?'),
    "number as deadline": (
        lambda f: fedsgd.price(f, "4g", deadline=cast("Any", 5)),
        'deadline: got 5, expected a time such as "30 s"',
    ),
    "deadline": (lambda f: fedsgd.price(f, "4g", deadline="1 m"), "deadline: got '1 m', expected a time"),
    "zero deadline": (lambda f: fedsgd.price(f, "4g", deadline="0 s"), "deadline: got '0 s', expected a time above 0"),
    "folder": (lambda f: fedsgd.price(f / "none", "4g"), "is not a run folder"),
    "run": (lambda f: fedsgd.price(cast("Any", 3), "4g"), "run: got 3, expected the path of a file or folder"),
    "networks": (lambda f: fedsgd.compare([f], networks="4g"), 'networks: got "4g", expected names such as ["4g"]'),
    "objects without headings": (
        lambda f: fedsgd.compare([f], networks=cast("Any", [fedsgd.networks.get_network("4g")])),
        "networks: got a list with an object, expected names, or objects by heading",
    ),
    "runs": (lambda f: fedsgd.compare(cast("Any", f)), "runs: got "),
    "clock": (
        lambda f: fedsgd.price(f, "4g", measured_coding=cast("Any", 0.5)),
        "measured_coding: got 0.5, expected True or False",
    ),
    "clock of a comparison": (lambda f: fedsgd.compare([f], measured_coding=cast("Any", "x")), 'measured_coding: got "x"'),
    "tuned text": (lambda f: fedsgd.compare([f], tuned="rounds"), 'tuned: got "rounds", expected a list of keys such as'),
    "tuned number": (lambda f: fedsgd.compare([f], tuned=cast("Any", [5])), "tuned: got [5], expected a list of keys"),
    "baseline": (lambda f: fedsgd.compare([f], baseline=cast("Any", 5)), 'baseline: there is no method "5"'),
    "label": (lambda f: fedsgd.compare([cast("Any", (5, f))]), "5: expected a label of printable characters"),
    "device without networks": (lambda f: fedsgd.compare([f], device="phon"), 'device: got "phon", did you mean "phone"?'),
    "number as a name": (lambda f: fedsgd.networks.get_network(cast("Any", 5)), 'got 5, expected one of: "10g", "1g"'),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_argument_is_refused_in_one_line(folder: Path, case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises(FedsgdError) as error:
        call(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
