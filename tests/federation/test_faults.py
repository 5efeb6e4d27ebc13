"""Hostile clients: their number, their updates, and their effect on a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fedsgd
from fedsgd.cli.terminal import print_result
from fedsgd.errors import RunError, ScenarioError
from fedsgd.federation.faults import HostileClients
from fedsgd.scenario.scenario import Scenario, parse_scenario

UPDATE = np.array([3.0, -4.0, 0.0], dtype=np.float32)
TABLE = {
    "name": "hostile",
    "rounds": 3,
    "data": {"partition": {"name": "iid", "clients": 10}},
    "model": {"name": "mlp", "hidden": [8]},
    "server": {"cohort": 5},
}


def make_scenario(**hostile: object) -> Scenario:
    return parse_scenario({**TABLE, "faults": {"hostile": hostile}} if hostile else TABLE)


def final_model(scenario: Scenario, workers: int = 1) -> bytes:
    return fedsgd.run(scenario, execution=fedsgd.ExecutionConfig(workers=workers)).parameters.tobytes()


@pytest.mark.parametrize(
    ("share", "n_clients", "expected"), [(0.1, 20, 2), (0.3, 10, 3), (0.0, 10, 0), (1.0, 7, 7), (0.04, 10, 0)]
)
def test_share_of_the_clients_is_hostile(share: float, n_clients: int, expected: int) -> None:
    clients = HostileClients("sign-flip", share).clients(0, n_clients)
    assert len(clients) == expected
    assert clients <= set(range(n_clients))


def test_hostile_clients_are_drawn_from_the_seed() -> None:
    faults = HostileClients("random", 0.3)
    draws = [faults.clients(seed, 100) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] == HostileClients("scaling", 0.3).clients(0, 100)  # attacks can be compared on the same clients


def test_hostile_update_is_that_of_its_kind() -> None:
    assert HostileClients("sign-flip", 1).replace_update(UPDATE, 0, 1, 0).tolist() == [-3, 4, 0]
    assert HostileClients("sign-flip", 1, 2).replace_update(UPDATE, 0, 1, 0).tolist() == [-6, 8, 0]
    assert HostileClients("scaling", 1).replace_update(UPDATE, 0, 1, 0).tolist() == [30, -40, 0]
    assert HostileClients("scaling", 1, 3).replace_update(UPDATE, 0, 1, 0).tolist() == [9, -12, 0]


def test_random_update_has_the_norm_of_the_trained_update_and_its_own_stream() -> None:
    faults, update = HostileClients("random", 1), np.linspace(-1, 1, 1000, dtype=np.float32)
    vectors = [faults.replace_update(update, *path) for path in ((0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0), (0, 1, 0))]
    for vector in vectors:
        assert np.linalg.norm(vector) == pytest.approx(np.linalg.norm(update), rel=1e-6)
    assert vectors[0].tobytes() == vectors[-1].tobytes()
    assert len({vector.tobytes() for vector in vectors}) == 4
    assert not faults.replace_update(np.zeros(5, dtype=np.float32), 0, 1, 0).any()


@pytest.mark.slow
def test_run_without_hostile_clients_is_that_of_a_share_of_zero() -> None:
    plain = final_model(make_scenario())
    assert final_model(make_scenario(kind="scaling", share=0.0)) == plain
    assert final_model(make_scenario(kind="scaling", share=0.3)) != plain


@pytest.mark.slow
def test_all_clients_with_flipped_signs_send_the_opposite_updates() -> None:
    hostile: dict[str, dict[str, object]] = {
        "plain": {},
        "flipped": {"kind": "sign-flip", "share": 1.0},
        "initial": {"kind": "scaling", "share": 1.0, "factor": 1e-30},
    }
    models = {name: fedsgd.run(make_scenario(**keys).with_settings({"rounds": 1})).parameters for name, keys in hostile.items()}
    assert np.abs(models["plain"] - models["initial"]).max() > 1e-3
    np.testing.assert_allclose(models["flipped"] - models["initial"], models["initial"] - models["plain"], atol=1e-6)


@pytest.mark.slow
def test_two_workers_have_the_same_hostile_clients() -> None:
    scenario = make_scenario(kind="random", share=0.3)
    assert final_model(scenario, workers=2) == final_model(scenario)


def test_update_that_leaves_the_range_of_float32_ends_the_run_with_the_client() -> None:
    with pytest.raises(RunError, match=r"round 1, client \d: .*not finite"):
        fedsgd.run(make_scenario(kind="scaling", share=1.0, factor=3e38))


def test_unknown_kind_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ScenarioError, match=r'faults\.hostile\.kind: got "sign_flip".*did you mean "sign-flip"'):
        make_scenario(kind="sign_flip", share=0.1)


def test_hostile_clients_survive_the_round_trip_through_toml(tmp_path: Path) -> None:
    scenario = make_scenario(kind="scaling", share=0.1, factor=5.0)
    (tmp_path / "hostile.toml").write_text(scenario.to_toml())
    assert fedsgd.load(tmp_path / "hostile.toml") == scenario


@pytest.mark.slow
def test_summary_and_table_of_a_run_name_its_hostile_clients(capsys: pytest.CaptureFixture[str]) -> None:
    hostile_run = fedsgd.run(make_scenario(kind="scaling", share=0.3))
    assert hostile_run.summary["hostile"] == {"clients": 3, "kind": "scaling", "factor": 10.0}
    print_result(hostile_run)
    assert "hostile clients: 3, scaling with factor 10" in capsys.readouterr().out
    assert fedsgd.run(make_scenario()).summary["hostile"] is None
    assert fedsgd.run(make_scenario(kind="scaling", share=0.04)).summary["hostile"] is None
