"""One round as functions: what is sent, what is folded, what is acknowledged, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedsgd.build import Experiment, build
from fedsgd.clients import ClientState, Pending
from fedsgd.compress import Patch
from fedsgd.data import Dataset, Examples
from fedsgd.engine import Local, Work
from fedsgd.errors import NonFiniteError, RunError, ScenarioError, WireError
from fedsgd.loop import Crossing, Failure, Outcome, run
from fedsgd.rounds import (
    Message,
    Opened,
    Reply,
    Shelf,
    Task,
    aggregate,
    broadcast,
    client_update,
    receive,
    send,
)
from fedsgd.scenario import Scenario
from fedsgd.wire import ALL, Frame, Kind, Part, Section, decode_frame, encode_frame

Make = Callable[..., Scenario]


def replies_of(experiment: Experiment, cohort: Sequence[int]) -> list[Reply]:
    messages, _ = broadcast(experiment.plan, experiment.server, cohort)
    replies = [o for o in experiment.runtime.exchange(messages, None) if isinstance(o, Reply)]
    return sorted(replies, key=lambda reply: reply.client)


def edited(frame: bytes, **changes: Any) -> bytes:
    """The same frame with another header, properly sealed."""
    decoded = decode_frame(frame)
    return encode_frame(Frame(replace(decoded.header, **changes), decoded.sections))


def test_a_message_is_a_task_of_ones_own_and_a_model_that_is_shared(scenario: Make) -> None:
    experiment = build(scenario())
    messages, _ = broadcast(experiment.plan, experiment.server, [1, 5])
    tasks = [decode_frame(messages[c][0]).header for c in (1, 5)]
    assert [(t.kind, t.round, t.client, t.acknowledged) for t in tasks] == [(Kind.TASK, 1, 1, 0), (Kind.TASK, 1, 5, 0)]
    assert messages[1][1] is messages[5][1]
    assert decode_frame(messages[1][1]).header.client == ALL


def resectioned(frame: bytes, sections: tuple[Section, ...]) -> bytes:
    """The same frame with other sections, properly sealed."""
    return encode_frame(Frame(decode_frame(frame).header, sections))


def test_replies_are_folded_in_client_order_whatever_order_they_came_in(scenario: Make) -> None:
    experiment = build(scenario({"server.cohort": 8, "uplink.compressor.name": "dense"}))
    replies = replies_of(experiment, range(8))
    forwards, backwards = (aggregate(experiment.plan, experiment.server, order)[0] for order in (replies, replies[::-1]))
    assert forwards.weights.tobytes() == backwards.weights.tobytes()
    assert [f.public.whole.data for f in (forwards, backwards)].count(forwards.public.whole.data) == 2


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_the_mean_is_weighted_as_asked(scenario: Make, weighting: str) -> None:
    experiment = build(scenario({"server.weighting": weighting, "uplink.compressor.name": "dense"}))
    replies = replies_of(experiment, [0, 3, 4])
    frames = [decode_frame(r.frames[0]) for r in replies]
    counts = np.array([f.header.examples if weighting == "examples" else 1 for f in frames], dtype=np.float64)
    assert len(set(counts)) == (3 if weighting == "examples" else 1)
    updates = [np.frombuffer(f.sections[0].data, "<f4").astype(np.float64) for f in frames]
    mean = sum(w * u for w, u in zip(counts / counts.sum(), updates, strict=True)).astype(np.float32)
    after, _ = aggregate(experiment.plan, experiment.server, replies)
    assert (after.weights == experiment.server.weights + mean).all()


def test_fedsgd_on_everyone_is_a_step_of_gradient_descent_on_the_union(scenario: Make) -> None:
    """One full-batch step a client, weighted by examples: the gradient of the whole training set."""
    import torch

    overrides = {
        "client.steps": 1,
        "client.batch_size": "full",
        "client.optimizer.name": "sgd",
        "client.optimizer.lr": 0.5,
        "server.cohort": 8,
        "uplink.compressor.name": "dense",
    }
    experiment = build(scenario(overrides))
    after, _ = aggregate(experiment.plan, experiment.server, replies_of(experiment, range(8)))
    module, train = experiment.task.module, experiment.dataset.train
    experiment.engine.evaluate(experiment.server.weights, experiment.dataset.test)  # points the module at round 1's weights
    loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(train.x)), torch.from_numpy(train.y))
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))]).numpy()
    assert after.weights == pytest.approx(experiment.server.weights - 0.5 * gradient, abs=1e-6)


def test_client_update_is_receive_train_send(scenario: Make) -> None:
    experiment = build(scenario())
    message = broadcast(experiment.plan, experiment.server, [2])[0][2]
    examples = Examples(experiment.dataset.train.x, experiment.dataset.train.y, np.arange(30))
    reply, state = client_update(experiment.plan, experiment.engine, 2, message, ClientState(), examples)
    task = receive(experiment.plan, 2, message, ClientState(), examples)
    (local,) = experiment.engine.train([task.work])
    again, _ = send(experiment.plan, task, local)
    assert reply.frames == again.frames
    assert state.pending is not None
    assert state.pending.round == 1


def test_frames_that_clients_share_are_decoded_once(scenario: Make) -> None:
    experiment = build(scenario({"uplink.compressor.name": "cafe", "uplink.error_feedback": "none"}))
    messages, _ = broadcast(experiment.plan, experiment.server, [2, 5])
    examples = Examples(experiment.dataset.train.x, experiment.dataset.train.y, np.arange(30))
    shelf = Shelf()
    first, second = (receive(experiment.plan, c, messages[c], ClientState(), examples, shelf) for c in (2, 5))
    assert isinstance(first, Task)
    assert isinstance(second, Task)
    assert second.opened is first.opened
    assert second.decode_seconds >= first.opened.seconds > 0, "each would have to decode them by itself"
    for edit in ({"round": 2}, {"base": 1}):
        with pytest.raises(WireError):
            receive(experiment.plan, 5, (messages[5][0], edited(messages[5][1], **edit)), ClientState(), examples, shelf)
    with pytest.raises(WireError, match="the MODEL frames end in round 1, expected 2"):
        receive(experiment.plan, 5, (edited(messages[5][0], round=2), *messages[5][1:]), ClientState(), examples, shelf)


def test_a_residual_is_settled_by_the_acknowledgement_in_the_next_task(scenario: Make) -> None:
    """Accepted in round 1: the residual is what was left out. Not accepted: it is everything."""
    received = {"residual": np.float32([0, 1]), "new": np.float32([7])}
    lost: dict[str, Patch | None] = {"residual": Patch(np.array([0]), np.float32([5])), "new": None}
    state = ClientState({}, Pending(3, received, lost))
    assert state.settle(5, 3) is received
    for acknowledged in (0, 2):
        settled = state.settle(5, acknowledged)
        assert {name: value.tolist() for name, value in settled.items()} == {"residual": [5, 1]}
    assert received["residual"].tolist() == [0, 1]
    assert ClientState(received).settle(1, 0) is received
    before: dict[str, Any] = {}
    assert ClientState(before, Pending(3, received, lost)).settle(3, 0) is before, "the same TASK again starts where it did"


def test_an_accepted_reply_is_acknowledged_and_a_lost_one_is_not(scenario: Make) -> None:
    """Client 1's reply of round 1 never arrives: in round 2 it starts from all that it had."""
    experiment = build(scenario({"server.cohort": 8}))
    plan, server = experiment.plan, experiment.server
    everything = replies_of(experiment, range(8))
    lost = everything[1]
    replies = [r for r in everything if r.client != 1]
    store = experiment.runtime.store
    after, _ = aggregate(plan, server, replies)
    messages, _ = broadcast(plan, after, range(8))
    for client in (0, 1):
        state = store.load(client)
        settled = receive(plan, client, messages[client], state, Examples(np.zeros((1, 8, 8)), np.zeros(1))).state
        kept = state.pending.if_received["scheme/residual"]
        assert (settled.memory["scheme/residual"] is kept) == (client == 0)
        if client == 1:
            delivered = kept.copy()
            scheme, ctx = plan.uplink, plan.context(1, 1)
            scheme.decode(decode_frame(lost.frames[0]).sections, ctx).add_to(delivered, 1.0)
            assert np.allclose(settled.memory["scheme/residual"], delivered, atol=1e-7)
        assert settled.pending is None


