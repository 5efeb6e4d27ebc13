"""Participation in whole runs, and the statistics that runs report about it.

Covered are lost and late replies, sampling with corrections, momentum, control variates, FedNova and buffers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedsgd
from fedsgd.cli.terminal import print_result
from fedsgd.data import Dataset, Examples
from fedsgd.errors import NonFiniteError, RunError, ScenarioError, WireError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.execution import InProcessExecution
from fedsgd.experiment.ledger import Ledger
from fedsgd.federation import DownlinkCache, Message, Reply, aggregate, broadcast
from fedsgd.federation.client_state import InMemoryModelCache
from fedsgd.federation.round_loop import ClientFailure, ClientOutcome, FrameEvent, Runtime, as_run_error
from fedsgd.federation.round_record import ResidualStatistics
from fedsgd.runtime.stores.directory import FolderModelCache, FolderStore
from fedsgd.runtime.stores.shared import SlotModelCache
from fedsgd.scenario.scenario import Scenario
from fedsgd.training import TrainingJob
from fedsgd.wire import Frame, FrameKind, Header, Section, SectionKind, decode_frame, encode_frame
from tests.effort import nightly_unless
from tests.executions import run_rounds, start_in_process

Make = Callable[..., Scenario]
DENSE = {"uplink.compressor.name": "dense", "uplink.error_feedback": "none"}
PLAIN = {**DENSE, "client.optimizer.name": "sgd", "client.optimizer.lr": 0.1}


def collect_events(scenario: Scenario, rounds: int, **options: Any) -> list[FrameEvent]:
    """Return the frame events of the first rounds of a run."""
    experiment, events = build_experiment(scenario, **options), []
    for server, _ in run_rounds(
        experiment.plan,
        experiment.initial_server_state,
        start_in_process(experiment).runtime,
        experiment.participation,
        events.append,
    ):
        if server.round > rounds:
            return events
    raise AssertionError("run_rounds does not end by itself")


class ChangedRuntime:
    """Runtime that changes the outcomes of another runtime."""

    def __init__(self, inner: Runtime, change: Callable[[Iterable[ClientOutcome]], Iterable[ClientOutcome]]) -> None:
        self.inner = inner
        self.change = change

    def list_clients(self) -> Sequence[int]:
        return self.inner.list_clients()

    def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        yield from self.change(self.inner.exchange(messages, timeout))


# ------------------------------------------------------------------------------------------------------------------ participation


@pytest.mark.slow
def test_lost_reply_counts_as_sent_and_not_as_received(scenario: Make) -> None:
    result = fedsgd.run(scenario({"rounds": 6, "participation.dropout": 0.5}))
    rows = [row for row in result.ledger.table().to_pylist() if row["direction"] == "up"]
    deliveries = {row["fate"] for row in rows}
    assert deliveries == {"received", "lost"}
    assert result.summary["uplink_bytes"] == sum(row["n_bytes"] for row in rows)
    received = sum(row["n_bytes"] for row in rows if row["fate"] == "received")
    assert result.summary["uplink_received_bytes"] == received < result.summary["uplink_bytes"]
    assert {row["kept"] for row in rows} == {48}, "coordinates of lost replies are counted too"
    for record in result.history:
        accepted = [row["client"] for row in rows if row["round"] == record.round and row["fate"] == "received"]
        assert list(record.accepted) == accepted


def test_over_selection_accepts_the_first_replies_and_does_not_acknowledge_late_ones(scenario: Make) -> None:
    s = scenario({"server.cohort": 2, "participation.over_selection": 2.0, "participation.durations.spread": 1.0})
    experiment = build_experiment(s)
    assert experiment.participation.n_invited == 4
    events: list[FrameEvent] = []
    server, participants = next(
        run_rounds(
            experiment.plan,
            experiment.initial_server_state,
            start_in_process(experiment).runtime,
            experiment.participation,
            events.append,
        )
    )
    assert len(participants.cohort) == 4
    deliveries = {c.client: c.delivery for c in events if c.direction == "up"}
    assert sorted(deliveries.values()) == ["late", "late", "received", "received"]
    seconds = {
        reply.client: experiment.participation.reply_seconds(1, reply.client, reply.steps) for reply in participants.replies
    }
    late = [client for client, delivery in deliveries.items() if delivery == "late"]
    assert min(seconds[c] for c in late) > max(seconds[c] for c in participants.accepted)
    messages, _ = broadcast(experiment.plan, server, late)
    for client in late:
        assert decode_frame(messages[client][0]).header.acknowledged == 0


@pytest.mark.slow
def test_replies_after_the_deadline_are_late(scenario: Make) -> None:
    all_clients = {"server.cohort": 8, "participation.durations.spread": 1.0}
    experiment = build_experiment(scenario(all_clients))
    steps = dict.fromkeys(range(8), 10)
    seconds = sorted(experiment.participation.reply_seconds(1, client, 10) for client in steps)
    with_deadline = build_experiment(scenario({**all_clients, "participation.deadline": (seconds[4] + seconds[5]) / 2}))
    assert sorted(with_deadline.participation.delivery_of(1, steps).values()) == ["late"] * 3 + ["received"] * 5


@pytest.mark.slow
def test_round_without_replies_does_not_change_the_model(scenario: Make) -> None:
    for policy in ("model", "difference"):
        s = scenario({"rounds": 3, "participation.deadline": 1e-9, "downlink.policy": policy})
        result = fedsgd.run(s)
        assert result.parameters.tobytes() == build_experiment(s).initial_server_state.weights.tobytes()
        assert result.summary["uplink_received_bytes"] == 0


def test_round_without_available_clients_costs_nothing(scenario: Make, tmp_path: Path) -> None:
    """All clients are available in round 2 only. Rounds 1 and 3 have no frames."""
    (tmp_path / "trace.csv").write_text("client,first_round,last_round\n" + "".join(f"{c},2,2\n" for c in range(8)))
    sampler = {"server.sampler.name": "trace", "server.sampler.file": "trace.csv"}
    result = fedsgd.run(scenario({"rounds": 3, **sampler}), data=tmp_path)
    assert [len(record.cohort) for record in result.history] == [0, 4, 0]
    assert {row["round"] for row in result.ledger.table().to_pylist()} == {2}


AVAILABILITY = "client,first_round,last_round\n0,1,2\n1,5,5\n"
"""Client 0 is available in rounds 1 and 2, no client in rounds 3 and 4, client 1 in round 5."""


def run_two_parabolas(scenario: Make, folder: Path, settings: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return the models before round 1 and after each of five rounds, and the minima of two clients' losses (w − minimum)²."""
    (folder / "trace.csv").write_text(AVAILABILITY)
    ones, targets = np.ones((2, 1), dtype=np.float32), np.array([[4], [-8]], dtype=np.float32)
    data = Dataset(Examples(ones, targets, None, np.arange(2)), Examples(ones, targets), None)
    parabola = {
        "data.partition.name": "natural",
        "data.partition.clients": 2,
        "client.optimizer": {"name": "sgd", "lr": 0.25},
        "client.steps": 1,
        "client.batch_size": "full",
        "server.cohort": 2,
        "server.sampler": {"name": "trace", "file": "trace.csv"},
        "uplink.error_feedback": "none",
        "report.target_accuracy": None,
    }
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    experiment = build_experiment(
        scenario({**parabola, **settings}), folder, dataset=data, module=module, loss=nn.functional.mse_loss
    )
    rounds = run_rounds(
        experiment.plan,
        experiment.initial_server_state,
        start_in_process(experiment).runtime,
        experiment.participation,
        lambda _: None,
    )
    models = [1.0, *(float(server.weights[0]) for server, _ in itertools.islice(rounds, 5))]
    return models, [experiment.train.examples_of(client).arrays()[1].item() for client in (0, 1)]


