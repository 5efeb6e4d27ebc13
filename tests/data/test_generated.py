"""Generated clients: client data, held-out examples, memory, and use in a scenario."""

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
from hypothesis import given
from hypothesis import strategies as st

from fedsgd import ExecutionConfig
from fedsgd.cli import main
from fedsgd.data import ClientData, Examples, Partition, PartitionedData, generate_clients
from fedsgd.data.datasets.synthetic import Synthetic
from fedsgd.data.generated import MAX_MATERIALIZED_EXAMPLES, count_held_out
from fedsgd.data.partitioners.natural import NaturalPartition
from fedsgd.errors import DataError, ScenarioError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.partition_summary import summarize_partition
from fedsgd.experiment.result import Result
from fedsgd.experiment.runner import run
from fedsgd.scenario.scenario import Scenario, load, parse_scenario
from tests.data.samples import have_equal_arrays
from tests.effort import examples

SMALL = {"examples": 12, "test_clients": 5}
UNEQUAL: dict[str, Any] = {**SMALL, "sizes": "log-normal", "size_mean": 2.0, "size_sigma": 1.0}


def make_scenario(settings: dict[str, Any] | None = None, **keys: Any) -> Scenario:
    """Return a scenario with forty small clients, four in each round."""
    data = {"name": "synthetic", "clients": 40, **SMALL, **keys}
    raw = {"name": "s", "rounds": 2, "data": data, "model": "softmax", "server": {"cohort": 4}}
    return parse_scenario(raw).with_settings(settings or {})


CLIENT_DATA = {
    "generated": lambda: generate_clients(Synthetic(clients=9, **SMALL), 0.0, 2)[1],
    "generated, without held-out examples": lambda: generate_clients(Synthetic(clients=9, **SMALL), 0.3, 2)[1],
    "held out": lambda: generate_clients(Synthetic(clients=9, **SMALL), 0.3, 2)[2],
    "held out of log-normal sizes": lambda: generate_clients(Synthetic(clients=9, **UNEQUAL), 0.3, 2)[2],
    "log-normal sizes, without held-out examples": lambda: generate_clients(Synthetic(clients=9, **UNEQUAL), 0.3, 2)[1],
    "held out of few examples": lambda: generate_clients(
        Synthetic(clients=9, **{**UNEQUAL, "examples": 1, "size_mean": 0.0}), 0.3, 2
    )[2],
    "partitioned": lambda: PartitionedData(
        Examples(np.arange(20.0)[:, None], np.arange(20)), Partition.from_assignment(np.array([0, 1, 1, 3, 2] * 4), 5)
    ),
    "partitioned, with an empty client": lambda: PartitionedData(
        Examples(np.arange(6.0)[:, None], np.arange(6)), Partition.from_assignment(np.array([0, 0, 2, 3, -1, 2]), 5)
    ),
}


@pytest.mark.parametrize("build", CLIENT_DATA.values(), ids=CLIENT_DATA.keys())
def test_client_data_methods_agree_with_each_other(build: Callable[[], ClientData]) -> None:
    data = build()
    sizes = data.sizes()
    assert sizes.dtype == np.int64
    assert sizes.tolist() == [len(data.examples_of(client)) for client in range(len(data))]
    for clients in ([], [0], [3, 1, 3], list(range(len(data)))):
        assert data.sizes_of(clients).tolist() == sizes[clients].tolist()
    distinct, n_clients = data.distinct_sizes()
    assert [distinct.tolist(), n_clients.tolist()] == [a.tolist() for a in np.unique(sizes, return_counts=True)]
    x, y = data.all_examples().arrays()
    assert x.tobytes() == b"".join(data.examples_of(client).arrays()[0].tobytes() for client in range(len(data)))
    assert (
        y.tolist()
        == data.all_examples().targets().tolist()
        == [t for c in range(len(data)) for t in data.examples_of(c).targets()]
    )
    examples = data.all_examples()
    assert (examples.x is data.all_examples().x, examples.rows is data.all_examples().rows) == (True, True), (
        "processes identify the examples by their arrays"
    )
    assert len(data.limit_clients(10**9)) == len(data)
    copy = pickle.loads(pickle.dumps(data))
    assert have_equal_arrays(copy.examples_of(1), data.examples_of(1))


