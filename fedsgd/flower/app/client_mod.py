"""Compression in somebody's ClientApp: the half that runs on the node.

P numbers in the vector of the model's float32 arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod

from fedsgd.data import Examples
from fedsgd.errors import ModelError, NonFiniteError, OutputError
from fedsgd.federation import ClientTask, DownlinkCache, FederationPlan, ImmediateReply, decode_task, encode_update
from fedsgd.federation import Message as Frames
from fedsgd.federation.client_state import ClientState
from fedsgd.flower.app.array_layout import ReplyArrays
from fedsgd.flower.app.arrays import flatten_values, is_float
from fedsgd.flower.app.client_state import attach_reply, open_store, revert_missing_coordinates
from fedsgd.flower.app.failures import mark_error, wrap_app_error
from fedsgd.flower.app.messages import (
    CompressedRequest,
    check_names,
    decode_request,
    encode_reply,
    encode_uncompressed_reply,
    is_compressed,
    replace_records,
)
from fedsgd.flower.app.mod_checks import check_mods
from fedsgd.flower.app.tied_weights import TiedGroups, find_partial_sharing, is_bit_equal, observe_groups, sort_groups
from fedsgd.flower.records import RECORD_KEY, unpack_records, write_payload
from fedsgd.flower.state_directory import commit_state, hide_record
from fedsgd.numerics.arrays import F32
from fedsgd.runtime.stores.directory import FolderModelCache, FolderStore
from fedsgd.training import TrainingResult
from fedsgd.wire import decode_frame, frame_overhead

_DUMMY_EXAMPLES = Examples(np.zeros(1, dtype=np.float32), np.zeros(1, dtype=np.float32))


def compression_mod() -> Mod:
    """A mod for any ClientApp of Flower's message API: `ClientApp(mods=[compression_mod()])`. Put it first, so that other mods
    see arrays as ever.

    It needs no settings, they come with the messages of a `CompressedStrategy`: the app gets the arrays that the message stands
    for, and of the arrays that it replies with, the difference to those is sent. A scheme's state stays on this node's disk
    (see `fedsgd.flower.state_directory`), together with a reply that must not be made twice; the log says once how much that
    is.
    `context.state` has one ConfigRecord of ours, "fedsgd", which the app does not see while it runs. Messages of other
    strategies, and replies without arrays or with an error, pass untouched. A reply passes uncompressed, too, where it shows
    that the server is wrong about the names that are one tensor, or has no array of the model. Of other arrays than the
    model's, each crosses as it is.

    Raises:
        ClientAppError: by the mod, at a compressed message. Flower reports it to the server, which explains it in its log. Its
            cause is the error that the app raised, or an error of the mod: ModelError for arrays that share memory,
            NonFiniteError for an update that is not finite, ScenarioError for secure aggregation behind the mod, WireError for
            a message that cannot be read, OutputError for a disk or a budget without room.
    """
    return _handle_message


def _handle_message(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    def call_app(message: Message, context: Context) -> Message:
        with hide_record(context):
            return call_next(message, context)

    if not (message.has_content() and is_compressed(message.content)):
        return call_app(message, context)
    try:
        check_mods(call_next)
        is_evaluation = message.metadata.message_type.split(".")[0] == "evaluate"
        node = _MessageHandler.from_message(message, context, is_training=not is_evaluation)
        return mark_error((node.evaluate if is_evaluation else node.train)(message, call_app))
    except Exception as error:
        raise wrap_app_error(error) from error


@dataclass(frozen=True, eq=False)
class _MessageHandler:
    """This node, for one message."""

    context: Context
    request: CompressedRequest
    plan: FederationPlan
    client: int
    store: FolderStore
    downlink_cache: DownlinkCache

    @staticmethod
    def from_message(message: Message, context: Context, is_training: bool) -> _MessageHandler:
        """Read a message, and open this node's state for it."""
        request = decode_request(message.content)
        store = open_store(context, request.settings, is_training)
        client = decode_frame(request.frames[0], frame_overhead(0)).header.client
        return _MessageHandler(
            context, request, request.settings.build_plan(), client, store, DownlinkCache(FolderModelCache(store))
        )

    def evaluate(self, message: Message, call_next: ClientAppCallable) -> Message:
        """Return the app's reply to the decoded model. The client's state does not change."""
        held = ClientState(model_round=self.store.load(self.client).model_round)
        task = decode_task(self.plan, self.client, self.request.frames, held, _DUMMY_EXAMPLES, self.downlink_cache)
        if isinstance(task, ImmediateReply):
            return self._create_reply(message, task.reply.frames)
        return call_next(self._restore_message(message, task), self.context)

    def train(self, message: Message, call_next: ClientAppCallable) -> Message:
        """Return the app's reply, with the encoded update in the place of its arrays."""
        before = self.store.load(self.client)
        task = decode_task(self.plan, self.client, self.request.frames, before, _DUMMY_EXAMPLES, self.downlink_cache)
        if isinstance(task, ImmediateReply):
            if before.uncommitted_state is not None and before.uncommitted_state.reply_frame is task.reply.frames[0]:
                return Message(unpack_records(before.uncommitted_state.reply_frame), reply_to=message)
            self._store_state(before, task.state)
            return self._create_reply(message, task.reply.frames)
        reply = call_next(self._restore_message(message, task), self.context)
        if reply.has_error() or not reply.content.array_records:
            return reply
        check_names("the reply", reply.content)
        key = _find_model_key(reply.content, self.request.settings.key)
        model = self.request.settings.array_layout
        arrays = ReplyArrays.from_reply(
            model, {} if key is None else reply.content.array_records[key], self.request.exact_arrays
        )
        given = model.round_to_dtypes(task.downlink.weights)
        tied = self._find_ties(given, arrays)
        if key is None or tied is not None or arrays.model_arrays.keys().isdisjoint(model.slices):
            reply.content = write_payload(reply.content, encode_uncompressed_reply(key or "", tied or ()))
            return reply
        with np.errstate(over="ignore", invalid="ignore"):  # `encode_update` names what is not finite
            update = model.fill_vector(given.copy(), arrays.model_arrays) - given
        local = TrainingResult(self.client, update, _count_examples(reply.content, self.request.settings.weighted_by), 1)
        try:
            sent, after = encode_update(self.plan, task, local)
        except NonFiniteError as error:
            cause = f"{error.cause} An array with infinities of its own, such as a mask, needs CompressedStrategy(exact=[name])"
            raise NonFiniteError(error.round, error.client, cause) from None
        after = revert_missing_coordinates(after, arrays.compute_missing_mask(model))
        data = encode_reply(key, sent.frames, self.request.settings, arrays)
        beside = {key: ArrayRecord(dict(arrays.other_arrays))} if arrays.other_arrays else {}
        reply.content = write_payload(replace_records(reply.content, key, beside), data)
        self._store_state(before, attach_reply(after, reply.content))
        return reply

    def _restore_message(self, message: Message, task: ClientTask) -> Message:
        """Return the message as the inner strategy made it."""
        terms = self.request.settings
        arrays = terms.array_layout.to_record(task.downlink.weights, self.request.exact_arrays)
        message.content = replace_records(message.content, RECORD_KEY, {terms.key: arrays})
        return message

    def _find_ties(self, received_weights: F32, arrays: ReplyArrays) -> TiedGroups | None:
        """Return the names that are one tensor in a reply, if they are others than the server assumes; None if they are not.

        Args:
            given: the vector [P] that the app was given.
            arrays: the arrays of the reply.

        Raises:
            ModelError: an array is the transpose or a part of a different one.
        """
        model = self.request.settings.array_layout
        before = {name: received_weights[part] for name, part in model.slices.items()}
        before |= {name: flatten_values(array) for name, array in self.request.exact_arrays.items() if is_float(array)}
        after = {name: value for name, value in model.flatten_arrays(arrays.model_arrays).items() if name in before}
        changed = {
            name: value.reshape(model.shape_by_name[name])
            for name, value in after.items()
            if not is_bit_equal(before[name], value)
        }
        sharing = find_partial_sharing(changed, model.exact_shapes)
        if sharing is not None:
            raise ModelError(
                f"in the reply, {sharing}, and their compressed copies would drift apart: name both in "
                "CompressedStrategy(exact=[...]), or keep one parameter and derive the other one in the model's forward()"
            )
        assumed = sort_groups([name for name in group if name in after] for group in model.tied_groups)
        observed = observe_groups(assumed, before, after)
        groups = tuple(group for group in observed if not model.exact_shapes.keys() >= set(group))
        return None if assumed == groups else groups

    def _create_reply(self, message: Message, frames: Frames) -> Message:
        """Return a reply without the app: a RESYNC frame."""
        data = encode_reply(self.request.settings.key, frames, self.request.settings, None)
        return Message(write_payload(RecordDict(), data), reply_to=message)

    def _store_state(self, before: ClientState, after: ClientState) -> None:
        """Store the client's state. From the first write on, the same message is answered with the same reply."""
        try:
            self.store.save(self.client, after)
            self.downlink_cache.model_cache.move_reference(before.model_round, after.model_round)
            commit_state(self.context, self.store)
        except OSError as error:
            raise OutputError(f"{self.store.folder}: client state cannot be written ({error.strerror})") from None


def _find_model_key(content: RecordDict, key: str) -> str | None:
    """Return the record of a reply that has the model; None if it might be one of several."""
    found = list(content.array_records)
    if key in found:
        return key
    return found[0] if len(found) == 1 else None


def _count_examples(content: RecordDict, weighted_by: str) -> int:
    """Return the number of training examples in the metrics of a reply, 1 if there is none."""
    for record in content.metric_records.values():
        value = record.get(weighted_by, record.get("num-examples"))
        if isinstance(value, int | float) and math.isfinite(value):
            return min(max(round(value), 0), 2**32 - 1)
    return 1
