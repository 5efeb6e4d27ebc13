"""What is measured, and the goals. Each entry of CASES gives one figure for each size.

P parameters, k kept coordinates. Where a compressor is not in the registry, its figures are not there yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsgd.compression import COMPRESSORS, CompressionOperator, CompressionScheme, ErrorFeedback, StateArrays
from fedsgd.compression.kernels.top_k import top_k
from fedsgd.compression.operators.sparsifier import encode_sparse, top_k_size
from fedsgd.compression.operators.topk import TopK
from fedsgd.numerics.arrays import F32, I64, U8
from fedsgd.wire import Sections, decode_frame, encode_indices
from fedsgd.wire.rans import decode_symbols, encode_symbols
from tests.bench import rivals
from tests.bench.measure import Bench, Step

DENSITY = 0.01
MESSAGES = 8
"""Different messages that are decoded in turn."""
CLIENTS = 4
"""Whose states take turns, so that at 1.66 million parameters they do not stay in the cache."""
FEWEST_SYMBOLS, MOST_SYMBOLS = 100_000, 4_000_000
FEWEST_INDICES = 1000
"""With fewer the bound on index bytes is no goal."""


class NotThereError(Exception):
    """What would be measured does not exist here."""


@dataclass(frozen=True)
class Reading:
    """measured: in the case's unit; seconds: of one call; memcpy: seconds of the one beside it; n_bytes: of the message."""

    measured: float
    seconds: float
    memcpy: float
    n_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Case:
    """unit: of the figure and the goal; goal: at most this, or at least; applies: whether the goal holds at this size."""

    what: str
    measure: Callable[[Bench], Reading]
    goal: float | None = None
    unit: str = "× memcpy"
    at_least: bool = False
    applies: Callable[[int], bool] = lambda size: True


@dataclass(frozen=True)
class Work:
    """step: what is timed; less: what is timed too and taken off; n_bytes: of a message, for the ratio to dense float32."""

    step: Step
    less: Step | None = None
    n_bytes: int | None = None
    note: str = ""


def timed(prepare: Callable[[Bench], Work]) -> Callable[[Bench], Reading]:
    """The time of some work as a multiple of a memcpy."""

    def measure(bench: Bench) -> Reading:
        work = prepare(bench)
        times = bench.time(work.step, *([work.less] if work.less else []))
        seconds = times.steps[0] - sum(times.steps[1:])
        smaller = f"{4 * bench.size / work.n_bytes:.3g}× smaller" if work.n_bytes else ""
        note = ", ".join(filter(None, (smaller, work.note)))
        return Reading(seconds / times.memcpy, seconds, times.memcpy, work.n_bytes, note)

    return measure


def member(name: str, **settings: Any) -> Any:
    """A compressor of the registry, or NotThereError."""
    if name not in set(COMPRESSORS):
        raise NotThereError(name)
    return COMPRESSORS[name](**settings)


# ------------------------------------------------------------------------------------------------------------------ operators


def selection(density: float) -> Case:
    """Exact top-k alone."""

    def prepare(bench: Bench) -> Work:
        k = top_k_size(density, bench.size)
        return Work(lambda turn: top_k(bench.vector(turn), k))

    return Case(f"top-k {100 * density:g}%", timed(prepare), {0.001: 2, 0.01: 2.5, 0.1: 8}[density])


def encoding(what: str, goal: float | None, name: str, **settings: Any) -> Case:
    """An operator and the frame with its checksum."""

    def prepare(bench: Bench) -> Work:
        op: CompressionOperator = member(name, **settings)

        def step(turn: int) -> bytes:
            return bench.frame(op.encode(bench.vector(turn), bench.ctx)[0], op.codec)

        return Work(step, n_bytes=len(step(0)))

    return Case(f"{what} encode", timed(prepare), goal)


def decoding(what: str, goal: float | None, name: str, **settings: Any) -> Case:
    """What the server does with a frame: check it, decode it, add it to a total in float64."""

    def prepare(bench: Bench) -> Work:
        op: CompressionOperator = member(name, **settings)
        frames = [bench.frame(op.encode(bench.vector(turn), bench.ctx)[0], op.codec) for turn in range(MESSAGES)]

        def step(turn: int) -> None:
            sections = decode_frame(frames[turn % MESSAGES]).sections
            op.decode(sections, bench.ctx).add_to(bench.total, 0.1)

        return Work(step, n_bytes=len(frames[0]))

    return Case(f"{what} decode + add", timed(prepare), goal)


