"""Clients that are made from their number: what they have is theirs alone, is drawn as the paper says, and costs nothing unasked."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsgd.cli import main
from fedsgd.data import ClientData, Examples, Partition, PartitionedData, generate_clients
from fedsgd.data.datasets.synthetic import Synthetic
from fedsgd.data.generated import MAX_MATERIALIZED_EXAMPLES, count_held_out
from fedsgd.data.partitioners.natural import NaturalPartition
from fedsgd.errors import DataError, ScenarioError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.partition_summary import summarize_partition
from fedsgd.experiment.runner import Result, run
from fedsgd.scenario.scenario import Scenario, load, parse_scenario

SMALL = {"examples": 12, "test_clients": 5}


def make(settings: dict[str, Any] | None = None, **keys: Any) -> Scenario:
    """Forty small clients, four a round."""
    data = {"name": "synthetic", "clients": 40, **SMALL, **keys}
    raw = {"name": "s", "rounds": 2, "data": data, "model": "softmax", "server": {"cohort": 4}}
    return parse_scenario(raw).with_settings(settings or {})


def same(a: Examples, b: Examples) -> bool:
    return all(p.tobytes() == q.tobytes() and p.dtype == q.dtype for p, q in zip(a.arrays(), b.arrays(), strict=True))


# ------------------------------------------------------------------------------------------------------ what a client is drawn as


def test_a_client_is_a_function_of_the_seed_and_its_number_alone() -> None:
    one, many = Synthetic(clients=3), Synthetic(clients=10**9, test_clients=7)
    backwards = [many.examples_of(client, 5) for client in (2, 1, 0)][::-1]
    for client, examples in enumerate(backwards):
        assert same(one.examples_of(client, 5), examples)
        assert not same(one.examples_of(client, 6), examples)
    assert not same(backwards[0], backwards[1])
    assert not same(one.examples_of(10**8, 5), many.examples_of(10**8 + 3, 5)), "no number is used again"


def test_a_clients_examples_are_still_what_they_were() -> None:
    """Whoever changes them changes every published run; numpy may, in a new version, and then these figures move with it."""
    x, y = Synthetic().examples_of(123_456, 7).arrays()
    assert (x.dtype, x.shape, y.dtype, y.shape) == (np.float32, (50, 60), np.int64, (50,))
    assert x[0, :3].tolist() == pytest.approx([-0.33073, -0.610542, 0.184676], abs=1e-6)
    assert y[:8].tolist() == [2, 2, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("iid", [False, True])
def test_labels_are_those_of_the_clients_own_model(iid: bool) -> None:
    source = Synthetic(iid=iid)
    for client in range(20):
        truth, (x, y) = source.draw_client(client, 3), source.examples_of(client, 3).arrays()
        scores = np.exp(x.astype(np.float64) @ truth.W.T + truth.b)
        assert (y == (scores / scores.sum(axis=1, keepdims=True)).argmax(axis=1)).all()


def test_more_examples_of_a_client_are_more_of_the_same() -> None:
    few, many = (Synthetic(examples=n).examples_of(4, 0).arrays() for n in (3, 30))
    assert few[0].tobytes() == many[0][:3].tobytes()
    assert few[1].tolist() == many[1][:3].tolist()


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.5, 2.0), (4.0, 0.25)])
def test_what_is_drawn_has_the_means_and_variances_of_the_paper(alpha: float, beta: float) -> None:
    """Of m clients, the standard error of a mean of variance s is √(s/m), of a variance s·√(2/m); five of each are allowed."""
    m, source = 2000, Synthetic(alpha=alpha, beta=beta, examples=1)
    truths = [source.draw_client(client, 11) for client in range(m)]
    for values, variance in ((np.array([t.u for t in truths]), alpha), (np.array([t.B for t in truths]), beta)):
        assert abs(values.mean()) <= 5 * np.sqrt(variance / m)
        assert abs(values.var() - variance) <= 5 * variance * np.sqrt(2 / m)
    around = {
        "W": np.array([(t.W - t.u).ravel() for t in truths]),
        "b": np.array([t.b - t.u for t in truths]),
        "v": np.array([t.v - t.B for t in truths]),
    }
    for name, values in around.items():
        assert abs(values.mean()) <= 5 / np.sqrt(values.size), name
        assert abs(values.var() - 1) <= 5 * np.sqrt(2 / values.size), name
    assert [values.shape[1] for values in around.values()] == [600, 10, 60]


def test_examples_lie_around_the_clients_mean_with_the_papers_variances() -> None:
    n, source = 20_000, Synthetic(examples=20_000)
    off = source.examples_of(1, 0).x - source.draw_client(1, 0).v
    variance = np.arange(1, 61) ** -1.2
    assert (np.abs(off.mean(axis=0)) <= 5 * np.sqrt(variance / n)).all()
    assert (np.abs(off.var(axis=0) - variance) <= 5 * variance * np.sqrt(2 / n)).all()
    assert np.abs(np.corrcoef(off.T) - np.eye(60)).max() <= 6 / np.sqrt(n)


def test_of_iid_clients_all_have_one_model_and_no_mean() -> None:
    source = Synthetic(iid=True, alpha=3, beta=3)
    first, second = source.draw_client(0, 0), source.draw_client(1, 0)
    assert first.W.tobytes() == second.W.tobytes()
    assert first.b.tobytes() == second.b.tobytes()
    assert not first.v.any()
    assert not same(source.examples_of(0, 0), source.examples_of(1, 0))
    assert abs(first.W.var() - 1) < 5 * np.sqrt(2 / 600)
    assert source.draw_client(0, 1).W.tobytes() != first.W.tobytes()


def test_alpha_shifts_the_scores_of_all_classes_alike_and_so_changes_no_label() -> None:
    """A fact of the paper's distribution that its readers should know: see the docstring of `Synthetic`."""
    labels = [Synthetic(alpha=alpha).examples_of(2, 0).y.tolist() for alpha in (0, 1, 100)]
    assert labels[0] == labels[1] == labels[2]


