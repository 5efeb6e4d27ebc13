"""The second decoder's messages: what a client makes of one, from fedsgd/wire/FORMAT.md alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tests.wire.second_decoder import (
    BUFFER,
    BUFFERS,
    CHANGES,
    CODECS,
    MODEL,
    REFERENCE,
    RESYNC,
    TASK,
    Header,
    Place,
    Sections,
    Table,
    Vector,
    checked,
    inner,
    need,
    open_reference,
    plain_words,
    read,
    sparse,
)

EXACT = {"name": "dense", "values": "float32", "entropy": True}


class Agreed(NamedTuple):
    """What both ends know. policy, downlink: how the model travels; uplink: the compressor of updates; statistics: S."""

    seed: int
    shapes: dict[str, tuple[int, ...]]
    policy: str
    downlink: Table
    uplink: Table
    statistics: int


class Known(NamedTuple):
    """What a client knows. held: the round of the model that it holds, 0 for none; replied: that of its last reply."""

    client: int
    held: int
    model: Vector | None
    replied: int


class Opened(NamedTuple):
    """A message that could be followed."""

    model: Vector
    statistics: Vector | None
    reference: Vector | None


def open_message(frames: Sequence[bytes], agreed: Agreed, known: Known) -> Opened | Header:
    """What the message says, or the header of the RESYNC that answers it."""
    need(len(frames) >= 2, "too few frames")
    task, _ = read(frames[0])
    need(task.kind == TASK and task.client == known.client, "a TASK of this client")
    need(task.round >= known.replied, "a TASK that comes late")
    if task.acknowledged > known.replied:
        need(inner(agreed.uplink)["name"] not in ("ef21", "scaffold"), "what is lost cannot be replaced")
        return Header(RESYNC, 0, task.round, 0, 0, known.client, 0)
    held = known.held if agreed.policy != "model" and known.held <= task.round else 0
    if task.base > held:
        return Header(RESYNC, 0, task.round, held, known.replied, known.client, 0)
    behind = [read(frame) for frame in frames[1:]]
    kinds = [header.kind for header, _ in behind]
    last = [*([BUFFERS] if agreed.statistics else []), *([REFERENCE] if kinds[-1] == REFERENCE else [])]
    models = behind[: len(behind) - len(last)]
    need(kinds == [MODEL] * len(models) + last, "another order of frames")
    need(all(header.round == task.round for header, _ in behind[len(models) :]), "another round")
    model = follow(models, task, agreed, held, known.model)
    statistics = reference = None
    if agreed.statistics:
        statistics = plain_words(behind[len(models)][1].take(BUFFER), "float32", agreed.statistics)
    if REFERENCE in last:
        reference = open_reference(frames[-1], agreed.uplink, agreed.seed, agreed.shapes)[1]
    return Opened(model, statistics, reference)


def follow(models: Sequence[tuple[Header, Sections]], task: Header, agreed: Agreed, held: int, model: Vector | None) -> Vector:
    """The model behind all MODEL frames."""
    need(1 <= len(models) <= (task.round - task.base if task.base else 1), "number of MODEL frames")
    at = task.base
    for header, sections in models:
        need(header.base == at < header.round, "base of a MODEL")
        place = Place(agreed.seed, header.round, header.client, agreed.shapes)
        at = header.round
        if not header.base:
            settings = agreed.downlink if agreed.policy == "model" else EXACT
            need(header.codec == CODECS[settings["name"]], "codec of the whole model")
            model = checked(settings, sections, place)
            continue
        if header.codec != CHANGES:
            need(agreed.policy != "difference" and header.codec == CODECS[agreed.downlink["name"]], "codec of a difference")
            need(header.round == header.base + 1, "round of a difference")
        if header.round <= held:
            continue
        assert model is not None
        model = model.copy()
        if header.codec == CHANGES:
            index, values = sparse(sections, "float32", place.size, place.size)
            sections.end()
            model[index] = values
        else:
            with np.errstate(over="ignore"):
                model += checked(agreed.downlink, sections, place._replace(rest=-0.0))
    need(at == task.round, "the last MODEL is of another round")
    assert model is not None
    need(bool(np.isfinite(model).all()), "the model is not finite")
    return model