BAD_REPLIES: dict[str, Callable[[Reply], Reply]] = {
    "another client's": lambda r: replace(r, frames=(edited(r.frames[0], client=7),)),
    "another round's": lambda r: replace(r, frames=(edited(r.frames[0], round=2),)),
    "on another model": lambda r: replace(r, frames=(edited(r.frames[0], base=0),)),
    "another codec's": lambda r: replace(r, frames=(edited(r.frames[0], codec=1),)),
    "not an update": lambda r: replace(r, frames=(edited(r.frames[0], kind=Kind.MODEL),)),
    "two frames": lambda r: replace(r, frames=r.frames * 2),
    "no frame": lambda r: replace(r, frames=()),
    "no sections": lambda r: replace(r, frames=(resectioned(r.frames[0], ()),)),
    "an empty index": lambda r: replace(r, frames=(resectioned(r.frames[0], (Section(Part.INDEX, b""),)),)),
    "all positions": lambda r: replace(r, frames=(resectioned(r.frames[0], (Section(Part.INDEX, b"\x03\x00"),)),)),
    "more absent than there are": lambda r: replace(
        r, frames=(resectioned(r.frames[0], (Section(Part.INDEX, b"\x03\xff\xff\x03"),)),)
    ),
    "cut short": lambda r: replace(r, frames=(r.frames[0][:-1],)),
    "far too long": lambda r: replace(r, frames=(r.frames[0] + bytes(10**6),)),
}


