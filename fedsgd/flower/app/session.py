"""The server's side of compression in somebody's app: fedsgd's own rounds under a strategy that knows nothing of them.

P numbers in the model's vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedsgd.compression import ClientId
from fedsgd.compression.run_config import RunConfig
from fedsgd.errors import WireError
from fedsgd.experiment.scenario_warnings import find_compressor_warnings
from fedsgd.federation import (
    FederationPlan,
    Reply,
    ServerState,
    advance_with_external_model,
    broadcast,
    initial_server_state,
    rebroadcast,
)
from fedsgd.federation import Message as Frames
from fedsgd.federation.downlink import initial_public_model
from fedsgd.federation.server import decode_resync, decode_update
from fedsgd.flower.app.array_layout import ArrayLayout
from fedsgd.flower.app.arrays import has_float32_overflow, make_array
from fedsgd.flower.app.messages import (
    CompressedReply,
    Record,
    build_compressed_content,
    create_shared_record,
    decode_exact_arrays,
    decode_groups,
    decode_reply,
    replace_records,
)
from fedsgd.flower.app.settings import CompressionSettings
from fedsgd.flower.app.tied_weights import TieState, is_bit_equal
from fedsgd.flower.records import RECORD_KEY
from fedsgd.numerics.arrays import F32, BoolArray
from fedsgd.numerics.reductions import all_finite
from fedsgd.wire import ALL_CLIENTS, Frame, FrameKind, Header, peek_kind


class CompressionSession:
    """One model on its way through the rounds.

    Nodes are numbered in the order of their first messages. Rounds are counted here, because a strategy may be started again or
    end a round without its replies.

    Args:
        terms: the session's terms.
        arrays: the model at the start.
        ties: names that are one tensor. A session ends where they turn out to differ from those it began with.
    """

    def __init__(self, settings: CompressionSettings, arrays: ArrayRecord, ties: TieState) -> None:
        model = settings.array_layout
        self.settings = settings
        self.plan: FederationPlan = self.settings.build_plan()
        self.server: ServerState = initial_server_state(self.plan, model.to_vector(arrays))
        self.client_ids: dict[int, ClientId] = {}
        self.ties = ties
        self.uncompressed_replies: dict[int, str] = {}
        self._irregularities: dict[str, str] = {}
        self.initial_groups = ties.groups
        self._exact_arrays: Mapping[str, Array] = {}
        self._change_counts = np.zeros(model.layout.size, dtype=np.int32)  # [P] replies that changed each coordinate
        self._awaits_replies = False

    @property
    def array_layout(self) -> ArrayLayout:
        """Names, shapes and types of the app's arrays."""
        return self.settings.array_layout

    @property
    def is_over(self) -> bool:
        """True if other names are one tensor than the session began with."""
        return self.ties.groups != self.initial_groups

    def matches(self, arrays: ArrayRecord) -> bool:
        """Return True if clients of the coming round are to have these arrays, to the last bit."""
        if (
            self.array_layout.find_mismatch(arrays) is not None
            or self.array_layout.find_unequal_groups(arrays)
            or self.array_layout.find_dtype_changes(arrays)
        ):
            return False
        return is_bit_equal(self.array_layout.to_vector(arrays), self.array_layout.round_to_dtypes(self.server.weights))

    def set_model(self, arrays: ArrayRecord) -> None:
        """Get ready for a round with these arrays. Where they are not what the last round led to, whoever changed them is
        right, and everybody is sent the whole model."""
        if self._awaits_replies:  # nobody will take these replies any more
            self.finish_round(None, ())
        self._adopt_dtypes(arrays)
        if not self.matches(arrays):
            self.server = _publish_full_model(self.plan, self.server, self.array_layout.to_vector(arrays))

    def find_warnings(self, inner: object, n_nodes: int, allows_memory: bool = True) -> list[str]:
        """Return lines about settings of the last round's `compress_train_messages` that a compressor is not made for.

        Args:
            inner: the strategy whose server may have a momentum.
            nodes: number of nodes that are connected.
            allows_memory: False if error feedback would be refused, so that no line may advise it.
        """
        uplink, momentum = self.settings.uplink, getattr(inner, "server_momentum", 0.0) or getattr(inner, "beta_1", 0.0)
        run = RunConfig(
            key="compressor",
            layout=self.array_layout.layout,
            rounds=None,
            clients=max(n_nodes, self.plan.cohort_size),
            cohort=self.plan.cohort_size,
            server_momentum=momentum,
            error_feedback=uplink.error_feedback,
        )
        lines = find_compressor_warnings(uplink.build_scheme(), run, self.settings.downlink)
        return [line for line in lines if allows_memory or not line.startswith(run.feedback_key)]

    def compress_train_messages(
        self, contents: Mapping[int, RecordDict], arrays: ArrayRecord, key: str, weighted_by: str
    ) -> dict[int, RecordDict]:
        """Return the compressed contents of the messages to train, by node."""
        terms = replace(self.settings, cohort=max(1, len(contents)), key=key, weighted_by=weighted_by)
        self.settings, self.plan, self._awaits_replies = terms, terms.build_plan(), True
        self.uncompressed_replies, self._irregularities = {}, {}
        self._change_counts = np.zeros(self.array_layout.layout.size, dtype=np.int32)
        messages, self.server = broadcast(self.plan, self.server, [self._assign_client_id(node) for node in contents])
        return self._write_messages(contents, messages, arrays)

    def compress_evaluate_messages(
        self, contents: Mapping[int, RecordDict], arrays: ArrayRecord, key: str
    ) -> dict[int, RecordDict]:
        """Return the compressed contents of the messages to evaluate, by node. No client's state changes."""
        self.settings = replace(self.settings, key=key)
        held = {client: self.server.acknowledged_rounds.get(client) for client in map(self._assign_client_id, contents)}
        return self.compress_second_messages(
            contents, {client: self._create_resync_frame(client, round) for client, round in held.items()}, arrays
        )

    def compress_second_messages(
        self, contents: Mapping[int, RecordDict], frames: Mapping[ClientId, Frame], arrays: ArrayRecord
    ) -> dict[int, RecordDict]:
        """Return the contents of second messages to nodes that could not follow. frames: their RESYNC frames."""
        messages, self.server = rebroadcast(self.plan, self.server, frames)
        return self._write_messages(contents, messages, arrays)

    def decompress_reply(self, reply: Message) -> RecordDict | Frame:
        """Return the content that a node would have sent uncompressed, or its RESYNC frame if it cannot follow.

        Raises:
            WireError: the reply cannot be read. The session is as before.
        """
        answer = decode_reply(reply.content, self.array_layout)
        if answer.key == RECORD_KEY:
            raise WireError(0, f'the reply stands for a record "{RECORD_KEY}", which is itself')
        if not answer.frames:
            return self._accept_uncompressed(reply, answer)
        client = self.client_ids[reply.metadata.src_node_id]
        given = Reply(client, answer.frames, 0.0, 0.0)
        if len(answer.frames) == 1 and peek_kind(answer.frames[0]) == FrameKind.RESYNC:
            return decode_resync(given, self.server.round)
        opened = decode_update(self.plan, given, self.server.round)
        update = self.plan.uplink.decode(opened.sections, self.plan.make_context(self.server.round, client))
        # on the server's own model, which need not be the one that clients have: the strategy sees the update, and no more
        local = self.server.weights.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            update.add_to(local, 1.0)
        model = self.array_layout.with_dtypes(answer.dtypes)
        if not all_finite(model.round_to_dtypes(local)):
            raise WireError(0, f"the model with this update leaves {'float16' if all_finite(local) else 'float32'}'s range")
        aside = decode_exact_arrays(self.array_layout, answer.side_packet, self._exact_arrays, answer.missing_names)
        record = model.to_record(local, aside, answer.missing_names)
        others = self._get_other_arrays(reply.content, answer, record)
        record.update(others)
        self._note_irregularities(answer.missing_names, others)
        self._change_counts += local != self.server.weights
        content = RecordDict({name: value for name, value in reply.content.items() if name != answer.key})
        return replace_records(content, RECORD_KEY, {answer.key: record})

    def _get_other_arrays(self, content: RecordDict, compressed_reply: CompressedReply, record: ArrayRecord) -> ArrayRecord:
        """Return the arrays of a reply that crossed as they are."""
        others = content.get(compressed_reply.key, ArrayRecord())
        if not isinstance(others, ArrayRecord):
            raise WireError(0, f'the reply has a record "{compressed_reply.key}" already')
        twice = next((name for name in others if name in record), None)
        if twice is not None:
            raise WireError(0, f'the reply has the array "{twice}" twice')
        return others

    def _accept_uncompressed(self, reply: Message, compressed_reply: CompressedReply) -> RecordDict:
        """Return a reply whose arrays came as they are: other names are one tensor, or no array is the model's."""
        node, arrays = reply.metadata.src_node_id, reply.content.array_records.get(compressed_reply.key)
        if arrays is None and compressed_reply.key:
            raise WireError(0, f'the reply has neither an update nor a record "{compressed_reply.key}"')
        problem = f'got the ArrayRecords {[*reply.content.array_records]}, expected one of them to be "{self.settings.key}"'
        if arrays is not None:
            problem = self.array_layout.find_mismatch(arrays) or ""
        if arrays is not None and not problem:
            groups, values = decode_groups(compressed_reply), self._flatten_arrays(arrays)
            if any(not is_bit_equal(values[group[0]], values[name]) for group in groups for name in group if name in values):
                raise WireError(0, f"the reply has different values for {groups}, which it says are one tensor")
            wide = [name for name in self.array_layout.slices if not all_finite(values[name])]
            if not all(has_float32_overflow(arrays[name]) for name in wide):
                raise WireError(0, "the reply's arrays are not finite")
            problem = f'"{wide[0]}" leaves float32\'s range' if wide else ""
            self.ties.add_reply(
                self.array_layout.tied_groups, values, [group for group in groups if values.keys() >= set(group)]
            )
        self.uncompressed_replies[node] = problem
        self._change_counts += 1
        return replace_records(reply.content, RECORD_KEY, {})

    def find_irregularities(self) -> dict[str, str]:
        """Return one line for each kind of replies of this round whose arrays are not the model's."""
        kinds = dict(self._irregularities)
        for node, problem in self.uncompressed_replies.items():
            if problem:
                kinds.setdefault("arrays", f"node {node} replies uncompressed: {problem}")
        split = sorted(node for node, problem in self.uncompressed_replies.items() if not problem)
        if split:
            kinds["split"] = f"nodes {split} reply uncompressed: other nodes have other tied names"
        return kinds

    def _note_irregularities(self, missing_names: Sequence[str], other_arrays: ArrayRecord) -> None:
        if missing_names:
            first = f'"{missing_names[0]}"' + f" and {len(missing_names) - 1} others" * (len(missing_names) > 1)
            text = f"replies lack {first} of the model: the strategy gets them without, as from a plain ClientApp"
            self._irregularities.setdefault("lacks", text)
        if other_arrays:
            name = next(iter(other_arrays))
            text = f'replies have arrays such as "{name}", which are not the model\'s: these cross uncompressed'
            self._irregularities.setdefault("others", text)

    def _flatten_arrays(self, arrays: ArrayRecord) -> Mapping[str, F32]:
        try:
            return self.array_layout.flatten_arrays(arrays)
        except Exception as error:  # whatever numpy says of bytes that are no array
            raise WireError(0, f"the reply's arrays cannot be read ({error})") from None

    def note_uncompressed_reply(self, content: RecordDict) -> None:
        """The strategy has a reply of which nothing is known here, but for the names that are not one tensor in it."""
        self._change_counts += 1
        for arrays in content.array_records.values():
            with suppress(WireError):  # arrays that cannot be read are the strategy's own affair
                if self.array_layout.tied_groups and self.array_layout.find_mismatch(arrays) is None:
                    self.ties.add_reply(self.array_layout.tied_groups, self._flatten_arrays(arrays), ())

    def finish_round(self, arrays: ArrayRecord | None, accepted_nodes: Sequence[int]) -> ArrayRecord | None:
        """The round is over. arrays: what the strategy made of it, None if nothing; accepted: the nodes whose replies it had.

        Returns the arrays that the next round begins from, in the very record that the strategy made, which it may go on with
        too. They are others where the downlink loses something.
        """
        if arrays is not None:
            self._adopt_dtypes(arrays)
        before = self.server.weights
        made = before if arrays is None else self.array_layout.to_vector(arrays)
        weights = np.where(self._is_rounding_noise(made, len(accepted_nodes)), before, made)
        compressed = [node for node in accepted_nodes if node not in self.uncompressed_replies]
        taken = () if arrays is None else sorted(self.client_ids[node] for node in compressed)
        self.server, self._awaits_replies = advance_with_external_model(self.plan, self.server, weights, taken), False
        after = self.server.weights
        if arrays is None:
            return None if np.array_equal(before, after) else self.array_layout.to_record(after, self._exact_arrays)
        return self.write_weights(arrays, after)

    def write_weights(self, arrays: ArrayRecord, weights: F32) -> ArrayRecord:
        """Return the same record with these weights [P] in the arrays' own types, a tensor's under all its names."""
        for name, part in self.array_layout.slices.items():
            expected = make_array(weights[part], self.array_layout.shape_by_name[name], arrays[name].dtype)
            if not np.array_equal(arrays[name].numpy(), expected.numpy()):
                arrays[name] = expected
        return arrays

    def check_finite(self, arrays: ArrayRecord) -> None:
        """Raise NonFiniteError for a model that the round must not end with."""
        advance_with_external_model(self.plan, self.server, self.array_layout.to_vector(arrays), ())

    def measure_overlap(self, n_replies: int) -> float:
        """Return the share of the changed coordinates that at least half of the replies changed; 1 if none was changed."""
        changed = self._change_counts[self._change_counts > 0]
        return float(np.mean(2 * changed >= n_replies)) if changed.size else 1.0

    def mark_all_changed(self) -> None:
        """Publish every difference that the strategy makes: noise must not depend on the coordinates that clients changed."""
        self._change_counts += 1

    def _is_rounding_noise(self, new_weights: F32, n_replies: int) -> BoolArray:
        """Return True [P] for coordinates that no client changed and that the strategy's mean only rounded.

        The mean of n equal numbers differs from the number by at most (n + 2) · 2⁻²⁴ of it in float32. Such a difference would
        be sent as if it was a change. In float16 it is as large as a step of the server, and is sent.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(self.server.weights) * np.float32((n_replies + 2) * 2.0**-24)
            close: BoolArray = (self._change_counts == 0) & (np.abs(new_weights - self.server.weights) <= error)
        return close

    def _adopt_dtypes(self, arrays: ArrayRecord) -> None:
        """Send arrays in the types that the strategy has given them."""
        types = self.array_layout.find_dtype_changes(arrays)
        if types:
            self.settings = replace(self.settings, array_layout=self.array_layout.with_dtypes(types))

    def _write_messages(
        self, contents: Mapping[int, RecordDict], messages: Mapping[ClientId, Frames], arrays: ArrayRecord
    ) -> dict[int, RecordDict]:
        """The contents with these frames. What several nodes are sent is packed once, and so one object for Flower too."""
        self._exact_arrays = {name: arrays[name] for name in self.array_layout.exact_shapes}
        made: dict[tuple[int, ...], Record] = {}
        out = {}
        for node, content in contents.items():
            task, *frames = messages[self.client_ids[node]]
            key = tuple(map(id, frames))
            if key not in made:
                made[key] = create_shared_record(self.settings, tuple(frames), arrays)
            out[node] = build_compressed_content(content, self.settings.key, made[key], task)
        return out

    def _assign_client_id(self, node: int) -> ClientId:
        return self.client_ids.setdefault(node, len(self.client_ids))

    def _create_resync_frame(self, client: ClientId, model_round: int) -> Frame:
        return Frame(Header(FrameKind.RESYNC, self.server.round, base=model_round, client=client))


def _publish_full_model(plan: FederationPlan, server: ServerState, weights: F32) -> ServerState:
    """The server of the next round with a model that does not follow from the last one: no difference leads to it."""
    round = server.round + 1
    public = initial_public_model(plan.downlink, weights, lambda _: plan.make_context(round, ALL_CLIENTS))
    changed = None if public.change_rounds is None else np.full_like(public.change_rounds, round)
    public = replace(public, round=round, change_rounds=changed)
    return replace(server, round=round, weights=weights, public_model=public, extra_frames=(), shared_frames=())
