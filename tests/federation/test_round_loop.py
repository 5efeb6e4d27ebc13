"""Real participation in whole runs: lost and late replies, sampling with corrections, carried momentum, control variates,
normalised averaging, batch norm's statistics; and the figures that tell of it."""

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
from fedsgd.experiment.builder import build_experiment, with_worker_pool
from fedsgd.experiment.ledger import Ledger
from fedsgd.federation import DownlinkCache, Message, Reply, aggregate, broadcast
from fedsgd.federation.client_state import InMemoryModelCache
from fedsgd.federation.round_loop import ClientFailure, ClientOutcome, FrameEvent, Runtime, as_run_error, run_rounds
from fedsgd.federation.round_record import ResidualStatistics
from fedsgd.runtime.stores.directory import FolderModelCache, FolderStore
from fedsgd.runtime.stores.shared import SlotModelCache
from fedsgd.scenario.scenario import Scenario
from fedsgd.training import TrainingJob
from fedsgd.wire import Frame, FrameKind, Header, Section, SectionKind, decode_frame, encode_frame

Make = Callable[..., Scenario]
DENSE = {"uplink.compressor.name": "dense", "uplink.error_feedback": "none"}
PLAIN = {**DENSE, "client.optimizer.name": "sgd", "client.optimizer.lr": 0.1}


def crossings(scenario: Scenario, rounds: int, **given: Any) -> list[FrameEvent]:
    """What crossed in so many rounds."""
    experiment, seen = build_experiment(scenario, **given), []
    for server, _ in run_rounds(
        experiment.plan, experiment.initial_server_state, experiment.runtime, experiment.participation, seen.append
    ):
        if server.round > rounds:
            return seen
    raise AssertionError("a run has no end of its own")


class Altered:
    """A runtime whose outcomes are changed on their way."""

    def __init__(self, inner: Runtime, change: Callable[[Iterable[ClientOutcome]], Iterable[ClientOutcome]]) -> None:
        self.inner = inner
        self.change = change

    def clients(self) -> Sequence[int]:
        return self.inner.list_clients()

    def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        yield from self.change(self.inner.exchange(messages, timeout))


# ------------------------------------------------------------------------------------------------------------------ participation


def test_a_lost_reply_is_sent_and_not_received(scenario: Make) -> None:
    result = fedsgd.run(scenario({"rounds": 6, "participation.dropout": 0.5}))
    rows = [row for row in result.ledger.table().to_pylist() if row["direction"] == "up"]
    fates = {row["fate"] for row in rows}
    assert fates == {"received", "lost"}
    assert result.summary["uplink_bytes"] == sum(row["n_bytes"] for row in rows)
    received = sum(row["n_bytes"] for row in rows if row["fate"] == "received")
    assert result.summary["uplink_received_bytes"] == received < result.summary["uplink_bytes"]
    assert {row["kept"] for row in rows} == {48}, "of what was lost it is known here what was in it"
    for record in result.history:
        accepted = [row["client"] for row in rows if row["round"] == record.round and row["fate"] == "received"]
        assert list(record.accepted) == accepted


def test_the_first_to_reply_are_taken_and_the_late_keep_their_residual(scenario: Make) -> None:
    s = scenario({"server.cohort": 2, "participation.over_selection": 2.0, "participation.durations.spread": 1.0})
    experiment = build_experiment(s)
    assert experiment.participation.n_invited == 4
    seen: list[FrameEvent] = []
    server, attended = next(
        run_rounds(experiment.plan, experiment.initial_server_state, experiment.runtime, experiment.participation, seen.append)
    )
    assert len(attended.cohort) == 4
    ups = {c.client: c.delivery for c in seen if c.direction == "up"}
    assert sorted(ups.values()) == ["late", "late", "received", "received"]
    seconds = {reply.client: experiment.participation.reply_seconds(1, reply.client, reply.steps) for reply in attended.replies}
    late = [client for client, fate in ups.items() if fate == "late"]
    assert min(seconds[c] for c in late) > max(seconds[c] for c in attended.accepted)
    messages, _ = broadcast(experiment.plan, server, late)
    for client in late:
        assert decode_frame(messages[client][0]).header.acknowledged == 0


