"""Tracker for TensorBoard. It uses tensorboard's own writer, which needs neither TensorFlow nor torch."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from fedsgd.federation.round_record import RoundRecord
from fedsgd.system.user_files import expand_user_path
from fedsgd.trackers.base import RunFinished, RunStarted, convert_to_milliseconds, round_metrics, x_axes

FLUSH_SECONDS = 2
QUEUE_SIZE = 1000
FILE_SUFFIX = ".fedsgd"
"""Suffix of the event files of this tracker. Only files with this suffix are removed when a run is overwritten."""
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
"""Tags by the name of a figure. TensorBoard shows a card for each tag, grouped by the text before the slash."""


class TensorBoard:
    """Tracker that writes event files to FOLDER/NAME, where NAME is the name of the run folder.

    Without a run folder, the files are in FOLDER/NAME-1, FOLDER/NAME-2, ..., with the name of the scenario.
    TensorBoard's horizontal axis is the step, so each metric is written once for each axis. The tags are "accuracy/by round",
    "accuracy/by uplink bytes", "accuracy/by all bytes" and, for each network, "accuracy/by milliseconds on ...". Steps are
    exact. Values are float32, as in all event files.

    A resumed run empties its event files, and writes a new file with all rounds so far, which keep their wall times. A running
    TensorBoard discards the points that it has read before.

    Args:
        folder: folder of the event files of all runs, by default `tensorboard` next to the run folder.
    """

    _event_folder: Path
    _writer: EventFileWriter
    _history: list[tuple[float, Mapping[str, float]]]

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = None if folder is None else expand_user_path(folder)

    def begin(self, run: RunStarted) -> None:
        """Write the scenario, as text and as hyper-parameters, and the earlier rounds of a resumed run."""
        self._event_folder = self._select_folder(run)
        earlier_files = _list_event_files(self._event_folder)
        times = _read_wall_times(earlier_files) if run.history else {}
        if not run.history:
            _remove_files(earlier_files)
        self._history = []
        self._writer = EventFileWriter(str(self._event_folder), QUEUE_SIZE, FLUSH_SECONDS, FILE_SUFFIX)
        now = time.time()
        if run.history:
            self._writer.add_event(Event(wall_time=now, step=0, session_log=SessionLog(status=SessionLog.START)))
        start = min(times.values(), default=now)
        self._add_summary(start, 0, hparams_pb(run.settings, start_time_secs=start))
        self._add_summary(start, 0, Summary(value=[_build_text_value("scenario", f"```toml\n{run.scenario.to_toml()}```\n")]))
        for record in run.history:
            self._add_round(times.get(record.round, now), record)
        if run.history:
            self._writer.flush()
            _discard_files(earlier_files)

    def position(self) -> str:
        """Return the folder of the event files."""
        return str(self._event_folder.absolute())

    def round(self, record: RoundRecord) -> None:
        """Write the figures of a round over rounds, and its metrics over each axis."""
        self._add_round(time.time(), record)

    def end(self, outcome: RunFinished) -> None:
        """Write the metrics over time on networks, each with the wall time of its round, and the status of the run."""
        try:
            for network, steps in convert_to_milliseconds(outcome, len(self._history)):
                suffix = f"/by milliseconds on {network}"
                for (timestamp, metrics), step in zip(self._history, steps, strict=True):
                    self._add_scalars(timestamp, step, {f"{name}{suffix}": value for name, value in metrics.items()})
            if outcome.error is not None:
                error = f"{type(outcome.error).__name__}: {outcome.error}"
                self._add_summary(time.time(), 0, Summary(value=[_build_text_value("error", error)]))
            self._add_summary(time.time(), 0, Summary(value=[_build_status_value(outcome.error is None)]))
        finally:
            self._writer.close()

    def _select_folder(self, run: RunStarted) -> Path:
        """Return the folder of a run's event files: that of a resumed run, if it exists and the user gives no other parent."""
        folder = None if run.position is None else Path(run.position)
        parent = None if self._folder is None else self._folder.absolute()
        if folder is not None and folder.is_dir() and parent in (None, folder.parent):
            return folder
        return _create_folder(run, self._folder or run.shared_folder / "tensorboard")

    def _add_round(self, timestamp: float, record: RoundRecord) -> None:
        metrics = dict(record.metrics or {})
        self._history.append((timestamp, metrics))
        self._add_scalars(timestamp, record.round, {TAGS[name]: value for name, value in round_metrics(record).items()})
        for axis, step in x_axes(record).items():
            self._add_scalars(timestamp, step, {f"{name}/by {axis}": value for name, value in metrics.items()})

    def _add_scalars(self, timestamp: float, step: int, values: Mapping[str, float]) -> None:
        if values:
            self._add_summary(
                timestamp, step, Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
            )

    def _add_summary(self, timestamp: float, step: int, summary: Summary) -> None:
        self._writer.add_event(Event(wall_time=timestamp, step=step, summary=summary))


def _create_folder(run: RunStarted, parent: Path) -> Path:
    """Return the folder of a run's event files, which may not exist yet.

    A run without a run folder gets a new folder NAME-N, because the run's name is not numbered.
    """
    if run.folder is None:
        for n in itertools.count(1):
            folder = parent / f"{run.name}-{n}"
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                continue
    return parent / run.name


def _list_event_files(folder: Path) -> list[Path]:
    """Return the files that this tracker wrote in a folder, for the same run or for an earlier run of the same name."""
    return sorted(folder.glob(f"events.out.tfevents.*{FILE_SUFFIX}"))


def _remove_files(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


def _discard_files(paths: Iterable[Path]) -> None:
    """Empty files, and remove empty files. A running TensorBoard would not read the next file after the removal of its file."""
    for path in paths:
        if path.stat().st_size == 0:
            path.unlink()
        else:
            path.write_bytes(b"")


def _read_wall_times(event_files: Iterable[Path]) -> dict[int, float]:
    """Return the wall time of each round by the round's number. The last event of a file may be incomplete."""
    times: dict[int, float] = {}
    for path in event_files:
        for event in LegacyEventFileLoader(str(path)).Load():
            if any(value.tag == TAGS["uplink_bytes"] for value in event.summary.value):
                times.setdefault(event.step, event.wall_time)
    return times


def _build_text_value(tag: str, text: str) -> Summary.Value:
    tensor = TensorProto(
        dtype=types_pb2.DT_STRING, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]), string_val=[text.encode()]
    )
    return Summary.Value(tag=tag, metadata=text_metadata.create_summary_metadata(tag, ""), tensor=tensor)


def _build_status_value(succeeded: bool) -> Summary.Value:
    """Return the status of a run for TensorBoard's page of hyper-parameters."""
    status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
    session_end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    metadata = hparams_metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=session_end))
    return Summary.Value(tag=hparams_metadata.SESSION_END_INFO_TAG, metadata=metadata, tensor=hparams_metadata.NULL_TENSOR)