@examples(10)
@given(st.integers(2, 30), st.floats(0.01, 0.99), st.integers(0, 5))
def test_held_out_examples_and_training_examples_partition_each_client(n: int, share: float, seed: int) -> None:
    source = Synthetic(clients=3, examples=n, test_clients=1, dimensions=2)
    _, train, held_out = generate_clients(source, share, seed)
    assert held_out is not None
    for client in range(3):
        rows = {row.tobytes() for row in source.examples_of(client, seed).x}
        parts = [{row.tobytes() for row in data.examples_of(client).arrays()[0]} for data in (train, held_out)]
        assert parts[0] | parts[1] == rows
        assert not parts[0] & parts[1]
        assert len(parts[1]) == count_held_out(np.array([n]), share)[0]
        assert parts[0]


def test_held_out_examples_differ_between_clients_and_seeds() -> None:
    source = Synthetic(clients=3, examples=40, test_clients=1)
    rows = [generate_clients(source, 0.5, seed)[1].examples_of(client).rows for seed, client in ((0, 0), (0, 1), (1, 0))]
    assert len({r.tobytes() for r in rows if r is not None}) == 3


def test_test_examples_come_from_further_clients() -> None:
    source = Synthetic(clients=6, **SMALL)
    dataset, train, _ = generate_clients(source, 0.0, 4)
    test_clients = [source.examples_of(client, 4) for client in range(6, 11)]
    assert dataset.test.x.tobytes() == b"".join(e.x.tobytes() for e in test_clients)
    assert dataset.train.x.tobytes() == train.all_examples().x.tobytes(), "the sample has up to eight clients"
    assert (dataset.shape, dataset.classes) == ((60,), 10)
    for client in (-1, 6):
        with pytest.raises(IndexError, match=f"client: got {client}, expected 0 to 5"):
            train.examples_of(client)


