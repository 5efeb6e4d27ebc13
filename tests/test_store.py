"""Client states in shared memory: what is saved is what is loaded, by whichever process, however often and of whatever size."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsgd.clients import ClientState, Pending
from fedsgd.compress import Patch
from fedsgd.runtime.store import SharedStore

DTYPES = st.sampled_from(["<f4", "<f8", "<i8", "|u1", "<u2", "|b1", ">f4"])
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40))
STATES = st.dictionaries(st.text(max_size=8), ARRAYS, max_size=3)
PATCHES = st.none() | st.builds(Patch, st.none() | hnp.arrays(np.int64, st.integers(0, 50)), ARRAYS)
PENDING = st.none() | st.builds(
    Pending, st.integers(1, 2**32), STATES, st.dictionaries(st.text(max_size=8), PATCHES, max_size=3)
)
CLIENT_STATES = st.builds(ClientState, STATES, PENDING)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, ClientState | Pending | Patch):
        return type(a) is type(b) and all(same(v, getattr(b, k)) for k, v in vars(a).items())
    return bool(a == b)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), CLIENT_STATES), min_size=1, max_size=5))
def test_what_is_saved_last_is_what_is_loaded(saves: list[tuple[int, ClientState]]) -> None:
    store, kept = SharedStore(4), dict.fromkeys(range(4), ClientState())
    for client, state in saves:
        store.save(client, state)
        kept[client] = state
        for other, expected in kept.items():
            assert same(store.load(other), expected)


def test_loaded_arrays_are_ones_own_and_not_read_only() -> None:
    store = SharedStore(1)
    store.save(0, ClientState({"residual": np.arange(5.0)}))
    store.load(0).scheme["residual"][:] = 7
    assert store.load(0).scheme["residual"].tolist() == [0, 1, 2, 3, 4]


def test_an_array_that_is_there_twice_is_kept_once() -> None:
    store, once, twice = SharedStore(2), np.ones(10**5), np.ones(10**5)
    store.save(0, ClientState({"a": once}))
    store.save(1, ClientState({"a": twice, "b": twice}))
    used = [store._slot(client)[2] for client in (0, 1)]
    assert used[1] < used[0] + 100
    assert same(store.load(1), ClientState({"a": twice, "b": twice}))


def test_slots_are_used_again() -> None:
    store = SharedStore(3)
    states = [ClientState({"a": np.ones(n)}) for n in (1000, 10_000)]
    for _ in range(3):
        for state in states:
            store.save(0, state)
    large = store._number(0)
    store.save(1, states[0])
    assert store._number(0) == large, "what client 0 grew out of"
    store.save(2, states[0])
    assert store._number(0) > large
    assert all(same(store.load(c), states[0 if c else 1]) for c in range(3))


def test_clients_that_are_not_there_and_arrays_that_are_none_are_refused() -> None:
    store = SharedStore(3)
    for client in (-1, 3):
        with pytest.raises(IndexError, match=f"client {client} of 3"):
            store.load(client)
    with pytest.raises(TypeError, match=r"what a client remembers \(words\) is object"):
        store.save(0, ClientState({"words": np.array(["a", None], dtype=object)}))


def fill(store: SharedStore, first: int, n: int) -> None:
    for size in (1, 10, 600, 5000, 70_000):
        for client in range(first, n, 2):
            store.save(client, ClientState({"residual": np.full(size + client, client, np.float32)}))


def test_processes_that_save_at_once_do_not_get_in_each_others_way() -> None:
    store = SharedStore(40)
    helper = mp.get_context("spawn").Process(target=fill, args=(store, 0, 40))
    helper.start()
    fill(store, 1, 40)
    helper.join(60)
    assert helper.exitcode == 0
    for client in range(40):
        residual = store.load(client).scheme["residual"]
        assert residual.tolist() == [client] * (70_000 + client)
