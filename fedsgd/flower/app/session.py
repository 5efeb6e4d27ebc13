"""Server side of a compression session: fedsgd's rounds below a strategy that gets and returns uncompressed arrays."""

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
    """Rounds of one model with a fixed layout and fixed groups of tied names.

    Nodes are numbered in the order of their first messages. The session counts its own rounds, because a strategy may be
    started again or may end a round without aggregation.

    Attributes:
        settings: settings of the last message, with the message's cohort, record key and metric.
        client_ids: number of each node, by Flower's id.
        ties: tied names, updated by replies. The session ends when the groups differ from `initial_groups`.
        uncompressed_replies: difference of each uncompressed reply from the model, by node; "" for other tied names.
    """

    def __init__(self, settings: CompressionSettings, arrays: ArrayRecord, ties: TieState) -> None:
        array_layout = settings.array_layout
        self.settings = settings
        self.plan: FederationPlan = self.settings.build_plan()
        self.server: ServerState = initial_server_state(self.plan, array_layout.to_vector(arrays))
        self.client_ids: dict[int, ClientId] = {}
        self.ties = ties
        self.uncompressed_replies: dict[int, str] = {}
        self._irregularities: dict[str, str] = {}
        self.initial_groups = ties.groups
        self._exact_arrays: Mapping[str, Array] = {}
        self._change_counts = np.zeros(array_layout.layout.size, dtype=np.int32)  # [P] replies that changed each coordinate
        self._awaits_replies = False

    @property
    def array_layout(self) -> ArrayLayout:
        """Layout of the app's arrays."""
        return self.settings.array_layout

    @property
    def is_over(self) -> bool:
        """True if the tied names differ from the initial groups."""
        return self.ties.groups != self.initial_groups

    def matches(self, arrays: ArrayRecord) -> bool:
        """Return True if these arrays, except exact arrays, are bit for bit the server's model of the current round."""
        if (
            self.array_layout.find_mismatch(arrays) is not None
            or self.array_layout.find_unequal_groups(arrays)
            or self.array_layout.find_dtype_changes(arrays)
        ):
            return False
        return is_bit_equal(self.array_layout.to_vector(arrays), self.array_layout.round_to_dtypes(self.server.weights))

    def set_model(self, arrays: ArrayRecord) -> None:
        """Set the next round's model. All clients are sent the whole model if the caller changed it since the last round."""
        if self._awaits_replies:  # the strategy has ended the round without aggregation
            self.finish_round(None, ())
        self._adopt_dtypes(arrays)
        if not self.matches(arrays):
            self.server = _publish_full_model(self.plan, self.server, self.array_layout.to_vector(arrays))

    def find_warnings(self, inner: object, n_nodes: int, allows_memory: bool = True) -> list[str]:
        """Return warnings about settings that do not suit the compressor, for example about a momentum of the strategy.

        No warning recommends error feedback unless `allows_memory` is True.
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
        lines = find_compressor_warnings(self.plan.uplink, run, self.settings.downlink)
        return [line for line in lines if allows_memory or not line.startswith(run.feedback_key)]

    def compress_train_messages(
        self, contents: Mapping[int, RecordDict], arrays: ArrayRecord, key: str, weighted_by: str
    ) -> dict[int, RecordDict]:
        """Return the compressed contents of the messages to train, by node."""
        settings = replace(self.settings, cohort=max(1, len(contents)), key=key, weighted_by=weighted_by)
        self.settings, self.plan, self._awaits_replies = settings, settings.build_plan(), True
        self.uncompressed_replies, self._irregularities = {}, {}
        self._change_counts = np.zeros(self.array_layout.layout.size, dtype=np.int32)
        messages, self.server = broadcast(self.plan, self.server, [self._assign_client_id(node) for node in contents])
        return self._write_messages(contents, messages, arrays)

    def compress_evaluate_messages(
        self, contents: Mapping[int, RecordDict], arrays: ArrayRecord, key: str
    ) -> dict[int, RecordDict]:
        """Return the compressed contents of the messages to evaluate, by node. No client's state changes."""
        self.settings = replace(self.settings, key=key)
        clients = map(self._assign_client_id, contents)
        model_rounds = {client: self.server.acknowledged_rounds.get(client) for client in clients}
        return self.compress_second_messages(
            contents, {client: self._create_resync_frame(client, round) for client, round in model_rounds.items()}, arrays
        )

    def compress_second_messages(
        self, contents: Mapping[int, RecordDict], frames: Mapping[ClientId, Frame], arrays: ArrayRecord
    ) -> dict[int, RecordDict]:
        """Return the compressed contents of second messages to nodes that replied with a RESYNC frame, by node."""
        messages, self.server = rebroadcast(self.plan, self.server, frames)
        return self._write_messages(contents, messages, arrays)

    def decompress_reply(self, reply: Message) -> RecordDict | Frame:
        """Return the content that a node would have sent uncompressed, or its RESYNC frame.

        Raises:
            WireError: the reply cannot be read. The session stays unchanged.
        """
        compressed_reply = decode_reply(reply.content, self.array_layout)
        if compressed_reply.key == RECORD_KEY:
            raise WireError(0, f'the reply replaces a record "{RECORD_KEY}", which is the name of fedsgd\'s own record')
        if not compressed_reply.frames:
            return self._accept_uncompressed(reply, compressed_reply)
        client = self.client_ids[reply.metadata.src_node_id]
        federation_reply = Reply(client, compressed_reply.frames, 0.0, 0.0)
        if len(compressed_reply.frames) == 1 and peek_kind(compressed_reply.frames[0]) == FrameKind.RESYNC:
            return decode_resync(federation_reply, self.server.round)
        decoded = decode_update(self.plan, federation_reply, self.server.round)
        update = self.plan.uplink.decode(decoded.sections, self.plan.make_context(self.server.round, client))
        # The update is added to the server's model. With a lossy downlink, clients have another model, and the difference
        # between both models must not reach the strategy.
        weights = self.server.weights.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            update.add_to(weights, 1.0)
        array_layout = self.array_layout.with_dtypes(compressed_reply.dtypes)
        if not all_finite(array_layout.round_to_dtypes(weights)):
            dtype = "float16" if all_finite(weights) else "float32"
            raise WireError(0, f"the model plus this update is outside {dtype}'s range")
        missing_names = compressed_reply.missing_names
        exact_arrays = decode_exact_arrays(self.array_layout, compressed_reply.side_packet, self._exact_arrays, missing_names)
        record = array_layout.to_record(weights, exact_arrays, missing_names)
        other_arrays = self._get_other_arrays(reply.content, compressed_reply, record)
        record.update(other_arrays)
        self._note_irregularities(missing_names, other_arrays)
        self._change_counts += weights != self.server.weights
        content = RecordDict({name: value for name, value in reply.content.items() if name != compressed_reply.key})
        return replace_records(content, RECORD_KEY, {compressed_reply.key: record})

    def _get_other_arrays(self, content: RecordDict, compressed_reply: CompressedReply, record: ArrayRecord) -> ArrayRecord:
        """Return the uncompressed arrays of a compressed reply."""
        other_arrays = content.get(compressed_reply.key, ArrayRecord())
        if not isinstance(other_arrays, ArrayRecord):
            raise WireError(0, f'the reply already has a record "{compressed_reply.key}", which is no ArrayRecord')
        duplicate = next((name for name in other_arrays if name in record), None)
        if duplicate is not None:
            raise WireError(0, f'the reply has the array "{duplicate}" twice')
        return other_arrays

    def _accept_uncompressed(self, reply: Message, compressed_reply: CompressedReply) -> RecordDict:
        """Return the content of an uncompressed reply, which has other tied names or other arrays than the model."""
        node, arrays = reply.metadata.src_node_id, reply.content.array_records.get(compressed_reply.key)
        if arrays is None and compressed_reply.key:
            raise WireError(0, f'the reply has neither an update nor a record "{compressed_reply.key}"')
        problem = f'got the ArrayRecords {[*reply.content.array_records]}, expected one of them to be "{self.settings.key}"'
        if arrays is not None:
            problem = self.array_layout.find_mismatch(arrays) or ""
        if arrays is not None and not problem:
            groups, values = decode_groups(compressed_reply), self._flatten_arrays(arrays)
            if any(not is_bit_equal(values[group[0]], values[name]) for group in groups for name in group if name in values):
                raise WireError(0, f"the reply has different values for {groups}, which it reports as tied names")
            infinite_names = [name for name in self.array_layout.slices if not all_finite(values[name])]
            if not all(has_float32_overflow(arrays[name]) for name in infinite_names):
                raise WireError(0, "the reply's arrays are not finite")
            problem = f'"{infinite_names[0]}" is outside float32\'s range' if infinite_names else ""
            self.ties.add_reply(
                self.array_layout.tied_groups, values, [group for group in groups if values.keys() >= set(group)]
            )
        self.uncompressed_replies[node] = problem
        self._change_counts += 1
        return replace_records(reply.content, RECORD_KEY, {})

    def find_irregularities(self) -> dict[str, str]:
        """Return one warning for each difference of this round's replies from the model: arrays, or tied names."""
        warnings = dict(self._irregularities)
        for node, problem in self.uncompressed_replies.items():
            if problem:
                warnings.setdefault("arrays", f"node {node} replies uncompressed: {problem}")
        disagreeing_nodes = sorted(node for node, problem in self.uncompressed_replies.items() if not problem)
        if disagreeing_nodes:
            warnings["split"] = f"nodes {disagreeing_nodes} reply uncompressed: the tied names of other nodes differ"
        return warnings

    def _note_irregularities(self, missing_names: Sequence[str], other_arrays: ArrayRecord) -> None:
        """Record a warning about a compressed reply with missing or additional arrays."""
        if missing_names:
            names = f'"{missing_names[0]}"' + f" and other arrays ({len(missing_names)} in all)" * (len(missing_names) > 1)
            text = f"replies lack {names} of the model: the strategy gets these replies without the missing arrays"
            self._irregularities.setdefault("missing", text)
        if other_arrays:
            name = next(iter(other_arrays))
            text = f'replies have arrays that the model does not have, such as "{name}": such arrays are sent uncompressed'
            self._irregularities.setdefault("additional", text)

    def _flatten_arrays(self, arrays: ArrayRecord) -> Mapping[str, F32]:
        try:
            return self.array_layout.flatten_arrays(arrays)
        except Exception as error:  # numpy raises errors of many classes for bytes that are no array
            raise WireError(0, f"the reply's arrays cannot be read ({error})") from None

    def note_uncompressed_reply(self, content: RecordDict) -> None:
        """Record a reply without fedsgd's record: any coordinate may have changed, and tied names may differ."""
        self._change_counts += 1
        for arrays in content.array_records.values():
            with suppress(WireError):  # the strategy gets the reply and reports arrays that cannot be read
                if self.array_layout.tied_groups and self.array_layout.find_mismatch(arrays) is None:
                    self.ties.add_reply(self.array_layout.tied_groups, self._flatten_arrays(arrays), ())

    def finish_round(self, arrays: ArrayRecord | None, accepted_nodes: Sequence[int]) -> ArrayRecord | None:
        """End the round with the strategy's model, or with None for no model, and return the model of the next round.

        Returns:
            The strategy's own record, because the strategy may continue to use the record, with the arrays of the server's new
            model. Without a model of the strategy: a new record, or None if the server's model did not change.
        """
        if arrays is not None:
            self._adopt_dtypes(arrays)
        before = self.server.weights
        returned_weights = before if arrays is None else self.array_layout.to_vector(arrays)
        weights = np.where(self._is_rounding_noise(returned_weights, len(accepted_nodes)), before, returned_weights)
        compressed_nodes = [node for node in accepted_nodes if node not in self.uncompressed_replies]
        accepted_clients = () if arrays is None else sorted(self.client_ids[node] for node in compressed_nodes)
        self.server = advance_with_external_model(self.plan, self.server, weights, accepted_clients)
        self._awaits_replies = False
        after = self.server.weights
        if arrays is None:
            return None if np.array_equal(before, after) else self.array_layout.to_record(after, self._exact_arrays)
        return self.write_weights(arrays, after)

    def write_weights(self, arrays: ArrayRecord, weights: F32) -> ArrayRecord:
        """Write weights [P] into a record, in the arrays' own types and under all names of a tensor, and return the record."""
        for name, part in self.array_layout.slices.items():
            expected = make_array(weights[part], self.array_layout.shape_by_name[name], arrays[name].dtype)
            if not np.array_equal(arrays[name].numpy(), expected.numpy()):
                arrays[name] = expected
        return arrays

    def check_finite(self, arrays: ArrayRecord) -> None:
        """Raise NonFiniteError if the strategy's model is not finite."""
        advance_with_external_model(self.plan, self.server, self.array_layout.to_vector(arrays), ())

    def measure_overlap(self, n_replies: int) -> float:
        """Return the share of the changed coordinates that at least half of the replies changed; 1 if none was changed."""
        counts = self._change_counts[self._change_counts > 0]
        return float(np.mean(2 * counts >= n_replies)) if counts.size else 1.0

    def mark_all_changed(self) -> None:
        """Treat all coordinates as changed. Privacy noise must not depend on the coordinates that clients changed."""
        self._change_counts += 1

    def _is_rounding_noise(self, new_weights: F32, n_replies: int) -> BoolArray:
        """Return [P] bool, True for coordinates that no client changed and that the strategy's mean only rounded.

        In float32 the mean of n equal numbers x differs from x by at most (n + 2) · 2⁻²⁴ · |x|. Such a difference is not sent.
        In float16 the difference is as large as a server step, and is sent.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            tolerance = np.abs(self.server.weights) * np.float32((n_replies + 2) * 2.0**-24)
            is_noise: BoolArray = (self._change_counts == 0) & (np.abs(new_weights - self.server.weights) <= tolerance)
        return is_noise

    def _adopt_dtypes(self, arrays: ArrayRecord) -> None:
        """Adopt the types of the strategy's arrays."""
        dtypes = self.array_layout.find_dtype_changes(arrays)
        if dtypes:
            self.settings = replace(self.settings, array_layout=self.array_layout.with_dtypes(dtypes))

    def _write_messages(
        self, contents: Mapping[int, RecordDict], messages: Mapping[ClientId, Frames], arrays: ArrayRecord
    ) -> dict[int, RecordDict]:
        """Return the contents with these frames, by node. Nodes with equal frames share one record and one Flower object."""
        self._exact_arrays = {name: arrays[name] for name in self.array_layout.exact_shapes}
        shared_records: dict[tuple[int, ...], Record] = {}
        compressed_contents = {}
        for node, content in contents.items():
            task, *frames = messages[self.client_ids[node]]
            frame_ids = tuple(map(id, frames))
            if frame_ids not in shared_records:
                shared_records[frame_ids] = create_shared_record(self.settings, tuple(frames), arrays)
            compressed_contents[node] = build_compressed_content(content, self.settings.key, shared_records[frame_ids], task)
        return compressed_contents

    def _assign_client_id(self, node: int) -> ClientId:
        return self.client_ids.setdefault(node, len(self.client_ids))

    def _create_resync_frame(self, client: ClientId, model_round: int) -> Frame:
        return Frame(Header(FrameKind.RESYNC, self.server.round, base=model_round, client=client))


def _publish_full_model(plan: FederationPlan, server: ServerState, weights: F32) -> ServerState:
    """Return the next server state for a model that did not result from the last round: clients get the whole model."""
    round = server.round + 1
    public = initial_public_model(plan.downlink, weights, lambda _: plan.make_context(round, ALL_CLIENTS))
    change_rounds = None if public.change_rounds is None else np.full_like(public.change_rounds, round)
    public = replace(public, round=round, change_rounds=change_rounds)
    return replace(server, round=round, weights=weights, public_model=public, extra_frames=(), shared_frames=())
