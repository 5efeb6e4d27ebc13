"""State of the server as arrays and numbers, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.experiment.checkpoints.tensor_file import FileEntry, TensorStream, open_tensors, write_tensors
from fedsgd.federation import ServerState
from fedsgd.federation.client_state import AcknowledgedRounds, entries_of, with_prefix
from fedsgd.federation.downlink import EncodedFrame, PublicModel
from fedsgd.wire import decode_frame

_FULL_MODEL, _DIFFERENCE, _EXTRA = "full-model", "difference", "extra"
"""Roles of the frames that the server keeps for the next round."""
_FRAMES = "frames"
"""Name of the array with the bytes of all frames, one after the other."""


def write_server_state(path: Path, server: ServerState) -> tuple[FileEntry, dict[str, Any]]:
    """Write the arrays of a state between two rounds, and return the file and the numbers that belong to it.

    The last accepted rounds of the clients are not written, because `ClientFiles` has them.

    Args:
        path: file that is written or replaced.
        server: state of the server, whose model is the model of round `server.round`.
    """
    frames = list(_list_frames(server))
    arrays = _list_arrays(server)
    stream = TensorStream(_FRAMES, (frame.data for _, frame in frames))
    entry = write_tensors(path, [stream], lambda: arrays, len(arrays))
    numbers = {
        "round": server.round,
        "frames": [[role, len(frame.data), frame.n_coordinates, frame.encode_seconds] for role, frame in frames],
    }
    return entry, numbers


def read_server_state(path: Path, numbers: Mapping[str, Any], acknowledged_rounds: AcknowledgedRounds) -> ServerState:
    """Return the state that `write_server_state` wrote.

    Args:
        path: file of the arrays, without damage.
        numbers: numbers that `write_server_state` returned.
        acknowledged_rounds: last accepted round of each client.
    """
    with open_tensors(path) as reader:
        names = reader.keys()
        arrays = {name: reader.get_tensor(name) for name in names}
    frames = _split_frames(arrays.pop(_FRAMES), numbers["frames"])
    public_arrays = entries_of(arrays, "public")
    full_model_frames = frames[_FULL_MODEL]
    public_model = PublicModel(
        numbers["round"],
        public_arrays.get("weights", arrays["weights"]),
        full_model_frames[0] if full_model_frames else None,
        tuple(frames[_DIFFERENCE]),
        public_arrays.get("change_rounds"),
        public_arrays.get("residual"),
    )
    return ServerState(
        numbers["round"],
        arrays["weights"],
        public_model,
        arrays.get("buffers"),
        tuple(frames[_EXTRA]),
        entries_of(arrays, "optimizer"),
        entries_of(arrays, "aggregator"),
        acknowledged_rounds,
    )


def _list_arrays(server: ServerState) -> dict[str, NDArray[Any]]:
    public_model = server.public_model
    arrays: dict[str, NDArray[Any] | None] = {
        "weights": server.weights,
        "buffers": server.buffers,
        "public/change_rounds": public_model.change_rounds,
        "public/residual": public_model.residual,
        **with_prefix("optimizer", server.optimizer_state),
        **with_prefix("aggregator", server.aggregator_state),
    }
    if not np.array_equal(public_model.weights.view(np.uint32), server.weights.view(np.uint32)):
        arrays["public/weights"] = public_model.weights
    return {name: array for name, array in arrays.items() if array is not None}


def _list_frames(server: ServerState) -> Iterator[tuple[str, EncodedFrame]]:
    if server.public_model.full_model_frame is not None:
        yield _FULL_MODEL, server.public_model.full_model_frame
    yield from ((_DIFFERENCE, frame) for frame in server.public_model.difference_frames)
    yield from ((_EXTRA, frame) for frame in server.extra_frames)


def _split_frames(data: NDArray[np.uint8], entries: Sequence[Sequence[Any]]) -> dict[str, list[EncodedFrame]]:
    frames: dict[str, list[EncodedFrame]] = {_FULL_MODEL: [], _DIFFERENCE: [], _EXTRA: []}
    start = 0
    for role, length, n_coordinates, seconds in entries:
        frame = data[start : start + length].tobytes()
        frames[role].append(EncodedFrame(frame, decode_frame(frame), n_coordinates, seconds))
        start += length
    return frames
