"""The costs of codecs, measured: what `python -m tests.bench.codec --write` puts into fedsgd/network/codec_costs.toml.

Rounds of three clients whose updates are Gaussian, through `broadcast`, `client_update` and `aggregate`: a job takes what the
ledger of a run would say that it took. The layouts are those of three models: a perceptron on digits, McMahan's 2NN, his CNN.
The clock counts the processor time of the thread, and the quickest tenth of the repetitions stands for all, since what else
a machine does only ever adds to them. A cost is fitted to the sizes and densities by least squares of relative errors.

P parameters, k coordinates of a message.
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
from fedsgd.training import LocalTraining, TrainingResult
from fedsgd.training import TrainingJob as ClientWork
from tests.bench.measure import Bench, Effort

SHAPES: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((64, 64), (64,), (10, 64), (10,)),
    ((200, 784), (200,), (200, 200), (200,), (10, 200), (10,)),
    ((32, 1, 5, 5), (32,), (64, 32, 5, 5), (64,), (512, 3136), (512,), (10, 512), (10,)),
)
"""Of the tensors of each model."""
CLIENTS = 3
WARM_UP = 2
"""Rounds without a clock: loops are compiled, and states begin."""
QUICK = 0.1
PASSES = 3
"""Times that all is measured, one after the other, so that a busy minute spoils no figure."""

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
"""The same densities of Gaussian vectors of that scale."""


@dataclass(frozen=True)
class Variant:
    """A compressor that has a row of its own.

    Attributes:
        key: its name and settings in the row.
        sweep: further settings with which it is measured, each for another number of coordinates.
        feedback: settings with which it contracts, None if with none, or if it is a scheme.
        inner: compressor in it, whose cost is subtracted.
    """

    key: Settings
    sweep: tuple[Settings, ...] = ({},)
    feedback: Settings | None = None
    inner: Settings | None = None

    def made(self, *settings: Settings) -> Any:
        """Return the compressor."""
        merged = {name: value for each in (self.key, *settings) for name, value in each.items() if name != "name"}
        return COMPRESSORS[self.key["name"]](**merged)


VARIANTS: tuple[Variant, ...] = (
    Variant({"name": "dense"}, feedback={}),
    Variant({"name": "dense", "entropy": True}, feedback={}),
    Variant({"name": "dense", "values": "float16"}, feedback={}),
    Variant({"name": "top-k"}, SPARSE, {}),
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
    """Repetitions of a job at one size. kept: k of each message."""

    seconds: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def add(self, seconds: float, kept: int) -> None:
        """Add a repetition."""
        self.seconds.append(seconds)
        self.kept.append(kept)


@dataclass(frozen=True)
class Point:
    """A job at one size: P, the mean of k, and how many bytes a copy makes in the time of the quickest tenth."""

    parameters: int
    kept: float
    n_bytes: float


class Federation:
    """Clients whose training gives the vectors of a pool. It is the engine, too."""

    together = 1

    def __init__(self, bench: Bench, layout: ParameterLayout) -> None:
        self.bench = bench
        self.layout = layout
        self.copies: list[float] = []
        self._turn = 0

    def train(self, works: Sequence[ClientWork]) -> Iterator[TrainingResult]:
        """Copy a vector, by the clock, and give another one."""
        for work in works:
            self._turn += 1
            begun = time.perf_counter()
            np.copyto(self.bench.destinations[self._turn % len(self.bench.destinations)], self.bench.vector(self._turn))
            self.copies.append(time.perf_counter() - begun)
            yield TrainingResult(work.client, self.bench.vector(self._turn + len(self.bench.vectors) // 2), 10, 1)

    def evaluate(self, *_: Any) -> Any:
        """Nothing is evaluated."""
        raise NotImplementedError

    def run(self, scheme: CompressionScheme, link: ModelBroadcast, samples: Mapping[CodecJob, Sample], effort: Effort) -> None:
        """Add the repetitions of some rounds to `samples`."""
        recipe = LocalTraining(SGD(), None, 1, None, uses_correction=scheme.corrects_gradients)
        plan = FederationPlan(0, self.layout, recipe, scheme, link, SGD(lr=1.0), "uniform", CLIENTS, CLIENTS)
        examples = Examples(np.zeros((10, 1), dtype=np.float32), np.zeros(10, dtype=np.int64))
        server, begun = initial_server_state(plan, self.bench.vector(0)), time.monotonic()
        states, shelves = [ClientState() for _ in range(CLIENTS)], [DownlinkCache() for _ in range(CLIENTS)]
        for round in range(WARM_UP + effort.most):
            messages, server = broadcast(plan, server, range(CLIENTS))
            down = (
                server.public_model.difference_frames[-1]
                if server.public_model.difference_frames
                else server.public_model.full_model_frame
            )
            assert down is not None
            replies = []
            for client, message in messages.items():
                reply, states[client] = client_update(plan, self, client, message, states[client], examples, shelves[client])
                replies.append(reply)
            after, folded = aggregate(plan, server, replies)
            if round >= WARM_UP:
                samples["send"].add(down.encode_seconds, down.n_coordinates)
                for reply in replies:
                    _, sections, seconds = folded[reply.client]
                    kept = plan.uplink.n_coordinates(sections, plan.make_context(server.round, reply.client))
                    samples["encode"].add(reply.encode_seconds, kept)
                    samples["add"].add(seconds, kept)
                    samples["receive"].add(reply.decode_seconds, down.n_coordinates)
            server = after
            if round >= WARM_UP + effort.fewest - 1 and time.monotonic() - begun > effort.seconds:
                break


@dataclass(frozen=True)
class Case:
    """What is run: `build_scheme` up and `link` down. jobs: what is taken of it, by the job of the table."""

    key: Settings
    sweep: int
    scheme: CompressionScheme
    link: ModelBroadcast
    jobs: Mapping[CodecJob, CodecJob]


def cases() -> Iterator[Case]:
    """Yield all that is run."""
    for variant in VARIANTS:
        for i, settings in enumerate(variant.sweep):
            compressor = variant.made(settings)
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
                scheme = ErrorFeedback(variant.made(settings, variant.feedback))
                yield Case(variant.key, i, scheme, ModelBroadcast(), {"encode_with_feedback": "encode"})
    for i, density in enumerate((0.3, 0.1, 0.01, 0.001)):
        scheme = MemorylessScheme(COMPRESSORS["top-k"](density=density))
        yield Case(ASSIGN_COMPRESSOR, i, scheme, ModelBroadcast("difference"), {"send": "send", "receive": "receive"})


def _link(op: CompressionOperator) -> ModelBroadcast:
    """Return the policy with which an operator goes down."""
    if op.name == "dense":
        return ModelBroadcast("model", op)
    return ModelBroadcast("error-feedback" if op.kind == "contractive" else "unbiased", op)


Samples = dict[tuple[CodecJob, str, int, int], Sample]
"""By job, row, number in the sweep, and P."""


def measure(
    effort: Effort, passes: int = PASSES, shapes: Sequence[Sequence[tuple[int, ...]]] = SHAPES
) -> tuple[Samples, float]:
    """Return all repetitions, and the bytes that a copy makes a second at the largest size."""
    samples: Samples = {}
    layouts = [ParameterLayout(tuple(f"tensor{i}" for i in range(len(each))), tuple(each)) for each in shapes]
    copies: dict[int, list[float]] = {layout.size: [] for layout in layouts}
    with use_single_thread(), mock.patch.object(time, "perf_counter", time.thread_time):
        for _ in range(passes):
            for layout in layouts:
                federation = Federation(Bench(layout.size, effort), layout)
                for case in cases():
                    these = {mine: Sample() for mine in ("encode", "add", "send", "receive")}
                    federation.run(case.scheme, case.link, these, effort)
                    for job, mine in case.jobs.items():
                        sample = samples.setdefault((job, key_text(case.key), case.sweep, layout.size), Sample())
                        sample.seconds += these[mine].seconds
                        sample.kept += these[mine].kept
                copies[layout.size] += federation.copies
    largest = max(copies)
    return samples, FLOAT_BYTES * largest / float(np.quantile(copies[largest], QUICK))


def fitted(samples: Samples, rate: float) -> tuple[dict[tuple[CodecJob, str], CodecCost], float]:
    """Return the cost of each job by row, and the largest ratio between a figure and its fit. rate: bytes a copy makes a second."""
    points: dict[tuple[CodecJob, str], list[Point]] = {}
    for (job, key, _, size), sample in samples.items():
        point = Point(size, float(np.mean(sample.kept)), rate * float(np.quantile(sample.seconds, QUICK)))
        points.setdefault((job, key), []).append(point)
    inner = {key_text(variant.key): key_text(variant.inner) for variant in VARIANTS if variant.inner is not None}
    costs, worst = {}, 1.0
    for (job, key), these in points.items():
        if key in inner:
            costs[job, key] = _fit(these, [_nearest(point, points[job, inner[key]]).n_bytes for point in these])
            continue
        cost = costs[job, key] = _fit(these, [0.0] * len(these))
        ratios = [point.n_bytes / cost.count_bytes(point.parameters, point.kept) for point in these]
        worst = max(worst, *ratios, *(1 / ratio for ratio in ratios))
    for key in inner:  # what an operator does around another one does not depend on error feedback around both
        if ("send", key) in costs:
            costs["encode_with_feedback", key] = costs["encode", key]
    return costs, worst


def repeatability(samples: Samples) -> float:
    """Return the ratio within which nine in ten figures of the first half of the repetitions and of the second half are."""
    ratios = []
    for sample in samples.values():
        middle = len(sample.seconds) // 2
        first, second = (np.quantile(half, QUICK) for half in (sample.seconds[:middle], sample.seconds[middle:]))
        ratios.append(max(first / second, second / first))
    return float(np.quantile(ratios, 0.9))


def _nearest(point: Point, others: Sequence[Point]) -> Point:
    """Return the point of the same size and the nearest number of coordinates."""
    return min(others, key=lambda other: (other.parameters != point.parameters, abs(other.kept - point.kept)))


def _fit(points: Sequence[Point], less: Sequence[float]) -> CodecCost:
    """Return the cost that is nearest to some points. less: bytes to be subtracted from each, those of an inner compressor."""
    swept = len({point.parameters for point in points}) < len(points)
    columns = [[FLOAT_BYTES * point.parameters, FLOAT_BYTES * point.kept * swept, 1.0] for point in points]
    weights = 1 / np.array([point.n_bytes for point in points])
    wanted = np.array([point.n_bytes for point in points]) - less
    found, _ = nnls(np.array(columns) * weights[:, None], wanted * weights)
    return CodecCost(*(float(f"{value:.1e}") for value in found))


def make_table(measured: Settings, effort: Effort) -> dict[str, Any]:
    """Measure, and return what the data file is to have. measured: machine, date and versions."""
    samples, rate = measure(effort)
    costs, worst = fitted(samples, rate)
    table: dict[str, Any] = {
        **measured,
        "copy_bytes_per_second": float(f"{rate:.1e}"),
        "parameters": sorted({size for _, _, _, size in samples}),
        "ratio_of_nine_in_ten_repeated_figures": round(repeatability(samples), 2),
        "largest_ratio_of_a_figure_and_its_fit": float(f"{worst:.1e}"),
    }
    keys = {key_text(key): dict(key) for key in (ASSIGN_COMPRESSOR, *(variant.key for variant in VARIANTS))}
    for job in JOBS:
        rows = sorted((key, cost) for (of, key), cost in costs.items() if of == job)
        table[job] = [{"compressor": keys[key], **asdict(cost)} for key, cost in rows]
    return table


def table_text(table: Settings) -> str:
    """Return a data file as text."""
    lines = [HEADER, *(f"{name} = {_value(value)}" for name, value in table.items() if name not in JOBS)]
    for job, meaning in JOBS.items():
        lines += ["", f"# {meaning}", f"{job} = [", *(f"    {_value(row)}," for row in table[job]), "]"]
    return "\n".join(lines) + "\n"


def key_text(key: Settings) -> str:
    """Return a row's key as TOML."""
    return _value(key)


def _value(value: Any) -> str:
    """Return a value as TOML; the numbers of a cost without exponents."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {_value(each)}' for name, each in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    return f"{int(value):_}" if value == int(value) else f"{value:g}"


def write(measured: Settings, effort: Effort) -> None:
    """Measure, and write the data file."""
    COST_TABLE_PATH.write_text(table_text(make_table(measured, effort)), encoding="utf-8")
