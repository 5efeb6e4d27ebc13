"""What CompressedStrategy and compression_mod say to each other in an app's own messages.

server  record "fedsgd", the same for all nodes that build on the same model: the terms, with the MODEL frames; the exact arrays
        record "fedsgd-task", a node's own: its TASK frame
node    record "fedsgd": which record this stands for, with the UPDATE or RESYNC frame; the exact arrays
        or, with the app's own record left in its place: which record that is, without a frame; the names that are one tensor

The terms come with each message, so a node needs no settings, and both ends always go by the same.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedsgd.compress import Scheme
from fedsgd.engine import Recipe
from fedsgd.errors import FedsgdError, WireError
from fedsgd.flower.app_model import Arrangement, read_aside, said_aside
from fedsgd.flower.app_ties import Groups
from fedsgd.flower.records import KEY, put, take
from fedsgd.optim import SGD
from fedsgd.rounds import Message, Plan
from fedsgd.runtime import parcel
from fedsgd.runtime.protocol import Said
from fedsgd.schema import from_table, to_table
from fedsgd.tables import Downlink, Uplink
from fedsgd.wire import ALL

Record = ArrayRecord | MetricRecord | ConfigRecord
TASK = "fedsgd-task"
"""The record of a message's content that is a node's own."""
VERSION = 1
MAX_TERMS = 2**26
"""Bytes of unpacked terms: names and shapes of a million arrays."""
_FRAME = "frame"


@dataclass(frozen=True)
class Terms:
    """What both ends go by. uplink, downlink: tables as scenarios have them; model: what the app's arrays are; seed: of the
    randomness that both ends share; session: which of a run's strategies it is, from 1; cohort: how many nodes are asked in the
    round; key: the record that the model is in; weighted_by: the metric that says how many examples a node trained on."""

    uplink: Uplink
    downlink: Downlink
    model: Arrangement
    seed: int = 0
    session: int = 1
    cohort: int = 1
    key: str = "arrays"
    weighted_by: str = "num-examples"

    def plan(self) -> Plan:
        """The same, as rounds have it. Nobody looks at what it says of training and averaging, which are not ours here."""
        recipe = Recipe(SGD(), None, 1, None)
        scheme: Scheme = self.uplink.scheme()
        link = self.downlink.link()
        return Plan(self.seed, self.model.layout, recipe, scheme, link, SGD(), "uniform", ALL, self.cohort)

    def packed(self) -> bytes:
        """As bytes."""
        plain = {name: getattr(self, name) for name in ("seed", "session", "cohort", "key", "weighted_by")}
        at = {name: i for i, name in enumerate(self.model.names)}
        tied = [[at[name] for name in group] for group in self.model.tied]
        model = [self.model.names, self.model.shapes, [i for i, exact in enumerate(self.model.exact) if exact]]
        model += [tied] if tied else []  # a node that knows no ties reads all other models, and refuses these
        tables = {"uplink": to_table(self.uplink), "downlink": to_table(self.downlink)}
        said = json.dumps({"version": VERSION, **plain, **tables, "model": model}, separators=(",", ":"))
        return zlib.compress(said.encode(), 9)


def read_terms(data: bytes) -> Terms:
    """Inverse of `Terms.packed`. WireError for what is none, or not of this release."""
    try:
        unpacker = zlib.decompressobj()
        said = json.loads(unpacker.decompress(data, MAX_TERMS))
        if said.pop("version") != VERSION:
            raise WireError(0, "the server has another release of fedsgd than this node: they have to be the same")
        model = _read_model(*said.pop("model"))
        if not all(isinstance(said[name], int) for name in ("seed", "session", "cohort")):
            raise WireError(0, "the server's settings have no numbers where they should")
        uplink = from_table(Uplink, said.pop("uplink"), registered_only=True)
        downlink = from_table(Downlink, said.pop("downlink"), registered_only=True)
        return Terms(uplink, downlink, model, **said)
    except FedsgdError as error:
        raise error if isinstance(error, WireError) else WireError(0, f"the server's settings: {error}") from None
    except (zlib.error, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise WireError(0, "the server's settings cannot be read") from None


def _read_model(names: list[str], shapes: list[list[int]], exact: list[int], tied: Sequence[Sequence[int]] = ()) -> Arrangement:
    aside = set(exact)
    groups = tuple(tuple(names[i] for i in group) for group in tied)
    return Arrangement(tuple(names), tuple(map(tuple, shapes)), tuple(i in aside for i in range(len(names))), groups)


@dataclass(frozen=True, eq=False)
class Request:
    """What a node is asked. frames: TASK and MODEL; aside: the exact arrays."""

    terms: Terms
    frames: Message
    aside: Mapping[str, Array]


def shared(terms: Terms, frames: Message, arrays: ArrayRecord) -> Record:
    """What all nodes with the same MODEL frames are sent. arrays: the model, for the exact ones in it."""
    data = parcel.packed([(terms.packed(), frames), said_aside(terms.model, arrays)])
    return put(RecordDict(), data)[KEY]


def asked(content: RecordDict, key: str, record: Record, task: bytes) -> RecordDict:
    """The content of a message with ours, and its TASK frame, in the place of the record that the model is in."""
    return without(content, key, {KEY: record, TASK: ConfigRecord({_FRAME: task})})


def is_asked(content: RecordDict) -> bool:
    """Whether a message is one of ours."""
    return KEY in content and TASK in content


def read_request(content: RecordDict) -> Request:
    """Inverse of `asked`."""
    record = content[TASK]
    task = record.get(_FRAME) if isinstance(record, ConfigRecord) else None
    (terms, frames), aside = _two(take(content))
    if not isinstance(task, bytes):
        raise WireError(0, "the message has no TASK frame")
    read = read_terms(terms)
    return Request(read, (task, *frames), read_aside(read.model, aside))


def answered(key: str, frames: Message, terms: Terms, arrays: ArrayRecord | None) -> bytes:
    """What a node answers. key: the record of its reply that these frames stand for; arrays: that record, for the exact arrays
    in it; None if the node cannot follow."""
    return parcel.packed([(key.encode(), frames), (b"", ()) if arrays is None else said_aside(terms.model, arrays)])


def answer_uncompressed(key: str, groups: Groups) -> bytes:
    """Return the answer of a node whose arrays contradict the terms and stay in its reply.

    Args:
        key: the record that has the arrays.
        groups: the names that are one tensor each in these arrays.
    """
    return parcel.packed([(key.encode(), ()), (json.dumps(groups).encode(), ())])


def read_groups(answer: Answered) -> Groups:
    """Return the groups of `answer_uncompressed`. WireError if there are none to be read."""
    try:
        groups = tuple(tuple(group) for group in json.loads(answer.aside[0]))
    except (ValueError, TypeError, RecursionError):
        raise WireError(0, "the names of one tensor cannot be read") from None
    if not all(isinstance(name, str) for group in groups for name in group):
        raise WireError(0, "the names of one tensor are no text")
    return groups


@dataclass(frozen=True, eq=False)
class Answered:
    """Answer of a node. key: the record that it stands for; frames: UPDATE or RESYNC, none where the record itself is there;
    n_bytes: of all of it."""

    key: str
    frames: Message
    aside: Said
    n_bytes: int


def read_answer(content: RecordDict) -> Answered:
    """Inverse of `answered`; the exact arrays are not looked at."""
    data = take(content)
    (key, frames), aside = _two(data)
    try:
        return Answered(bytes(key).decode(), tuple(frames), aside, len(data))
    except UnicodeDecodeError:
        raise WireError(0, "the name of the record is no text") from None


def without(content: RecordDict, key: str, instead: Mapping[str, Record]) -> RecordDict:
    """A new content with other records in the place of the one called `key`, and none of ours."""
    out = RecordDict()
    for name, record in content.items():
        if name == key:
            for other, value in instead.items():
                out[other] = value
        elif name not in (KEY, TASK):
            out[name] = record
    return out


def _two(data: bytes) -> Sequence[Said]:
    said = list(parcel.unpacked(data))
    if len(said) != 2:
        raise WireError(0, f"{len(said)} parts, expected 2: the frames and the exact arrays")
    return said


def ours(content: RecordDict) -> int:
    """The bytes in our records of a content; WireError if there are none."""
    task = content.get(TASK)
    frame = task.get(_FRAME) if isinstance(task, ConfigRecord) else None
    return len(take(content)) + (len(frame) if isinstance(frame, bytes) else 0)