def test_a_round_waits_until_its_deadline(scenario: Make) -> None:
    everybody = {"server.cohort": 8, "participation.durations.spread": 1.0}
    experiment = build_experiment(scenario(everybody))
    steps = dict.fromkeys(range(8), 10)
    seconds = sorted(experiment.participation.reply_seconds(1, client, 10) for client in steps)
    cut = build_experiment(scenario({**everybody, "participation.deadline": (seconds[4] + seconds[5]) / 2}))
    assert sorted(cut.participation.delivery_of(1, steps).values()) == ["late"] * 3 + ["received"] * 5


def test_a_round_in_which_nothing_arrives_leaves_the_model_as_it_is(scenario: Make) -> None:
    for policy in ("model", "difference"):
        s = scenario({"rounds": 3, "participation.deadline": 1e-9, "downlink.policy": policy})
        result = fedsgd.run(s)
        assert result.parameters.tobytes() == build_experiment(s).initial_server_state.weights.tobytes()
        assert result.summary["uplink_received_bytes"] == 0


def test_nobody_is_there(scenario: Make, tmp_path: Path) -> None:
    """A trace in which all come in round 2: rounds 1 and 3 are empty, and cost nothing."""
    (tmp_path / "trace.csv").write_text("client,first_round,last_round\n" + "".join(f"{c},2,2\n" for c in range(8)))
    sampler = {"server.sampler.name": "trace", "server.sampler.file": "trace.csv"}
    result = fedsgd.run(scenario({"rounds": 3, **sampler}), data=tmp_path)
    assert [len(record.cohort) for record in result.history] == [0, 4, 0]
    assert {row["round"] for row in result.ledger.table().to_pylist()} == {2}


COMING_AND_GOING = "client,first_round,last_round\n0,1,2\n1,5,5\n"
"""Client 0 is there in rounds 1 and 2, nobody in rounds 3 and 4, client 1 in round 5."""


def two_parabolas(scenario: Make, folder: Path, settings: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return the models before round 1 and after each of five rounds, and the minima of two clients' losses (w − minimum)²."""
    (folder / "trace.csv").write_text(COMING_AND_GOING)
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
        experiment.plan, experiment.initial_server_state, experiment.runtime, experiment.participation, lambda _: None
    )
    models = [1.0, *(float(server.weights[0]) for server, _ in itertools.islice(rounds, 5))]
    return models, [experiment.train.examples_of(client).arrays()[1].item() for client in (0, 1)]