@pytest.mark.parametrize("policy", ["model", "difference", "error-feedback", "ef21-p"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_ef21_steps_in_rounds_without_replies(scenario: Make, tmp_path: Path, policy: str, momentum: float) -> None:
    """EF21-PP, and with momentum EF21-HB: v ← βv + g; w ← w + v in each round, where g is the mean of both clients' last
    estimates.
    """
    uplink = {"uplink.compressor": {"name": "ef21", "op": {"name": "top-k", "density": 1.0}}, "server.weighting": "uniform"}
    server = {"server.optimizer": {"name": "momentum-pytorch", "lr": 1.0, "momentum": momentum}}
    downlink = {"downlink.policy": policy}
    if policy in ("error-feedback", "ef21-p"):
        downlink["downlink.compressor.name"] = "top-k"
        downlink["downlink.compressor.density"] = 1.0
    models, minima = run_two_parabolas(scenario, tmp_path, {**uplink, **server, **downlink})
    w, v, estimates, expected = 1.0, 0.0, [0.0, 0.0], [1.0]
    for client in (0, 0, None, None, 1):
        if client is not None:
            estimates[client] = -0.25 * 2 * (w - minima[client])
        v = momentum * v + sum(estimates) / 2
        w += v
        expected.append(w)
    assert sorted(minima) == [-8, 4]
    assert models == expected, "sums of dyadic numbers are exact"


@pytest.mark.parametrize("uplink", ["dense", "cafe", "fetch-sgd", "scaffold"])
def test_other_schemes_do_not_step_in_rounds_without_replies(scenario: Make, tmp_path: Path, uplink: str) -> None:
    settings = {"uplink.compressor": {"name": uplink}, "server.weighting": "uniform"}
    models, _ = run_two_parabolas(scenario, tmp_path, {**settings, "server.optimizer": {"name": "fedavgm", "lr": 1.0}})
    assert models[2] == models[3] == models[4] != models[5]


@pytest.mark.slow
def test_failing_client_counts_as_lost_if_the_run_continues(scenario: Make) -> None:
    def make_change(error: Exception) -> Callable[[Iterable[ClientOutcome]], Iterator[ClientOutcome]]:
        def change(outcomes: Iterable[ClientOutcome]) -> Iterator[ClientOutcome]:
            for outcome in outcomes:
                yield ClientFailure(3, error) if outcome.client == 3 else outcome

        return change

    experiment = build_experiment(scenario({"server.cohort": 8}))
    runtime = ChangedRuntime(start_in_process(experiment).runtime, make_change(OSError("gone")))
    parts = experiment.plan, experiment.initial_server_state, runtime, experiment.participation, lambda _: None
    with pytest.raises(RunError, match="round 1, client 3: OSError: gone"):
        next(run_rounds(*parts))
    _, participants = next(run_rounds(*parts, on_failure="continue"))
    assert participants.accepted == (0, 1, 2, 4, 5, 6, 7)
    assert [failure.client for failure in participants.failures] == [3]
    runtime.change = make_change(ChildProcessError("killed"))
    with pytest.raises(RunError, match="round 1, client 3: ChildProcessError: killed"):
        next(run_rounds(*parts, on_failure="continue"))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["header", "values"])
def test_unreadable_reply_counts_as_refused_if_the_run_continues(scenario: Make, part: str) -> None:
    """The fault may be found when the frame is decoded or when its sections are. The client is not acknowledged."""

    def corrupt(outcomes: Iterable[ClientOutcome]) -> Iterator[ClientOutcome]:
        for outcome in outcomes:
            if outcome.client == 3 and isinstance(outcome, Reply):
                frame = decode_frame(outcome.frames[0])
                sections = tuple(Section(s.kind, b"\xff" * len(s.data)) for s in frame.sections)
                bad = encode_frame(Frame(frame.header, sections)) if part == "values" else outcome.frames[0][:-1]
                outcome = replace(outcome, frames=(bad,))
            yield outcome

    experiment = build_experiment(scenario({"server.cohort": 8}))
    parts = (
        experiment.plan,
        experiment.initial_server_state,
        ChangedRuntime(start_in_process(experiment).runtime, corrupt),
        experiment.participation,
    )
    with pytest.raises(WireError, match="round 1, client 3: byte"):
        next(run_rounds(*parts, lambda _: None))
    events: list[FrameEvent] = []
    rounds = run_rounds(*parts, events.append, on_failure="continue")
    server, participants = next(rounds)
    assert participants.accepted == (0, 1, 2, 4, 5, 6, 7)
    assert next(str(as_run_error(1, failure)) for failure in participants.failures).startswith("round 1, client 3: byte")
    assert {c.client for c in events if c.delivery == "refused"} == {3}
    assert server.acknowledged_rounds.get(3) == 0
    assert server.acknowledged_rounds.get(4) == 1


@pytest.mark.slow
def test_summary_and_table_report_failed_clients(scenario: Make, capsys: pytest.CaptureFixture[str]) -> None:
    lr = {"client.optimizer.lr": 1e38, "client.epochs": 2}
    result = fedsgd.run(scenario({"rounds": 2, "participation.on_failure": "continue", **lr}))
    assert [len(record.failures) for record in result.history] == [4, 4]
    assert result.summary["failures"] == 8
    assert re.match(r"round 1, client \d: the update is not finite", result.summary["first_failure"])
    print_result(result)
    assert "client failures: 8, the first in round 1, client" in capsys.readouterr().out
    quiet = fedsgd.run(scenario({"rounds": 1})).summary
    assert (quiet["failures"], quiet["first_failure"]) == (0, None)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", nightly_unless("examples".__eq__, ["examples", "uniform"]))
def test_mean_with_inclusion_probabilities_is_unbiased(scenario: Make, weighting: str) -> None:
    """Over many draws, the mean of the estimates is the result of full participation (Horvitz and Thompson 1952)."""
    s = scenario({**PLAIN, "server.sampler.name": "weighted", "server.cohort": 3, "server.weighting": weighting})
    experiment = build_experiment(s)
    plan, server = experiment.plan, experiment.initial_server_state
    messages, sending_server = broadcast(plan, server, range(8))
    replies = {o.client: o for o in start_in_process(experiment).runtime.exchange(messages, None) if isinstance(o, Reply)}
    certain = dict.fromkeys(replies, 1.0)
    exact = aggregate(plan, sending_server, list(replies.values()), certain)[0].weights - server.weights
    estimates = []
    for round in range(1, 3001):
        sampled = experiment.participation.sample_round(round)
        assert sampled.inclusion_probabilities is not None
        probabilities = dict(zip(sampled.cohort, sampled.inclusion_probabilities.tolist(), strict=True))
        next_server, _ = aggregate(plan, sending_server, [replies[c] for c in sampled.cohort], probabilities)
        estimates.append(next_server.weights - server.weights)
    standard_error = np.std(estimates, axis=0).max() / np.sqrt(len(estimates))
    assert np.abs(np.mean(estimates, axis=0) - exact).max() < 5 * standard_error


# ----------------------------------------------------------------------------------------------------------------------- downlink


@pytest.mark.slow
def test_exact_differences_give_the_same_model_with_fewer_bytes(scenario: Make) -> None:
    model, difference = (fedsgd.run(scenario({"rounds": 8, "downlink.policy": p})) for p in ("model", "difference"))
    assert model.summary["params_sha256"] == difference.summary["params_sha256"]
    assert difference.summary["downlink_bytes"] < model.summary["downlink_bytes"] / 2
    assert difference.summary["uplink_bytes"] == model.summary["uplink_bytes"]


@pytest.mark.slow
def test_broadcast_bytes_count_a_shared_frame_once_per_round(scenario: Make) -> None:
    result = fedsgd.run(scenario({"rounds": 3}))
    rows = [row for row in result.ledger.table().to_pylist() if row["direction"] == "down"]
    bytes_by_frame = {(row["round"], row["frame_hash"]): row["n_bytes"] for row in rows}
    assert result.summary["downlink_broadcast_bytes"] == sum(bytes_by_frame.values()) < result.summary["downlink_bytes"] / 3


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(("workers", "optimizer"), [(1, "momentum"), (2, "adamw")])
@pytest.mark.parametrize("store", ["memory", "disk"])
def test_run_does_not_depend_on_the_store_of_states(scenario: Make, workers: int, optimizer: str, store: str) -> None:
    settings = {
        "rounds": 5,
        "downlink.policy": "error-feedback",
        "downlink.compressor": {"name": "top-k", "density": 0.05},
        "participation.dropout": 0.3,
        "client.velocity": "carry",
        "client.optimizer.name": optimizer,
        "state.precision": "bfloat16",
    }
    digests = []
    for state_store, n_workers in (("memory", 1), (store, workers)):
        result = fedsgd.run(
            scenario({**settings, "state.store": state_store}), execution=fedsgd.ExecutionConfig(workers=n_workers)
        )
        digests.append((result.summary["params_sha256"], result.summary["ledger_sha256"]))
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_client_with_lost_state_is_sent_a_second_message(scenario: Make) -> None:
    experiment = build_experiment(scenario({"server.cohort": 8, "downlink.policy": "difference"}))
    events: list[FrameEvent] = []
    rounds = run_rounds(
        experiment.plan,
        experiment.initial_server_state,
        start_in_process(experiment).runtime,
        experiment.participation,
        events.append,
    )
    next(rounds)
    start_in_process(experiment).runtime.store._states_by_client.pop(3)
    events.clear()
    _, participants = next(rounds)
    assert len(participants.accepted) == 8
    frames = [(c.direction, c.kind, decode_frame(c.frame).header.base) for c in events if c.client == 3]
    assert frames == [
        ("down", FrameKind.TASK, 1),
        ("down", FrameKind.MODEL, 1),
        ("up", FrameKind.RESYNC, 0),
        ("down", FrameKind.TASK, 0),
        ("down", FrameKind.MODEL, 0),
        ("up", FrameKind.UPDATE, 2),
    ]


@pytest.mark.slow
def test_run_does_not_depend_on_the_order_of_outcomes(scenario: Make) -> None:
    settings = {"participation.dropout": 0.3, "participation.over_selection": 1.5, "downlink.policy": "difference"}

    digests = []
    for change in (list, lambda outcomes: reversed(list(outcomes))):
        experiment, ledger = build_experiment(scenario(settings)), Ledger()
        rounds = run_rounds(
            experiment.plan,
            experiment.initial_server_state,
            ChangedRuntime(start_in_process(experiment).runtime, change),
            experiment.participation,
            ledger,
        )
        server = [next(rounds)[0] for _ in range(8)][-1]
        digests.append((ledger.sha256, server.weights.tobytes()))
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_unreadable_resync_is_observed_as_refused(scenario: Make) -> None:
    def corrupt(outcomes: Iterable[ClientOutcome]) -> Iterator[ClientOutcome]:
        for outcome in outcomes:
            bad = encode_frame(Frame(Header(FrameKind.RESYNC, 9, client=3)))
            yield Reply(3, (bad,), 0.0, 0.0) if outcome.client == 3 else outcome

    experiment, events = build_experiment(scenario({"server.cohort": 8})), []
    rounds = run_rounds(
        experiment.plan,
        experiment.initial_server_state,
        ChangedRuntime(start_in_process(experiment).runtime, corrupt),
        experiment.participation,
        events.append,
    )
    with pytest.raises(RunError, match="round 1, client 3: WireError: byte 6: round is 9, expected 1"):
        next(rounds)
    assert [(c.direction, c.kind, c.delivery) for c in events if c.client == 3][2:] == [("up", FrameKind.RESYNC, "refused")]


@pytest.mark.slow
def test_models_without_clients_are_removed(scenario: Make) -> None:
    experiment = build_experiment(scenario({"downlink.policy": "difference"}))
    rounds = run_rounds(
        experiment.plan,
        experiment.initial_server_state,
        start_in_process(experiment).runtime,
        experiment.participation,
        lambda _: None,
    )
    for _ in range(12):
        next(rounds)
    states = [start_in_process(experiment).runtime.store.load(client) for client in range(8)]
    models = start_in_process(experiment).runtime._host._downlink_cache.model_cache
    assert set(models._models) == {state.model_round for state in states if state.model_round}


@pytest.mark.slow
def test_models_older_than_the_history_are_removed(scenario: Make, tmp_path: Path) -> None:
    """The state budget relies on this."""
    s = scenario({"server.cohort": 1, "rounds": 12, "downlink.policy": "difference", "downlink.remember": 2})
    shared_cache, final_weights = SlotModelCache(12), []
    for cache in (InMemoryModelCache(), shared_cache, FolderModelCache(FolderStore(tmp_path))):
        experiment = build_experiment(s)
        runtime: Any = start_in_process(experiment).runtime
        runtime._host._downlink_cache = DownlinkCache(cache)
        rounds = run_rounds(experiment.plan, experiment.initial_server_state, runtime, experiment.participation, lambda _: None)
        for server, _ in itertools.islice(rounds, 12):
            cached_rounds = [round for round in range(1, server.round) if cache.has(round)]
            assert len(cached_rounds) <= experiment.state_budget.model_bytes // (4 * experiment.plan.layout.size) == 3
        final_weights.append(server.weights.tobytes())
    shared_cache.close()
    longer_history = s.with_settings({"downlink.remember": 12})
    assert {*final_weights, fedsgd.run(longer_history).parameters.tobytes()} == {final_weights[0]}


# ----------------------------------------------------------------------------------------------------------------------- momentum


@pytest.mark.slow
def test_carried_momentum_continues_from_the_last_round_of_a_client(scenario: Make) -> None:
    """Compute two rounds of all clients with single calls of the engine."""
    momentum = {
        "client.optimizer.name": "momentum",
        "client.optimizer.lr": 0.05,
        "server.cohort": 8,
        "engine.name": "sequential",
    }
    carried, restarted = (
        fedsgd.run(scenario({**DENSE, **momentum, "client.velocity": v, "rounds": 2})) for v in ("carry", "restart")
    )
    assert carried.summary["params_sha256"] != restarted.summary["params_sha256"]
    experiment = build_experiment(scenario({**DENSE, **momentum, "client.velocity": "carry"}))
    weights, optimizer_states = experiment.initial_server_state.weights, [{} for _ in range(8)]
    sizes = experiment.train.sizes()
    for round in (1, 2):
        total = np.zeros(len(weights))
        for client in range(8):
            job = TrainingJob(
                experiment.plan.seed, round, client, weights, experiment.train.examples_of(client), optimizer_states[client]
            )
            (client_result,) = experiment.engine.train([job])
            optimizer_states[client] = client_result.optimizer_state
            total += client_result.update.astype(np.float64) * (sizes[client] / sizes.sum())
        weights = weights + total.astype(np.float32)
    assert carried.parameters.tobytes() == weights.tobytes()


@pytest.mark.slow
def test_scaffold_equals_algorithm_1_of_its_paper(scenario: Make, blobs: Dataset) -> None:
    """Option II, written with autograd: three of four clients in each of three rounds."""
    settings = {
        "data.partition.clients": 4,
        "server.cohort": 3,
        "server.weighting": "uniform",
        "uplink.compressor.name": "scaffold",
        "uplink.error_feedback": "none",
        "client.optimizer.name": "sgd",
        "client.optimizer.lr": 0.1,
        "client.batch_size": "full",
        "client.epochs": 5,
        "rounds": 3,
    }
    experiment = build_experiment(scenario(settings))
    result = fedsgd.run(scenario(settings))
    module = experiment.task.module
    x, c = torch.from_numpy(experiment.initial_server_state.weights.copy()), torch.zeros(experiment.plan.layout.size)
    control_variates = [torch.zeros_like(c) for _ in range(4)]
    for round in (1, 2, 3):
        control_change, model_change = torch.zeros_like(c), torch.zeros_like(c)
        cohort = experiment.participation.sample_round(round).cohort
        for i in cohort:
            features, labels = (torch.from_numpy(a) for a in experiment.train.examples_of(i).arrays())
            y = x.clone()
            for _ in range(5):
                y = y - 0.1 * (gradient(module, y, features, labels) - control_variates[i] + c)
            next_control = control_variates[i] - c + (x - y) / 0.5
            control_change += next_control - control_variates[i]
            model_change += y - x
            control_variates[i] = next_control
        x, c = x + model_change / 3, c + control_change / 4
    assert result.parameters == pytest.approx(x.numpy(), abs=2e-5)
    uplink_rows = [row for row in result.ledger.table().to_pylist() if row["direction"] == "up"]
    assert {row["side_bytes"] for row in uplink_rows} == {4 * experiment.plan.layout.size}


@pytest.mark.slow
def test_scaffold_control_variates_do_not_change_without_steps(scenario: Make) -> None:
    settings = {
        "server.weighting": "uniform",
        "uplink.compressor.name": "scaffold",
        "uplink.error_feedback": "none",
        "client.optimizer.name": "sgd",
        "client.optimizer.lr": 0.1,
        "client.optimizer.schedule.name": "cosine",
        "client.optimizer.schedule.length": 2,
    }
    after_two, after_four = (fedsgd.run(scenario({**settings, "rounds": rounds})) for rounds in (2, 4))
    assert after_four.history[-1].lr == 0
    assert after_four.parameters.tobytes() == after_two.parameters.tobytes()


def gradient(module: nn.Module, flat: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    at = 0
    for p in module.parameters():
        p.data = flat[at : at + p.numel()].view_as(p).clone()
        at += p.numel()
    loss = nn.functional.cross_entropy(module(x), y)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))])


