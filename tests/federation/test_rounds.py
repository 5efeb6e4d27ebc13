"""One round as functions: what is sent, what is folded, what is acknowledged, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedsgd.compression import EntryPatch
from fedsgd.data import Dataset, Examples
from fedsgd.errors import NonFiniteError, RunError, ScenarioError, WireError
from fedsgd.experiment.builder import Experiment, build_experiment
from fedsgd.federation import (
    ClientTask,
    DecodedDownlink,
    DownlinkCache,
    Message,
    Reply,
    aggregate,
    broadcast,
    client_update,
    decode_task,
    encode_update,
)
from fedsgd.federation.client_state import ClientState, UncommittedState
from fedsgd.federation.round_loop import ClientFailure, ClientOutcome, FrameEvent, run_rounds
from fedsgd.scenario.scenario import Scenario
from fedsgd.training import TrainingJob, TrainingResult
from fedsgd.wire import ALL_CLIENTS, Frame, FrameKind, Section, SectionKind, decode_frame, encode_frame

Make = Callable[..., Scenario]


def replies_of(experiment: Experiment, cohort: Sequence[int]) -> list[Reply]:
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, cohort)
    replies = [o for o in experiment.runtime.exchange(messages, None) if isinstance(o, Reply)]
    return sorted(replies, key=lambda reply: reply.client)


def edited(frame: bytes, **changes: Any) -> bytes:
    """The same frame with another header, properly sealed."""
    decoded = decode_frame(frame)
    return encode_frame(Frame(replace(decoded.header, **changes), decoded.sections))


def test_a_message_is_a_task_of_ones_own_and_a_model_that_is_shared(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [1, 5])
    tasks = [decode_frame(messages[c][0]).header for c in (1, 5)]
    assert [(t.kind, t.round, t.client, t.acknowledged) for t in tasks] == [
        (FrameKind.TASK, 1, 1, 0),
        (FrameKind.TASK, 1, 5, 0),
    ]
    assert messages[1][1] is messages[5][1]
    assert decode_frame(messages[1][1]).header.client == ALL_CLIENTS


def resectioned(frame: bytes, sections: tuple[Section, ...]) -> bytes:
    """The same frame with other sections, properly sealed."""
    return encode_frame(Frame(decode_frame(frame).header, sections))


def test_replies_are_folded_in_client_order_whatever_order_they_came_in(scenario: Make) -> None:
    experiment = build_experiment(scenario({"server.cohort": 8, "uplink.compressor.name": "dense"}))
    replies = replies_of(experiment, range(8))
    forwards, backwards = (
        aggregate(experiment.plan, experiment.initial_server_state, order)[0] for order in (replies, replies[::-1])
    )
    assert forwards.weights.tobytes() == backwards.weights.tobytes()
    assert [f.public_model.full_model_frame.data for f in (forwards, backwards)].count(
        forwards.public_model.full_model_frame.data
    ) == 2


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_the_mean_is_weighted_as_asked(scenario: Make, weighting: str) -> None:
    experiment = build_experiment(scenario({"server.weighting": weighting, "uplink.compressor.name": "dense"}))
    replies = replies_of(experiment, [0, 3, 4])
    frames = [decode_frame(r.frames[0]) for r in replies]
    counts = np.array([f.header.examples if weighting == "examples" else 1 for f in frames], dtype=np.float64)
    assert len(set(counts)) == (3 if weighting == "examples" else 1)
    updates = [np.frombuffer(f.sections[0].data, "<f4").astype(np.float64) for f in frames]
    mean = sum(w * u for w, u in zip(counts / counts.sum(), updates, strict=True)).astype(np.float32)
    after, _ = aggregate(experiment.plan, experiment.initial_server_state, replies)
    assert (after.weights == experiment.initial_server_state.weights + mean).all()


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
    experiment = build_experiment(scenario(overrides))
    after, _ = aggregate(experiment.plan, experiment.initial_server_state, replies_of(experiment, range(8)))
    module, train = experiment.task.module, experiment.dataset.train
    experiment.engine.evaluate(
        experiment.initial_server_state.weights, experiment.dataset.test
    )  # points the module at round 1's weights
    loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(train.x)), torch.from_numpy(train.y))
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))]).numpy()
    assert after.weights == pytest.approx(experiment.initial_server_state.weights - 0.5 * gradient, abs=1e-6)


def test_client_update_is_receive_train_send(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    message = broadcast(experiment.plan, experiment.initial_server_state, [2])[0][2]
    examples = Examples(experiment.dataset.train.x, experiment.dataset.train.y, np.arange(30))
    reply, state = client_update(experiment.plan, experiment.engine, 2, message, ClientState(), examples)
    task = decode_task(experiment.plan, 2, message, ClientState(), examples)
    (local,) = experiment.engine.train([task.job])
    again, _ = encode_update(experiment.plan, task, local)
    assert reply.frames == again.frames
    assert state.uncommitted_state is not None
    assert state.uncommitted_state.round == 1


def test_frames_that_clients_share_are_decoded_once(scenario: Make) -> None:
    experiment = build_experiment(scenario({"uplink.compressor.name": "cafe", "uplink.error_feedback": "none"}))
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [2, 5])
    examples = Examples(experiment.dataset.train.x, experiment.dataset.train.y, np.arange(30))
    shelf = DownlinkCache()
    first, second = (decode_task(experiment.plan, c, messages[c], ClientState(), examples, shelf) for c in (2, 5))
    assert isinstance(first, ClientTask)
    assert isinstance(second, ClientTask)
    assert second.downlink is first.downlink
    assert second.decode_seconds >= first.downlink.decode_seconds > 0, "each would have to decode them by itself"
    for edit in ({"round": 2}, {"base": 1}):
        with pytest.raises(WireError):
            decode_task(experiment.plan, 5, (messages[5][0], edited(messages[5][1], **edit)), ClientState(), examples, shelf)
    with pytest.raises(WireError, match="the MODEL frames end in round 1, expected 2"):
        decode_task(experiment.plan, 5, (edited(messages[5][0], round=2), *messages[5][1:]), ClientState(), examples, shelf)


def test_a_residual_is_settled_by_the_acknowledgement_in_the_next_task(scenario: Make) -> None:
    """Accepted in round 1: the residual is what was left out. Not accepted: it is everything."""
    received = {"residual": np.float32([0, 1]), "new": np.float32([7])}
    lost: dict[str, EntryPatch | None] = {"residual": EntryPatch(np.array([0]), np.float32([5])), "new": None}
    state = ClientState({}, UncommittedState(3, received, lost))
    assert state.resolve(5, 3) is received
    for acknowledged in (0, 2):
        settled = state.resolve(5, acknowledged)
        assert {name: value.tolist() for name, value in settled.items()} == {"residual": [5, 1]}
    assert received["residual"].tolist() == [0, 1]
    assert ClientState(received).resolve(1, 0) is received
    before: dict[str, Any] = {}
    assert ClientState(before, UncommittedState(3, received, lost)).resolve(3, 0) is before, (
        "the same TASK again starts where it did"
    )


def test_an_accepted_reply_is_acknowledged_and_a_lost_one_is_not(scenario: Make) -> None:
    """Client 1's reply of round 1 never arrives: in round 2 it starts from all that it had."""
    experiment = build_experiment(scenario({"server.cohort": 8}))
    plan, server = experiment.plan, experiment.initial_server_state
    everything = replies_of(experiment, range(8))
    lost = everything[1]
    replies = [r for r in everything if r.client != 1]
    store = experiment.runtime.store
    after, _ = aggregate(plan, server, replies)
    messages, _ = broadcast(plan, after, range(8))
    for client in (0, 1):
        state = store.load(client)
        settled = decode_task(plan, client, messages[client], state, Examples(np.zeros((1, 8, 8)), np.zeros(1))).state
        kept = state.uncommitted_state.state_if_accepted["scheme/residual"]
        assert (settled.committed_state["scheme/residual"] is kept) == (client == 0)
        if client == 1:
            delivered = kept.copy()
            scheme, ctx = plan.uplink, plan.make_context(1, 1)
            scheme.decode(decode_frame(lost.frames[0]).sections, ctx).add_to(delivered, 1.0)
            assert np.allclose(settled.committed_state["scheme/residual"], delivered, atol=1e-7)
        assert settled.uncommitted_state is None


