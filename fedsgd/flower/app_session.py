"""The server's side of compression in somebody's app: fedsgd's own rounds under a strategy that knows nothing of them.

P numbers in the model's vector.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedsgd.arrays import F32, Bools
from fedsgd.compress import COMPRESSORS, Ageing, ClientId, Compressor, Operator, Scheme
from fedsgd.compress.run_config import RunConfig
from fedsgd.downlink import begin
from fedsgd.errors import ScenarioError, WireError, did_you_mean
from fedsgd.flower.app_model import Arrangement, arranged, as_array, flat_values, read_aside
from fedsgd.flower.app_terms import Answered, Record, Terms, asked, read_answer, read_groups, shared, without
from fedsgd.flower.app_ties import TieState, same_bits
from fedsgd.flower.records import KEY
from fedsgd.rounds import Message as Frames
from fedsgd.rounds import Plan, Reply, Server, again, broadcast, moved_to, start
from fedsgd.rounds.server import open_resync, open_update
from fedsgd.scenario_warnings import find_compressor_warnings
from fedsgd.schema import from_table, placed, to_table
from fedsgd.tables import Downlink, Uplink
from fedsgd.vectors import all_finite
from fedsgd.wire import ALL, Frame, Header, Kind, kind_of

_SESSIONS = itertools.count(1)


def uplink_of(compressor: str | Mapping[str, object] | Compressor, error_feedback: str) -> Uplink:
    """The table of the uplink. ScenarioError, with the key, for a setting that is wrong, and for a compressor whose server does
    more than to decode each client's update: a strategy is to have every client's arrays."""
    given = to_table(compressor, by_path=False) if isinstance(compressor, Compressor) else compressor
    name = given.get("name") if isinstance(given, Mapping) else given
    if isinstance(name, str) and name not in COMPRESSORS and ":" not in name:
        raise ScenarioError(f'compressor.name: got "{name}"{did_you_mean(name, _usable())}')
    uplink = from_table(Uplink, {"compressor": given, "error_feedback": error_feedback}, registered_only=True)
    if isinstance(compressor, Compressor) and uplink.compressor != compressor:
        raise ScenarioError(f"compressor: got {compressor!r}, which clients would not know by its name")
    if not _is_by_client(uplink.scheme()):
        name = uplink.compressor.name
        problem = f'got "{name}", whose server works on the whole cohort, not on each client\'s arrays as a strategy does'
        raise ScenarioError(f"compressor.name: {problem}{did_you_mean('', _usable())}")
    return uplink


def downlink_of(table: Mapping[str, object] | None) -> Downlink:
    """The table of the downlink; by default the whole model. ScenarioError, with the key, for a setting that is wrong."""
    try:
        return from_table(Downlink, {} if table is None else table, registered_only=True)
    except ScenarioError as error:
        raise ScenarioError(f"downlink.{error}") from None


def _is_by_client(scheme: Compressor) -> bool:
    if isinstance(scheme, Operator):
        return True
    if isinstance(scheme, Ageing):
        return _is_by_client(scheme.scheme)
    assert isinstance(scheme, Scheme)
    own = type(scheme).fold is not Scheme.fold or type(scheme).downlink is not Scheme.downlink
    return not (own or scheme.mirrored or scheme.corrects)


def _usable() -> list[str]:
    return [name for name in COMPRESSORS if _is_by_client(COMPRESSORS[name]())]


class Session:
    """One model on its way through the rounds. Nodes are numbered in the order in which they are first asked; rounds are
    counted here, because a strategy may be started again or end a round without its replies. ties: the names that are one
    tensor; a session ends where they turn out to be others than it began with."""

    def __init__(
        self, uplink: Uplink, downlink: Downlink, seed: int, arrays: ArrayRecord, exact: Sequence[str], ties: TieState
    ) -> None:
        model = arranged(arrays, exact, ties.groups)
        with placed("compressor"):
            uplink.scheme().check_layout(model.layout)
        with placed("downlink.compressor"):
            downlink.compressor.check_layout(model.layout)
        self.terms = Terms(uplink, downlink, model, seed, next(_SESSIONS))
        self.plan: Plan = self.terms.plan()
        self.server: Server = start(self.plan, model.vector(arrays))
        self.numbers: dict[int, ClientId] = {}
        self.ties = ties
        self.uncompressed: set[int] = set()
        self.groups = ties.groups
        self._aside: Mapping[str, Array] = {}
        self._touched = np.zeros(model.layout.size, dtype=np.bool_)
        self._awaits = False

    @property
    def model(self) -> Arrangement:
        """What the app's arrays are."""
        return self.terms.model

    @property
    def is_over(self) -> bool:
        """True if other names are one tensor than the session began with."""
        return self.ties.groups != self.groups

    def goes_on_from(self, arrays: ArrayRecord) -> bool:
        """Whether these are the arrays that clients of the coming round are to have, to the last bit."""
        if self.model.problem(arrays) is not None or self.model.unequal(arrays):
            return False
        return np.array_equal(self.model.vector(arrays).view(np.uint32), self.server.weights.view(np.uint32))

    def go_on_from(self, arrays: ArrayRecord) -> None:
        """Get ready for a round with these arrays. Where they are not what the last round led to, whoever changed them is
        right, and everybody is sent the whole model."""
        if self._awaits:  # nobody will take these replies any more
            self.moved(None, ())
        if not self.goes_on_from(arrays):
            self.server = _published_anew(self.plan, self.server, self.model.vector(arrays))

    def find_warnings(self, inner: object, nodes: int) -> list[str]:
        """Return lines about settings of the last round's `train` that a compressor is not made for.

        Args:
            inner: the strategy whose server may have a momentum.
            nodes: number of nodes that are connected.
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
        return [*find_compressor_warnings(uplink.scheme(), run, self.terms.downlink)]

    def train(
        self, contents: Mapping[int, RecordDict], arrays: ArrayRecord, key: str, weighted_by: str
    ) -> dict[int, RecordDict]:
        """What each node is sent to train, from what the strategy would have sent it."""
        terms = replace(self.terms, cohort=max(1, len(contents)), key=key, weighted_by=weighted_by)
        self.terms, self.plan, self._awaits, self.uncompressed = terms, terms.plan(), True, set()
        self._touched = np.zeros(self.model.layout.size, dtype=np.bool_)
        messages, self.server = broadcast(self.plan, self.server, [self._number(node) for node in contents])
        return self._written(contents, messages, arrays)

    def evaluate(self, contents: Mapping[int, RecordDict], arrays: ArrayRecord, key: str) -> dict[int, RecordDict]:
        """The same for an evaluation, of which no client keeps anything: nothing is said of its replies."""
        self.terms = replace(self.terms, key=key)
        held = {client: self.server.acknowledged.get(client) for client in map(self._number, contents)}
        return self.again(contents, {client: self._resync(client, round) for client, round in held.items()}, arrays)

    def again(
        self, contents: Mapping[int, RecordDict], frames: Mapping[ClientId, Frame], arrays: ArrayRecord
    ) -> dict[int, RecordDict]:
        """The same for nodes that could not follow, by what they say they have."""
        messages, self.server = again(self.plan, self.server, frames)
        return self._written(contents, messages, arrays)

    def restored(self, reply: Message) -> RecordDict | Frame:
        """What a node would have sent if nobody had compressed it; its RESYNC frame if it cannot follow. WireError, without any
        trace left of it, for what cannot be read."""
        said = read_answer(reply.content)
        if not said.frames:
            return self._take_uncompressed(reply, said)
        client = self.numbers[reply.metadata.src_node_id]
        given = Reply(client, said.frames, 0.0, 0.0)
        if len(said.frames) == 1 and kind_of(said.frames[0]) == Kind.RESYNC:
            return open_resync(given, self.server.round)
        opened = open_update(self.plan, given, self.server.round)
        update = self.plan.uplink.decode(opened.sections, self.plan.context(self.server.round, client))
        # on the server's own model, which need not be the one that clients have: the strategy sees the update, and no more
        local = self.server.weights.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            update.add_to(local, 1.0)
        if not all_finite(local):
            raise WireError(0, "the model with this update leaves float32's range")
        if said.key in reply.content and said.key != KEY:
            raise WireError(0, f'the reply has a record "{said.key}" already')
        record = self.model.record(local, read_aside(self.model, said.aside, self._aside))
        self._touched |= local != self.server.weights
        return without(reply.content, KEY, {said.key: record})

    def _take_uncompressed(self, reply: Message, answer: Answered) -> RecordDict:
        """Return a reply whose arrays came as they are, because the node found other names to be one tensor."""
        arrays = reply.content.array_records.get(answer.key)
        if arrays is None or answer.key == KEY:
            raise WireError(0, f'the reply has neither an update nor a record "{answer.key}"')
        problem = self.model.problem(arrays)
        if problem is not None:
            raise WireError(0, problem)
        groups, values = read_groups(answer), self._values(arrays)
        if any(not same_bits(values[group[0]], values[name]) for group in groups for name in group if name in values):
            raise WireError(0, f"the reply has different values for {groups}, which it says are one tensor")
        if not all(map(all_finite, values.values())):
            raise WireError(0, "the reply's arrays are not finite")
        self.ties.add_reply(self.model.tied, values, [group for group in groups if values.keys() >= set(group)])
        self.uncompressed.add(reply.metadata.src_node_id)
        self._touched[:] = True
        return without(reply.content, KEY, {})

    def _values(self, arrays: ArrayRecord) -> Mapping[str, F32]:
        try:
            return self.model.values(arrays)
        except Exception as error:  # whatever numpy says of bytes that are no array
            raise WireError(0, f"the reply's arrays cannot be read ({error})") from None

    def taken_plain(self, content: RecordDict) -> None:
        """The strategy has a reply of which nothing is known here, but for the names that are not one tensor in it."""
        self._touched[:] = True
        for arrays in content.array_records.values():
            with suppress(WireError):  # arrays that cannot be read are the strategy's own affair
                if self.model.tied and self.model.problem(arrays) is None:
                    self.ties.add_reply(self.model.tied, self._values(arrays), ())

    def moved(self, arrays: ArrayRecord | None, accepted: Sequence[int]) -> ArrayRecord | None:
        """The round is over. arrays: what the strategy made of it, None if nothing; accepted: the nodes whose replies it had.

        Returns the arrays that the next round begins from, in the very record that the strategy made, which it may go on with
        too. They are others where the downlink loses something.
        """
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
        """Return the same record with these weights [P], a tensor's under all its names."""
        shapes = dict(zip(self.model.names, self.model.shapes, strict=True))
        for name, part in self.model.parts.items():
            if arrays[name].dtype != "float32" or not np.array_equal(flat_values(arrays[name]), weights[part]):
                arrays[name] = Array(as_array(weights[part], shapes[name]))
        return arrays

    def check_finite(self, arrays: ArrayRecord) -> None:
        """Raise NonFiniteError for a model that the round must not end with."""
        moved_to(self.plan, self.server, self.model.vector(arrays), ())

    def _rounding(self, made: F32, n_replies: int) -> Bools:
        """Where the strategy has averaged n equal numbers and got almost the same one [P]: no client changed anything there,
        and the difference is within the error of such a sum, (n + 2) · 2⁻²⁴ of it. It would be sent as if it was a change."""
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(self.server.weights) * np.float32((n_replies + 2) * 2.0**-24)
            close: Bools = ~self._touched & (np.abs(made - self.server.weights) <= error)
        return close

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
