"""Seconds of encoding, decoding and copying a dense vector in memory.

Encoding, decoding and copying are timed in turn, so that a change in the machine's speed affects all three times. Vectors are
read from a pool that is larger than the caches, if the limits below allow it: a copy within a cache is faster.
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
from fedsgd.numerics.kernels import use_loops
from fedsgd.wire import decode_frame

MIN_POOL_BYTES, MAX_POOL_BYTES = 2**26, 2**29
"""Limits in bytes of the intended pool size, which is twice the largest cache. A pool has at least two vectors."""
MAX_POOL_VECTORS = 512
"""Maximum number of vectors in the pool. A pool of short vectors may fit into the cache."""
MEASUREMENT_SECONDS = 1.0
"""Seconds after which a measurement ends. Its number of repeats is from MIN_REPEATS to MAX_REPEATS."""
MIN_REPEATS, MAX_REPEATS = 7, 201


def build_pool(sample: UpdateSample) -> F32:
    """Return a pool [n, P] float32 of the sample's vectors, repeated or cut to n vectors."""
    vectors = sample.updates.reshape(-1, sample.layout.size)
    n_bytes = min(MAX_POOL_BYTES, max(MIN_POOL_BYTES, 2 * (read_cache_bytes() or 0)))
    n = max(2, min(MAX_POOL_VECTORS, -(-n_bytes // vectors[0].nbytes)))
    pool = np.empty((n, sample.layout.size), dtype=np.float32)
    for i, row in enumerate(pool):
        row[:] = vectors[i % len(vectors)]
    return pool


def read_cache_bytes() -> int | None:
    """Return the bytes of the largest cache of processor 0 from Linux's sysfs, or None if unknown."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = path.read_text().strip()[:-1], path.read_text().strip()[-1:]
        if number.isdigit() and unit in "KMG":
            sizes.append(int(number) * 1024 ** ("KMG".index(unit) + 1))
    return max(sizes, default=None)


def measure_throughput(compressor: CompressorLike, sample: UpdateSample, pool: F32) -> Throughput:
    """Measure the seconds of a copy, of encoding to a frame, and of decoding a frame and adding, on vectors of a pool [n, P].

    Each time is a median; the first repeat does not count. Compiled loops are used, also for short vectors.
    """
    use_loops()
    scheme = as_scheme(compressor)
    copies, total = np.empty_like(pool), np.zeros(sample.layout.size)
    copies.fill(0)  # maps the pages, so that no timed copy includes page faults
    state: StateArrays = {}
    times: list[tuple[float, float, float]] = []
    begin = time.perf_counter()
    while len(times) <= MIN_REPEATS or (len(times) <= MAX_REPEATS and time.perf_counter() - begin < MEASUREMENT_SECONDS):
        i = len(times)
        copy_index, encode_index = i % len(pool), (i + len(pool) // 2) % len(pool)
        ctx = CodecContext(SEED, i + 1, 0, sample.layout)
        start = time.perf_counter()
        np.copyto(copies[copy_index], pool[copy_index])
        copy_end = time.perf_counter()
        frame, state = encode_message(scheme, pool[encode_index], state, ctx)
        encode_end = time.perf_counter()
        scheme.decode(decode_frame(frame).sections, ctx).add_to(total, 1.0)
        decode_end = time.perf_counter()
        times.append((copy_end - start, encode_end - copy_end, decode_end - encode_end))
    copy, encode, decode = (float(median) for median in np.median(np.array(times[1:]), axis=0))
    return Throughput(len(times) - 1, pool.nbytes, read_cache_bytes(), max(copy, 1e-9), encode, decode)
