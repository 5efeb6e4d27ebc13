"""Flower mod that decodes messages to a ClientApp and compresses the updates in its replies."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

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
from fedsgd.flower.app.class_check import check_classes, is_class_check, parse_allowed_paths
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


def compression_mod(*, allow: Collection[str] = ()) -> Mod:
    """Return a mod that compresses a ClientApp's updates for a `CompressedStrategy`.

    The mod works with any ClientApp of Flower's message API. Put the mod first, so that other mods see uncompressed arrays. The
    messages of the `CompressedStrategy` contain the settings. The app gets decoded arrays; the mod sends the difference between
    the app's arrays and the decoded arrays.

    - State: a scheme's state is stored on the node's disk (see `fedsgd.flower.state_directory`), with the last reply if a
      repeated message must get the same reply. The log states once how many bytes a client stores.
    - Context: `context.state` has one ConfigRecord "fedsgd", which is hidden from the app while the app runs.
    - Not compressed: messages of other strategies, replies to evaluations, replies with an error, and replies without an array
      of the model. A reply is also sent uncompressed if the reply contradicts the server's tied names.
    - Arrays that the model does not have are sent as they are.
    - Your own compressors: a node imports a class outside fedsgd only if `allow` has its import path, because a server must not
      make a node import other modules. The app has the module, or the node has the installed package. Before the first message,
      source and release of each class are compared with the server's, and a difference ends the run.
    - Errors: Flower reports a `ClientAppError`, which the server explains in its log. The cause is an error of the app or of
      the mod: ModelError (two arrays share memory, or a record's name), NonFiniteError (the update), ScenarioError (secure
      aggregation behind the mod, a class, or FEDSGD_STATE_BUDGET), WireError (the message), or OutputError (no space).

    Args:
        allow: import paths of compressor classes that the server may name, like `["my_package.my_module:MyClass"]`.

    Raises:
        ScenarioError: `allow` is not a list of import paths.

    >>> from flwr.clientapp import ClientApp
    >>> from fedsgd.flower import compression_mod
    >>> app = ClientApp(mods=[compression_mod()])
    """
    return partial(_handle_message, allowed_paths=parse_allowed_paths(allow))


def _handle_message(
    message: Message, context: Context, call_next: ClientAppCallable, allowed_paths: Collection[str]
) -> Message:
    """Decode a compressed message, call the app and compress its reply; pass other messages to the app unchanged."""

    def call_app(message: Message, context: Context) -> Message:
        with hide_record(context):
            return call_next(message, context)

    if not (message.has_content() and (is_compressed(message.content) or is_class_check(message.content))):
        return call_app(message, context)
    try:
        check_mods(call_next)
        if is_class_check(message.content):
            return check_classes(message, allowed_paths)
        is_evaluation = message.metadata.message_type.split(".")[0] == "evaluate"
        handler = _MessageHandler.from_message(message, context, allowed_paths, is_training=not is_evaluation)
        return mark_error((handler.evaluate if is_evaluation else handler.train)(message, call_app))
    except Exception as error:
        raise wrap_app_error(error) from error


@dataclass(frozen=True, eq=False)
class _MessageHandler:
    """Decoder of one compressed message on a node, and encoder of the reply."""

    context: Context
    request: CompressedRequest
    plan: FederationPlan
    client: int
    store: FolderStore
    downlink_cache: DownlinkCache

    @staticmethod
    def from_message(message: Message, context: Context, allowed_paths: Collection[str], is_training: bool) -> _MessageHandler:
        """Decode a message's settings and open the state of the node's client."""
        request = decode_request(message.content, allowed_paths)
        store = open_store(context, request.settings, is_training)
        client = decode_frame(request.frames[0], frame_overhead(0)).header.client
        return _MessageHandler(
            context, request, request.settings.build_plan(), client, store, DownlinkCache(FolderModelCache(store))
        )

    def evaluate(self, message: Message, call_next: ClientAppCallable) -> Message:
        """Return the app's reply to the decoded model. The client's state stays the same."""
        state = ClientState(model_round=self.store.load(self.client).model_round)
        task = decode_task(self.plan, self.client, self.request.frames, state, _DUMMY_EXAMPLES, self.downlink_cache)
        if isinstance(task, ImmediateReply):
            return self._create_reply(message, task.reply.frames)
        return call_next(self._restore_message(message, task), self.context)

    def train(self, message: Message, call_next: ClientAppCallable) -> Message:
        """Return the app's reply, with the encoded update instead of its arrays."""
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
        array_layout = self.request.settings.array_layout
        arrays = ReplyArrays.from_reply(
            array_layout, {} if key is None else reply.content.array_records[key], self.request.exact_arrays
        )
        received_weights = array_layout.round_to_dtypes(task.downlink.weights)
        tied_groups = self._find_ties(received_weights, arrays)
        if key is None or tied_groups is not None or arrays.model_arrays.keys().isdisjoint(array_layout.slices):
            reply.content = write_payload(reply.content, encode_uncompressed_reply(key or "", tied_groups or ()))
            return reply
        with np.errstate(over="ignore", invalid="ignore"):  # `encode_update` raises an error with the number of such values
            update = array_layout.fill_vector(received_weights.copy(), arrays.model_arrays) - received_weights
        result = TrainingResult(self.client, update, _count_examples(reply.content, self.request.settings.weighted_by), 1)
        try:
            encoded, after = encode_update(self.plan, task, result)
        except NonFiniteError as error:
            cause = f"{error.cause} If an array has infinities by design, such as a mask, set CompressedStrategy(exact=[name])"
            raise NonFiniteError(error.round, error.client, cause) from None
        after = revert_missing_coordinates(after, arrays.compute_missing_mask(array_layout))
        data = encode_reply(key, encoded.frames, self.request.settings, arrays)
        uncompressed = {key: ArrayRecord(dict(arrays.other_arrays))} if arrays.other_arrays else {}
        reply.content = write_payload(replace_records(reply.content, key, uncompressed), data)
        self._store_state(before, attach_reply(after, reply.content))
        return reply

    def _restore_message(self, message: Message, task: ClientTask) -> Message:
        """Return the message with the decoded arrays, as the inner strategy created it."""
        settings = self.request.settings
        arrays = settings.array_layout.to_record(task.downlink.weights, self.request.exact_arrays)
        message.content = replace_records(message.content, RECORD_KEY, {settings.key: arrays})
        return message

    def _find_ties(self, received_weights: F32, arrays: ReplyArrays) -> TiedGroups | None:
        """Return a reply's tied names if they differ from the server's groups; None if all agree.

        Raises:
            ModelError: an array is the transpose or a part of another array.
        """
        array_layout = self.request.settings.array_layout
        before = {name: received_weights[part] for name, part in array_layout.slices.items()}
        before |= {name: flatten_values(array) for name, array in self.request.exact_arrays.items() if is_float(array)}
        after = {name: values for name, values in array_layout.flatten_arrays(arrays.model_arrays).items() if name in before}
        changed_arrays = {
            name: values.reshape(array_layout.shape_by_name[name])
            for name, values in after.items()
            if not is_bit_equal(before[name], values)
        }
        sharing = find_partial_sharing(changed_arrays, array_layout.exact_shapes)
        if sharing is not None:
            raise ModelError(
                f"in the reply, {sharing}; compression would make the two arrays differ: put both names into "
                "CompressedStrategy(exact=[...]), or keep one parameter and compute the other in the model's forward()"
            )
        server_groups = sort_groups([name for name in group if name in after] for group in array_layout.tied_groups)
        observed_groups = observe_groups(server_groups, before, after)
        groups = tuple(group for group in observed_groups if not array_layout.exact_shapes.keys() >= set(group))
        return None if server_groups == groups else groups

    def _create_reply(self, message: Message, frames: Frames) -> Message:
        """Return a reply with a RESYNC frame, without a call of the app."""
        data = encode_reply(self.request.settings.key, frames, self.request.settings, None)
        return Message(write_payload(RecordDict(), data), reply_to=message)

    def _store_state(self, before: ClientState, after: ClientState) -> None:
        """Store the client's state. After the first write, a repeated message gets the same reply."""
        try:
            self.store.save(self.client, after)
            self.downlink_cache.model_cache.move_reference(before.model_round, after.model_round)
            commit_state(self.context, self.store)
        except OSError as error:
            raise OutputError(f"{self.store.folder}: client state cannot be written ({error.strerror})") from None


def _find_model_key(content: RecordDict, key: str) -> str | None:
    """Return the name of a reply's record with the model; None if several records might have it."""
    names = list(content.array_records)
    if key in names:
        return key
    return names[0] if len(names) == 1 else None


def _count_examples(content: RecordDict, weighted_by: str) -> int:
    """Return the number of training examples from a reply's metrics; 1 if no metric has it."""
    for record in content.metric_records.values():
        value = record.get(weighted_by, record.get("num-examples"))
        if isinstance(value, int | float) and math.isfinite(value):
            return min(max(round(value), 0), 2**32 - 1)
    return 1
