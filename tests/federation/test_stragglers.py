"""Stragglers in whole runs: their steps and bytes, prices, and equal results of all engines and runtimes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import fedsgd
from fedsgd.analysis.ledger_stats import read_ledger_stats
from fedsgd.analysis.pricing import price
from fedsgd.analysis.runs import load_run
from fedsgd.data import Dataset
from fedsgd.errors import ScenarioError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.planning.cohorts import draw_cohorts
from fedsgd.federation import Reply, aggregate, broadcast, client_update
from fedsgd.federation.client_state import ClientState, InMemoryClientStore
from fedsgd.models.builder import build_task
from fedsgd.models.perceptrons import Mlp
from fedsgd.network import Device, Link, Network, PricingModel
from fedsgd.optim import SGD
from fedsgd.optim.schedules import ExponentialSchedule
from fedsgd.runtime.client_host import ClientHost
from fedsgd.scenario.scenario import Scenario
from fedsgd.training import LocalTraining, TrainingJob
from fedsgd.training.selection import EngineChoice, make_engine

pytestmark = pytest.mark.slow

Make = Callable[..., Scenario]
HALF = {"client.epochs": 5, "participation.stragglers": 0.5}
DROP = {**HALF, "participation.straggler_policy": "drop"}


def list_updates(result: fedsgd.Result) -> list[dict[str, Any]]:
    return [row for row in result.ledger.table().to_pylist() if row["kind"] == "UPDATE"]


def digests_of(result: fedsgd.Result) -> tuple[str, str]:
    return result.summary["params_sha256"], result.summary["ledger_sha256"]


def test_kept_stragglers_send_the_update_of_their_epochs(scenario: Make) -> None:
    config = scenario(HALF)
    experiment, updates = build_experiment(config), list_updates(fedsgd.run(config))
    assert {row["fate"] for row in updates} == {"received"}
    stragglers = experiment.plan.stragglers
    assert stragglers is not None
    for round in (1, 2, 3):
        rows = [row for row in updates if row["round"] == round]
        works = [stragglers.work_of(round, row["client"]) for row in rows]
        assert sum(work is not None for work in works) == 2
        for row, work in zip(rows, works, strict=True):
            n = len(experiment.train.examples_of(row["client"]))
            epochs = 5 if work is None else work
            assert row["steps"] == epochs * -(-n // config.client.batch_size)
            assert row["examples"] == epochs * n


def test_dropped_stragglers_receive_the_model_and_send_nothing(scenario: Make) -> None:
    kept, dropped = fedsgd.run(scenario(HALF)), fedsgd.run(scenario(DROP))
    rows = [row for row in list_updates(dropped) if row["fate"] == "dropped"]
    assert len(rows) == dropped.summary["dropped_stragglers"] == 3 * 2
    assert [row["n_bytes"] for row in rows] == [0] * 6
    steps = {(row["round"], row["client"]): (row["steps"], row["examples"]) for row in list_updates(kept)}
    assert all((row["steps"], row["examples"]) == steps[row["round"], row["client"]] for row in rows), "equal stragglers"
    assert dropped.summary["downlink"]["frames"] == kept.summary["downlink"]["frames"] == 3 * 4 * 2
    assert (dropped.summary["uplink"]["frames"], kept.summary["uplink"]["frames"]) == (6, 12)
    assert dropped.summary["dense_uplink_bytes"] * 2 == kept.summary["dense_uplink_bytes"]
    for record in dropped.history:
        assert len(record.accepted) == len(record.dropped) == 2
        assert sorted((*record.accepted, *record.dropped)) == list(record.cohort)


def test_dropped_straggler_keeps_its_state(scenario: Make) -> None:
    experiment = build_experiment(scenario({**DROP, "uplink.error_feedback": "persist", "downlink.policy": "difference"}))
    plan, server, stragglers = experiment.plan, experiment.initial_server_state, experiment.plan.stragglers
    assert stragglers is not None
    store, n_dropped_with_state = InMemoryClientStore(), 0
    host = ClientHost(plan, experiment.engine, store, experiment.train)
    for round in range(1, 8):
        messages, server = broadcast(plan, server, experiment.participation.sample_round(round).cohort)
        before = {client: store.load(client) for client in messages}
        replies = [reply for reply in host.process_messages(messages) if isinstance(reply, Reply)]
        assert len(replies) == len(messages)
        dropped = [client for client in messages if stragglers.is_dropped(round, client)]
        assert [reply.client for reply in sorted(replies, key=lambda r: r.client) if not reply.frames] == dropped
        for client in dropped:
            after = store.load(client)
            assert after.committed_state == before[client].committed_state == {}
            assert after.uncommitted_state is before[client].uncommitted_state
            assert after.model_round == round
            n_dropped_with_state += before[client].uncommitted_state is not None
        server, _ = aggregate(plan, server, [reply for reply in replies if reply.frames])
    assert n_dropped_with_state


def test_round_of_dropped_stragglers_averages_the_other_clients(scenario: Make) -> None:
    """The model of a round is that of a run whose cohort has the other clients alone."""
    settings = {"rounds": 1, "uplink.compressor.name": "dense", "uplink.error_feedback": "none"}
    result, experiment = (
        fedsgd.run(scenario({**DROP, **settings})),
        build_experiment(scenario({**settings, "client.epochs": 5})),
    )
    plan, server = experiment.plan, experiment.initial_server_state
    others = [client for client in result.history[0].cohort if client not in result.history[0].dropped]
    messages, server = broadcast(plan, server, others)
    replies = [
        client_update(plan, experiment.engine, c, messages[c], ClientState(), experiment.train.examples_of(c))[0]
        for c in others
    ]
    assert aggregate(plan, server, replies)[0].weights.tobytes() == result.parameters.tobytes()


@pytest.mark.parametrize("settings", [DROP, {"client.steps": 7, "participation.stragglers": 0.5}])
def test_workers_do_not_change_results_with_stragglers(settings: dict[str, Any], scenario: Make) -> None:
    results = [fedsgd.run(scenario(settings), execution=fedsgd.ExecutionConfig(workers=workers)) for workers in (1, 2)]
    assert digests_of(results[0]) == digests_of(results[1])


@pytest.mark.parametrize("policy", ["keep", "drop"])
def test_no_stragglers_change_no_digest(policy: str, scenario: Make) -> None:
    plain = digests_of(fedsgd.run(scenario({"client.epochs": 2})))
    settings = {"participation.stragglers": 0.0, "participation.straggler_policy": policy}
    assert digests_of(fedsgd.run(scenario({"client.epochs": 2, **settings}))) == plain


def test_price_counts_the_examples_of_every_straggler(scenario: Make, tmp_path: Path) -> None:
    """The seconds of each round are those of its slowest client, from the ledger row by row."""
    device = Device(flops_per_second=1e6, copy_bytes_per_second=1e9)
    model = PricingModel(Network(Link(1e5, 2e5)), device, device)
    for policy in ("keep", "drop"):
        fedsgd.run(scenario({**HALF, "participation.straggler_policy": policy}), out=tmp_path / policy)
        run = load_run(tmp_path / policy)
        (priced,) = price(run, [model])
        profile, rows = priced.compute_profile, pq.read_table(tmp_path / policy / "ledger.parquet").to_pylist()
        copy_seconds = 4 * profile.parameters / 1e9
        seconds = np.zeros(4)
        for round in (1, 2, 3):
            for client in {row["client"] for row in rows if row["round"] == round}:
                own = [row for row in rows if (row["round"], row["client"]) == (round, client)]
                n = {d: sum(row["n_bytes"] for row in own if row["direction"] == d) for d in ("down", "up")}
                coding = profile.decode_copies + (profile.encode_copies if n["up"] else 0)
                training = sum(row["examples"] for row in own) * profile.flops_per_example / 1e6
                total = 8 * n["down"] / 2e5 + training + coding * copy_seconds + 8 * n["up"] / 1e5
                seconds[round] = max(seconds[round], total)
            n_accepted = sum(row["fate"] == "received" and row["kind"] == "UPDATE" for row in rows if row["round"] == round)
            seconds[round] += (n_accepted * profile.server_copies + profile.sending_copies) * copy_seconds
        np.testing.assert_allclose(priced.cumulative_seconds, np.cumsum(seconds), rtol=1e-9)
        stats = read_ledger_stats(run)
        assert stats.unanswered_messages == 0
        assert stats.update_frames.n_frames == (12 if policy == "keep" else 6)


def test_plan_counts_replies_and_steps_of_the_run(scenario: Make) -> None:
    for settings in (HALF, DROP):
        config = scenario(settings)
        rows = [row for row in list_updates(fedsgd.run(config)) if row["fate"] == "received"]
        for cohort in draw_cohorts(build_experiment(config)).cohorts:
            own = [row for row in rows if row["round"] == cohort.round]
            assert (cohort.n_replies, cohort.n_steps) == (len(own), sum(row["steps"] for row in own))


# ----------------------------------------------------------------------------------------------------------------- local training


@pytest.mark.parametrize("engine", ["sequential", "captured", "stacked"])
def test_straggler_trains_as_a_client_with_fewer_epochs(engine: Any, blobs: Dataset) -> None:
    task = build_task(Mlp(hidden=(5,)), blobs, 0)
    full = LocalTraining(SGD(lr=0.1), epochs=5, steps=None, batch_size=8)
    works = [None, 1, 3, 5, 2, 3]
    parts = [blobs.train.slice(10 * i, 10 * i + (20 if i < 3 else 8)) for i in range(len(works))]
    jobs = [
        TrainingJob(0, 1, client, task.initial_parameters, part, work=work)
        for client, (part, work) in enumerate(zip(parts, works, strict=True))
    ]
    choice = EngineChoice(engine, "exact", 4 if engine == "stacked" else None)
    results = {r.client: r for r in make_engine(choice, [8, 4], task, full, blobs.train).train(jobs)}
    for job, work in zip(jobs, works, strict=True):
        training = replace(full, epochs=work or 5)
        (expected,) = make_engine(choice, [8, 4], task, training, blobs.train).train([replace(job, work=None)])
        assert results[job.client].n_steps == expected.n_steps == (work or 5) * -(-len(job.examples) // 8)
        np.testing.assert_array_equal(results[job.client].update, expected.update)


def test_schedule_over_steps_counts_all_steps_of_a_straggler() -> None:
    """A straggler's learning rates are those of the first steps of a client that is none."""
    schedule = ExponentialSchedule(gamma=0.9)
    training = LocalTraining(SGD(lr=1.0, schedule=schedule, schedule_over="steps"), epochs=4, steps=None, batch_size=5)
    straggler = training.with_work(3)
    rates = [training.optimizer.learning_rate(2, step, 8) for step in range(1, 9)]
    assert (training.n_steps(10), straggler.n_steps(10), straggler.n_scheduled_steps(10)) == (8, 6, 8)
    assert straggler.n_examples_processed(10) == 30
    assert training.learning_rate_sum(10, 2) == pytest.approx(sum(rates))
    assert straggler.learning_rate_sum(10, 2) == pytest.approx(sum(rates[:6]))
    assert straggler.fednova_normalizer(10, 2) == pytest.approx(sum(rates[:6]))