@pytest.mark.slow
def test_fednova_normalizes_updates_by_their_steps(scenario: Make) -> None:
    """d_i = x_i / a_i; the mean moves by Σ p_i a_i · Σ p_i d_i (Wang et al. 2020)."""
    settings = {**PLAIN, "client.optimizer.name": "momentum", "client.epochs": 2, "client.batch_size": 20}
    experiment = build_experiment(scenario({**settings, "server.normalisation": "fednova"}))
    plan, server = experiment.plan, experiment.initial_server_state
    messages, sending_server = broadcast(plan, server, range(8))
    replies = [o for o in start_in_process(experiment).runtime.exchange(messages, None) if isinstance(o, Reply)]
    assert len({reply.steps for reply in replies}) > 1
    next_server, _ = aggregate(plan, sending_server, replies)
    n = {r.client: decode_frame(r.frames[0]).header.examples for r in replies}
    normalizers = {r.client: plan.local_training.fednova_normalizer(n[r.client], 1) for r in replies}
    total = sum(n.values())
    effective_normalizer = sum(n[c] / total * normalizers[c] for c in n)
    expected_step = np.zeros(plan.layout.size)
    for reply in sorted(replies, key=lambda r: r.client):
        x = np.frombuffer(decode_frame(reply.frames[0]).sections[0].data, "<f4").astype(np.float64)
        expected_step += n[reply.client] / total * effective_normalizer / normalizers[reply.client] * x
    assert next_server.weights == pytest.approx(server.weights + expected_step, abs=1e-6)


