"""Functions of one round: messages, aggregation, acknowledgement and rejected frames; and the loop over rounds."""

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
from fedsgd.federation.round_loop import ClientFailure, ClientOutcome, FrameEvent
from fedsgd.scenario.scenario import Scenario
from fedsgd.training import TrainingJob, TrainingResult
from fedsgd.wire import ALL_CLIENTS, Frame, FrameKind, Section, SectionKind, decode_frame, encode_frame
from tests.executions import run_rounds, start_in_process

Make = Callable[..., Scenario]


def collect_replies(experiment: Experiment, cohort: Sequence[int]) -> list[Reply]:
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, cohort)
    replies = [
        outcome for outcome in start_in_process(experiment).runtime.exchange(messages, None) if isinstance(outcome, Reply)
    ]
    return sorted(replies, key=lambda reply: reply.client)


def edit_header(frame: bytes, **changes: Any) -> bytes:
    """Return the frame with another header and a valid checksum."""
    decoded = decode_frame(frame)
    return encode_frame(Frame(replace(decoded.header, **changes), decoded.sections))


def test_message_has_own_task_and_shared_model(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [1, 5])
    tasks = [decode_frame(messages[c][0]).header for c in (1, 5)]
    assert [(t.kind, t.round, t.client, t.acknowledged) for t in tasks] == [
        (FrameKind.TASK, 1, 1, 0),
        (FrameKind.TASK, 1, 5, 0),
    ]
    assert messages[1][1] is messages[5][1]
    assert decode_frame(messages[1][1]).header.client == ALL_CLIENTS


def replace_sections(frame: bytes, sections: tuple[Section, ...]) -> bytes:
    """Return the frame with other sections and a valid checksum."""
    return encode_frame(Frame(decode_frame(frame).header, sections))


@pytest.mark.slow
def test_aggregate_does_not_depend_on_the_order_of_replies(scenario: Make) -> None:
    experiment = build_experiment(scenario({"server.cohort": 8, "uplink.compressor.name": "dense"}))
    replies = collect_replies(experiment, range(8))
    forwards, backwards = (
        aggregate(experiment.plan, experiment.initial_server_state, order)[0] for order in (replies, replies[::-1])
    )
    assert forwards.weights.tobytes() == backwards.weights.tobytes()
    assert [f.public_model.full_model_frame.data for f in (forwards, backwards)].count(
        forwards.public_model.full_model_frame.data
    ) == 2


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_aggregate_weights_clients_by_the_weighting_setting(scenario: Make, weighting: str) -> None:
    experiment = build_experiment(scenario({"server.weighting": weighting, "uplink.compressor.name": "dense"}))
    replies = collect_replies(experiment, [0, 3, 4])
    frames = [decode_frame(r.frames[0]) for r in replies]
    counts = np.array([f.header.examples if weighting == "examples" else 1 for f in frames], dtype=np.float64)
    assert len(set(counts)) == (3 if weighting == "examples" else 1)
    updates = [np.frombuffer(f.sections[0].data, "<f4").astype(np.float64) for f in frames]
    mean = sum(w * u for w, u in zip(counts / counts.sum(), updates, strict=True)).astype(np.float32)
    next_server, _ = aggregate(experiment.plan, experiment.initial_server_state, replies)
    assert (next_server.weights == experiment.initial_server_state.weights + mean).all()


@pytest.mark.slow
def test_fedsgd_with_all_clients_equals_gradient_descent_on_all_examples(scenario: Make) -> None:
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
    next_server, _ = aggregate(experiment.plan, experiment.initial_server_state, collect_replies(experiment, range(8)))
    module, train = experiment.task.module, experiment.dataset.train
    experiment.engine.evaluate(
        experiment.initial_server_state.weights, experiment.dataset.test
    )  # points the module at round 1's weights
    loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(train.x)), torch.from_numpy(train.y))
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))]).numpy()
    assert next_server.weights == pytest.approx(experiment.initial_server_state.weights - 0.5 * gradient, abs=1e-6)


