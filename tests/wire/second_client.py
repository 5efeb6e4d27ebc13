"""Messages for the second decoder: the client's part, written from fedsgd/docs/reference/wire-format*.md alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tests.wire.second_decoder import (
    BUFFER,
    BUFFERS,
    CHANGES,
    MODEL,
    REFERENCE,
    RESYNC,
    TASK,
    FrameContext,
    Header,
    Sections,
    Table,
    Vector,
    codec_of,
    decode_reference,
    decode_sections,
    innermost,
    plain_words,
    read_frame,
    require,
    sparse,
)

EXACT = {"name": "dense", "values": "float32", "entropy": True}


class RunSettings(NamedTuple):
    """Settings that server and client have in common.

    Attributes:
        seed: seed of the run.
        shapes: shape of each tensor by name.
        policy: policy of the downlink.
        downlink: compressor of the downlink.
        uplink: compressor of the updates.
        statistics: S, the number of averaged entries of buffers.
    """

    seed: int
    shapes: dict[str, tuple[int, ...]]
    policy: str
    downlink: Table
    uplink: Table
    statistics: int


class Client(NamedTuple):
    """State of a client.

    Attributes:
        client: its id.
        model_round: round of its model, 0 for none.
        model: [P] float32, its model.
        last_reply: round of its last reply, 0 for none.
    """

    client: int
    model_round: int
    model: Vector | None
    last_reply: int


class DecodedMessage(NamedTuple):
    """Vectors of a message that the client replies to with an UPDATE."""

    model: Vector
    statistics: Vector | None
    reference: Vector | None


def decode_message(frames: Sequence[bytes], run: RunSettings, state: Client) -> DecodedMessage | Header:
    """Decode a message, or return the header of the RESYNC that the client replies with."""
    require(len(frames) >= 2, "too few frames")
    task, _ = read_frame(frames[0])
    require(task.kind == TASK and task.client == state.client, "a TASK of this client")
    require(task.round >= state.last_reply, "a late TASK")
    if task.acknowledged > state.last_reply:
        require(innermost(run.uplink)["name"] not in ("ef21", "scaffold"), "the lost state cannot be replaced")
        return Header(RESYNC, 0, task.round, 0, 0, state.client, 0)
    model_round = state.model_round if run.policy != "model" and state.model_round <= task.round else 0
    if task.base > model_round:
        return Header(RESYNC, 0, task.round, model_round, state.last_reply, state.client, 0)
    frames_after_task = [read_frame(frame) for frame in frames[1:]]
    kinds = [header.kind for header, _ in frames_after_task]
    last = [*([BUFFERS] if run.statistics else []), *([REFERENCE] if kinds[-1] == REFERENCE else [])]
    models = frames_after_task[: len(frames_after_task) - len(last)]
    require(kinds == [MODEL] * len(models) + last, "another order of frames")
    require(all(header.round == task.round for header, _ in frames_after_task[len(models) :]), "another round")
    model = apply_models(models, task, run, model_round, state.model)
    statistics = reference = None
    if run.statistics:
        statistics = plain_words(frames_after_task[len(models)][1].take(BUFFER), "float32", run.statistics)
    if REFERENCE in last:
        reference = decode_reference(frames[-1], run.uplink, run.seed, run.shapes)[1]
    return DecodedMessage(model, statistics, reference)


def apply_models(
    models: Sequence[tuple[Header, Sections]], task: Header, run: RunSettings, model_round: int, model: Vector | None
) -> Vector:
    """Apply all MODEL frames to the client's model."""
    require(1 <= len(models) <= (task.round - task.base if task.base else 1), "number of MODEL frames")
    base = task.base
    for header, sections in models:
        require(header.base == base < header.round, "base of a MODEL")
        ctx = FrameContext(run.seed, header.round, header.client, run.shapes)
        base = header.round
        if not header.base:
            settings = run.downlink if run.policy == "model" else EXACT
            require(header.codec == codec_of(settings), "codec of the whole model")
            model = decode_sections(settings, sections, ctx)
            continue
        if header.codec != CHANGES:
            require(run.policy != "difference" and header.codec == codec_of(run.downlink), "codec of a difference")
            require(header.round == header.base + 1, "round of a difference")
        if header.round <= model_round:
            continue
        assert model is not None
        model = model.copy()
        if header.codec == CHANGES:
            index, values = sparse(sections, "float32", ctx.size, ctx.size)
            sections.end()
            model[index] = values
        else:
            with np.errstate(over="ignore"):
                model += decode_sections(run.downlink, sections, ctx._replace(default=-0.0))
    require(base == task.round, "the last MODEL has another round")
    assert model is not None
    require(bool(np.isfinite(model).all()), "the model is not finite")
    return model
