"""How long encoding and decoding take, against copying the dense vector in memory.

The three are timed in turn, so that a machine that slows down slows all of them. Vectors are read from a pool that the
processor's caches cannot hold: a copy within the cache would be a yardstick of another kind.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from fedsgd.certification.certificate import CompressorLike, Throughput
from fedsgd.certification.samples import UpdateSample
from fedsgd.certification.simulate_rounds import SEED, as_scheme, encode_message
from fedsgd.compression import CodecContext, StateArrays
from fedsgd.numerics.arrays import F32
from fedsgd.wire import decode_frame

MIN_POOL_BYTES, MAX_POOL_BYTES = 2**26, 2**29
"""Of the pool: twice the last cache, within these; vectors are never fewer than two."""
MAX_POOL_VECTORS = 512
"""In the pool: short vectors stay in the cache, where filling a pool with them would be silly."""
MEASUREMENT_SECONDS = 1.0
MIN_REPEATS, MAX_REPEATS = 7, 201


def build_pool(sample: UpdateSample) -> F32:
    """The sample's vectors, over and over, each in memory of its own [n, P]."""
    vectors = sample.updates.reshape(-1, sample.layout.size)
    wanted = min(MAX_POOL_BYTES, max(MIN_POOL_BYTES, 2 * (read_cache_bytes() or 0)))
    n = max(2, min(MAX_POOL_VECTORS, -(-wanted // vectors[0].nbytes)))
    pool = np.empty((n, sample.layout.size), dtype=np.float32)
    for i, row in enumerate(pool):
        row[:] = vectors[i % len(vectors)]
    return pool


def read_cache_bytes() -> int | None:
    """The size of the largest cache of processor 0, as Linux has it; None where that is not known."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = path.read_text().strip()[:-1], path.read_text().strip()[-1:]
        if number.isdigit() and unit in "KMG":
            sizes.append(int(number) * 1024 ** ("KMG".index(unit) + 1))
    return max(sizes, default=None)


def measure_throughput(compressor: CompressorLike, sample: UpdateSample, pool: F32) -> Throughput:
    """Medians of one copy, one encoding, one decoding and adding; the first of each is not counted. pool: of `build_pool`."""
    scheme = as_scheme(compressor)
    copies, total = np.empty_like(pool), np.zeros(sample.layout.size)
    copies.fill(0)  # so that its pages are there
    state: StateArrays = {}
    taken: list[tuple[float, float, float]] = []
    begun = time.perf_counter()
    while len(taken) <= MIN_REPEATS or (len(taken) <= MAX_REPEATS and time.perf_counter() - begun < MEASUREMENT_SECONDS):
        i = len(taken)
        here, there = i % len(pool), (i + len(pool) // 2) % len(pool)
        ctx = CodecContext(SEED, i + 1, 0, sample.layout)
        start = time.perf_counter()
        np.copyto(copies[here], pool[here])
        copied = time.perf_counter()
        frame, state = encode_message(scheme, pool[there], state, ctx)
        encoded = time.perf_counter()
        scheme.decode(decode_frame(frame).sections, ctx).add_to(total, 1.0)
        done = time.perf_counter()
        taken.append((copied - start, encoded - copied, done - encoded))
    copy, encode, decode = (float(median) for median in np.median(np.array(taken[1:]), axis=0))
    return Throughput(len(taken) - 1, pool.nbytes, read_cache_bytes(), max(copy, 1e-9), encode, decode)