@pytest.mark.parametrize("policy", ["model", "difference", "error-feedback", "shift"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_ef21_steps_in_rounds_without_replies(scenario: Make, tmp_path: Path, policy: str, momentum: float) -> None:
    """EF21-PP, and with momentum EF21-HB: v ← βv + g; w ← w + v in each round, g being the mean of what both last sent."""
    uplink = {"uplink.compressor": {"name": "ef21", "op": {"name": "top-k", "density": 1.0}}, "server.weighting": "uniform"}
    server = {"server.optimizer": {"name": "momentum-pytorch", "lr": 1.0, "momentum": momentum}}
    downlink = {"downlink.policy": policy}
    if policy in ("error-feedback", "shift"):
        downlink["downlink.compressor.name"] = "top-k"
        downlink["downlink.compressor.density"] = 1.0
    models, minima = two_parabolas(scenario, tmp_path, {**uplink, **server, **downlink})
    w, v, sent, expected = 1.0, 0.0, [0.0, 0.0], [1.0]
    for client in (0, 0, None, None, 1):
        if client is not None:
            sent[client] = -0.25 * 2 * (w - minima[client])
        v = momentum * v + sum(sent) / 2
        w += v
        expected.append(w)
    assert sorted(minima) == [-8, 4]
    assert models == expected, "dyadic numbers, so exactly"


@pytest.mark.parametrize("uplink", ["dense", "cafe", "fetch-sgd", "scaffold"])
def test_schemes_that_the_papers_never_step_alone_wait_for_a_reply(scenario: Make, tmp_path: Path, uplink: str) -> None:
    settings = {"uplink.compressor": {"name": uplink}, "server.weighting": "uniform"}
    models, _ = two_parabolas(scenario, tmp_path, {**settings, "server.optimizer": {"name": "fedavgm", "lr": 1.0}})
    assert models[2] == models[3] == models[4] != models[5]


def test_a_client_that_breaks_down_may_count_as_one_that_was_lost(scenario: Make) -> None:
    def failing(error: Exception) -> Callable[[Iterable[ClientOutcome]], Iterator[ClientOutcome]]:
        def change(outcomes: Iterable[ClientOutcome]) -> Iterator[ClientOutcome]:
            for outcome in outcomes:
                yield ClientFailure(3, error) if outcome.client == 3 else outcome

        return change

    experiment = build_experiment(scenario({"server.cohort": 8}))
    fragile = Altered(experiment.runtime, failing(OSError("gone")))
    parts = experiment.plan, experiment.initial_server_state, fragile, experiment.participation, lambda _: None
    with pytest.raises(RunError, match="round 1, client 3: OSError: gone"):
        next(run_rounds(*parts))
    _, attended = next(run_rounds(*parts, on_failure="continue"))
    assert attended.accepted == (0, 1, 2, 4, 5, 6, 7)
    assert [failure.client for failure in attended.failures] == [3]
    fragile.change = failing(ChildProcessError("killed"))
    with pytest.raises(RunError, match="round 1, client 3: ChildProcessError: killed"):
        next(run_rounds(*parts, on_failure="continue"))


@pytest.mark.parametrize("where", ["header", "values"])
def test_a_reply_that_cannot_be_read_may_count_as_one_that_was_lost(scenario: Make, where: str) -> None:
    """Whether it is found when the frame is opened or when it is decoded; its client still has what it sent."""

    def garbled(outcomes: Iterable[ClientOutcome]) -> Iterator[ClientOutcome]:
        for outcome in outcomes:
            if outcome.client == 3 and isinstance(outcome, Reply):
                frame = decode_frame(outcome.frames[0])
                sections = tuple(Section(s.kind, b"\xff" * len(s.data)) for s in frame.sections)
                bad = encode_frame(Frame(frame.header, sections)) if where == "values" else outcome.frames[0][:-1]
                outcome = replace(outcome, frames=(bad,))
            yield outcome

    experiment = build_experiment(scenario({"server.cohort": 8}))
    parts = experiment.plan, experiment.initial_server_state, Altered(experiment.runtime, garbled), experiment.participation
    with pytest.raises(WireError, match="round 1, client 3: byte"):
        next(run_rounds(*parts, lambda _: None))
    seen: list[FrameEvent] = []
    rounds = run_rounds(*parts, seen.append, on_failure="continue")
    server, attended = next(rounds)
    assert attended.accepted == (0, 1, 2, 4, 5, 6, 7)
    assert next(str(as_run_error(1, failure)) for failure in attended.failures).startswith("round 1, client 3: byte")
    assert {c.client for c in seen if c.delivery == "refused"} == {3}
    assert server.acknowledged_rounds.get(3) == 0
    assert server.acknowledged_rounds.get(4) == 1


def test_clients_that_break_down_are_told_of(scenario: Make, capsys: pytest.CaptureFixture[str]) -> None:
    lr = {"client.optimizer.lr": 1e38, "client.epochs": 2}
    result = fedsgd.run(scenario({"rounds": 2, "participation.on_failure": "continue", **lr}))
    assert [len(record.failures) for record in result.history] == [4, 4]
    assert result.summary["failures"] == 8
    assert re.match(r"round 1, client \d: the update is not finite", result.summary["first_failure"])
    print_result(result)
    assert "clients that broke down: 8 times, first in round 1, client" in capsys.readouterr().out
    quiet = fedsgd.run(scenario({"rounds": 1})).summary
    assert (quiet["failures"], quiet["first_failure"]) == (0, None)


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_a_mean_that_is_corrected_for_chances_is_the_mean_over_all(scenario: Make, weighting: str) -> None:
    """Horvitz and Thompson: over many draws, the mean of the estimates is what full participation gives."""
    s = scenario({**PLAIN, "server.sampler.name": "weighted", "server.cohort": 3, "server.weighting": weighting})
    experiment = build_experiment(s)
    plan, server = experiment.plan, experiment.initial_server_state
    messages, sending = broadcast(plan, server, range(8))
    replies = {o.client: o for o in experiment.runtime.exchange(messages, None) if isinstance(o, Reply)}
    everybody = dict.fromkeys(replies, 1.0)
    exact = aggregate(plan, sending, list(replies.values()), everybody)[0].weights - server.weights
    estimates = []
    for round in range(1, 3001):
        drawn = experiment.participation.sample_round(round)
        assert drawn.inclusion_probabilities is not None
        chances = dict(zip(drawn.cohort, drawn.inclusion_probabilities.tolist(), strict=True))
        after, _ = aggregate(plan, sending, [replies[c] for c in drawn.cohort], chances)
        estimates.append(after.weights - server.weights)
    spread = np.std(estimates, axis=0).max() / np.sqrt(len(estimates))
    assert np.abs(np.mean(estimates, axis=0) - exact).max() < 5 * spread


# ----------------------------------------------------------------------------------------------------------------------- downlink


def test_exact_differences_change_nothing_but_bytes(scenario: Make) -> None:
    whole, difference = (fedsgd.run(scenario({"rounds": 8, "downlink.policy": p})) for p in ("model", "difference"))
    assert whole.summary["params_sha256"] == difference.summary["params_sha256"]
    assert difference.summary["downlink_bytes"] < whole.summary["downlink_bytes"] / 2
    assert difference.summary["uplink_bytes"] == whole.summary["uplink_bytes"]


def test_broadcast_counts_a_frame_once_a_round(scenario: Make) -> None:
    result = fedsgd.run(scenario({"rounds": 3}))
    rows = [row for row in result.ledger.table().to_pylist() if row["direction"] == "down"]
    once = {(row["round"], row["frame_hash"]): row["n_bytes"] for row in rows}
    assert result.summary["downlink_broadcast_bytes"] == sum(once.values()) < result.summary["downlink_bytes"] / 3


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("store", ["memory", "disk"])
def test_a_run_does_not_depend_on_where_states_are(scenario: Make, workers: int, store: str) -> None:
    settings = {
        "rounds": 5,
        "downlink.policy": "error-feedback",
        "downlink.compressor": {"name": "top-k", "density": 0.05},
        "participation.dropout": 0.3,
        "client.velocity": "carry",
        "client.optimizer.name": "momentum",
        "state.precision": "bfloat16",
    }
    found = []
    for where, n in (("memory", 1), (store, workers)):
        result = fedsgd.run(scenario({**settings, "state.store": where}), workers=n)
        found.append((result.summary["params_sha256"], result.summary["ledger_sha256"]))
    assert found[0] == found[1]


def test_a_client_that_lost_everything_is_sent_a_second_message(scenario: Make) -> None:
    experiment = build_experiment(scenario({"server.cohort": 8, "downlink.policy": "difference"}))
    seen: list[FrameEvent] = []
    rounds = run_rounds(
        experiment.plan, experiment.initial_server_state, experiment.runtime, experiment.participation, seen.append
    )
    next(rounds)
    experiment.runtime.store._states_by_client.pop(3)
    seen.clear()
    _, attended = next(rounds)
    assert len(attended.accepted) == 8
    ours = [(c.direction, c.kind, decode_frame(c.frame).header.base) for c in seen if c.client == 3]
    assert ours == [
        ("down", FrameKind.TASK, 1),
        ("down", FrameKind.MODEL, 1),
        ("up", FrameKind.RESYNC, 0),
        ("down", FrameKind.TASK, 0),
        ("down", FrameKind.MODEL, 0),
        ("up", FrameKind.UPDATE, 2),
    ]


def test_nothing_depends_on_the_order_in_which_clients_are_heard(scenario: Make) -> None:
    settings = {"participation.dropout": 0.3, "participation.over_selection": 1.5, "downlink.policy": "difference"}

    digests = []
    for change in (list, lambda outcomes: reversed(list(outcomes))):
        experiment, ledger = build_experiment(scenario(settings)), Ledger()
        rounds = run_rounds(
            experiment.plan,
            experiment.initial_server_state,
            Altered(experiment.runtime, change),
            experiment.participation,
            ledger,
        )
        server = [next(rounds)[0] for _ in range(8)][-1]
        digests.append((ledger.sha256, server.weights.tobytes()))
    assert digests[0] == digests[1]


def test_a_resync_that_cannot_be_read_has_crossed_all_the_same(scenario: Make) -> None:
    def garbled(outcomes: Iterable[ClientOutcome]) -> Iterator[ClientOutcome]:
        for outcome in outcomes:
            bad = encode_frame(Frame(Header(FrameKind.RESYNC, 9, client=3)))
            yield Reply(3, (bad,), 0.0, 0.0) if outcome.client == 3 else outcome

    experiment, seen = build_experiment(scenario({"server.cohort": 8})), []
    rounds = run_rounds(
        experiment.plan,
        experiment.initial_server_state,
        Altered(experiment.runtime, garbled),
        experiment.participation,
        seen.append,
    )
    with pytest.raises(RunError, match="round 1, client 3: WireError: byte 6: round is 9, expected 1"):
        next(rounds)
    assert [(c.direction, c.kind, c.fate) for c in seen if c.client == 3][2:] == [("up", FrameKind.RESYNC, "refused")]


def test_models_that_no_client_keeps_are_let_go(scenario: Make) -> None:
    experiment = build_experiment(scenario({"downlink.policy": "difference"}))
    rounds = run_rounds(
        experiment.plan, experiment.initial_server_state, experiment.runtime, experiment.participation, lambda _: None
    )
    for _ in range(12):
        next(rounds)
    states = [experiment.runtime.store.load(client) for client in range(8)]
    models = experiment.runtime._host._downlink_cache.model_cache
    assert set(models._models) == {state.held for state in states if state.held}


def test_models_that_no_difference_builds_on_any_more_are_let_go(scenario: Make, tmp_path: Path) -> None:
    """The plan of states counts on it."""
    s = scenario({"server.cohort": 1, "rounds": 12, "downlink.policy": "difference", "downlink.remember": 2})
    shared, ends = SlotModelCache(12), []
    for models in (InMemoryModelCache(), shared, FolderModelCache(FolderStore(tmp_path))):
        experiment = build_experiment(s)
        runtime: Any = experiment.runtime
        runtime._host._downlink_cache = DownlinkCache(models)
        rounds = run_rounds(experiment.plan, experiment.initial_server_state, runtime, experiment.participation, lambda _: None)
        for server, _ in itertools.islice(rounds, 12):
            present = [round for round in range(1, server.round) if models.has(round)]
            assert len(present) <= experiment.state_budget.model_bytes // (4 * experiment.plan.layout.size) == 3
        ends.append(server.weights.tobytes())
    shared.close()
    kept_longer = s.with_settings({"downlink.remember": 12})
    assert {*ends, fedsgd.run(kept_longer).parameters.tobytes()} == {ends[0]}


# ----------------------------------------------------------------------------------------------------------------------- momentum


def test_velocity_is_carried_from_a_clients_last_round(scenario: Make) -> None:
    """Two rounds by hand with the engine's own steps, everybody there."""
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
    weights, memory = experiment.initial_server_state.weights, [{} for _ in range(8)]
    sizes = experiment.train.sizes()
    for round in (1, 2):
        total = np.zeros(len(weights))
        for client in range(8):
            work = TrainingJob(
                experiment.plan.seed, round, client, weights, experiment.train.examples_of(client), memory[client]
            )
            (local,) = experiment.engine.train([work])
            memory[client] = local.optimizer_state
            total += local.update.astype(np.float64) * (sizes[client] / sizes.sum())
        weights = weights + total.astype(np.float32)
    assert carried.parameters.tobytes() == weights.tobytes()


def test_scaffold_is_its_papers_algorithm(scenario: Make, blobs: Dataset) -> None:
    """Algorithm 1 with option II, written out with autograd: three of four clients a round, three rounds."""
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
    own = [torch.zeros_like(c) for _ in range(4)]
    for round in (1, 2, 3):
        changes, moved = torch.zeros_like(c), torch.zeros_like(c)
        cohort = experiment.participation.sample_round(round).cohort
        for i in cohort:
            features, labels = (torch.from_numpy(a) for a in experiment.train.examples_of(i).arrays())
            y = x.clone()
            for _ in range(5):
                y = y - 0.1 * (gradient(module, y, features, labels) - own[i] + c)
            plus = own[i] - c + (x - y) / 0.5
            changes += plus - own[i]
            moved += y - x
            own[i] = plus
        x, c = x + moved / 3, c + changes / 4
    assert result.parameters == pytest.approx(x.numpy(), abs=2e-5)
    ups = [row for row in result.ledger.table().to_pylist() if row["direction"] == "up"]
    assert {row["side_bytes"] for row in ups} == {4 * experiment.plan.layout.size}


def test_scaffold_keeps_its_control_variates_where_no_step_is_made(scenario: Make) -> None:
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


def test_fednova_weighs_by_how_far_steps_go(scenario: Make) -> None:
    """d_i = x_i / a_i; the mean moves by Σ p_i a_i · Σ p_i d_i (Wang et al. 2020)."""
    settings = {**PLAIN, "client.optimizer.name": "momentum", "client.epochs": 2, "client.batch_size": 20}
    experiment = build_experiment(scenario({**settings, "server.normalisation": "fednova"}))
    plan, server = experiment.plan, experiment.initial_server_state
    messages, sending = broadcast(plan, server, range(8))
    replies = [o for o in experiment.runtime.exchange(messages, None) if isinstance(o, Reply)]
    assert len({reply.steps for reply in replies}) > 1
    after, _ = aggregate(plan, sending, replies)
    n = {r.client: decode_frame(r.frames[0]).header.examples for r in replies}
    went = {r.client: plan.local_training.fednova_normalizer(n[r.client], 1) for r in replies}
    total = sum(n.values())
    mean = sum(n[c] / total * went[c] for c in n)
    moved = np.zeros(plan.layout.size)
    for reply in sorted(replies, key=lambda r: r.client):
        x = np.frombuffer(decode_frame(reply.frames[0]).sections[0].data, "<f4").astype(np.float64)
        moved += n[reply.client] / total * mean / went[reply.client] * x
    assert after.weights == pytest.approx(server.weights + moved, abs=1e-6)


# --------------------------------------------------------------------------------------------------------------------- batch norm


def normed() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))