# -------------------------------------------------------------------------------------------------------------------- schemes


class Clients:
    """Some clients that send in turn, each from its own state."""

    def __init__(self, bench: Bench, scheme: CompressionScheme) -> None:
        self.bench = bench
        self.scheme = scheme
        self.states: list[StateArrays] = [{} for _ in range(CLIENTS)]
        self.sent: Sections = ()
        self.sends = 0
        for turn in range(2 * CLIENTS):
            self.send(turn)

    def send(self, turn: int) -> bytes:
        """The next client's frame."""
        at, self.sends = self.sends % CLIENTS, self.sends + 1
        sent = self.scheme.send(self.bench.vector(turn), self.states[at], self.bench.ctx)
        self.states[at], self.sent = sent.state, sent.sections
        return self.bench.frame(sent.sections, self.scheme.codec)

    def encode_again(self, turn: int) -> bytes:
        """The sections and the frame of what was just sent."""
        form: Any = getattr(self.scheme, "values", "float32")
        sections, _ = encode_sparse(self.support, self.values, form, self.bench.ctx)
        return self.bench.frame(sections, self.scheme.codec)

    def find_support(self) -> None:
        """Decodes what was last sent for its positions and values."""
        update: Any = self.scheme.decode(self.sent, self.bench.ctx)
        self.support: I64 = update.indices
        self.values: F32 = update.values


def dgc_step(bench: Bench) -> Work:
    """A send without its encoding."""
    clients = Clients(bench, member("dgc"))
    clients.find_support()
    return Work(clients.send, less=clients.encode_again, note="send less encoding")


def dgc_send(bench: Bench) -> Work:
    """A send as it is."""
    clients = Clients(bench, member("dgc"))
    return Work(clients.send, n_bytes=len(clients.send(0)))


def feedback_send(bench: Bench) -> Work:
    """Error feedback over top-k."""
    clients = Clients(bench, ErrorFeedback(TopK(DENSITY, "bfloat16")))
    return Work(clients.send, n_bytes=len(clients.send(0)))


# ---------------------------------------------------------------------------------------------------------------------- bytes