def test_client_update_equals_decode_train_encode(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    message = broadcast(experiment.plan, experiment.initial_server_state, [2])[0][2]
    examples = Examples(experiment.dataset.train.x, experiment.dataset.train.y, np.arange(30))
    reply, state = client_update(experiment.plan, experiment.engine, 2, message, ClientState(), examples)
    task = decode_task(experiment.plan, 2, message, ClientState(), examples)
    (result,) = experiment.engine.train([task.job])
    composed_reply, _ = encode_update(experiment.plan, task, result)
    assert reply.frames == composed_reply.frames
    assert state.uncommitted_state is not None
    assert state.uncommitted_state.round == 1


def test_shared_frames_are_decoded_once(scenario: Make) -> None:
    experiment = build_experiment(scenario({"uplink.compressor.name": "cafe", "uplink.error_feedback": "none"}))
    messages, _ = broadcast(experiment.plan, experiment.initial_server_state, [2, 5])
    examples = Examples(experiment.dataset.train.x, experiment.dataset.train.y, np.arange(30))
    cache = DownlinkCache()
    first, second = (decode_task(experiment.plan, c, messages[c], ClientState(), examples, cache) for c in (2, 5))
    assert isinstance(first, ClientTask)
    assert isinstance(second, ClientTask)
    assert second.downlink is first.downlink
    assert second.decode_seconds >= first.downlink.decode_seconds > 0, "each client would have to decode them by itself"
    for edit in ({"round": 2}, {"base": 1}):
        with pytest.raises(WireError):
            decode_task(
                experiment.plan, 5, (messages[5][0], edit_header(messages[5][1], **edit)), ClientState(), examples, cache
            )
    with pytest.raises(WireError, match="the MODEL frames end in round 1, expected 2"):
        decode_task(
            experiment.plan, 5, (edit_header(messages[5][0], round=2), *messages[5][1:]), ClientState(), examples, cache
        )


def test_residual_is_committed_or_rolled_back_by_the_next_acknowledgement(scenario: Make) -> None:
    """Accepted in round 1, the residual is the part that was not sent. Not accepted, it is the whole update."""
    state_if_accepted = {"residual": np.float32([0, 1]), "new": np.float32([7])}
    rollback: dict[str, EntryPatch | None] = {"residual": EntryPatch(np.array([0]), np.float32([5])), "new": None}
    state = ClientState({}, UncommittedState(3, state_if_accepted, rollback))
    assert state.resolve(5, 3) is state_if_accepted
    for acknowledged in (0, 2):
        resolved = state.resolve(5, acknowledged)
        assert {name: value.tolist() for name, value in resolved.items()} == {"residual": [5, 1]}
    assert state_if_accepted["residual"].tolist() == [0, 1]
    assert ClientState(state_if_accepted).resolve(1, 0) is state_if_accepted
    committed: dict[str, Any] = {}
    assert ClientState(committed, UncommittedState(3, state_if_accepted, rollback)).resolve(3, 0) is committed, (
        "a repeated TASK starts from the same state"
    )


@pytest.mark.slow
def test_accepted_reply_is_acknowledged_and_lost_reply_is_not(scenario: Make) -> None:
    """The reply of client 1 in round 1 is lost, so its residual in round 2 is the whole update."""
    experiment = build_experiment(scenario({"server.cohort": 8}))
    plan, server = experiment.plan, experiment.initial_server_state
    all_replies = collect_replies(experiment, range(8))
    lost_reply = all_replies[1]
    replies = [r for r in all_replies if r.client != 1]
    store = start_in_process(experiment).runtime.store
    next_server, _ = aggregate(plan, server, replies)
    messages, _ = broadcast(plan, next_server, range(8))
    for client in (0, 1):
        state = store.load(client)
        resolved = decode_task(plan, client, messages[client], state, Examples(np.zeros((1, 8, 8)), np.zeros(1))).state
        residual = state.uncommitted_state.state_if_accepted["scheme/residual"]
        assert (resolved.committed_state["scheme/residual"] is residual) == (client == 0)
        if client == 1:
            delivered = residual.copy()
            scheme, ctx = plan.uplink, plan.make_context(1, 1)
            scheme.decode(decode_frame(lost_reply.frames[0]).sections, ctx).add_to(delivered, 1.0)
            assert np.allclose(resolved.committed_state["scheme/residual"], delivered, atol=1e-7)
        assert resolved.uncommitted_state is None


BAD_REPLIES: dict[str, Callable[[Reply], Reply]] = {
    "of another client": lambda r: replace(r, frames=(edit_header(r.frames[0], client=7),)),
    "of another round": lambda r: replace(r, frames=(edit_header(r.frames[0], round=2),)),
    "on another model": lambda r: replace(r, frames=(edit_header(r.frames[0], base=0),)),
    "of another codec": lambda r: replace(r, frames=(edit_header(r.frames[0], codec=1),)),
    "not an update": lambda r: replace(r, frames=(edit_header(r.frames[0], kind=FrameKind.MODEL),)),
    "two frames": lambda r: replace(r, frames=r.frames * 2),
    "no frame": lambda r: replace(r, frames=()),
    "no sections": lambda r: replace(r, frames=(replace_sections(r.frames[0], ()),)),
    "an empty index": lambda r: replace(r, frames=(replace_sections(r.frames[0], (Section(SectionKind.INDEX, b""),)),)),
    "all positions": lambda r: replace(r, frames=(replace_sections(r.frames[0], (Section(SectionKind.INDEX, b"\x03\x00"),)),)),
    "more absent positions than coordinates": lambda r: replace(
        r, frames=(replace_sections(r.frames[0], (Section(SectionKind.INDEX, b"\x03\xff\xff\x03"),)),)
    ),
    "cut short": lambda r: replace(r, frames=(r.frames[0][:-1],)),
    "far too long": lambda r: replace(r, frames=(r.frames[0] + bytes(10**6),)),
}


@pytest.mark.parametrize("spoil", BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
def test_invalid_reply_raises_wire_error_and_changes_nothing(scenario: Make, spoil: Callable[[Reply], Reply]) -> None:
    experiment = build_experiment(scenario())
    before = experiment.initial_server_state.weights.tobytes(), experiment.initial_server_state.public_model
    replies = collect_replies(experiment, [0, 1, 2])
    with pytest.raises(WireError, match=r"^round 1, client 2: byte \d+: "):
        aggregate(experiment.plan, experiment.initial_server_state, [*replies[:2], spoil(replies[2])])
    assert before == (experiment.initial_server_state.weights.tobytes(), experiment.initial_server_state.public_model)


def test_client_rejects_message_for_another_client(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    message = broadcast(experiment.plan, experiment.initial_server_state, [2])[0][2]
    examples = Examples(np.zeros((1, 8, 8)), np.zeros(1))
    another = edit_header(message[1], client=2)
    for bad in (message[:1], message[::-1], (edit_header(message[0], round=9), message[1]), (message[0], another)):
        with pytest.raises(WireError):
            decode_task(experiment.plan, 2, bad, ClientState(), examples)
    with pytest.raises(WireError, match="client is 2, expected 3"):
        decode_task(experiment.plan, 3, message, ClientState(), examples)


def test_cohort_without_examples_raises_run_error(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    (reply,) = collect_replies(experiment, [0])
    empty_reply = replace(reply, frames=(edit_header(reply.frames[0], examples=0),))
    with pytest.raises(RunError, match="round 1, server: no client of the cohort has any examples"):
        aggregate(experiment.plan, experiment.initial_server_state, [empty_reply])


@pytest.mark.parametrize("values", ["float32", "bfloat16"])
def test_client_trains_from_the_decoded_model(scenario: Make, values: str) -> None:
    experiment = build_experiment(scenario({"downlink.compressor.values": values}))
    message = broadcast(experiment.plan, experiment.initial_server_state, [0])[0][0]
    job = decode_task(experiment.plan, 0, message, ClientState(), Examples(np.zeros((1, 8, 8)), np.zeros(1))).job
    assert job.weights.tobytes() == experiment.initial_server_state.public_model.weights.tobytes()
    exact = job.weights.tobytes() == experiment.initial_server_state.weights.tobytes()
    assert exact == (values == "float32")


# ------------------------------------------------------------------------------------------------------------------- the loop


class Spy:
    """Runtime that counts the bytes of all frames, independently of the ledger."""

    def __init__(self, experiment: Experiment) -> None:
        self.inner = start_in_process(experiment).runtime
        self.down = self.up = 0

    def list_clients(self) -> Sequence[int]:
        return self.inner.list_clients()

    def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
        self.down += sum(len(frame) for message in messages.values() for frame in message)
        outcomes = list(self.inner.exchange(messages, timeout))
        self.up += sum(len(frame) for o in outcomes if isinstance(o, Reply) for frame in o.frames)
        yield from reversed(outcomes)


def run_n_rounds(experiment: Experiment, n: int, runtime: Any = None) -> list[FrameEvent]:
    events: list[FrameEvent] = []
    for _, _ in zip(
        range(n),
        run_rounds(
            experiment.plan,
            experiment.initial_server_state,
            runtime or start_in_process(experiment).runtime,
            experiment.participation,
            events.append,
        ),
        strict=False,
    ):
        pass
    return events


@pytest.mark.slow
def test_observer_gets_all_frames_in_a_fixed_order(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    spy = Spy(experiment)
    events = run_n_rounds(experiment, 2, spy)
    assert sum(len(c.frame) for c in events if c.direction == "down") == spy.down
    assert sum(len(c.frame) for c in events if c.direction == "up") == spy.up
    # zip() runs one round more than it uses. The runtime's order is reversed, the observer's is not.
    for n in {c.round for c in events}:
        ups = [c.client for c in events if c.round == n and c.direction == "up"]
        assert ups == sorted(ups)
    assert [c.frame for c in events] == [c.frame for c in run_n_rounds(build_experiment(scenario()), 2)]


def test_non_finite_update_raises_error_with_client_and_round(scenario: Make) -> None:
    experiment = build_experiment(scenario({"client.optimizer.lr": 1e30}))
    with pytest.raises(
        NonFiniteError, match=r"round \d+, client \d+: the update is not finite in \d+ of 4810 .* first (inf|-inf|nan) at"
    ):
        run_n_rounds(experiment, 5)


def test_failing_client_ends_the_run_after_its_round_is_observed(scenario: Make, blobs: Dataset) -> None:
    experiment = build_experiment(scenario())

    class Broken(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
            outcomes = list(super().exchange(messages, timeout))
            yield from outcomes[1:]
            yield ClientFailure(outcomes[0].client, ZeroDivisionError("in my loss"))

    events: list[FrameEvent] = []
    with pytest.raises(RunError, match=r"round 1, client \d+: ZeroDivisionError: in my loss") as error:
        next(
            run_rounds(
                experiment.plan, experiment.initial_server_state, Broken(experiment), experiment.participation, events.append
            )
        )
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert [c.direction for c in events] == ["down"] * 8 + ["up"] * 3


def test_corrupted_reply_is_observed_and_ends_the_run(scenario: Make) -> None:
    experiment = build_experiment(scenario())

    class Noisy(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
            for outcome in super().exchange(messages, timeout):
                assert isinstance(outcome, Reply)
                yield replace(outcome, frames=(outcome.frames[0][:-3] + b"abc",))

    events: list[FrameEvent] = []
    with pytest.raises(WireError, match="checksum"):
        next(
            run_rounds(
                experiment.plan, experiment.initial_server_state, Noisy(experiment), experiment.participation, events.append
            )
        )
    assert [c.n_coordinates for c in events if c.direction == "up"] == [0] * 4


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("spoil", BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
def test_invalid_reply_ends_the_loop_with_a_wire_error(scenario: Make, spoil: Callable[[Reply], Reply]) -> None:
    experiment = build_experiment(scenario())

    class Spoilt(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
            for outcome in super().exchange(messages, timeout):
                assert isinstance(outcome, Reply)
                yield spoil(outcome)

    events: list[FrameEvent] = []
    with pytest.raises(WireError):
        next(
            run_rounds(
                experiment.plan, experiment.initial_server_state, Spoilt(experiment), experiment.participation, events.append
            )
        )
    frames = sum(
        len(spoil(r).frames)
        for r in collect_replies(build_experiment(scenario()), experiment.participation.sample_round(1).cohort)
    )
    assert len([c for c in events if c.direction == "up"]) == frames


def test_failing_runtime_ends_the_run_after_sent_frames_are_observed(scenario: Make) -> None:
    experiment = build_experiment(scenario())

    class Broken(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
            yield next(iter(super().exchange(messages, timeout)))
            raise OSError("no route to host")

    events: list[FrameEvent] = []
    with pytest.raises(RunError, match="round 1, server: the runtime failed: OSError: no route to host"):
        next(
            run_rounds(
                experiment.plan, experiment.initial_server_state, Broken(experiment), experiment.participation, events.append
            )
        )
    assert [c.direction for c in events] == ["down"] * 8 + ["up"]


BROKEN_EXCHANGES: dict[str, tuple[Callable[[list[ClientOutcome]], list[ClientOutcome]], str]] = {
    "twice": (lambda o: [*o, o[0]], r"round 1, client \d: the runtime gave a second outcome"),
    "from an unknown client": (
        lambda o: [*o, ClientFailure(99, OSError())],
        "client 99: the runtime gave an outcome for a client that was sent nothing",
    ),
    "not at all": (lambda o: o[1:], r"round 1, client \d: TimeoutError: no reply"),
    "none at all": (lambda o: [], r"round 1, client \d: TimeoutError: no reply"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN_EXCHANGES.values(), ids=BROKEN_EXCHANGES.keys())
def test_runtime_without_exactly_one_outcome_per_client_ends_the_run(
    scenario: Make, change: Callable[[list[ClientOutcome]], list[ClientOutcome]], message: str
) -> None:
    experiment = build_experiment(scenario())

    class Careless(Spy):
        def exchange(self, messages: Mapping[int, Message], timeout: float | None) -> Iterator[ClientOutcome]:
            yield from change(list(super().exchange(messages, timeout)))

    with pytest.raises(RunError, match=message):
        next(
            run_rounds(
                experiment.plan, experiment.initial_server_state, Careless(experiment), experiment.participation, lambda _: None
            )
        )


def test_two_replies_of_one_client_raise_run_error(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    (reply,) = collect_replies(experiment, [0])
    with pytest.raises(RunError, match="two replies of one client"):
        aggregate(experiment.plan, experiment.initial_server_state, [reply, reply])


def test_repeated_task_gets_the_same_reply(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    message = broadcast(experiment.plan, experiment.initial_server_state, [2])[0][2]
    examples = Examples(experiment.dataset.train.x, experiment.dataset.train.y, np.arange(30))
    first, state = client_update(experiment.plan, experiment.engine, 2, message, ClientState(), examples)
    second, second_state = client_update(experiment.plan, experiment.engine, 2, message, state, examples)
    assert first.frames == second.frames
    assert state.uncommitted_state is not None
    assert second_state.uncommitted_state is not None
    residuals = [
        uncommitted.state_if_accepted["scheme/residual"]
        for uncommitted in (state.uncommitted_state, second_state.uncommitted_state)
    ]
    assert (residuals[0] == residuals[1]).all()


def test_overflowing_residual_raises_error_with_round_and_client(scenario: Make) -> None:
    plan = build_experiment(scenario({"uplink.compressor.name": "dense", "uplink.compressor.values": "bfloat16"})).plan
    result = TrainingResult(3, np.full(plan.layout.size, 3e38, np.float32), 10, 5)
    state = ClientState({"scheme/residual": np.full(plan.layout.size, 3e38, np.float32)})
    job = TrainingJob(0, 2, 3, result.update, Examples(np.zeros((1, 8, 8)), np.zeros(1)))
    task = ClientTask(job, state, DecodedDownlink(result.update, None, None, 0.0), 0, -1, 0.0)
    with pytest.raises(NonFiniteError, match=r"round 2, client 3: the client state entry residual is not finite in 4810"):
        encode_update(plan, task, result)


def test_model_encoding_is_timed_once_per_round(scenario: Make) -> None:
    events = run_n_rounds(build_experiment(scenario()), 1)
    times = [c.encode_seconds for c in events if c.kind is FrameKind.MODEL]
    assert times[0] > 0
    assert times[1:4] == [0, 0, 0]


def test_server_momentum_and_schedule_continue_over_rounds(scenario: Make) -> None:
    """Compute three rounds by hand: v ← βv + η_t Δ; w ← w + v, with η_t halved every round."""
    schedule = {"name": "exponential", "gamma": 0.5}
    optimizer = {"name": "momentum", "lr": 0.8, "momentum": 0.5, "schedule": schedule}
    experiment = build_experiment(
        scenario({"server.optimizer": optimizer, "server.weighting": "uniform", "uplink.compressor.name": "dense"})
    )
    server, velocity = experiment.initial_server_state, np.zeros(experiment.plan.layout.size)
    exact = server.weights.astype(np.float64)
    for t in range(3):
        messages, _ = broadcast(experiment.plan, server, [0, 1])
        replies = [o for o in start_in_process(experiment).runtime.exchange(messages, None) if isinstance(o, Reply)]
        update = np.mean(
            [np.frombuffer(decode_frame(r.frames[0]).sections[0].data, "<f4").astype(np.float64) for r in replies], 0
        )
        velocity = 0.5 * velocity + 0.8 * 0.5**t * update
        exact += velocity
        server, _ = aggregate(experiment.plan, server, replies)
        assert server.weights == pytest.approx(exact, abs=1e-6)
    assert server.round == 4


def test_acknowledgement_is_kept_for_a_client_outside_the_cohort(scenario: Make) -> None:
    experiment = build_experiment(scenario())
    server = experiment.initial_server_state
    for cohort in ([0, 1], [1, 2]):
        messages, _ = broadcast(experiment.plan, server, cohort)
        replies = [o for o in start_in_process(experiment).runtime.exchange(messages, None) if isinstance(o, Reply)]
        server, _ = aggregate(experiment.plan, server, replies)
    messages, _ = broadcast(experiment.plan, server, range(4))
    assert [decode_frame(messages[c][0]).header.acknowledged for c in range(4)] == [1, 2, 2, 0]


def test_frame_event_has_coordinates_and_times(scenario: Make) -> None:
    events = run_n_rounds(build_experiment(scenario()), 1)
    for c in events:
        assert c.n_coordinates == {FrameKind.TASK: 0, FrameKind.MODEL: 4810, FrameKind.UPDATE: 48}[c.kind]
        assert (c.decode_seconds > 0) == (c.kind is not FrameKind.TASK)
        if c.kind is FrameKind.UPDATE:
            assert c.encode_seconds > 0


def test_non_finite_server_step_raises_error(scenario: Make) -> None:
    with pytest.raises(NonFiniteError, match="round 1, server: after the server's step is not finite in"):
        run_n_rounds(build_experiment(scenario({"server.optimizer.lr": 3e38, "client.optimizer.lr": 1.0})), 3)


def test_cohort_larger_than_the_partition_raises_error_with_its_key(scenario: Make) -> None:
    examples = Examples(np.zeros((6, 8, 8), np.float32), np.arange(6), None, np.array([0, 0, 1, 1, 2, 2]))
    natural = scenario({"server.cohort": 4}).with_settings({"data.partition": "natural"})
    with pytest.raises(ScenarioError, match=r"^server\.cohort: got 4 .* at most 3, the number that data\.partition gives$"):
        build_experiment(natural, dataset=Dataset(examples, examples, 10))


def test_seed_determines_partition_and_initial_model(scenario: Make) -> None:
    first, second = build_experiment(scenario()), build_experiment(scenario({"seed": 1}))
    assert first.task.initial_parameters.tobytes() != second.task.initial_parameters.tobytes()
    splits = [e.train.partition.order.tolist() for e in (first, second)]
    assert splits[0] != splits[1]