# ------------------------------------------------------------------------------------------------------- as data of clients

CLIENT_DATA = {
    "made": lambda: generate_clients(Synthetic(clients=9, **SMALL), 0.0, 2)[1],
    "made, less what is held out": lambda: generate_clients(Synthetic(clients=9, **SMALL), 0.3, 2)[1],
    "held out": lambda: generate_clients(Synthetic(clients=9, **SMALL), 0.3, 2)[2],
    "held out of a single example": lambda: generate_clients(Synthetic(clients=9, examples=1), 0.3, 2)[2],
    "dealt": lambda: PartitionedData(
        Examples(np.arange(20.0)[:, None], np.arange(20)), Partition.from_assignment(np.array([0, 1, 1, 3, 2] * 4), 5)
    ),
    "dealt, one without any": lambda: PartitionedData(
        Examples(np.arange(6.0)[:, None], np.arange(6)), Partition.from_assignment(np.array([0, 0, 2, 3, -1, 2]), 5)
    ),
}


@pytest.mark.parametrize("made", CLIENT_DATA.values(), ids=CLIENT_DATA.keys())
def test_laws_of_client_data(made: Callable[[], ClientData]) -> None:
    data = made()
    sizes = data.sizes()
    assert sizes.dtype == np.int64
    assert sizes.tolist() == [len(data.examples_of(client)) for client in range(len(data))]
    for clients in ([], [0], [3, 1, 3], list(range(len(data)))):
        assert data.sizes_of(clients).tolist() == sizes[clients].tolist()
    distinct, clients_with = data.distinct_sizes()
    assert [distinct.tolist(), clients_with.tolist()] == [a.tolist() for a in np.unique(sizes, return_counts=True)]
    x, y = data.all_examples().arrays()
    assert x.tobytes() == b"".join(data.examples_of(client).arrays()[0].tobytes() for client in range(len(data)))
    assert (
        y.tolist()
        == data.all_examples().targets().tolist()
        == [t for c in range(len(data)) for t in data.examples_of(c).targets()]
    )
    again = data.all_examples()
    assert (again.x is data.all_examples().x, again.rows is data.all_examples().rows) == (True, True), (
        "so that processes agree on what is meant"
    )
    assert len(data.limit_clients(10**9)) == len(data)
    copy = pickle.loads(pickle.dumps(data))
    assert same(copy.examples_of(1), data.examples_of(1))