NORM = {**PLAIN, "client.batch_size": "full", "client.epochs": 2, "data.held_out": 0.2, "evaluation.clients": True}


def test_mean_statistics_are_sent_averaged_and_counted(scenario: Make) -> None:
    s = scenario({**NORM, "model.batch_norm": "mean", "server.cohort": 8, "rounds": 1})
    module = normed()
    seen = crossings(s, 1, module=module)
    ups = [decode_frame(c.frame) for c in seen if c.kind is FrameKind.UPDATE]
    sections = [frame.sections[-1] for frame in ups]
    assert {section.kind for section in sections} == {SectionKind.BUFFER}
    assert {len(section.data) for section in sections} == {4 * 16}, "a mean and a variance for each of 8, and no counter"
    n = np.array([frame.header.examples for frame in ups], dtype=np.float64)
    values = [np.frombuffer(section.data, "<f4") for section in sections]
    expected = sum(w * v.astype(np.float64) for w, v in zip(n / n.sum(), values, strict=True))
    experiment = build_experiment(s, module=module)
    server, _ = next(
        run_rounds(
            experiment.plan, experiment.initial_server_state, experiment.runtime, experiment.participation, lambda _: None
        )
    )
    assert server.buffers == pytest.approx(expected, abs=1e-6)
    result = fedsgd.run(s, module=normed())
    assert result.summary["uplink"]["side"] == 8 * 4 * 16 == result.summary["downlink"]["side"]
    assert result.summary["batch_norm"] == "mean"


