"""TensorBoard: event files beside the run folder, by tensorboard's own writer, which needs neither TensorFlow nor torch."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as of_settings
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text import metadata as of_text
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from fedsgd.track.base import Begun, Ended, axes, figures, milliseconds
from fedsgd.user_files import user_path

if TYPE_CHECKING:
    from fedsgd.record import Round

FLUSH_SECONDS = 2
QUEUE = 1000
SUFFIX = ".fedsgd"
"""How the names of our event files end: an earlier run's are removed, and no others."""
TAGS = {
    "uplink_bytes": "bytes/uplink",
    "uplink_received_bytes": "bytes/uplink received",
    "downlink_bytes": "bytes/downlink",
    "downlink_broadcast_bytes": "bytes/downlink broadcast",
    "uplink_ratio": "ratio/uplink",
    "downlink_ratio": "ratio/downlink",
    "bidirectional_ratio": "ratio/both directions",
    "residual_norm": "clients/residual norm",
    "rounds_missed": "clients/rounds missed",
    "clients": "clients/cohort",
    "accepted": "clients/accepted",
    "failures": "clients/failures",
    "lr": "clients/step size",
    "seconds": "seconds/round",
}
"""TensorBoard has a card a tag, and a group for what is before the slash."""


class TensorBoard:
    """Event files in FOLDER/NAME, by default in the folder `tensorboard` beside the run folder, under the same name.

    TensorBoard's horizontal axis is the step, so each metric is written once an axis: "accuracy/by round", "accuracy/by uplink
    bytes", "accuracy/by all bytes" and, for each network, "accuracy/by milliseconds on ...". Steps are exact; values are
    float32, as in every event file.
    """

    _writer: EventFileWriter
    _past: list[tuple[float, Mapping[str, float]]]

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = None if folder is None else user_path(folder)

    def begin(self, run: Begun) -> None:
        """The scenario, as text and as hyper-parameters."""
        place = _place(run, self._folder or run.beside / "tensorboard")
        self._past = []
        self._writer = EventFileWriter(str(place), QUEUE, FLUSH_SECONDS, SUFFIX)
        now = time.time()
        self._add(now, 0, hparams_pb(run.settings, start_time_secs=now))
        self._add(now, 0, Summary(value=[_text("scenario", f"```toml\n{run.scenario.to_toml()}```\n")]))

    def round(self, record: Round) -> None:
        """A round's figures over rounds, and its metrics over every axis."""
        now, metrics = time.time(), dict(record.metrics or {})
        self._past.append((now, metrics))
        self._scalars(now, record.round, {TAGS[name]: value for name, value in figures(record).items()})
        for axis, step in axes(record).items():
            self._scalars(now, step, {f"{name}/by {axis}": value for name, value in metrics.items()})

    def end(self, ended: Ended) -> None:
        """The metrics over time on networks, at the time of day when they were measured; and how the run ended."""
        try:
            for network, steps in milliseconds(ended, len(self._past)):
                for (then, metrics), step in zip(self._past, steps, strict=True):
                    self._scalars(then, step, {f"{name}/by milliseconds on {network}": v for name, v in metrics.items()})
            if ended.error is not None:
                error = f"{type(ended.error).__name__}: {ended.error}"
                self._add(time.time(), 0, Summary(value=[_text("error", error)]))
            self._add(time.time(), 0, Summary(value=[_over(ended.error is None)]))
        finally:
            self._writer.close()

    def _scalars(self, when: float, step: int, values: Mapping[str, float]) -> None:
        if values:
            self._add(when, step, Summary(value=[Summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]))

    def _add(self, when: float, step: int, summary: Summary) -> None:
        self._writer.add_event(Event(wall_time=when, step=step, summary=summary))


def _place(run: Begun, runs: Path) -> Path:
    """The folder for this run, without what an earlier run of the same name wrote there; NAME-N where there is no run folder,
    which would have been numbered."""
    if run.folder is None:
        for n in itertools.count(1):
            place = runs / f"{run.name}-{n}"
            try:
                place.mkdir(parents=True)
                return place
            except FileExistsError:
                continue
    place = runs / run.name
    for earlier in place.glob(f"events.out.tfevents.*{SUFFIX}"):
        earlier.unlink()
    return place


def _text(tag: str, text: str) -> Summary.Value:
    tensor = TensorProto(
        dtype=types_pb2.DT_STRING,
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        string_val=[text.encode()],
    )
    return Summary.Value(tag=tag, metadata=of_text.create_summary_metadata(tag, ""), tensor=tensor)


def _over(well: bool) -> Summary.Value:
    """What the hyper-parameters' page shows of how the run ended."""
    status = api_pb2.STATUS_SUCCESS if well else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    data = of_settings.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
    return Summary.Value(tag=of_settings.SESSION_END_INFO_TAG, metadata=data, tensor=of_settings.NULL_TENSOR)
