"""Cases of the benchmark of the codec, and their goals. Each entry of `CASES` yields one figure for each size.

Figures of a compressor that is not in the registry are unavailable.
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
"""Number of different messages that a decoding cycles through."""
CLIENTS = 4
"""Number of clients that send in turn, so that their states do not stay in the cache at 1.66 million parameters."""
FEWEST_SYMBOLS, MOST_SYMBOLS = 100_000, 4_000_000
FEWEST_INDICES = 1000
"""Smallest k at which the goal for index bytes applies."""


class UnavailableError(Exception):
    """The compressor or library of a case is not available."""


@dataclass(frozen=True)
class Reading:
    """Result of one case.

    Attributes:
        measured: the figure in the case's unit.
        seconds: seconds of one call.
        memcpy: seconds of a memcpy of the dense vector, measured in the same run.
        n_bytes: bytes of the message, None if there is none.
        note: further results for the table.
    """

    measured: float
    seconds: float
    memcpy: float
    n_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Case:
    """A function to measure, and a goal for the figure.

    Attributes:
        name: name of the case.
        measure: measures the case at one size.
        goal: limit for the figure, None if there is none.
        unit: unit of the figure and of the goal.
        at_least: True if the goal is a lower limit, False if it is an upper limit.
        applies: returns True if the goal applies at a size.
    """

    name: str
    measure: Callable[[Bench], Reading]
    goal: float | None = None
    unit: str = "× memcpy"
    at_least: bool = False
    applies: Callable[[int], bool] = lambda size: True


@dataclass(frozen=True)
class Work:
    """Functions whose time is measured.

    Attributes:
        step: function whose time is the figure.
        subtracted_step: function whose time is subtracted from that of `step`, None if there is none.
        n_bytes: bytes of a message, for the ratio to dense float32; None if there is none.
        note: further results for the table.
    """

    step: Step
    subtracted_step: Step | None = None
    n_bytes: int | None = None
    note: str = ""


def time_relative_to_memcpy(prepare: Callable[[Bench], Work]) -> Callable[[Bench], Reading]:
    """Return a function that measures the prepared work as a multiple of a memcpy."""

    def measure(bench: Bench) -> Reading:
        work = prepare(bench)
        times = bench.time(work.step, *([work.subtracted_step] if work.subtracted_step else []))
        seconds = times.steps[0] - sum(times.steps[1:])
        ratio = f"{4 * bench.size / work.n_bytes:.3g}× smaller" if work.n_bytes else ""
        note = ", ".join(filter(None, (ratio, work.note)))
        return Reading(seconds / times.memcpy, seconds, times.memcpy, work.n_bytes, note)

    return measure


def make_compressor(name: str, **settings: Any) -> Any:
    """Return a compressor of the registry; UnavailableError if there is none of this name."""
    if name not in set(COMPRESSORS):
        raise UnavailableError(name)
    return COMPRESSORS[name](**settings)


# ------------------------------------------------------------------------------------------------------------------ operators


def selection(density: float) -> Case:
    """Return the case of exact top-k without encoding."""

    def prepare(bench: Bench) -> Work:
        k = top_k_size(density, bench.size)
        return Work(lambda turn: top_k(bench.vector(turn), k))

    return Case(f"top-k {100 * density:g}%", time_relative_to_memcpy(prepare), {0.001: 2, 0.01: 2.5, 0.1: 8}[density])


def encoding(label: str, goal: float | None, name: str, **settings: Any) -> Case:
    """Return the case of an operator's encoding and the frame with its checksum."""

    def prepare(bench: Bench) -> Work:
        op: CompressionOperator = make_compressor(name, **settings)

        def step(turn: int) -> bytes:
            return bench.frame(op.encode(bench.vector(turn), bench.ctx)[0], op.codec)

        return Work(step, n_bytes=len(step(0)))

    return Case(f"{label} encode", time_relative_to_memcpy(prepare), goal)