@pytest.mark.slow
def test_all_examples_of_too_many_clients_raise_error() -> None:
    _, train, _ = generate_clients(Synthetic(clients=10**6), 0.0, 0)
    with pytest.raises(
        DataError, match=r"got 50,000,000 generated examples \(1,000,000 clients with 50 each\), expected at most 1,000,000"
    ):
        train.all_examples()
    assert len(train.limit_clients(1000)) == 1000
    assert len(replace(train, generator=Synthetic(examples=MAX_MATERIALIZED_EXAMPLES // 4)).limit_clients(1000)) == 4
    unequal = replace(train, generator=Synthetic(clients=10**6, sizes="log-normal"))
    with pytest.raises(DataError, match=r"generated examples \(1,000,000 clients\), expected at most 1,000,000 in memory$"):
        unequal.all_examples()
    n = len(unequal.limit_clients(10**6))
    assert unequal.sizes_of(range(n)).sum() <= MAX_MATERIALIZED_EXAMPLES < unequal.sizes_of(range(n + 1)).sum()


@pytest.mark.slow
def test_memory_does_not_grow_with_number_of_clients() -> None:
    def measure_peak(n: int) -> int:
        tracemalloc.start()
        _, train, _ = generate_clients(Synthetic(clients=n, test_clients=10), 0.2, 0)
        cohort = np.random.default_rng(n).choice(n, 100, replace=False).tolist()
        assert train.sizes_of(cohort).tolist() == [40] * 100
        for client in cohort:
            train.examples_of(client)
        train.distinct_sizes()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    measure_peak(100)
    few, many = measure_peak(10**4), measure_peak(10**6)
    assert many < 1.2 * few
    assert many < 4 * 2**20


def test_generated_clients_accept_natural_partition_only() -> None:
    scenario = make_scenario()
    assert scenario.data.partition == NaturalPartition()
    assert make_scenario(partition="natural") == scenario
    assert (
        Scenario(name="x").with_settings({"data.name": "synthetic"}).data
        == parse_scenario({"name": "x", "data": {"name": "synthetic"}}).data
    )
    for partition in ({"name": "iid", "clients": 7}, {"name": "natural", "clients": 7}, {"name": "dirichlet", "clients": 40}):
        with pytest.raises(ScenarioError, match=r"^data\.partition: got .* set data\.clients, and leave data\.partition out"):
            make_scenario(partition=partition)


def test_cohort_larger_than_generated_clients_raises_error() -> None:
    with pytest.raises(ScenarioError, match=r"^server\.cohort: got 41 .* at most 40, the number that data\.clients gives$"):
        make_scenario({"server.cohort": 41})
    assert build_experiment(make_scenario({"server.fraction": 0.5})).plan.cohort_size == 20


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_worker_count_changes_no_result(held_out: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsgd.runtime.workers.pool.MIN_DISTRIBUTED_EVALUATION", 0)
    settings = {"data.held_out": held_out, "evaluation.training": True, "evaluation.clients": held_out > 0}
    results = [run(make_scenario(settings, examples=40), execution=ExecutionConfig(workers=workers)) for workers in (1, 2)]
    digests = [[r.summary[key] for key in ("params_sha256", "ledger_sha256", "final_metrics")] for r in results]
    assert digests[0] == digests[1]


def test_client_accuracy_equals_accuracy_on_held_out_examples(tmp_path: Path) -> None:
    scenario = make_scenario({"data.held_out": 0.25, "evaluation.training": True, "evaluation.clients": True})
    result, experiment = run(scenario, out=tmp_path / "run"), build_experiment(scenario)
    assert result.client_accuracy is not None
    assert experiment.held_out is not None
    accuracy = experiment.engine.evaluate(result.parameters, experiment.held_out.examples_of(3)).means["accuracy"]
    assert result.client_accuracy[3] == pytest.approx(accuracy)


@pytest.mark.parametrize("key", ["training", "clients"])
def test_evaluation_of_too_many_clients_raises_error(key: str) -> None:
    scenario = make_scenario({f"evaluation.{key}": True, "data.held_out": 0.5, "data.clients": 10**6})
    with pytest.raises(
        ScenarioError,
        match=rf"^evaluation\.{key}: got 6,000,000 generated examples \(1,000,000 clients with 6 each\), expected",
    ):
        build_experiment(scenario)
    with pytest.raises(ScenarioError, match="no client has test examples of its own; set"):
        build_experiment(make_scenario({"evaluation.clients": True}))


@pytest.mark.parametrize("workers", [1, 2])
def test_rounds_generate_examples_of_the_cohort_only(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generated: list[int] = []
    original = Synthetic.examples_of

    def examples_of(self: Synthetic, client: int, seed: int) -> Examples:
        generated.append(client)
        return original(self, client, seed)

    monkeypatch.setattr(Synthetic, "examples_of", examples_of)
    result: Result = run(make_scenario({"data.clients": 10**6}), execution=ExecutionConfig(workers=workers))
    cohort = [] if workers > 1 else [client for round in result.history for client in round.cohort]  # else in the workers
    assert sorted(generated) == sorted([*range(8), *range(10**6, 10**6 + 5), *cohort])


@pytest.mark.parametrize("key", ["alpha", "beta"])
def test_synthetic_settings_beyond_float32_raise_error(key: str) -> None:
    with pytest.raises(ScenarioError, match=f"data.{key}: expected a number from 0 to 3.4e38, the largest number of float32"):
        make_scenario({f"data.{key}": 1e300})
    build_experiment(make_scenario({f"data.{key}": 3e38, "data.iid": False}))


@pytest.mark.slow
def test_partition_summary_of_many_clients_has_first_thousand() -> None:
    split = summarize_partition(make_scenario({"data.clients": 10**6, "data.held_out": 0.25}))
    assert (len(split.sizes), split.n_registered, split.n_unassigned) == (1000, 10**6, 0)
    assert split.held_out_sizes is not None
    assert (split.sizes.tolist(), split.held_out_sizes.tolist()) == ([9] * 1000, [3] * 1000)
    assert split.counts is not None
    assert split.counts.sum(axis=1).tolist() == [9] * 1000
    assert split.population_text == "the first 1,000 of 1,000,000 clients"
    few = summarize_partition(make_scenario())
    assert (len(few.sizes), few.n_registered, few.population_text) == (40, None, "40 clients")
    assert few.counts is not None
    labels = np.bincount(build_experiment(make_scenario()).train.examples_of(7).y, minlength=10)
    assert few.counts[7].tolist() == labels.tolist()


@pytest.mark.slow
def test_partition_command_of_many_clients_names_the_shown_part(root: Path, tmp_path: Path) -> None:
    file, settings = str(root / "scenarios" / "synthetic.toml"), ["--set", "data.clients=5000", "--set", "data.examples=3"]
    result = CliRunner().invoke(main, ["partition", file, *settings, "--picture", str(tmp_path / "split.png")])
    assert result.exit_code == 0, result.output
    assert "synthetic: natural, the first 1,000 of 5,000 clients, 3,000 training examples" in result.stdout
    summary = json.loads(CliRunner().invoke(main, ["partition", file, *settings, "--json"]).stdout)
    assert (summary["clients"], summary["registered"], len(summary["sizes"])) == (1000, 5000, 1000)


@pytest.mark.slow
@pytest.mark.nightly
def test_synthetic_scenario_reaches_accuracy_above_chance(root: Path) -> None:
    result = run(load(root / "scenarios" / "synthetic.toml", {"rounds": 6, "data.clients": 10**5}))
    assert result.summary["final_accuracy"] > 0.3, "of ten classes"