@settings(max_examples=30)
@given(st.integers(1, 30), st.floats(0.01, 0.99), st.integers(0, 5))
def test_each_clients_examples_are_split_by_a_stream_of_its_own(n: int, share: float, seed: int) -> None:
    source = Synthetic(clients=3, examples=n, test_clients=1, dimensions=2)
    _, train, held_out = generate_clients(source, share, seed)
    assert held_out is not None
    for client in range(3):
        whole = {row.tobytes() for row in source.examples_of(client, seed).x}
        parts = [{row.tobytes() for row in data.examples_of(client).arrays()[0]} for data in (train, held_out)]
        assert parts[0] | parts[1] == whole
        assert not parts[0] & parts[1]
        assert len(parts[1]) == count_held_out(np.array([n]), share)[0]
        assert parts[0]


def test_which_examples_are_held_out_differs_between_clients_and_seeds() -> None:
    source = Synthetic(clients=3, examples=40, test_clients=1)
    rows = [generate_clients(source, 0.5, seed)[1].examples_of(client).rows for seed, client in ((0, 0), (0, 1), (1, 0))]
    assert len({r.tobytes() for r in rows if r is not None}) == 3


def test_the_test_examples_are_those_of_further_clients() -> None:
    source = Synthetic(clients=6, **SMALL)
    dataset, train, _ = generate_clients(source, 0.0, 4)
    further = [source.examples_of(client, 4) for client in range(6, 11)]
    assert dataset.test.x.tobytes() == b"".join(e.x.tobytes() for e in further)
    assert dataset.train.x.tobytes() == train.all_examples().x.tobytes(), "up to eight clients stand for all"
    assert (dataset.shape, dataset.classes) == ((60,), 10)
    for client in (-1, 6):
        with pytest.raises(IndexError, match=f"client {client} of 6"):
            train.examples_of(client)