def decoding(label: str, goal: float | None, name: str, **settings: Any) -> Case:
    """Return the case of the server's work on a frame: check, decode, and add to a sum in float64."""

    def prepare(bench: Bench) -> Work:
        op: CompressionOperator = make_compressor(name, **settings)
        frames = [bench.frame(op.encode(bench.vector(turn), bench.ctx)[0], op.codec) for turn in range(MESSAGES)]

        def step(turn: int) -> None:
            sections = decode_frame(frames[turn % MESSAGES]).sections
            op.decode(sections, bench.ctx).add_to(bench.total, 0.1)

        return Work(step, n_bytes=len(frames[0]))

    return Case(f"{label} decode + add", time_relative_to_memcpy(prepare), goal)


# -------------------------------------------------------------------------------------------------------------------- schemes


class Clients:
    """Clients that send in turn, each from its own state."""

    def __init__(self, bench: Bench, scheme: CompressionScheme) -> None:
        self.bench = bench
        self.scheme = scheme
        self.states: list[StateArrays] = [{} for _ in range(CLIENTS)]
        self.sections: Sections = ()
        self.sends = 0
        for turn in range(2 * CLIENTS):
            self.send(turn)

    def send(self, turn: int) -> bytes:
        """Send the update of the next client and return its frame."""
        client, self.sends = self.sends % CLIENTS, self.sends + 1
        update = self.scheme.send(self.bench.vector(turn), self.states[client], self.bench.ctx)
        self.states[client], self.sections = update.state, update.sections
        return self.bench.frame(update.sections, self.scheme.codec)

    def encode_again(self, turn: int) -> bytes:
        """Encode the update that `find_support` decoded, and return its frame."""
        value_format: Any = getattr(self.scheme, "values", "float32")
        sections, _ = encode_sparse(self.support, self.values, value_format, self.bench.ctx)
        return self.bench.frame(sections, self.scheme.codec)

    def find_support(self) -> None:
        """Decode the update that was sent last, and store its positions and values."""
        update: Any = self.scheme.decode(self.sections, self.bench.ctx)
        self.support: I64 = update.indices
        self.values: F32 = update.values


def dgc_step(bench: Bench) -> Work:
    """Return the work of a DGC send without its encoding."""
    clients = Clients(bench, make_compressor("dgc"))
    clients.find_support()
    return Work(clients.send, subtracted_step=clients.encode_again, note="send minus encoding")


def dgc_send(bench: Bench) -> Work:
    """Return the work of a complete DGC send."""
    clients = Clients(bench, make_compressor("dgc"))
    return Work(clients.send, n_bytes=len(clients.send(0)))


def feedback_send(bench: Bench) -> Work:
    """Return the work of a send of top-k with error feedback."""
    clients = Clients(bench, ErrorFeedback(TopK(DENSITY, "bfloat16")))
    return Work(clients.send, n_bytes=len(clients.send(0)))


# ---------------------------------------------------------------------------------------------------------------------- bytes


