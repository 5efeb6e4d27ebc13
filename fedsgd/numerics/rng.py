"""Randomness: every use draws from a generator of its own, named by what it is for.

Two kinds, never mixed:

* `derive_generator` gives a numpy Generator for what happens on one side only (cohorts, batch order, partitions). Equal
arguments
  give an equal stream; no global random state is read or set.
* `shared_key` and `counter_hash` are for what client and server must both know without sending it (the support of rand-k).
  They are arithmetic of our own, because numpy does not promise a Generator's stream across versions and a wire format
  must outlive a library.
"""

from __future__ import annotations

import hashlib

import numpy as np

from fedsgd.numerics.arrays import U64
from fedsgd.numerics.kernels import jit_helper

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def _digest(seed: int, purpose: str, path: tuple[int, ...]) -> bytes:
    text = "/".join([str(int(seed)), purpose, *(str(int(part)) for part in path)])
    return hashlib.sha256(text.encode()).digest()


def derive_generator(seed: int, purpose: str, *path: int) -> np.random.Generator:
    """A generator that belongs to (seed, purpose, path) alone.

    purpose: a word for the use ("cohort", "batches"); path: what it is the stream of, e.g. (round, client, epoch).
    """
    words = np.frombuffer(_digest(seed, purpose, path), dtype="<u4")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([int(w) for w in words])))


def derive_torch_seed(seed: int, purpose: str, *path: int) -> int:
    """A seed for a fork of torch's generator, in [0, 2^63)."""
    return int.from_bytes(_digest(seed, purpose, path)[:8], "little") >> 1


def shared_key(seed: int, purpose: str, *path: int) -> int:
    """The 64-bit key of a randomness that both ends derive from the scenario and the frame header."""
    return int.from_bytes(_digest(seed, purpose, path)[:8], "little")


def counter_hash(key: int, counter: U64) -> U64:
    """splitmix64's output function at (key + (counter + 1)·γ): 64 well-mixed bits for each counter.

    counter: uint64 [n]; returns uint64 [n]. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014. For a fixed key the map is a bijection, so distinct counters never tie.
    """
    z = (counter.astype(np.uint64) + np.uint64(1)) * _GOLDEN + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    out: U64 = z ^ (z >> np.uint64(31))
    return out


@jit_helper
def counter_hash_scalar(key: np.uint64, counter: np.uint64) -> np.uint64:
    """`counter_hash` of one counter, for kernels."""
    z = (counter + np.uint64(1)) * _GOLDEN + key
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))