def test_examples_of_too_many_clients_are_not_looked_at_together() -> None:
    _, train, _ = generate_clients(Synthetic(clients=10**6), 0.0, 0)
    with pytest.raises(DataError, match=r"1,000,000 clients with 50 examples each .* 50,000,000 examples, more than 1,000,000"):
        train.all_examples()
    assert len(train.limit_clients(1000)) == 1000
    assert len(replace(train, generator=Synthetic(examples=MAX_MATERIALIZED_EXAMPLES // 4)).limit_clients(1000)) == 4


def test_a_million_clients_weigh_what_ten_thousand_do() -> None:
    def peak(n: int) -> int:
        tracemalloc.start()
        _, train, _ = generate_clients(Synthetic(clients=n, test_clients=10), 0.2, 0)
        cohort = np.random.default_rng(n).choice(n, 100, replace=False).tolist()
        assert train.sizes_of(cohort).tolist() == [40] * 100
        for client in cohort:
            train.examples_of(client)
        train.distinct_sizes()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)
    few, many = peak(10**4), peak(10**6)
    assert many < 1.2 * few
    assert many < 4 * 2**20


# ---------------------------------------------------------------------------------------------------------------- in a scenario


def test_a_population_is_not_split() -> None:
    s = make()
    assert s.data.partition == NaturalPartition()
    assert make(partition="natural") == s
    assert (
        Scenario(name="x").with_settings({"data.name": "synthetic"}).data
        == parse_scenario({"name": "x", "data": {"name": "synthetic"}}).data
    )
    for partition in ({"name": "iid", "clients": 7}, {"name": "natural", "clients": 7}, {"name": "dirichlet", "clients": 40}):
        with pytest.raises(ScenarioError, match=r"^data\.partition: got .* set data\.clients, and leave data\.partition out"):
            make(partition=partition)


def test_the_cohort_is_held_against_its_clients() -> None:
    with pytest.raises(ScenarioError, match=r"^server\.cohort: got 41 clients a round, but data\.clients gives 40$"):
        make({"server.cohort": 41})
    assert build_experiment(make({"server.fraction": 0.5})).plan.cohort_size == 20


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_workers_change_nothing(held_out: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsgd.runtime.workers.pool.MIN_DISTRIBUTED_EVALUATION", 0)
    asked = {"data.held_out": held_out, "evaluation.training": True, "evaluation.clients": held_out > 0}
    results = [run(make(asked, examples=40), workers=workers) for workers in (1, 2)]
    digests = [[r.summary[key] for key in ("params_sha256", "ledger_sha256", "final_metrics")] for r in results]
    assert digests[0] == digests[1]


def test_accuracy_by_client_and_on_training_examples_are_those_of_the_clients(tmp_path: Path) -> None:
    asked = make({"data.held_out": 0.25, "evaluation.training": True, "evaluation.clients": True})
    result, experiment = run(asked, out=tmp_path / "run"), build_experiment(asked)
    assert result.client_accuracy is not None
    assert experiment.held_out is not None
    of_third = experiment.engine.evaluate(result.parameters, experiment.held_out.examples_of(3)).means["accuracy"]
    assert result.client_accuracy[3] == pytest.approx(of_third)


@pytest.mark.parametrize("key", ["training", "clients"])
def test_evaluation_of_too_many_clients_is_refused(key: str) -> None:
    asked = make({f"evaluation.{key}": True, "data.held_out": 0.5, "data.clients": 10**6})
    with pytest.raises(
        ScenarioError, match=rf"^evaluation\.{key}: 1,000,000 clients with 6 examples each would have to be held in memory"
    ):
        build_experiment(asked)
    with pytest.raises(ScenarioError, match="no client has test examples of its own; set"):
        build_experiment(make({"evaluation.clients": True}))


@pytest.mark.parametrize("workers", [1, 2])
def test_no_round_makes_anyone_elses_data(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = Synthetic.examples_of

    def counted(self: Synthetic, client: int, seed: int) -> Examples:
        made.append(client)
        return original(self, client, seed)

    monkeypatch.setattr(Synthetic, "examples_of", counted)
    result: Result = run(make({"data.clients": 10**6}), workers=workers)
    trained = (
        [] if workers > 1 else [client for round in result.history for client in round.cohort]
    )  # theirs are made elsewhere
    assert sorted(made) == sorted([*range(8), *range(10**6, 10**6 + 5), *trained])


@pytest.mark.parametrize("key", ["alpha", "beta"])
def test_settings_beyond_float32_are_refused(key: str) -> None:
    with pytest.raises(ScenarioError, match=f"data.{key}: expected a number from 0 to 3.4e38, the largest number of float32"):
        make({f"data.{key}": 1e300})
    build_experiment(make({f"data.{key}": 3e38, "data.iid": False}))


# ------------------------------------------------------------------------------------------------------------------ as a picture


def test_of_many_clients_the_first_thousand_are_shown() -> None:
    split = summarize_partition(make({"data.clients": 10**6, "data.held_out": 0.25}))
    assert (len(split.sizes), split.n_registered, split.n_unassigned) == (1000, 10**6, 0)
    assert split.held_out_sizes is not None
    assert (split.sizes.tolist(), split.held_out_sizes.tolist()) == ([9] * 1000, [3] * 1000)
    assert split.counts is not None
    assert split.counts.sum(axis=1).tolist() == [9] * 1000
    assert split.population_text == "the first 1,000 of 1,000,000 clients"
    few = summarize_partition(make())
    assert (len(few.sizes), few.n_registered, few.population_text) == (40, None, "40 clients")
    assert few.counts is not None
    labels = np.bincount(build_experiment(make()).train.examples_of(7).y, minlength=10)
    assert few.counts[7].tolist() == labels.tolist()


def test_the_command_says_that_it_shows_some(root: Path, tmp_path: Path) -> None:
    file, settings = str(root / "scenarios" / "synthetic.toml"), ["--set", "data.clients=5000", "--set", "data.examples=3"]
    shown = CliRunner().invoke(main, ["partition", file, *settings, "--picture", str(tmp_path / "split.png")])
    assert shown.exit_code == 0, shown.output
    assert "synthetic: natural, the first 1,000 of 5,000 clients, 3,000 training examples" in shown.stdout
    found = json.loads(CliRunner().invoke(main, ["partition", file, *settings, "--json"]).stdout)
    assert (found["clients"], found["registered"], len(found["sizes"])) == (1000, 5000, 1000)


def test_the_scenario_of_the_project_learns(root: Path) -> None:
    result = run(load(root / "scenarios" / "synthetic.toml", {"rounds": 6, "data.clients": 10**5}))
    assert result.summary["final_accuracy"] > 0.3, "of ten classes"