def log2_subsets(n: int, k: int) -> float:
    """Return log₂ C(n, k)."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def index_bytes(density: float) -> Case:
    """Return the case of the bytes of a uniform support, for which log₂ C(P, k) is the lower bound."""

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
    """Return skewed symbols [n], distributed like the bit lengths of gaps."""
    return np.minimum(np.random.default_rng(n).geometric(0.3, n) - 1, 255).astype(np.uint8)


def exponents(n: int) -> U8:
    """Return the exponent bytes of Gaussian numbers [n]."""
    words = np.random.default_rng(n).standard_normal(n, dtype=np.float32).view(np.uint32)
    return (words >> np.uint32(23) & np.uint32(255)).astype(np.uint8)


def entropy_bytes(symbols: U8) -> float:
    """Return the lower bound of a code by symbol frequencies, without the table of frequencies, in bytes."""
    counts = np.bincount(symbols)
    shares = counts[counts > 0] / len(symbols)
    return float(-(shares * np.log2(shares)).sum() * len(symbols) / 8)


def symbols_for(bench: Bench, source: Callable[[int], U8]) -> U8:
    """Return as many symbols as there are parameters, within bounds."""
    return source(min(max(bench.size, FEWEST_SYMBOLS), MOST_SYMBOLS))


def rans_bytes(name: str, source: Callable[[int], U8]) -> Case:
    """Return the case of the bytes of rANS relative to the entropy of the symbols."""

    def measure(bench: Bench) -> Reading:
        symbols = symbols_for(bench, source)
        n_bytes = len(encode_symbols(symbols))
        times = bench.time(lambda turn: encode_symbols(symbols))
        note = f"n = {len(symbols)}"
        return Reading(n_bytes / entropy_bytes(symbols), times.steps[0], times.memcpy, n_bytes, note)

    return Case(f"rANS bytes, {name}", measure, 1.01, "× entropy")


def rans_speed(name: str, source: Callable[[int], U8], decode: bool) -> Case:
    """Return the case of the speed of rANS in million symbols per second."""

    def measure(bench: Bench) -> Reading:
        symbols = symbols_for(bench, source)
        coded = encode_symbols(symbols)

        def step(turn: int) -> Any:
            return decode_symbols(coded, len(symbols)) if decode else encode_symbols(symbols)

        times = bench.time(step)
        return Reading(len(symbols) / times.steps[0] / 1e6, times.steps[0], times.memcpy, note=f"n = {len(symbols)}")

    return Case(f"rANS {'decode' if decode else 'encode'}, {name}", measure, None, "M symbols/s")


# ------------------------------------------------------------------------------------------------------- other implementations


def comparison(label: str, rival: Callable[[Any, int], Any], goal: float) -> Case:
    """Return the case of the speed of top-k relative to another selection; the two alternate on one thread."""

    def measure(bench: Bench) -> Reading:
        k = top_k_size(DENSITY, bench.size)
        n_selected = len(rival(bench.tensor(0), k))
        times = bench.time(lambda turn: top_k(bench.vector(turn), k), lambda turn: rival(bench.tensor(turn), k))
        top_k_seconds, rival_seconds = times.steps
        note = f"{rival_seconds / times.memcpy:.3g} × memcpy, {n_selected / k:.2f} k"
        return Reading(rival_seconds / top_k_seconds, rival_seconds, times.memcpy, note=note)

    return Case(f"top-k 1% vs {label}", measure, goal, "× faster", at_least=True)


def fedlab(label: str, name: str, setting: float, decode: bool) -> Case:
    """Return the case of one of FedLab's compressors. Their bytes are those of the tensors that they return, with indices."""

    def prepare(bench: Bench) -> Work:
        module = rivals.fedlab_compressors()
        if module is None:
            raise UnavailableError("fedlab")
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

    return Case(f"FedLab {label} {'decompress' if decode else 'compress'}", time_relative_to_memcpy(prepare))


SPARSE = {"density": DENSITY, "values": "bfloat16"}

CASES: tuple[Case, ...] = (
    *(selection(density) for density in (0.001, 0.01, 0.1)),
    encoding("top-k 1% bfloat16", 3, "top-k", **SPARSE),
    decoding("top-k 1% bfloat16", 1, "top-k", **SPARSE),
    Case("dgc step", time_relative_to_memcpy(dgc_step), 5),
    Case("dgc send", time_relative_to_memcpy(dgc_send), 6),
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
    comparison("torch.topk", rivals.torch_top_k, 10),
    comparison("DGC's sampling", rivals.dgc_selection, 4),
    *(
        rans_speed(*source, decode)
        for source in (("geometric", geometric), ("exponents", exponents))
        for decode in (False, True)
    ),
    Case("error feedback, top-k 1% send", time_relative_to_memcpy(feedback_send)),
    encoding("rand-k 1%", None, "rand-k", density=DENSITY),
    decoding("rand-k 1%", None, "rand-k", density=DENSITY),
    encoding("float32", None, "dense"),
    decoding("float32", None, "dense"),
    encoding("float32 entropy", None, "dense", entropy=True),
    decoding("float32 entropy", None, "dense", entropy=True),
    *(fedlab("top-k 1%", "TopkCompressor", DENSITY, decode) for decode in (False, True)),
    *(fedlab("QSGD 8 bit", "QSGDCompressor", 8, decode) for decode in (False, True)),
)