BAD_REPLIES: dict[str, Callable[[Reply], Reply]] = {
    "another client's": lambda r: replace(r, frames=(edited(r.frames[0], client=7),)),
    "another round's": lambda r: replace(r, frames=(edited(r.frames[0], round=2),)),
    "on another model": lambda r: replace(r, frames=(edited(r.frames[0], base=0),)),
    "another codec's": lambda r: replace(r, frames=(edited(r.frames[0], codec=1),)),
    "not an update": lambda r: replace(r, frames=(edited(r.frames[0], kind=FrameKind.MODEL),)),
    "two frames": lambda r: replace(r, frames=r.frames * 2),
    "no frame": lambda r: replace(r, frames=()),
    "no sections": lambda r: replace(r, frames=(resectioned(r.frames[0], ()),)),
    "an empty index": lambda r: replace(r, frames=(resectioned(r.frames[0], (Section(SectionKind.INDEX, b""),)),)),
    "all positions": lambda r: replace(r, frames=(resectioned(r.frames[0], (Section(SectionKind.INDEX, b"\x03\x00"),)),)),
    "more absent than there are": lambda r: replace(
        r, frames=(resectioned(r.frames[0], (Section(SectionKind.INDEX, b"\x03\xff\xff\x03"),)),)
    ),
    "cut short": lambda r: replace(r, frames=(r.frames[0][:-1],)),
    "far too long": lambda r: replace(r, frames=(r.frames[0] + bytes(10**6),)),
}