@pytest.mark.parametrize("engine", ["sequential", "captured", "stacked"])
def test_engine_schedules_a_straggler_by_all_steps_of_the_round_before(engine: Any, blobs: Dataset) -> None:
    """Step 1 of round 2 is step 5 of a client with four steps a round, whatever the straggler makes."""
    task = build_task(Mlp(hidden=(5,)), blobs, 0)
    optimizer = SGD(lr=0.5, schedule=ExponentialSchedule(gamma=0.5), schedule_over="steps")
    training = LocalTraining(optimizer, epochs=4, steps=None, batch_size=None)
    job, choice = TrainingJob(0, 2, 0, task.initial_parameters, blobs.train.slice(0, 20)), EngineChoice(engine, "exact", 1)
    choice = replace(choice, stack=2 if engine == "stacked" else None)
    (straggler,) = make_engine(choice, [20], task, training, blobs.train).train([replace(job, work=1)])
    plain = LocalTraining(SGD(lr=1.0), epochs=1, steps=None, batch_size=None)
    (expected,) = make_engine(choice, [20], task, plain, blobs.train).train([job])
    np.testing.assert_allclose(straggler.update, optimizer.learning_rate(1, 5, 4) * expected.update, rtol=1e-6, atol=1e-9)
    assert optimizer.learning_rate(1, 5, 4) == 0.5 * 0.5**4