def log2_subsets(n: int, k: int) -> float:
    """log₂ C(n, k)."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def index_bytes(density: float) -> Case:
    """Uniform supports, for which log₂ C is a bound."""

    def measure(bench: Bench) -> Reading:
        k = top_k_size(density, bench.size)
        rng = np.random.default_rng(k)
        support = np.sort(rng.choice(bench.size, k, replace=False, shuffle=False)).astype(np.int64)
        n_bytes = len(encode_indices(support, bench.size))
        times = bench.time(lambda turn: encode_indices(support, bench.size))
        bits = 8 * n_bytes
        note = f"{bits / k:.3f} bits"
        return Reading(bits / log2_subsets(bench.size, k), times.steps[0], times.memcpy, n_bytes, note)

    def applies(size: int) -> bool:
        return top_k_size(density, size) >= FEWEST_INDICES

    return Case(f"index bytes {100 * density:g}%", measure, 1.03, "× log₂C", applies=applies)


def geometric(n: int) -> U8:
    """Skewed symbols [n], as bit lengths of gaps are."""
    return np.minimum(np.random.default_rng(n).geometric(0.3, n) - 1, 255).astype(np.uint8)


def exponents(n: int) -> U8:
    """The exponent bytes of Gaussian numbers [n]."""
    words = np.random.default_rng(n).standard_normal(n, dtype=np.float32).view(np.uint32)
    return (words >> np.uint32(23) & np.uint32(255)).astype(np.uint8)


def entropy_bytes(symbols: U8) -> float:
    """What coding each symbol by how often it occurs takes at least, the table of that left out."""
    counts = np.bincount(symbols)
    shares = counts[counts > 0] / len(symbols)
    return float(-(shares * np.log2(shares)).sum() * len(symbols) / 8)


def symbols_for(bench: Bench, source: Callable[[int], U8]) -> U8:
    """As many symbols as there are parameters, within bounds."""
    return source(min(max(bench.size, FEWEST_SYMBOLS), MOST_SYMBOLS))


def rans_bytes(name: str, source: Callable[[int], U8]) -> Case:
    """rANS against the entropy of the very symbols."""

    def measure(bench: Bench) -> Reading:
        symbols = symbols_for(bench, source)
        n_bytes = len(encode_symbols(symbols))
        times = bench.time(lambda turn: encode_symbols(symbols))
        note = f"n = {len(symbols)}"
        return Reading(n_bytes / entropy_bytes(symbols), times.steps[0], times.memcpy, n_bytes, note)

    return Case(f"rANS bytes, {name}", measure, 1.01, "× entropy")


def rans_speed(name: str, source: Callable[[int], U8], decode: bool) -> Case:
    """Million symbols per second."""

    def measure(bench: Bench) -> Reading:
        symbols = symbols_for(bench, source)
        coded = encode_symbols(symbols)

        def step(turn: int) -> Any:
            return decode_symbols(coded, len(symbols)) if decode else encode_symbols(symbols)

        times = bench.time(step)
        return Reading(len(symbols) / times.steps[0] / 1e6, times.steps[0], times.memcpy, note=f"n = {len(symbols)}")

    return Case(f"rANS {'decode' if decode else 'encode'}, {name}", measure, None, "M symbols/s")


# --------------------------------------------------------------------------------------------------------------------- others


def against(what: str, rival: Callable[[Any, int], Any], goal: float) -> Case:
    """How many times quicker top-k is than another selection, on one thread, each on its turn."""

    def measure(bench: Bench) -> Reading:
        k = top_k_size(DENSITY, bench.size)
        found = len(rival(bench.tensor(0), k))
        times = bench.time(lambda turn: top_k(bench.vector(turn), k), lambda turn: rival(bench.tensor(turn), k))
        ours, theirs = times.steps
        note = f"{theirs / times.memcpy:.3g} × memcpy, {found / k:.2f} k"
        return Reading(theirs / ours, theirs, times.memcpy, note=note)

    return Case(f"top-k 1% vs {what}", measure, goal, "× faster", at_least=True)


def fedlab(what: str, name: str, setting: float, decode: bool) -> Case:
    """One of FedLab's compressors. They return tensors: what these weigh is what would be sent, indices included."""

    def prepare(bench: Bench) -> Work:
        module = rivals.fedlab_compressors()
        if module is None:
            raise NotThereError("fedlab")
        compressor = getattr(module, name)(setting)
        packed = compressor.compress(bench.tensor(0))

        def decompress(turn: int) -> Any:
            if name == "TopkCompressor":
                return compressor.decompress(*packed, (bench.size,))
            return compressor.decompress(packed)

        n_bytes = rivals.n_bytes(packed)
        if decode:
            return Work(decompress, n_bytes=n_bytes, note="dense")
        return Work(lambda turn: compressor.compress(bench.tensor(turn)), n_bytes=n_bytes)

    return Case(f"FedLab {what} {'decompress' if decode else 'compress'}", timed(prepare))


SPARSE = {"density": DENSITY, "values": "bfloat16"}

CASES: tuple[Case, ...] = (
    *(selection(density) for density in (0.001, 0.01, 0.1)),
    encoding("top-k 1% bfloat16", 3, "top-k", **SPARSE),
    decoding("top-k 1% bfloat16", 1, "top-k", **SPARSE),
    Case("dgc step", timed(dgc_step), 5),
    Case("dgc send", timed(dgc_send), 6),
    encoding("sign", 2, "sign"),
    decoding("sign", 1, "sign"),
    encoding("int8", 3, "integer", bits=8),
    encoding("int8 nearest", None, "integer", bits=8, rounding="nearest"),
    encoding("qsgd", 12, "qsgd"),
    decoding("qsgd", 12, "qsgd"),
    encoding("eden 1 bit", 16, "eden", bits=1),
    decoding("eden 1 bit", 16, "eden", bits=1),
    *(index_bytes(density) for density in (0.001, 0.01, 0.1)),
    rans_bytes("geometric", geometric),
    rans_bytes("exponents", exponents),
    against("torch.topk", rivals.torch_top_k, 10),
    against("DGC's sampling", rivals.dgc_selection, 4),
    *(
        rans_speed(*source, decode)
        for source in (("geometric", geometric), ("exponents", exponents))
        for decode in (False, True)
    ),
    Case("error feedback, top-k 1% send", timed(feedback_send)),
    encoding("rand-k 1%", None, "rand-k", density=DENSITY),
    decoding("rand-k 1%", None, "rand-k", density=DENSITY),
    encoding("float32", None, "dense"),
    decoding("float32", None, "dense"),
    encoding("float32 entropy", None, "dense", entropy=True),
    decoding("float32 entropy", None, "dense", entropy=True),
    *(fedlab("top-k 1%", "TopkCompressor", DENSITY, decode) for decode in (False, True)),
    *(fedlab("QSGD 8 bit", "QSGDCompressor", 8, decode) for decode in (False, True)),
)