# --------------------------------------------------------------------------------------------------------------------- batch norm


def make_norm_module() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))


NORM = {**PLAIN, "client.batch_size": "full", "client.epochs": 2, "data.held_out": 0.2, "evaluation.clients": True}


@pytest.mark.slow
def test_mean_buffers_are_sent_averaged_and_counted(scenario: Make) -> None:
    s = scenario({**NORM, "model.batch_norm": "mean", "server.cohort": 8, "rounds": 1})
    module = make_norm_module()
    events = collect_events(s, 1, module=module)
    updates = [decode_frame(c.frame) for c in events if c.kind is FrameKind.UPDATE]
    sections = [frame.sections[-1] for frame in updates]
    assert {section.kind for section in sections} == {SectionKind.BUFFER}
    assert {len(section.data) for section in sections} == {4 * 16}, "mean and variance of 8 features, without a batch counter"
    n = np.array([frame.header.examples for frame in updates], dtype=np.float64)
    values = [np.frombuffer(section.data, "<f4") for section in sections]
    expected = sum(w * v.astype(np.float64) for w, v in zip(n / n.sum(), values, strict=True))
    experiment = build_experiment(s, module=module)
    server, _ = next(
        run_rounds(
            experiment.plan,
            experiment.initial_server_state,
            start_in_process(experiment).runtime,
            experiment.participation,
            lambda _: None,
        )
    )
    assert server.buffers == pytest.approx(expected, abs=1e-6)
    result = fedsgd.run(s, model=make_norm_module())
    assert result.summary["uplink"]["side"] == 8 * 4 * 16 == result.summary["downlink"]["side"]
    assert result.summary["batch_norm"] == "mean"