def test_fednova_divides_a_straggler_by_its_own_steps(scenario: Make) -> None:
    """With one example gradient direction a client, FedNova's round equals the mean of the clients' mean steps."""
    settings = {
        "rounds": 1,
        "client.optimizer.name": "sgd",
        "uplink.compressor.name": "dense",
        "uplink.error_feedback": "none",
        "server.normalisation": "fednova",
        "server.weighting": "uniform",
    }
    config = scenario({**HALF, **settings})
    experiment, result = build_experiment(config), fedsgd.run(config)
    plan, server = experiment.plan, experiment.initial_server_state
    cohort = result.history[0].cohort
    trainings = [plan.local_training_of(1, client) for client in cohort]
    examples = [experiment.train.examples_of(client) for client in cohort]
    jobs = [TrainingJob(0, 1, c, server.weights, e, work=t.work) for c, e, t in zip(cohort, examples, trainings, strict=True)]
    results = {r.client: r for r in experiment.engine.train(jobs)}
    lengths = np.array([t.n_steps(len(e)) * plan.local_training.optimizer.lr for t, e in zip(trainings, examples, strict=True)])
    updates = np.stack([results[client].update.astype(np.float64) for client in cohort])
    expected = server.weights + lengths.mean() * (updates / lengths[:, None]).mean(axis=0)
    assert len({t.work for t in trainings}) > 1
    np.testing.assert_allclose(result.parameters, expected, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"participation.stragglers": 1.0},
            r"participation\.stragglers: expected a number of at least 0 and below 1, got 1\.0",
        ),
        (
            {"participation.stragglers": -0.1},
            r"participation\.stragglers: expected a number of at least 0 and below 1, got -0\.1",
        ),
        ({"client.epochs": 1}, r"participation\.stragglers: got 0\.5, expected 0: client\.epochs is 1, of which a straggler"),
        ({"client.steps": 1}, r"participation\.stragglers: got 0\.5, expected 0: client\.steps is 1, of which a straggler"),
        ({"participation.deadline": 9.0}, r"participation\.stragglers: got 0\.5, expected 0, because deadline = 9 finds"),
        (
            {"participation.over_selection": 1.5},
            r"participation\.stragglers: got 0\.5, expected 0, because over_selection = 1\.5",
        ),
        ({"participation.straggler_policy": "wait"}, r"participation\.straggler_policy: got \"wait\""),
    ],
)
def test_stragglers_that_contradict_other_settings_raise_error(settings: dict[str, Any], message: str, scenario: Make) -> None:
    base = {key: value for key, value in HALF.items() if key != "client.epochs" or "client.steps" not in settings}
    with pytest.raises(ScenarioError, match=message) as error:
        scenario({**base, **settings})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**HALF, "participation.stragglers": 0.1}, r"got 0\.1, which is 0 of the 4 clients of a round, expected at least one"),
        (
            {**DROP, "participation.stragglers": 0.95},
            r"got 0\.95, which is 4 of the 4 clients .* at most 3, because stragglers",
        ),
    ],
)
def test_share_that_is_rounded_to_no_client_or_all_raises_error(settings: dict[str, Any], message: str, scenario: Make) -> None:
    with pytest.raises(ScenarioError, match=rf"^participation\.stragglers: {message}"):
        build_experiment(scenario(settings))


def test_dropped_stragglers_are_allowed_with_one_local_epoch(scenario: Make) -> None:
    result = fedsgd.run(scenario({**DROP, "client.epochs": 1}))
    assert result.summary["dropped_stragglers"] == 6