@pytest.mark.parametrize("spoil", BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
def test_a_bad_reply_is_refused_and_changes_nothing(scenario: Make, spoil: Callable[[Reply], Reply]) -> None:
    experiment = build_experiment(scenario())
    before = experiment.initial_server_state.weights.tobytes(), experiment.initial_server_state.public_model
    replies = replies_of(experiment, [0, 1, 2])
    with pytest.raises(WireError, match=r"^round 1, client 2: byte \d+: "):
        aggregate(experiment.plan, experiment.initial_server_state, [*replies[:2], spoil(replies[2])])
    assert before == (experiment.initial_server_state.weights.tobytes(), experiment.initial_server_state.public_model)


def test_a_client_refuses_a_message_that_is_not_for_it(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    message = broadcast(experiment.plan, experiment.initial_server_state, [2])[0][2]
    examples = Examples(np.zeros((1, 8, 8)), np.zeros(1))
    another = edited(message[1], client=2)
    for bad in (message[:1], message[::-1], (edited(message[0], round=9), message[1]), (message[0], another)):
        with pytest.raises(WireError):
            decode_task(experiment.plan, 2, bad, ClientState(), examples)
    with pytest.raises(WireError, match="client is 2, expected 3"):
        decode_task(experiment.plan, 3, message, ClientState(), examples)


def test_no_examples_at_all_is_an_error_and_not_a_division(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    (reply,) = replies_of(experiment, [0])
    nothing = replace(reply, frames=(edited(reply.frames[0], examples=0),))
    with pytest.raises(RunError, match="round 1, server: no client of the cohort has any examples"):
        aggregate(experiment.plan, experiment.initial_server_state, [nothing])


@pytest.mark.parametrize("values", ["float32", "bfloat16"])
def test_clients_and_evaluation_use_the_model_that_was_decoded(scenario: Make, values: str) -> None:
    experiment = build_experiment(scenario({"downlink.compressor.values": values}))
    message = broadcast(experiment.plan, experiment.initial_server_state, [0])[0][0]
    work = decode_task(experiment.plan, 0, message, ClientState(), Examples(np.zeros((1, 8, 8)), np.zeros(1))).job
    assert work.weights.tobytes() == experiment.initial_server_state.public_model.weights.tobytes()
    exact = work.weights.tobytes() == experiment.initial_server_state.weights.tobytes()
    assert exact == (values == "float32")


# ------------------------------------------------------------------------------------------------------------------- the loop


class Spy:
    """Counts the bytes that go through, independently of the ledger."""

    def __init__(self, experiment: Experiment) -> None:
        self.inner = experiment.runtime
        self.down = self.up = 0

    def clients(self) -> Sequence[int]:
        return self.inner.list_clients()

    def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        self.down += sum(len(frame) for message in messages.values() for frame in message)
        outcomes = list(self.inner.exchange(messages, timeout))
        self.up += sum(len(frame) for o in outcomes if isinstance(o, Reply) for frame in o.frames)
        yield from reversed(outcomes)


def rounds(experiment: Experiment, n: int, runtime: Any = None) -> list[FrameEvent]:
    seen: list[FrameEvent] = []
    for _, _ in zip(
        range(n),
        run_rounds(
            experiment.plan,
            experiment.initial_server_state,
            runtime or experiment.runtime,
            experiment.participation,
            seen.append,
        ),
        strict=False,
    ):
        pass
    return seen


def test_the_observer_sees_what_the_runtime_carried_in_a_fixed_order(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    spy = Spy(experiment)
    seen = rounds(experiment, 2, spy)
    assert sum(len(c.frame) for c in seen if c.direction == "down") == spy.down
    assert sum(len(c.frame) for c in seen if c.direction == "up") == spy.up
    # zip() asks the loop for one round more than it uses; the runtime's order is reversed, the observer's is not
    for n in {c.round for c in seen}:
        ups = [c.client for c in seen if c.round == n and c.direction == "up"]
        assert ups == sorted(ups)
    assert [c.frame for c in seen] == [c.frame for c in rounds(build_experiment(scenario()), 2)]


def test_an_update_that_is_not_finite_names_client_and_round(scenario: Make) -> None:
    experiment = build_experiment(scenario({"client.optimizer.lr": 1e30}))
    with pytest.raises(
        NonFiniteError, match=r"round \d+, client \d+: the update is not finite in \d+ of 4810 .* first (inf|-inf|nan) at"
    ):
        rounds(experiment, 5)


def test_a_failing_client_ends_the_run_after_its_round_was_observed(scenario: Make, blobs: Dataset) -> None:
    experiment = build_experiment(scenario())

    class Broken(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
            outcomes = list(super().exchange(messages, timeout))
            yield from outcomes[1:]
            yield ClientFailure(outcomes[0].client, ZeroDivisionError("in my loss"))

    seen: list[FrameEvent] = []
    with pytest.raises(RunError, match=r"round 1, client \d+: ZeroDivisionError: in my loss") as error:
        next(
            run_rounds(
                experiment.plan, experiment.initial_server_state, Broken(experiment), experiment.participation, seen.append
            )
        )
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert [c.direction for c in seen] == ["down"] * 8 + ["up"] * 3


def test_a_corrupted_reply_is_observed_and_ends_the_run(scenario: Make) -> None:
    experiment = build_experiment(scenario())

    class Noisy(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
            for outcome in super().exchange(messages, timeout):
                assert isinstance(outcome, Reply)
                yield replace(outcome, frames=(outcome.frames[0][:-3] + b"abc",))

    seen: list[FrameEvent] = []
    with pytest.raises(WireError, match="checksum"):
        next(
            run_rounds(
                experiment.plan, experiment.initial_server_state, Noisy(experiment), experiment.participation, seen.append
            )
        )
    assert [c.n_coordinates for c in seen if c.direction == "up"] == [0] * 4


@pytest.mark.parametrize("spoil", BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
def test_whatever_is_wrong_with_a_reply_the_loop_ends_with_a_wire_error(
    scenario: Make, spoil: Callable[[Reply], Reply]
) -> None:
    experiment = build_experiment(scenario())

    class Spoilt(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
            for outcome in super().exchange(messages, timeout):
                assert isinstance(outcome, Reply)
                yield spoil(outcome)

    seen: list[FrameEvent] = []
    with pytest.raises(WireError):
        next(
            run_rounds(
                experiment.plan, experiment.initial_server_state, Spoilt(experiment), experiment.participation, seen.append
            )
        )
    frames = sum(
        len(spoil(r).frames) for r in replies_of(build_experiment(scenario()), experiment.participation.sample_round(1).cohort)
    )
    assert len([c for c in seen if c.direction == "up"]) == frames


def test_a_runtime_that_breaks_down_ends_the_run_after_what_crossed_was_shown(scenario: Make) -> None:
    experiment = build_experiment(scenario())

    class Broken(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
            yield next(iter(super().exchange(messages, timeout)))
            raise OSError("no route to host")

    seen: list[FrameEvent] = []
    with pytest.raises(RunError, match="round 1, server: the runtime failed: OSError: no route to host"):
        next(
            run_rounds(
                experiment.plan, experiment.initial_server_state, Broken(experiment), experiment.participation, seen.append
            )
        )
    assert [c.direction for c in seen] == ["down"] * 8 + ["up"]


MISCARRIED: dict[str, tuple[Callable[[list[ClientOutcome]], list[ClientOutcome]], str]] = {
    "twice": (lambda o: [*o, o[0]], r"round 1, client \d: the runtime gave a second outcome"),
    "from a stranger": (
        lambda o: [*o, ClientFailure(99, OSError())],
        "client 99: the runtime gave an outcome for a client that was sent nothing",
    ),
    "not at all": (lambda o: o[1:], r"round 1, client \d: TimeoutError: no reply"),
    "none at all": (lambda o: [], r"round 1, client \d: TimeoutError: no reply"),
}


@pytest.mark.parametrize(("carry", "message"), MISCARRIED.values(), ids=MISCARRIED.keys())
def test_one_outcome_for_each_client_is_all_that_is_taken(
    scenario: Make, carry: Callable[[list[ClientOutcome]], list[ClientOutcome]], message: str
) -> None:
    experiment = build_experiment(scenario())

    class Careless(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
            yield from carry(list(super().exchange(messages, timeout)))

    with pytest.raises(RunError, match=message):
        next(
            run_rounds(
                experiment.plan, experiment.initial_server_state, Careless(experiment), experiment.participation, lambda _: None
            )
        )


def test_two_replies_of_one_client_are_not_averaged(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    (reply,) = replies_of(experiment, [0])
    with pytest.raises(RunError, match="two replies of one client"):
        aggregate(experiment.plan, experiment.initial_server_state, [reply, reply])


def test_a_task_that_arrives_twice_is_answered_twice_alike(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    message = broadcast(experiment.plan, experiment.initial_server_state, [2])[0][2]
    examples = Examples(experiment.dataset.train.x, experiment.dataset.train.y, np.arange(30))
    first, state = client_update(experiment.plan, experiment.engine, 2, message, ClientState(), examples)
    second, again = client_update(experiment.plan, experiment.engine, 2, message, state, examples)
    assert first.frames == second.frames
    assert state.uncommitted_state is not None
    assert again.uncommitted_state is not None
    residuals = [pending.state_if_accepted["scheme/residual"] for pending in (state.uncommitted_state, again.uncommitted_state)]
    assert (residuals[0] == residuals[1]).all()


def test_a_residual_that_overflows_names_round_and_client(scenario: Make) -> None:
    plan = build_experiment(scenario({"uplink.compressor.name": "dense", "uplink.compressor.values": "bfloat16"})).plan
    local = TrainingResult(3, np.full(plan.layout.size, 3e38, np.float32), 10, 5)
    state = ClientState({"scheme/residual": np.full(plan.layout.size, 3e38, np.float32)})
    work = TrainingJob(0, 2, 3, local.update, Examples(np.zeros((1, 8, 8)), np.zeros(1)))
    task = ClientTask(work, state, DecodedDownlink(local.update, None, None, 0.0), 0, -1, 0.0)
    with pytest.raises(NonFiniteError, match=r"round 2, client 3: the client state entry residual is not finite in 4810"):
        encode_update(plan, task, local)


def test_the_models_encoding_is_timed_once_a_round(scenario: Make) -> None:
    seen = rounds(build_experiment(scenario()), 1)
    times = [c.encode_seconds for c in seen if c.kind is FrameKind.MODEL]
    assert times[0] > 0
    assert times[1:4] == [0, 0, 0]


def test_the_servers_velocity_and_schedule_carry_over_the_rounds(scenario: Make) -> None:
    """Three rounds by hand: v ← βv + η_t Δ; w ← w + v, with η_t halved every round."""
    schedule = {"name": "exponential", "gamma": 0.5}
    optimizer = {"name": "momentum", "lr": 0.8, "momentum": 0.5, "schedule": schedule}
    experiment = build_experiment(
        scenario({"server.optimizer": optimizer, "server.weighting": "uniform", "uplink.compressor.name": "dense"})
    )
    server, velocity = experiment.initial_server_state, np.zeros(experiment.plan.layout.size)
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
    experiment = build_experiment(scenario())
    server = experiment.initial_server_state
    for cohort in ([0, 1], [1, 2]):
        messages, _ = broadcast(experiment.plan, server, cohort)
        replies = [o for o in experiment.runtime.exchange(messages, None) if isinstance(o, Reply)]
        server, _ = aggregate(experiment.plan, server, replies)
    messages, _ = broadcast(experiment.plan, server, range(4))
    assert [decode_frame(messages[c][0]).header.acknowledged for c in range(4)] == [1, 2, 2, 0]


def test_every_crossing_says_what_it_carried_and_how_long_it_took(scenario: Make) -> None:
    seen = rounds(build_experiment(scenario()), 1)
    for c in seen:
        assert c.n_coordinates == {FrameKind.TASK: 0, FrameKind.MODEL: 4810, FrameKind.UPDATE: 48}[c.kind]
        assert (c.decode_seconds > 0) == (c.kind is not FrameKind.TASK)
        if c.kind is FrameKind.UPDATE:
            assert c.encode_seconds > 0


def test_a_server_that_steps_too_far_says_so(scenario: Make) -> None:
    with pytest.raises(NonFiniteError, match="round 1, server: after the server's step is not finite in"):
        rounds(build_experiment(scenario({"server.optimizer.lr": 3e38, "client.optimizer.lr": 1.0})), 3)


def test_a_cohort_larger_than_the_split_turns_out_to_be_is_named_by_its_key(scenario: Make) -> None:
    some = Examples(np.zeros((6, 8, 8), np.float32), np.arange(6), None, np.array([0, 0, 1, 1, 2, 2]))
    natural = scenario({"server.cohort": 4}).with_settings({"data.partition": "natural"})
    with pytest.raises(ScenarioError, match=r"^server\.cohort: got 4 clients a round, but data\.partition gives 3$"):
        build_experiment(natural, dataset=Dataset(some, some, 10))


def test_the_seed_decides_the_split_and_the_initial_model(scenario: Make) -> None:
    first, second = build_experiment(scenario()), build_experiment(scenario({"seed": 1}))
    assert first.task.initial_parameters.tobytes() != second.task.initial_parameters.tobytes()
    splits = [e.train.partition.order.tolist() for e in (first, second)]
    assert splits[0] != splits[1]
