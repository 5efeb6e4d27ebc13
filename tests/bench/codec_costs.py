"""Costs of codecs: the measurement that `python -m tests.bench.codec --write` writes to fedsgd/network/codec_costs.toml.

Three clients with Gaussian updates run rounds of `broadcast`, `client_update` and `aggregate`. The seconds of a job are those
that the ledger of a run would have. The layouts are those of three models: a perceptron on digits, and the 2NN and the CNN of
McMahan et al. 2017. The clock counts the processor time of the thread. A figure is the first decile of the repetitions, since
other load on the machine only adds to their times. A cost is fitted to the sizes and densities by least squares of relative
errors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from scipy.optimize import nnls

from fedsgd.aggregation import select_aggregator
from fedsgd.compression import COMPRESSORS, CompressionOperator, CompressionScheme, ErrorFeedback, MemorylessScheme
from fedsgd.data import Examples
from fedsgd.federation import DownlinkCache, FederationPlan, aggregate, broadcast, client_update, initial_server_state
from fedsgd.federation.client_state import ClientState
from fedsgd.federation.downlink import ModelBroadcast
from fedsgd.network.codec_costs import ASSIGN_COMPRESSOR, COST_TABLE_PATH, CodecCost, CodecJob
from fedsgd.network.round_times import FLOAT_BYTES
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.optim import SGD
from fedsgd.system.torch_threads import use_single_thread
from fedsgd.training import LocalTraining, TrainingJob, TrainingResult
from fedsgd.wire import FrameKind
from tests.bench.measure import Bench, Effort

SHAPES: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((64, 64), (64,), (10, 64), (10,)),
    ((200, 784), (200,), (200, 200), (200,), (10, 200), (10,)),
    ((32, 1, 5, 5), (32,), (64, 32, 5, 5), (64,), (512, 3136), (512,), (10, 512), (10,)),
)
"""Shapes of the tensors of each model."""
CLIENTS = 3
WARM_UP = 2
"""Rounds before the clock starts, in which loops are compiled and states are created."""
QUANTILE = 0.1
"""Quantile of the repetitions that is the figure."""
PASSES = 3
"""Number of passes over all cases, so that other load during one pass does not determine a figure."""

HEADER = """\
# Costs of encoding and decoding, in bytes copied in memory: copies * 4P + kept * 4k + fixed_bytes, for a model of P parameters
# and a message of k coordinates. fedsgd/network/codec_costs.py has the rules of the lookup. Prices depend on these figures, so
# that equal runs have equal prices on any machine: do not edit a figure by hand.
#
# Measured by tests/bench/codec_costs.py: three clients with Gaussian updates, processor time of one thread. A figure is the
# fastest tenth of the repetitions, relative to copies of the largest vector that alternate with them. A cost is fitted to all
# sizes, and for sparse messages to densities from 0.1 to 0.001. The row of a wrapper excludes its operator. Not counted: the
# server's step of the model, running statistics of batch norm, and the decay of residuals."""
JOBS: Mapping[CodecJob, str] = {
    "encode": "A client encodes its update and the frame, without error feedback or with the state of its scheme.",
    "encode_with_feedback": "A client encodes its update and the frame, with error feedback.",
    "add": "The server checks, decodes and adds an update.",
    "send": "The server encodes a MODEL frame: the whole model (dense), the changed values (changes), or the step of the model.",
    "receive": "A client decodes a message with such a frame and builds the new model.",
}

Settings = Mapping[str, Any]
SPARSE: tuple[Settings, ...] = ({"density": 0.1}, {"density": 0.01}, {"density": 0.001})
THRESHOLDS: tuple[Settings, ...] = ({"threshold": 1.645e-3}, {"threshold": 2.576e-3}, {"threshold": 3.29e-3})
"""Thresholds that select the densities of `SPARSE` from the Gaussian vectors of `Bench`."""


@dataclass(frozen=True)
class Variant:
    """A compressor with its own row.

    Attributes:
        key: name and settings of the compressor in the row.
        sweep: further settings with which the compressor is measured, each with another number of coordinates.
        feedback: further settings that make an operator contractive; None for a scheme, and if no settings do.
        inner: operator of a wrapper, whose cost is subtracted; None if the compressor is no wrapper.
    """

    key: Settings
    sweep: tuple[Settings, ...] = ({},)
    feedback: Settings | None = None
    inner: Settings | None = None

    def make(self, *settings: Settings) -> Any:
        """Return the compressor with further settings."""
        merged = {name: value for table in (self.key, *settings) for name, value in table.items() if name != "name"}
        return COMPRESSORS[self.key["name"]](**merged)