@pytest.mark.slow
def test_fednova_does_not_normalize_buffers(scenario: Make) -> None:
    """FedNova weights apply to updates only. With a learning rate of 0 there are no normalizers."""
    s = scenario({**NORM, "model.batch_norm": "mean", "server.cohort": 8, "client.batch_size": 10, "client.epochs": 3})
    # These batch norms work with batches of one example.
    pairs = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Unflatten(1, (2, 4)), nn.BatchNorm1d(2))
    means, module = [], nn.Sequential(pairs, nn.Flatten(), nn.Linear(8, 10))
    for normalisation in ("none", "fednova"):
        experiment = build_experiment(s.with_settings({"server.normalisation": normalisation}), module=module)
        rounds = run_rounds(
            experiment.plan,
            experiment.initial_server_state,
            start_in_process(experiment).runtime,
            experiment.participation,
            lambda _: None,
        )
        means.append(next(rounds)[0].buffers.tobytes())
    assert means[0] == means[1]
    zero_rate_settings = {
        "server.normalisation": "fednova",
        "client.optimizer.schedule.name": "cosine",
        "client.optimizer.schedule.length": 1,
    }
    assert len(fedsgd.run(s.with_settings({**zero_rate_settings, "rounds": 3}), model=module).history) == 3


@pytest.mark.slow
def test_non_finite_buffers_fail_their_client(scenario: Make) -> None:
    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.overflowing = make_norm_module(), nn.BatchNorm1d(64, affine=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.overflowing(x.flatten(1) * 1e25)
            return self.inner(x)

    s = scenario({**NORM, "model.batch_norm": "mean", "rounds": 2})
    with pytest.raises(NonFiniteError, match=r"round 1, client \d: the vector of the model's buffers is not finite"):
        fedsgd.run(s, model=Overflowing())
    result = fedsgd.run(s.with_settings({"participation.on_failure": "continue"}), model=Overflowing())
    assert result.summary["failures"] == 8
    assert result.summary["uplink_ratio"] is None, "no update was sent"
    assert result.summary["bidirectional_ratio"] == result.summary["downlink_ratio"]


@pytest.mark.slow
def test_local_batch_norm_is_not_sent_and_differs_between_clients(scenario: Make) -> None:
    s = scenario({**NORM, "model.batch_norm": "local", "rounds": 3})
    experiment = build_experiment(s, module=make_norm_module())
    assert experiment.plan.layout.size == sum(p.numel() for p in make_norm_module().parameters()) - 16
    assert not any("2." in name for name in experiment.plan.layout.names)
    result = fedsgd.run(s, model=make_norm_module())
    assert result.summary["uplink"]["side"] == 0
    assert result.summary["parameters"] == experiment.plan.layout.size
    with InProcessExecution(build_experiment(s, module=make_norm_module())) as execution:
        built = execution.experiment
        rounds = run_rounds(built.plan, built.initial_server_state, execution.runtime, built.participation, lambda _: None)
        server, participants = next(rounds)
        assert execution.evaluator.local_model_of is not None
        first, second = (execution.evaluator.local_model_of(client, None) for client in participants.accepted[:2])
        assert (first[0] != second[0]).any()
        assert (first[1] != second[1]).any()
        values, accuracy = execution.evaluator(server.public_model.weights)
    assert accuracy is not None
    sizes = built.held_out.sizes()
    assert values["accuracy"] == pytest.approx(np.nansum(accuracy * sizes) / sizes.sum())


def test_local_batch_norm_requires_evaluation_by_client(scenario: Make) -> None:
    with pytest.raises(ScenarioError, match=r'model\.batch_norm: with "local", .* set evaluation\.clients = true'):
        build_experiment(
            scenario({**PLAIN, "model.batch_norm": "local", "client.last_batch": "drop"}), module=make_norm_module()
        )


# ------------------------------------------------------------------------------------------------------------- reported statistics


@pytest.mark.slow
def test_summary_reports_residual_norms_and_staleness(scenario: Make) -> None:
    result = fedsgd.run(scenario({"rounds": 6, "server.cohort": 2}))
    report = result.summary["residuals"]
    assert report["clients"] == len({client for record in result.history for client in record.cohort})
    assert 0 < report["norm_median"] <= report["norm_max"]
    assert 0 <= report["rounds_missed_median"] <= report["rounds_missed_max"] <= 5
    assert all(record.residual_norm > 0 for record in result.history)
    assert fedsgd.run(scenario({**DENSE, "rounds": 2})).summary["residuals"] is None


@pytest.mark.slow
def test_residual_norms_equal_stored_residuals_after_lost_replies(scenario: Make) -> None:
    experiment, residuals, is_accepted = (
        build_experiment(scenario({"participation.dropout": 0.5})),
        ResidualStatistics(),
        set[bool](),
    )
    parts = (
        experiment.plan,
        experiment.initial_server_state,
        start_in_process(experiment).runtime,
        experiment.participation,
        Ledger(),
    )
    for server, participants in itertools.islice(run_rounds(*parts), 6):
        residuals.add(participants.replies, participants.accepted)
        for client in participants.cohort:
            state = start_in_process(experiment).runtime.store.load(client)
            entries = state.resolve(server.round, server.acknowledged_rounds.get(client))
            assert residuals.norms[client] == pytest.approx(np.linalg.norm(entries["scheme/residual"]))
            is_accepted.add(client in participants.accepted)
    assert is_accepted == {True, False}


@pytest.mark.slow
def test_state_budget_is_reported_before_the_first_round(scenario: Make) -> None:
    calls: list[str] = []
    fedsgd.run(
        scenario({"rounds": 2}),
        callbacks=fedsgd.RunCallbacks(on_state_budget=lambda budget: calls.append(str(budget))),
        on_round=lambda _: calls.append("round"),
    )
    assert calls[0].startswith("client state: at most 8 of 8 clients x ")
    assert calls[1:] == ["round", "round"]
    with pytest.raises(
        ScenarioError, match=r"no room for client state: at most 8 of 8 clients .* the budget of memory is 1 kB"
    ):
        fedsgd.run(scenario({"state.budget": "1 kB", "state.store": "memory"}))


INCOMPATIBLE_SETTINGS = {
    "not contractive": ({"downlink.policy": "ef21-p", "downlink.compressor.name": "qsgd"}, "downlink.compressor: .* unbiased"),
    "a model cannot be sparse": (
        {"downlink.compressor.name": "top-k"},
        r'downlink\.compressor\.name: got "top-k", expected "dense"',
    ),
    "differences are exact": (
        {"downlink.policy": "difference", "downlink.compressor.values": "bfloat16"},
        r"downlink\.compressor\.name: .* a difference is exact",
    ),
    "biased operator without a residual": (
        {"downlink.policy": "unbiased", "downlink.compressor.name": "top-k"},
        r'downlink\.compressor: got "top-k" without error feedback',
    ),
    "no velocity": ({"client.optimizer.name": "sgd", "client.velocity": "carry"}, r"client\.velocity: .* sgd has no velocity"),
    "ef21 and inclusion probabilities": (
        {
            "uplink.compressor.name": "ef21",
            "uplink.error_feedback": "none",
            "server.weighting": "uniform",
            "server.sampler.name": "weighted",
        },
        r'server\.sampler: got "weighted", .* ef21 needs',
    ),
    "cafe and fednova": (
        {"uplink.compressor.name": "cafe", "uplink.error_feedback": "none", "server.normalisation": "fednova"},
        r"server\.normalisation: .* cafe needs",
    ),
    "scaffold and momentum": (
        {
            "uplink.compressor.name": "scaffold",
            "uplink.error_feedback": "none",
            "server.weighting": "uniform",
            "client.optimizer.name": "momentum",
        },
        r"client\.optimizer: scaffold needs the mean gradient",
    ),
    "mirrored and rounded": (
        {
            "uplink.compressor.name": "ef21",
            "uplink.error_feedback": "none",
            "server.weighting": "uniform",
            "state.precision": "bfloat16",
        },
        r'state\.precision: got "bfloat16", expected "float32"',
    ),
    "no size": ({"state.budget": "plenty"}, r"state\.budget: got 'plenty', expected a size such as"),
    "no residual to decay": (
        {"uplink.compressor.name": "cafe", "uplink.error_feedback": "decay"},
        r'uplink\.error_feedback: got "decay", expected "none": the state of cafe',
    ),
}


@pytest.mark.parametrize(("settings", "message"), INCOMPATIBLE_SETTINGS.values(), ids=INCOMPATIBLE_SETTINGS.keys())
def test_incompatible_settings_raise_error_with_their_key(scenario: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        scenario(settings)
