"""The server's side of compression in somebody's app: fedsgd's own rounds under a strategy that knows nothing of them.

P numbers in the model's vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedsgd.arrays import F32, Bools
from fedsgd.compress import ClientId
from fedsgd.compress.run_config import RunConfig
from fedsgd.downlink import begin
from fedsgd.errors import WireError
from fedsgd.flower.app_arrays import as_array, overflows
from fedsgd.flower.app_model import Arrangement
from fedsgd.flower.app_settings import Terms
from fedsgd.flower.app_terms import Answered, Record, asked, read_answer, read_aside, read_groups, shared, without
from fedsgd.flower.app_ties import TieState, same_bits
from fedsgd.flower.records import KEY
from fedsgd.rounds import Message as Frames
from fedsgd.rounds import Plan, Reply, Server, again, broadcast, moved_to, start
from fedsgd.rounds.server import open_resync, open_update
from fedsgd.scenario_warnings import find_compressor_warnings
from fedsgd.vectors import all_finite
from fedsgd.wire import ALL, Frame, Header, Kind, kind_of


class Session:
    """One model on its way through the rounds.

    Nodes are numbered in the order of their first messages. Rounds are counted here, because a strategy may be started again or
    end a round without its replies.

    Args:
        terms: the session's terms.
        arrays: the model at the start.
        ties: names that are one tensor. A session ends where they turn out to differ from those it began with.
    """

    def __init__(self, terms: Terms, arrays: ArrayRecord, ties: TieState) -> None:
        model = terms.model
        self.terms = terms
        self.plan: Plan = self.terms.plan()
        self.server: Server = start(self.plan, model.vector(arrays))
        self.numbers: dict[int, ClientId] = {}
        self.ties = ties
        self.uncompressed: dict[int, str] = {}
        self._irregular: dict[str, str] = {}
        self.groups = ties.groups
        self._aside: Mapping[str, Array] = {}
        self._touched = np.zeros(model.layout.size, dtype=np.int32)  # [P] replies that changed each coordinate
        self._awaits = False

    @property
    def model(self) -> Arrangement:
        """Names, shapes and types of the app's arrays."""
        return self.terms.model

    @property
    def is_over(self) -> bool:
        """True if other names are one tensor than the session began with."""
        return self.ties.groups != self.groups

    def goes_on_from(self, arrays: ArrayRecord) -> bool:
        """Return True if clients of the coming round are to have these arrays, to the last bit."""
        if self.model.problem(arrays) is not None or self.model.unequal(arrays) or self.model.types_in(arrays):
            return False
        return same_bits(self.model.vector(arrays), self.model.rounded(self.server.weights))

    def go_on_from(self, arrays: ArrayRecord) -> None:
        """Get ready for a round with these arrays. Where they are not what the last round led to, whoever changed them is
        right, and everybody is sent the whole model."""
        if self._awaits:  # nobody will take these replies any more
            self.moved(None, ())
        self._adopt_types(arrays)
        if not self.goes_on_from(arrays):
            self.server = _published_anew(self.plan, self.server, self.model.vector(arrays))

    def find_warnings(self, inner: object, nodes: int, allows_memory: bool = True) -> list[str]:
        """Return lines about settings of the last round's `train` that a compressor is not made for.

        Args:
            inner: the strategy whose server may have a momentum.
            nodes: number of nodes that are connected.
            allows_memory: False if error feedback would be refused, so that no line may advise it.
        """
        uplink, momentum = self.terms.uplink, getattr(inner, "server_momentum", 0.0) or getattr(inner, "beta_1", 0.0)
        run = RunConfig(
            key="compressor",
            layout=self.model.layout,
            rounds=None,
            clients=max(nodes, self.plan.cohort),
            cohort=self.plan.cohort,
            server_momentum=momentum,
            error_feedback=uplink.error_feedback,
        )
        lines = find_compressor_warnings(uplink.scheme(), run, self.terms.downlink)
        return [line for line in lines if allows_memory or not line.startswith(run.feedback_key)]

    def train(
        self, contents: Mapping[int, RecordDict], arrays: ArrayRecord, key: str, weighted_by: str
    ) -> dict[int, RecordDict]:
        """Return the compressed contents of the messages to train, by node."""
        terms = replace(self.terms, cohort=max(1, len(contents)), key=key, weighted_by=weighted_by)
        self.terms, self.plan, self._awaits = terms, terms.plan(), True
        self.uncompressed, self._irregular = {}, {}
        self._touched = np.zeros(self.model.layout.size, dtype=np.int32)
        messages, self.server = broadcast(self.plan, self.server, [self._number(node) for node in contents])
        return self._written(contents, messages, arrays)

    def evaluate(self, contents: Mapping[int, RecordDict], arrays: ArrayRecord, key: str) -> dict[int, RecordDict]:
        """Return the compressed contents of the messages to evaluate, by node. No client's state changes."""
        self.terms = replace(self.terms, key=key)
        held = {client: self.server.acknowledged.get(client) for client in map(self._number, contents)}
        return self.again(contents, {client: self._resync(client, round) for client, round in held.items()}, arrays)

    def again(
        self, contents: Mapping[int, RecordDict], frames: Mapping[ClientId, Frame], arrays: ArrayRecord
    ) -> dict[int, RecordDict]:
        """Return the contents of second messages to nodes that could not follow. frames: their RESYNC frames."""
        messages, self.server = again(self.plan, self.server, frames)
        return self._written(contents, messages, arrays)

    def restored(self, reply: Message) -> RecordDict | Frame:
        """Return the content that a node would have sent uncompressed, or its RESYNC frame if it cannot follow.

        Raises:
            WireError: the reply cannot be read. The session is as before.
        """
        answer = read_answer(reply.content, self.model)
        if answer.key == KEY:
            raise WireError(0, f'the reply stands for a record "{KEY}", which is itself')
        if not answer.frames:
            return self._take_uncompressed(reply, answer)
        client = self.numbers[reply.metadata.src_node_id]
        given = Reply(client, answer.frames, 0.0, 0.0)
        if len(answer.frames) == 1 and kind_of(answer.frames[0]) == Kind.RESYNC:
            return open_resync(given, self.server.round)
        opened = open_update(self.plan, given, self.server.round)
        update = self.plan.uplink.decode(opened.sections, self.plan.context(self.server.round, client))
        # on the server's own model, which need not be the one that clients have: the strategy sees the update, and no more
        local = self.server.weights.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            update.add_to(local, 1.0)
        model = self.model.with_types(answer.types)
        if not all_finite(model.rounded(local)):
            raise WireError(0, f"the model with this update leaves {'float16' if all_finite(local) else 'float32'}'s range")
        aside = read_aside(self.model, answer.aside, self._aside, answer.lacks)
        record = model.record(local, aside, answer.lacks)
        others = self._others(reply.content, answer, record)
        record.update(others)
        self._note(answer.lacks, others)
        self._touched += local != self.server.weights
        content = RecordDict({name: value for name, value in reply.content.items() if name != answer.key})
        return without(content, KEY, {answer.key: record})

    def _others(self, content: RecordDict, answer: Answered, record: ArrayRecord) -> ArrayRecord:
        """Return the arrays of a reply that crossed as they are."""
        others = content.get(answer.key, ArrayRecord())
        if not isinstance(others, ArrayRecord):
            raise WireError(0, f'the reply has a record "{answer.key}" already')
        twice = next((name for name in others if name in record), None)
        if twice is not None:
            raise WireError(0, f'the reply has the array "{twice}" twice')
        return others

    def _take_uncompressed(self, reply: Message, answer: Answered) -> RecordDict:
        """Return a reply whose arrays came as they are: other names are one tensor, or no array is the model's."""
        node, arrays = reply.metadata.src_node_id, reply.content.array_records.get(answer.key)
        if arrays is None and answer.key:
            raise WireError(0, f'the reply has neither an update nor a record "{answer.key}"')
        problem = f'got the ArrayRecords {[*reply.content.array_records]}, expected one of them to be "{self.terms.key}"'
        if arrays is not None:
            problem = self.model.problem(arrays) or ""
        if arrays is not None and not problem:
            groups, values = read_groups(answer), self._values(arrays)
            if any(not same_bits(values[group[0]], values[name]) for group in groups for name in group if name in values):
                raise WireError(0, f"the reply has different values for {groups}, which it says are one tensor")
            wide = [name for name in self.model.parts if not all_finite(values[name])]
            if not all(overflows(arrays[name]) for name in wide):
                raise WireError(0, "the reply's arrays are not finite")
            problem = f'"{wide[0]}" leaves float32\'s range' if wide else ""
            self.ties.add_reply(self.model.tied, values, [group for group in groups if values.keys() >= set(group)])
        self.uncompressed[node] = problem
        self._touched += 1
        return without(reply.content, KEY, {})

    def find_irregular(self) -> dict[str, str]:
        """Return one line for each kind of replies of this round whose arrays are not the model's."""
        kinds = dict(self._irregular)
        for node, problem in self.uncompressed.items():
            if problem:
                kinds.setdefault("arrays", f"node {node} replies uncompressed: {problem}")
        split = sorted(node for node, problem in self.uncompressed.items() if not problem)
        if split:
            kinds["split"] = f"nodes {split} reply uncompressed: other nodes have other tied names"
        return kinds

    def _note(self, lacks: Sequence[str], others: ArrayRecord) -> None:
        if lacks:
            first = f'"{lacks[0]}"' + f" and {len(lacks) - 1} others" * (len(lacks) > 1)
            text = f"replies lack {first} of the model: the strategy gets them without, as from a plain ClientApp"
            self._irregular.setdefault("lacks", text)
        if others:
            text = f'replies have arrays such as "{next(iter(others))}", which are not the model\'s: these cross uncompressed'
            self._irregular.setdefault("others", text)

    def _values(self, arrays: ArrayRecord) -> Mapping[str, F32]:
        try:
            return self.model.values(arrays)
        except Exception as error:  # whatever numpy says of bytes that are no array
            raise WireError(0, f"the reply's arrays cannot be read ({error})") from None

    def taken_plain(self, content: RecordDict) -> None:
        """The strategy has a reply of which nothing is known here, but for the names that are not one tensor in it."""
        self._touched += 1
        for arrays in content.array_records.values():
            with suppress(WireError):  # arrays that cannot be read are the strategy's own affair
                if self.model.tied and self.model.problem(arrays) is None:
                    self.ties.add_reply(self.model.tied, self._values(arrays), ())

    def moved(self, arrays: ArrayRecord | None, accepted: Sequence[int]) -> ArrayRecord | None:
        """The round is over. arrays: what the strategy made of it, None if nothing; accepted: the nodes whose replies it had.

        Returns the arrays that the next round begins from, in the very record that the strategy made, which it may go on with
        too. They are others where the downlink loses something.
        """
        if arrays is not None:
            self._adopt_types(arrays)
        before = self.server.weights
        made = before if arrays is None else self.model.vector(arrays)
        weights = np.where(self._rounding(made, len(accepted)), before, made)
        compressed = [node for node in accepted if node not in self.uncompressed]
        taken = () if arrays is None else sorted(self.numbers[node] for node in compressed)
        self.server, self._awaits = moved_to(self.plan, self.server, weights, taken), False
        after = self.server.weights
        if arrays is None:
            return None if np.array_equal(before, after) else self.model.record(after, self._aside)
        return self.with_weights(arrays, after)

    def with_weights(self, arrays: ArrayRecord, weights: F32) -> ArrayRecord:
        """Return the same record with these weights [P] in the arrays' own types, a tensor's under all its names."""
        for name, part in self.model.parts.items():
            expected = as_array(weights[part], self.model.shape_of[name], arrays[name].dtype)
            if not np.array_equal(arrays[name].numpy(), expected.numpy()):
                arrays[name] = expected
        return arrays

    def check_finite(self, arrays: ArrayRecord) -> None:
        """Raise NonFiniteError for a model that the round must not end with."""
        moved_to(self.plan, self.server, self.model.vector(arrays), ())

    def measure_overlap(self, n_replies: int) -> float:
        """Return the share of the changed coordinates that at least half of the replies changed; 1 if none was changed."""
        changed = self._touched[self._touched > 0]
        return float(np.mean(2 * changed >= n_replies)) if changed.size else 1.0

    def expect_changes(self) -> None:
        """Publish every difference that the strategy makes: noise must not depend on the coordinates that clients changed."""
        self._touched += 1

    def _rounding(self, made: F32, n_replies: int) -> Bools:
        """Return True [P] for coordinates that no client changed and that the strategy's mean only rounded.

        The mean of n equal numbers differs from the number by at most (n + 2) · 2⁻²⁴ of it in float32. Such a difference would
        be sent as if it was a change. In float16 it is as large as a step of the server, and is sent.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(self.server.weights) * np.float32((n_replies + 2) * 2.0**-24)
            close: Bools = (self._touched == 0) & (np.abs(made - self.server.weights) <= error)
        return close

    def _adopt_types(self, arrays: ArrayRecord) -> None:
        """Send arrays in the types that the strategy has given them."""
        types = self.model.types_in(arrays)
        if types:
            self.terms = replace(self.terms, model=self.model.with_types(types))

    def _written(
        self, contents: Mapping[int, RecordDict], messages: Mapping[ClientId, Frames], arrays: ArrayRecord
    ) -> dict[int, RecordDict]:
        """The contents with these frames. What several nodes are sent is packed once, and so one object for Flower too."""
        self._aside = {name: arrays[name] for name in self.model.aside}
        made: dict[tuple[int, ...], Record] = {}
        out = {}
        for node, content in contents.items():
            task, *frames = messages[self.numbers[node]]
            key = tuple(map(id, frames))
            if key not in made:
                made[key] = shared(self.terms, tuple(frames), arrays)
            out[node] = asked(content, self.terms.key, made[key], task)
        return out

    def _number(self, node: int) -> ClientId:
        return self.numbers.setdefault(node, len(self.numbers))

    def _resync(self, client: ClientId, held: int) -> Frame:
        return Frame(Header(Kind.RESYNC, self.server.round, base=held, client=client))


def _published_anew(plan: Plan, server: Server, weights: F32) -> Server:
    """The server of the next round with a model that does not follow from the last one: no difference leads to it."""
    round = server.round + 1
    public = begin(plan.downlink, weights, lambda _: plan.context(round, ALL))
    changed = None if public.changed is None else np.full_like(public.changed, round)
    public = replace(public, round=round, changed=changed)
    return replace(server, round=round, weights=weights, public=public, beside=(), sent=())