VARIANTS: tuple[Variant, ...] = (
    Variant({"name": "dense"}, feedback={}),
    Variant({"name": "dense", "entropy": True}, feedback={}),
    Variant({"name": "dense", "values": "float16"}, feedback={}),
    Variant({"name": "top-k"}, SPARSE, {}),
    Variant({"name": "top-k", "chunk": 4096}, SPARSE, {}),
    Variant({"name": "rand-k"}, SPARSE, {"scaled": False}),
    Variant({"name": "threshold"}, THRESHOLDS, {}),
    Variant({"name": "sign"}, feedback={}),
    Variant({"name": "terngrad"}),
    *(Variant({"name": "qsgd", "levels": levels}) for levels in (4, 16)),
    Variant({"name": "natural"}),
    *(Variant({"name": "integer", "bits": bits}) for bits in (4, 8)),
    Variant({"name": "integer", "bits": 8, "rounding": "nearest"}, feedback={}),
    Variant({"name": "integer", "bits": 8, "entropy": True}),
    *(Variant({"name": "eden", "bits": bits}) for bits in (1, 2, 4)),
    Variant({"name": "drive"}, feedback={"scale": "least-squares"}),
    *(Variant({"name": "count-sketch", "rows": rows}) for rows in (1, 3, 5, 7)),
    Variant({"name": "dgc"}, SPARSE),
    Variant({"name": "stc"}, SPARSE),
    *(Variant({"name": "demo", "block": block}) for block in (64, 256, 1024)),
    *(Variant({"name": "power-sgd", "rank": rank}) for rank in (1, 2, 4, 8)),
    *(Variant({"name": "fetch-sgd", "rows": rows}) for rows in (1, 3, 5, 7)),
    Variant({"name": "scheduled"}, ({"densities": (0.01,)},), inner={"name": "top-k"}),
    Variant({"name": "per-layer"}, inner={"name": "top-k"}),
    Variant({"name": "per-layer", "separate": True}, inner={"name": "top-k"}),
    Variant({"name": "ef21"}, inner={"name": "top-k"}),
    Variant({"name": "cafe"}, inner={"name": "top-k"}),
    Variant({"name": "scaffold"}, inner={"name": "dense"}),
)


@dataclass
class Sample:
    """Repetitions of a job at one size.

    Attributes:
        seconds: processor time of each repetition.
        n_coordinates: k of each message.
    """

    seconds: list[float] = field(default_factory=list)
    n_coordinates: list[int] = field(default_factory=list)

    def add(self, seconds: float, n_coordinates: int) -> None:
        """Add a repetition."""
        self.seconds.append(seconds)
        self.n_coordinates.append(n_coordinates)


@dataclass(frozen=True)
class Point:
    """Figure of a job at one size.

    Attributes:
        parameters: P.
        n_coordinates: mean of k over the repetitions.
        n_bytes: bytes that a copy moves in the time of the job.
    """

    parameters: int
    n_coordinates: float
    n_bytes: float


