"""Compression in somebody's ClientApp: the half that runs on the node.

P numbers in the vector of the model's float32 arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod

from fedsgd.arrays import F32
from fedsgd.clients import ClientState
from fedsgd.data import Examples
from fedsgd.engine import Local
from fedsgd.errors import ModelError, NonFiniteError, OutputError
from fedsgd.flower.app_arrays import flat_values, is_float
from fedsgd.flower.app_failures import as_app_error, mark_error
from fedsgd.flower.app_model import ReplyArrays
from fedsgd.flower.app_mods import check_mods
from fedsgd.flower.app_state import open_store, with_reply, without_loss
from fedsgd.flower.app_terms import Request, answer_uncompressed, answered, check_names, is_asked, read_request, without
from fedsgd.flower.app_ties import Groups, find_partial_sharing, observe_groups, same_bits, sort_groups
from fedsgd.flower.place import commit, hidden_record
from fedsgd.flower.records import KEY, put, unpack_records
from fedsgd.rounds import Answer, Plan, Shelf, Task, receive, send
from fedsgd.rounds import Message as Frames
from fedsgd.runtime.folder import FolderModels, FolderStore
from fedsgd.wire import decode_frame, overhead

_NOTHING = Examples(np.zeros(1, dtype=np.float32), np.zeros(1, dtype=np.float32))


def compression_mod() -> Mod:
    """A mod for any ClientApp of Flower's message API: `ClientApp(mods=[compression_mod()])`. Put it first, so that other mods
    see arrays as ever.

    It needs no settings, they come with the messages of a `CompressedStrategy`: the app gets the arrays that the message stands
    for, and of the arrays that it replies with, the difference to those is sent. A scheme's state stays on this node's disk
    (see `fedsgd.flower.place`), together with a reply that must not be made twice; the log says once how much that is.
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
    return _compressed


