"""Random streams. Each use has its own stream, derived from the seed and a purpose string.

There are two kinds:

* `derive_generator` and `derive_torch_seed` are for randomness of one side only (cohorts, batch order, partitions). Equal
  arguments give equal streams. No global random state is read or set.
* `shared_key` and `counter_hash` are for randomness that client and server derive independently (the positions of rand-k).
  They do not use numpy's Generator, whose stream may change between versions of numpy, while the wire format may not.
"""

from __future__ import annotations

import hashlib

import numpy as np

from fedsgd.numerics.arrays import F64, I64, U64
from fedsgd.numerics.kernels import jit_helper

_CLIENTS_PER_BLOCK = 1024
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def _digest(seed: int, purpose: str, path: tuple[int, ...]) -> bytes:
    text = "/".join([str(int(seed)), purpose, *(str(int(part)) for part in path)])
    return hashlib.sha256(text.encode()).digest()


def derive_generator(seed: int, purpose: str, *path: int) -> np.random.Generator:
    """Return the generator of (seed, purpose, path), such as (seed of the run, "batches", round, client, epoch).

    >>> bool(derive_generator(0, "cohort", 3).integers(100) == derive_generator(0, "cohort", 3).integers(100))
    True
    """
    words = np.frombuffer(_digest(seed, purpose, path), dtype="<u4")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def draw_client_normals(seed: int, purpose: str, clients: I64) -> F64:
    """Return a standard normal number for each client, [n], by (seed, purpose, client).

    Clients of a block share a stream, because a stream for each of a million clients would take half a minute.
    """
    z = np.empty(len(clients))
    blocks = clients // _CLIENTS_PER_BLOCK
    for block in np.unique(blocks).tolist():
        mask = blocks == block
        block_z = derive_generator(seed, purpose, block).standard_normal(_CLIENTS_PER_BLOCK)
        z[mask] = block_z[clients[mask] % _CLIENTS_PER_BLOCK]
    return z


def derive_torch_seed(seed: int, purpose: str, *path: int) -> int:
    """Return the seed in [0, 2⁶³) of a torch generator for (seed, purpose, path)."""
    return int.from_bytes(_digest(seed, purpose, path)[:8], "little") >> 1


def shared_key(seed: int, purpose: str, *path: int) -> int:
    """Return the 64-bit key of the shared randomness, which both sides derive from the scenario and the frame header."""
    return int.from_bytes(_digest(seed, purpose, path)[:8], "little")


def counter_hash(key: int, counter: U64) -> U64:
    """Return 64 random bits for each counter [n]: splitmix64's output function at key + (counter + 1)·γ.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. For a fixed key the map is a
    bijection, so distinct counters have distinct results.
    """
    z = (counter.astype(np.uint64) + np.uint64(1)) * _GOLDEN + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    out: U64 = z ^ (z >> np.uint64(31))
    return out


@jit_helper
def counter_hash_scalar(key: np.uint64, counter: np.uint64) -> np.uint64:
    """Return `counter_hash` of one counter, for kernels."""
    z = (counter + np.uint64(1)) * _GOLDEN + key
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))