class Federation:
    """Federation whose clients' updates are the vectors of a pool. It implements the training engine."""

    preferred_batch_of_clients = 1

    def __init__(self, bench: Bench, layout: ParameterLayout) -> None:
        self.bench = bench
        self.layout = layout
        self.copy_seconds: list[float] = []
        self._turn = 0

    def train(self, jobs: Sequence[TrainingJob]) -> Iterator[TrainingResult]:
        """Time the copy of a vector and yield another vector as the update, for each job."""
        for job in jobs:
            self._turn += 1
            start = time.perf_counter()
            np.copyto(self.bench.destinations[self._turn % len(self.bench.destinations)], self.bench.vector(self._turn))
            self.copy_seconds.append(time.perf_counter() - start)
            yield TrainingResult(job.client, self.bench.vector(self._turn + len(self.bench.vectors) // 2), 10, 1)

    def evaluate(self, *_: Any) -> Any:
        """Raise an error: no model is evaluated."""
        raise NotImplementedError

    def run(self, scheme: CompressionScheme, link: ModelBroadcast, samples: Mapping[CodecJob, Sample], effort: Effort) -> None:
        """Run rounds and add their repetitions to `samples`."""
        local_training = LocalTraining(SGD(), None, 1, None, uses_correction=scheme.corrects_gradients)
        optimizer, aggregator = SGD(lr=1.0), select_aggregator(None, scheme)
        plan = FederationPlan(
            0, self.layout, local_training, scheme, link, optimizer, "uniform", CLIENTS, CLIENTS, aggregator=aggregator
        )
        examples = Examples(np.zeros((10, 1), dtype=np.float32), np.zeros(10, dtype=np.int64))
        server, start = initial_server_state(plan, self.bench.vector(0)), time.monotonic()
        states, caches = [ClientState() for _ in range(CLIENTS)], [DownlinkCache() for _ in range(CLIENTS)]
        for round in range(WARM_UP + effort.most):
            messages, server = broadcast(plan, server, range(CLIENTS))
            public_model = server.public_model
            differences = public_model.difference_frames
            sent_models = [frame for frame in server.shared_frames if frame.decoded.header.kind == FrameKind.MODEL]
            down = differences[-1] if differences else public_model.full_model_frame or sent_models[0]
            replies = []
            for client, message in messages.items():
                reply, states[client] = client_update(plan, self, client, message, states[client], examples, caches[client])
                replies.append(reply)
            next_server, decoded_updates = aggregate(plan, server, replies)
            if round >= WARM_UP:
                samples["send"].add(down.encode_seconds, down.n_coordinates)
                for reply in replies:
                    _, sections, seconds = decoded_updates[reply.client]
                    n_coordinates = plan.uplink.n_coordinates(sections, plan.make_context(server.round, reply.client))
                    samples["encode"].add(reply.encode_seconds, n_coordinates)
                    samples["add"].add(seconds, n_coordinates)
                    samples["receive"].add(reply.decode_seconds, down.n_coordinates)
            server = next_server
            if round >= WARM_UP + effort.fewest - 1 and time.monotonic() - start > effort.seconds:
                break


@dataclass(frozen=True)
class Case:
    """A federation to measure.

    Attributes:
        key: key of the row to which the samples belong.
        sweep: number of the settings in the sweep.
        scheme: compressor of the uplink.
        link: policy and operator of the downlink.
        jobs: for each job of the table, the job of the federation whose samples count.
    """

    key: Settings
    sweep: int
    scheme: CompressionScheme
    link: ModelBroadcast
    jobs: Mapping[CodecJob, CodecJob]


def cases() -> Iterator[Case]:
    """Yield every federation to measure."""
    for variant in VARIANTS:
        for i, settings in enumerate(variant.sweep):
            compressor = variant.make(settings)
            if isinstance(compressor, CompressionOperator):
                yield Case(
                    variant.key,
                    i,
                    MemorylessScheme(compressor),
                    _link(compressor),
                    {job: job for job in ("encode", "add", "send", "receive")},
                )
            else:
                yield Case(variant.key, i, compressor, ModelBroadcast(), {"encode": "encode", "add": "add"})
            if variant.feedback is not None:
                scheme = ErrorFeedback(variant.make(settings, variant.feedback))
                yield Case(variant.key, i, scheme, ModelBroadcast(), {"encode_with_feedback": "encode"})
    for i, density in enumerate((0.3, 0.1, 0.01, 0.001)):
        scheme = MemorylessScheme(COMPRESSORS["top-k"](density=density))
        yield Case(ASSIGN_COMPRESSOR, i, scheme, ModelBroadcast("difference"), {"send": "send", "receive": "receive"})


def _link(op: CompressionOperator) -> ModelBroadcast:
    """Return the downlink that an operator is measured in."""
    if op.name == "dense":
        return ModelBroadcast("model", op)
    return ModelBroadcast("error-feedback" if op.kind == "contractive" else "unbiased", op)


Samples = dict[tuple[CodecJob, str, int, int], Sample]
"""Samples by job, key of the row, number in the sweep, and P."""


def measure(
    effort: Effort, passes: int = PASSES, shapes: Sequence[Sequence[tuple[int, ...]]] = SHAPES
) -> tuple[Samples, float]:
    """Return all samples, and the bytes per second of a copy at the largest size."""
    samples: Samples = {}
    layouts = [ParameterLayout(tuple(f"tensor{i}" for i in range(len(tensors))), tuple(tensors)) for tensors in shapes]
    copy_seconds: dict[int, list[float]] = {layout.size: [] for layout in layouts}
    with use_single_thread(), mock.patch.object(time, "perf_counter", time.thread_time):
        for _ in range(passes):
            for layout in layouts:
                federation = Federation(Bench(layout.size, effort), layout)
                for case in cases():
                    measured: dict[CodecJob, Sample] = {job: Sample() for job in ("encode", "add", "send", "receive")}
                    federation.run(case.scheme, case.link, measured, effort)
                    for table_job, job in case.jobs.items():
                        sample = samples.setdefault((table_job, key_text(case.key), case.sweep, layout.size), Sample())
                        sample.seconds += measured[job].seconds
                        sample.n_coordinates += measured[job].n_coordinates
                copy_seconds[layout.size] += federation.copy_seconds
    largest = max(copy_seconds)
    return samples, FLOAT_BYTES * largest / float(np.quantile(copy_seconds[largest], QUANTILE))


def fit_costs(samples: Samples, rate: float) -> tuple[dict[tuple[CodecJob, str], CodecCost], float]:
    """Fit a cost to the samples of each job and row.

    Args:
        samples: all samples.
        rate: bytes per second of a copy.

    Returns:
        The costs by job and key of the row, and the largest ratio between a figure and its fit.
    """
    points: dict[tuple[CodecJob, str], list[Point]] = {}
    for (job, key, _, size), sample in samples.items():
        n_bytes = rate * float(np.quantile(sample.seconds, QUANTILE))
        point = Point(size, float(np.mean(sample.n_coordinates)), n_bytes)
        points.setdefault((job, key), []).append(point)
    inner = {key_text(variant.key): key_text(variant.inner) for variant in VARIANTS if variant.inner is not None}
    costs, worst = {}, 1.0
    for (job, key), row in points.items():
        if key in inner:
            costs[job, key] = _fit(row, [_nearest(point, points[job, inner[key]]).n_bytes for point in row])
            continue
        cost = costs[job, key] = _fit(row, [0.0] * len(row))
        ratios = [point.n_bytes / cost.count_bytes(point.parameters, point.n_coordinates) for point in row]
        worst = max(worst, *ratios, *(1 / ratio for ratio in ratios))
    for key in inner:  # the work of a wrapper does not depend on error feedback
        if ("send", key) in costs:
            costs["encode_with_feedback", key] = costs["encode", key]
    return costs, worst


def repeatability(samples: Samples) -> float:
    """Return the ratio between the figures of both halves of the repetitions: the 0.9 quantile over samples."""
    ratios = []
    for sample in samples.values():
        middle = len(sample.seconds) // 2
        first, second = (np.quantile(half, QUANTILE) for half in (sample.seconds[:middle], sample.seconds[middle:]))
        ratios.append(max(first / second, second / first))
    return float(np.quantile(ratios, 0.9))


def _nearest(point: Point, candidates: Sequence[Point]) -> Point:
    """Return the candidate of the same size with the nearest number of coordinates."""

    def distance(candidate: Point) -> tuple[bool, float]:
        return candidate.parameters != point.parameters, abs(candidate.n_coordinates - point.n_coordinates)

    return min(candidates, key=distance)


def _fit(points: Sequence[Point], inner_bytes: Sequence[float]) -> CodecCost:
    """Fit a cost to points. inner_bytes: bytes of the inner operator, subtracted from each point."""
    is_swept = len({point.parameters for point in points}) < len(points)
    columns = [[FLOAT_BYTES * point.parameters, FLOAT_BYTES * point.n_coordinates * is_swept, 1.0] for point in points]
    weights = 1 / np.array([point.n_bytes for point in points])
    targets = np.array([point.n_bytes for point in points]) - inner_bytes
    coefficients, _ = nnls(np.array(columns) * weights[:, None], targets * weights)
    return CodecCost(*(float(f"{value:.1e}") for value in coefficients))


def make_table(origin: Settings, effort: Effort) -> dict[str, Any]:
    """Measure all costs and return the table of the data file. origin: command, date, machine and versions."""
    samples, rate = measure(effort)
    costs, worst = fit_costs(samples, rate)
    table: dict[str, Any] = {
        **origin,
        "copy_bytes_per_second": float(f"{rate:.1e}"),
        "parameters": sorted({size for _, _, _, size in samples}),
        "ratio_of_nine_in_ten_repeated_figures": round(repeatability(samples), 2),
        "largest_ratio_of_a_figure_and_its_fit": float(f"{worst:.1e}"),
    }
    keys = {key_text(key): dict(key) for key in (ASSIGN_COMPRESSOR, *(variant.key for variant in VARIANTS))}
    for job in JOBS:
        rows = sorted((key, cost) for (row_job, key), cost in costs.items() if row_job == job)
        table[job] = [{"compressor": keys[key], **asdict(cost)} for key, cost in rows]
    return table


def table_text(table: Settings) -> str:
    """Return the text of a data file."""
    lines = [HEADER, *(f"{name} = {_value(value)}" for name, value in table.items() if name not in JOBS)]
    for job, meaning in JOBS.items():
        lines += ["", f"# {meaning}", f"{job} = [", *(f"    {_value(row)}," for row in table[job]), "]"]
    return "\n".join(lines) + "\n"


def key_text(key: Settings) -> str:
    """Return the TOML text of a row's key."""
    return _value(key)


def _value(value: Any) -> str:
    """Return the TOML text of a value; numbers have no exponents."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {_value(entry)}' for name, entry in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return f"{int(value):_}" if value == int(value) else f"{value:g}"


def write_cost_table(origin: Settings, effort: Effort) -> None:
    """Measure all costs and write the data file. origin: command, date, machine and versions."""
    COST_TABLE_PATH.write_text(table_text(make_table(origin, effort)), encoding="utf-8")