def _compressed(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    def app(message: Message, context: Context) -> Message:
        with hidden_record(context):
            return call_next(message, context)

    if not (message.has_content() and is_asked(message.content)):
        return app(message, context)
    try:
        check_mods(call_next)
        is_evaluation = message.metadata.message_type.split(".")[0] == "evaluate"
        node = _Node.of(message, context, trains=not is_evaluation)
        return mark_error((node.evaluate if is_evaluation else node.train)(message, app))
    except Exception as error:
        raise as_app_error(error) from error


@dataclass(frozen=True, eq=False)
class _Node:
    """This node, for one message."""

    context: Context
    request: Request
    plan: Plan
    client: int
    store: FolderStore
    shelf: Shelf

    @staticmethod
    def of(message: Message, context: Context, trains: bool) -> _Node:
        """Read a message, and open this node's state for it."""
        request = read_request(message.content)
        store = open_store(context, request.terms, trains)
        client = decode_frame(request.frames[0], overhead(0)).header.client
        return _Node(context, request, request.terms.plan(), client, store, Shelf(FolderModels(store)))

    def evaluate(self, message: Message, call_next: ClientAppCallable) -> Message:
        """Return the app's reply to the decoded model. The client's state does not change."""
        held = ClientState(held=self.store.load(self.client).held)
        task = receive(self.plan, self.client, self.request.frames, held, _NOTHING, self.shelf)
        if isinstance(task, Answer):
            return self._reply(message, task.reply.frames)
        return call_next(self._opened(message, task), self.context)

    def train(self, message: Message, call_next: ClientAppCallable) -> Message:
        """Return the app's reply, with the encoded update in the place of its arrays."""
        before = self.store.load(self.client)
        task = receive(self.plan, self.client, self.request.frames, before, _NOTHING, self.shelf)
        if isinstance(task, Answer):
            if before.pending is not None and before.pending.reply is task.reply.frames[0]:
                return Message(unpack_records(before.pending.reply), reply_to=message)
            self._keep(before, task.state)
            return self._reply(message, task.reply.frames)
        reply = call_next(self._opened(message, task), self.context)
        if reply.has_error() or not reply.content.array_records:
            return reply
        check_names("the reply", reply.content)
        key = _model_in(reply.content, self.request.terms.key)
        model = self.request.terms.model
        arrays = ReplyArrays.of(model, {} if key is None else reply.content.array_records[key], self.request.aside)
        given = model.rounded(task.opened.weights)
        tied = self._find_ties(given, arrays)
        if key is None or tied is not None or arrays.fitting.keys().isdisjoint(model.parts):
            reply.content = put(reply.content, answer_uncompressed(key or "", tied or ()))
            return reply
        with np.errstate(over="ignore", invalid="ignore"):  # `send` names what is not finite
            update = model.fill(given.copy(), arrays.fitting) - given
        local = Local(self.client, update, _examples(reply.content, self.request.terms.weighted_by), 1)
        try:
            sent, after = send(self.plan, task, local)
        except NonFiniteError as error:
            cause = f"{error.cause} An array with infinities of its own, such as a mask, needs CompressedStrategy(exact=[name])"
            raise NonFiniteError(error.round, error.client, cause) from None
        after = without_loss(after, arrays.missing(model))
        data = answered(key, sent.frames, self.request.terms, arrays)
        beside = {key: ArrayRecord(dict(arrays.others))} if arrays.others else {}
        reply.content = put(without(reply.content, key, beside), data)
        self._keep(before, with_reply(after, reply.content))
        return reply

    def _opened(self, message: Message, task: Task) -> Message:
        """Return the message as the inner strategy made it."""
        terms = self.request.terms
        arrays = terms.model.record(task.opened.weights, self.request.aside)
        message.content = without(message.content, KEY, {terms.key: arrays})
        return message

    def _find_ties(self, given: F32, arrays: ReplyArrays) -> Groups | None:
        """Return the names that are one tensor in a reply, if they are others than the server assumes; None if they are not.

        Args:
            given: the vector [P] that the app was given.
            arrays: the arrays of the reply.

        Raises:
            ModelError: an array is the transpose or a part of a different one.
        """
        model = self.request.terms.model
        before = {name: given[part] for name, part in model.parts.items()}
        before |= {name: flat_values(array) for name, array in self.request.aside.items() if is_float(array)}
        after = {name: value for name, value in model.values(arrays.fitting).items() if name in before}
        changed = {
            name: value.reshape(model.shape_of[name]) for name, value in after.items() if not same_bits(before[name], value)
        }
        sharing = find_partial_sharing(changed, model.aside)
        if sharing is not None:
            raise ModelError(
                f"in the reply, {sharing}, and their compressed copies would drift apart: name both in "
                "CompressedStrategy(exact=[...]), or keep one parameter and derive the other one in the model's forward()"
            )
        assumed = sort_groups([name for name in group if name in after] for group in model.tied)
        observed = observe_groups(assumed, before, after)
        groups = tuple(group for group in observed if not model.aside.keys() >= set(group))
        return None if assumed == groups else groups

    def _reply(self, message: Message, frames: Frames) -> Message:
        """Return a reply without the app: a RESYNC frame."""
        data = answered(self.request.terms.key, frames, self.request.terms, None)
        return Message(put(RecordDict(), data), reply_to=message)

    def _keep(self, before: ClientState, after: ClientState) -> None:
        """Store the client's state. From the first write on, the same message is answered with the same reply."""
        try:
            self.store.save(self.client, after)
            self.shelf.models.moved(before.held, after.held)
            commit(self.context, self.store)
        except OSError as error:
            raise OutputError(f"{self.store.folder}: client state cannot be written ({error.strerror})") from None


def _model_in(content: RecordDict, key: str) -> str | None:
    """Return the record of a reply that has the model; None if it might be one of several."""
    found = list(content.array_records)
    if key in found:
        return key
    return found[0] if len(found) == 1 else None


def _examples(content: RecordDict, weighted_by: str) -> int:
    """Return the number of training examples in the metrics of a reply, 1 if there is none."""
    for record in content.metric_records.values():
        value = record.get(weighted_by, record.get("num-examples"))
        if isinstance(value, int | float) and math.isfinite(value):
            return min(max(round(value), 0), 2**32 - 1)
    return 1