def test_how_far_steps_go_is_nothing_to_mean_statistics(scenario: Make) -> None:
    """FedNova's shares are of updates; and where no step is made there are none."""
    s = scenario({**NORM, "model.batch_norm": "mean", "server.cohort": 8, "client.batch_size": 10, "client.epochs": 3})
    pairs = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Unflatten(1, (2, 4)), nn.BatchNorm1d(2))  # batches of one will do
    means, module = [], nn.Sequential(pairs, nn.Flatten(), nn.Linear(8, 10))
    for normalisation in ("none", "fednova"):
        experiment = build_experiment(s.with_settings({"server.normalisation": normalisation}), module=module)
        rounds = run_rounds(
            experiment.plan, experiment.initial_server_state, experiment.runtime, experiment.participation, lambda _: None
        )
        means.append(next(rounds)[0].buffers.tobytes())
    assert means[0] == means[1]
    ends = {
        "server.normalisation": "fednova",
        "client.optimizer.schedule.name": "cosine",
        "client.optimizer.schedule.length": 1,
    }
    assert len(fedsgd.run(s.with_settings({**ends, "rounds": 3}), module=module).history) == 3


def test_statistics_that_are_not_finite_are_their_clients_failure(scenario: Make) -> None:
    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.beside = normed(), nn.BatchNorm1d(64, affine=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.beside(x.flatten(1) * 1e25)
            return self.inner(x)

    s = scenario({**NORM, "model.batch_norm": "mean", "rounds": 2})
    with pytest.raises(NonFiniteError, match=r"round 1, client \d: the vector of the model's buffers is not finite"):
        fedsgd.run(s, module=Overflowing())
    result = fedsgd.run(s.with_settings({"participation.on_failure": "continue"}), module=Overflowing())
    assert result.summary["failures"] == 8
    assert result.summary["uplink_ratio"] is None, "nothing was sent up"
    assert result.summary["bidirectional_ratio"] == result.summary["downlink_ratio"]


def test_local_batch_norm_never_leaves_its_client(scenario: Make) -> None:
    s = scenario({**NORM, "model.batch_norm": "local", "rounds": 3})
    experiment = build_experiment(s, module=normed())
    assert experiment.plan.layout.size == sum(p.numel() for p in normed().parameters()) - 16
    assert not any("2." in name for name in experiment.plan.layout.names)
    result = fedsgd.run(s, module=normed())
    assert result.summary["uplink"]["side"] == 0
    assert result.summary["parameters"] == experiment.plan.layout.size
    with with_worker_pool(build_experiment(s, module=normed(), share_data=True), 1) as one:
        rounds = run_rounds(one.plan, one.initial_server_state, one.runtime, one.participation, lambda _: None)
        server, attended = next(rounds)
        assert one.evaluator.local_model_of is not None
        here, there = (one.evaluator.local_model_of(client, None) for client in attended.accepted[:2])
        assert (here[0] != there[0]).any()
        assert (here[1] != there[1]).any()
        values, accuracy = one.evaluator(server.public_model.weights)
    assert accuracy is not None
    sizes = one.held_out.sizes()
    assert values["accuracy"] == pytest.approx(np.nansum(accuracy * sizes) / sizes.sum())


def test_local_batch_norm_has_no_one_model_to_test(scenario: Make) -> None:
    with pytest.raises(ScenarioError, match=r'model\.batch_norm: with "local", .* set evaluation\.clients = true'):
        build_experiment(scenario({**PLAIN, "model.batch_norm": "local", "client.last_batch": "drop"}), module=normed())


# -------------------------------------------------------------------------------------------------------------------- the figures


def test_what_is_held_back_and_how_stale_it_is_is_reported(scenario: Make) -> None:
    result = fedsgd.run(scenario({"rounds": 6, "server.cohort": 2}))
    report = result.summary["residuals"]
    assert report["clients"] == len({client for record in result.history for client in record.cohort})
    assert 0 < report["norm_median"] <= report["norm_max"]
    assert 0 <= report["rounds_missed_median"] <= report["rounds_missed_max"] <= 5
    assert all(record.residual_norm > 0 for record in result.history)
    assert fedsgd.run(scenario({**DENSE, "rounds": 2})).summary["residuals"] is None


def test_who_was_not_heard_holds_all_of_it_back(scenario: Make) -> None:
    experiment, residuals, fates = build_experiment(scenario({"participation.dropout": 0.5})), ResidualStatistics(), set[bool]()
    parts = experiment.plan, experiment.initial_server_state, experiment.runtime, experiment.participation, Ledger()
    for server, attended in itertools.islice(run_rounds(*parts), 6):
        residuals.add(attended.replies, attended.accepted)
        for client in attended.cohort:
            state = experiment.runtime.store.load(client)
            memory = state.resolve(server.round, server.acknowledged_rounds.get(client))
            assert residuals.norms[client] == pytest.approx(np.linalg.norm(memory["scheme/residual"]))
            fates.add(client in attended.accepted)
    assert fates == {True, False}


def test_the_plan_of_states_is_told_before_the_first_round(scenario: Make) -> None:
    said: list[str] = []
    fedsgd.run(
        scenario({"rounds": 2}), on_state_budget=lambda plan: said.append(str(plan)), on_round=lambda _: said.append("round")
    )
    assert said[0].startswith("client state: at most 8 of 8 clients x ")
    assert said[1:] == ["round", "round"]
    with pytest.raises(
        ScenarioError, match=r"no room for client state: at most 8 of 8 clients .* the budget of memory is 1 kB"
    ):
        fedsgd.run(scenario({"state.budget": "1 kB", "state.store": "memory"}))


REFUSED = {
    "not contractive": ({"downlink.policy": "shift", "downlink.compressor.name": "qsgd"}, "downlink.compressor: .* unbiased"),
    "a model cannot be sparse": (
        {"downlink.compressor.name": "top-k"},
        r'downlink\.compressor\.name: got "top-k", expected "dense"',
    ),
    "differences are exact": (
        {"downlink.policy": "difference", "downlink.compressor.values": "bfloat16"},
        r"downlink\.compressor\.name: .* a difference is exact",
    ),
    "forgetting a bias": (
        {"downlink.policy": "plain", "downlink.compressor.name": "top-k"},
        r'downlink\.compressor: got "top-k" without a memory',
    ),
    "no velocity": ({"client.optimizer.name": "sgd", "client.velocity": "carry"}, r"client\.velocity: .* sgd has no velocity"),
    "ef21 and chances": (
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
        r"client\.optimizer: scaffold reads the mean gradient",
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
    "nothing to age": (
        {"uplink.compressor.name": "cafe", "uplink.error_feedback": "decay"},
        r'uplink\.error_feedback: got "decay", expected "none": cafe has a memory',
    ),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_go_together_is_refused_by_its_key(scenario: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        scenario(settings)