@pytest.mark.parametrize("spoil", BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
def test_a_bad_reply_is_refused_and_changes_nothing(scenario: Make, spoil: Callable[[Reply], Reply]) -> None:
    experiment = build(scenario())
    before = experiment.server.weights.tobytes(), experiment.server.public
    replies = replies_of(experiment, [0, 1, 2])
    with pytest.raises(WireError, match=r"^round 1, client 2: byte \d+: "):
        aggregate(experiment.plan, experiment.server, [*replies[:2], spoil(replies[2])])
    assert before == (experiment.server.weights.tobytes(), experiment.server.public)


def test_a_client_refuses_a_message_that_is_not_for_it(scenario: Make) -> None:
    experiment = build(scenario())
    message = broadcast(experiment.plan, experiment.server, [2])[0][2]
    examples = Examples(np.zeros((1, 8, 8)), np.zeros(1))
    another = edited(message[1], client=2)
    for bad in (message[:1], message[::-1], (edited(message[0], round=9), message[1]), (message[0], another)):
        with pytest.raises(WireError):
            receive(experiment.plan, 2, bad, ClientState(), examples)
    with pytest.raises(WireError, match="client is 2, expected 3"):
        receive(experiment.plan, 3, message, ClientState(), examples)


def test_no_examples_at_all_is_an_error_and_not_a_division(scenario: Make) -> None:
    experiment = build(scenario())
    (reply,) = replies_of(experiment, [0])
    nothing = replace(reply, frames=(edited(reply.frames[0], examples=0),))
    with pytest.raises(RunError, match="round 1, server: no client of the cohort has any examples"):
        aggregate(experiment.plan, experiment.server, [nothing])


@pytest.mark.parametrize("values", ["float32", "bfloat16"])
def test_clients_and_evaluation_use_the_model_that_was_decoded(scenario: Make, values: str) -> None:
    experiment = build(scenario({"downlink.compressor.values": values}))
    message = broadcast(experiment.plan, experiment.server, [0])[0][0]
    work = receive(experiment.plan, 0, message, ClientState(), Examples(np.zeros((1, 8, 8)), np.zeros(1))).work
    assert work.weights.tobytes() == experiment.server.public.model.tobytes()
    exact = work.weights.tobytes() == experiment.server.weights.tobytes()
    assert exact == (values == "float32")


# ------------------------------------------------------------------------------------------------------------------- the loop


class Spy:
    """Counts the bytes that go through, independently of the ledger."""

    def __init__(self, experiment: Experiment) -> None:
        self.inner = experiment.runtime
        self.down = self.up = 0

    def clients(self) -> Sequence[int]:
        return self.inner.clients()

    def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[Outcome]:
        self.down += sum(len(frame) for message in messages.values() for frame in message)
        outcomes = list(self.inner.exchange(messages, timeout))
        self.up += sum(len(frame) for o in outcomes if isinstance(o, Reply) for frame in o.frames)
        yield from reversed(outcomes)


def rounds(experiment: Experiment, n: int, runtime: Any = None) -> list[Crossing]:
    seen: list[Crossing] = []
    for _, _ in zip(
        range(n),
        run(experiment.plan, experiment.server, runtime or experiment.runtime, experiment.attendance, seen.append),
        strict=False,
    ):
        pass
    return seen


def test_the_observer_sees_what_the_runtime_carried_in_a_fixed_order(scenario: Make) -> None:
    experiment = build(scenario())
    spy = Spy(experiment)
    seen = rounds(experiment, 2, spy)
    assert sum(len(c.frame) for c in seen if c.direction == "down") == spy.down
    assert sum(len(c.frame) for c in seen if c.direction == "up") == spy.up
    # zip() asks the loop for one round more than it uses; the runtime's order is reversed, the observer's is not
    for n in {c.round for c in seen}:
        ups = [c.client for c in seen if c.round == n and c.direction == "up"]
        assert ups == sorted(ups)
    assert [c.frame for c in seen] == [c.frame for c in rounds(build(scenario()), 2)]


def test_an_update_that_is_not_finite_names_client_and_round(scenario: Make) -> None:
    experiment = build(scenario({"client.optimizer.lr": 1e30}))
    with pytest.raises(
        NonFiniteError, match=r"round \d+, client \d+: the update is not finite in \d+ of 4810 .* first (inf|-inf|nan) at"
    ):
        rounds(experiment, 5)


def test_a_failing_client_ends_the_run_after_its_round_was_observed(scenario: Make, blobs: Dataset) -> None:
    experiment = build(scenario())

    class Broken(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[Outcome]:
            outcomes = list(super().exchange(messages, timeout))
            yield from outcomes[1:]
            yield Failure(outcomes[0].client, ZeroDivisionError("in my loss"))

    seen: list[Crossing] = []
    with pytest.raises(RunError, match=r"round 1, client \d+: ZeroDivisionError: in my loss") as error:
        next(run(experiment.plan, experiment.server, Broken(experiment), experiment.attendance, seen.append))
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert [c.direction for c in seen] == ["down"] * 8 + ["up"] * 3


def test_a_corrupted_reply_is_observed_and_ends_the_run(scenario: Make) -> None:
    experiment = build(scenario())

    class Noisy(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[Outcome]:
            for outcome in super().exchange(messages, timeout):
                assert isinstance(outcome, Reply)
                yield replace(outcome, frames=(outcome.frames[0][:-3] + b"abc",))

    seen: list[Crossing] = []
    with pytest.raises(WireError, match="checksum"):
        next(run(experiment.plan, experiment.server, Noisy(experiment), experiment.attendance, seen.append))
    assert [c.kept for c in seen if c.direction == "up"] == [0] * 4


@pytest.mark.parametrize("spoil", BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
def test_whatever_is_wrong_with_a_reply_the_loop_ends_with_a_wire_error(
    scenario: Make, spoil: Callable[[Reply], Reply]
) -> None:
    experiment = build(scenario())

    class Spoilt(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[Outcome]:
            for outcome in super().exchange(messages, timeout):
                assert isinstance(outcome, Reply)
                yield spoil(outcome)

    seen: list[Crossing] = []
    with pytest.raises(WireError):
        next(run(experiment.plan, experiment.server, Spoilt(experiment), experiment.attendance, seen.append))
    frames = sum(len(spoil(r).frames) for r in replies_of(build(scenario()), experiment.attendance.invited(1).cohort))
    assert len([c for c in seen if c.direction == "up"]) == frames


def test_a_runtime_that_breaks_down_ends_the_run_after_what_crossed_was_shown(scenario: Make) -> None:
    experiment = build(scenario())

    class Broken(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[Outcome]:
            yield next(iter(super().exchange(messages, timeout)))
            raise OSError("no route to host")

    seen: list[Crossing] = []
    with pytest.raises(RunError, match="round 1, server: the runtime failed: OSError: no route to host"):
        next(run(experiment.plan, experiment.server, Broken(experiment), experiment.attendance, seen.append))
    assert [c.direction for c in seen] == ["down"] * 8 + ["up"]


MISCARRIED: dict[str, tuple[Callable[[list[Outcome]], list[Outcome]], str]] = {
    "twice": (lambda o: [*o, o[0]], r"round 1, client \d: the runtime gave a second outcome"),
    "from a stranger": (
        lambda o: [*o, Failure(99, OSError())],
        "client 99: the runtime gave an outcome though it was sent nothing",
    ),
    "not at all": (lambda o: o[1:], r"round 1, client \d: TimeoutError: no reply"),
    "none at all": (lambda o: [], r"round 1, client \d: TimeoutError: no reply"),
}


@pytest.mark.parametrize(("carry", "message"), MISCARRIED.values(), ids=MISCARRIED.keys())
def test_one_outcome_for_each_client_is_all_that_is_taken(
    scenario: Make, carry: Callable[[list[Outcome]], list[Outcome]], message: str
) -> None:
    experiment = build(scenario())

    class Careless(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[Outcome]:
            yield from carry(list(super().exchange(messages, timeout)))

    with pytest.raises(RunError, match=message):
        next(run(experiment.plan, experiment.server, Careless(experiment), experiment.attendance, lambda _: None))


def test_two_replies_of_one_client_are_not_averaged(scenario: Make) -> None:
    experiment = build(scenario())
    (reply,) = replies_of(experiment, [0])
    with pytest.raises(RunError, match="two replies of one client"):
        aggregate(experiment.plan, experiment.server, [reply, reply])


def test_a_task_that_arrives_twice_is_answered_twice_alike(scenario: Make) -> None:
    experiment = build(scenario())
    message = broadcast(experiment.plan, experiment.server, [2])[0][2]
    examples = Examples(experiment.dataset.train.x, experiment.dataset.train.y, np.arange(30))
    first, state = client_update(experiment.plan, experiment.engine, 2, message, ClientState(), examples)
    second, again = client_update(experiment.plan, experiment.engine, 2, message, state, examples)
    assert first.frames == second.frames
    assert state.pending is not None
    assert again.pending is not None
    residuals = [pending.if_received["scheme/residual"] for pending in (state.pending, again.pending)]
    assert (residuals[0] == residuals[1]).all()


def test_a_residual_that_overflows_names_round_and_client(scenario: Make) -> None:
    plan = build(scenario({"uplink.compressor.name": "dense", "uplink.compressor.values": "bfloat16"})).plan
    local = Local(3, np.full(plan.layout.size, 3e38, np.float32), 10, 5)
    state = ClientState({"scheme/residual": np.full(plan.layout.size, 3e38, np.float32)})
    work = Work(0, 2, 3, local.update, Examples(np.zeros((1, 8, 8)), np.zeros(1)))
    task = Task(work, state, Opened(local.update, None, None, 0.0), 0, -1, 0.0)
    with pytest.raises(
        NonFiniteError, match=r"round 2, client 3: what the client remembers \(residual\) is not finite in 4810"
    ):
        send(plan, task, local)


def test_the_models_encoding_is_timed_once_a_round(scenario: Make) -> None:
    seen = rounds(build(scenario()), 1)
    times = [c.encode_seconds for c in seen if c.kind is Kind.MODEL]
    assert times[0] > 0
    assert times[1:4] == [0, 0, 0]


def test_the_servers_velocity_and_schedule_carry_over_the_rounds(scenario: Make) -> None:
    """Three rounds by hand: v ← βv + η_t Δ; w ← w + v, with η_t halved every round."""
    schedule = {"name": "exponential", "gamma": 0.5}
    optimizer = {"name": "momentum", "lr": 0.8, "momentum": 0.5, "schedule": schedule}
    experiment = build(
        scenario({"server.optimizer": optimizer, "server.weighting": "uniform", "uplink.compressor.name": "dense"})
    )
    server, velocity = experiment.server, np.zeros(experiment.plan.layout.size)
    exact = server.weights.astype(np.float64)
    for t in range(3):
        messages, _ = broadcast(experiment.plan, server, [0, 1])
        replies = [o for o in experiment.runtime.exchange(messages, None) if isinstance(o, Reply)]
        update = np.mean(
            [np.frombuffer(decode_frame(r.frames[0]).sections[0].data, "<f4").astype(np.float64) for r in replies], 0
        )
        velocity = 0.5 * velocity + 0.8 * 0.5**t * update
        exact += velocity
        server, _ = aggregate(experiment.plan, server, replies)
        assert server.weights == pytest.approx(exact, abs=1e-6)
    assert server.round == 4


def test_an_acknowledgement_waits_for_a_client_that_sits_out(scenario: Make) -> None:
    experiment = build(scenario())
    server = experiment.server
    for cohort in ([0, 1], [1, 2]):
        messages, _ = broadcast(experiment.plan, server, cohort)
        replies = [o for o in experiment.runtime.exchange(messages, None) if isinstance(o, Reply)]
        server, _ = aggregate(experiment.plan, server, replies)
    messages, _ = broadcast(experiment.plan, server, range(4))
    assert [decode_frame(messages[c][0]).header.acknowledged for c in range(4)] == [1, 2, 2, 0]


def test_every_crossing_says_what_it_carried_and_how_long_it_took(scenario: Make) -> None:
    seen = rounds(build(scenario()), 1)
    for c in seen:
        assert c.kept == {Kind.TASK: 0, Kind.MODEL: 4810, Kind.UPDATE: 48}[c.kind]
        assert (c.decode_seconds > 0) == (c.kind is not Kind.TASK)
        if c.kind is Kind.UPDATE:
            assert c.encode_seconds > 0


def test_a_server_that_steps_too_far_says_so(scenario: Make) -> None:
    with pytest.raises(NonFiniteError, match="round 1, server: after the server's step is not finite in"):
        rounds(build(scenario({"server.optimizer.lr": 3e38, "client.optimizer.lr": 1.0})), 3)


def test_a_cohort_larger_than_the_split_turns_out_to_be_is_named_by_its_key(scenario: Make) -> None:
    some = Examples(np.zeros((6, 8, 8), np.float32), np.arange(6), None, np.array([0, 0, 1, 1, 2, 2]))
    natural = scenario({"server.cohort": 4}).replace({"data.partition": "natural"})
    with pytest.raises(ScenarioError, match=r"^server\.cohort: got 4 clients a round, but data\.partition gives 3$"):
        build(natural, dataset=Dataset(some, some, 10))


def test_the_seed_decides_the_split_and_the_initial_model(scenario: Make) -> None:
    first, second = build(scenario()), build(scenario({"seed": 1}))
    assert first.task.initial.tobytes() != second.task.initial.tobytes()
    splits = [e.train.partition.order.tolist() for e in (first, second)]
    assert splits[0] != splits[1]
