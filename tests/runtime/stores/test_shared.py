"""Client states, in memory and on disk: what is saved is what is loaded, by whichever process, however often and of whatever
size, and with however many clients; and nothing is left behind, however it ends."""

from __future__ import annotations

import gc
import multiprocessing as mp
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsgd.compression import EntryPatch, apply_rollback
from fedsgd.errors import OutputError
from fedsgd.experiment.builder import build_experiment, with_worker_pool
from fedsgd.federation import aggregate, broadcast
from fedsgd.federation.client_state import (
    ClientState,
    ClientStore,
    InMemoryClientStore,
    UncommittedState,
    to_bfloat16_state,
    to_float32_state,
)
from fedsgd.runtime.stores.directory import FolderStore
from fedsgd.runtime.stores.shared import PAGE_BYTES, SlotStore, serialize_state, stored_bytes
from fedsgd.scenario.scenario import Scenario
from fedsgd.wire import encode_values
from tests.systems import linux

FOLDER = Path(tempfile.gettempdir())
OURS: list[str] = []
"""Folders that were made here."""
STORES: dict[str, Callable[[int], ClientStore]] = {
    "memory": lambda n: InMemoryClientStore(),
    "nameless": SlotStore,
    "disk": lambda n: SlotStore(n, FOLDER),
    "folder": lambda n: FolderStore(Path(OURS.append(tempfile.mkdtemp(prefix="fedsgd-test-")) or OURS[-1])),
}

DTYPES = st.sampled_from(["<f4", "<f8", "<i8", "|u1", "<u2", "|b1", ">f4"])
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40))
STATES = st.dictionaries(st.text(max_size=8), ARRAYS, max_size=3)
PATCHES = st.none() | st.builds(EntryPatch, st.none() | hnp.arrays(np.int64, st.integers(0, 50)), ARRAYS)
PENDING = st.none() | st.builds(
    UncommittedState,
    st.integers(1, 2**32),
    STATES,
    st.dictionaries(st.text(max_size=8), PATCHES, max_size=3),
    st.none() | st.binary(max_size=99),
)
CLIENT_STATES = st.builds(ClientState, STATES, PENDING, st.integers(0, 2**32))


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Test processes do not end in a way that would see to it."""
    yield
    for folder in OURS:
        shutil.rmtree(folder, ignore_errors=True)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, ClientState | UncommittedState | EntryPatch):
        return type(a) is type(b) and all(same(v, getattr(b, k)) for k, v in vars(a).items())
    return bool(a == b)


@pytest.mark.parametrize("made", STORES.values(), ids=STORES.keys())
@settings(max_examples=40)
@given(saves=st.lists(st.tuples(st.integers(0, 3), CLIENT_STATES), min_size=1, max_size=5))
def test_what_is_saved_last_is_what_is_loaded(made: Callable[[int], ClientStore], saves: list[tuple[int, ClientState]]) -> None:
    store, kept = made(4), dict.fromkeys(range(4), ClientState())
    for client, state in saves:
        store.save(client, state)
        kept[client] = state
        for other, expected in kept.items():
            assert same(store.load(other), expected)


def test_loaded_arrays_are_ones_own_and_not_read_only() -> None:
    store = SlotStore(1)
    store.save(0, ClientState({"residual": np.arange(5.0)}))
    store.load(0).committed_state["residual"][:] = 7
    assert store.load(0).committed_state["residual"].tolist() == [0, 1, 2, 3, 4]


def test_an_array_that_is_there_twice_is_kept_once() -> None:
    store, once, twice = SlotStore(2), np.ones(10**5), np.ones(10**5)
    store.save(0, ClientState({"a": once}))
    store.save(1, ClientState({"a": twice, "b": twice}))
    used = [store._read_number(store._find_slot(client)[0]) for client in (0, 1)]
    assert used[1] < used[0] + 100
    assert same(store.load(1), ClientState({"a": twice, "b": twice}))


def test_slots_are_used_again() -> None:
    store = SlotStore(3)
    states = [ClientState({"a": np.ones(n)}) for n in (1000, 10_000)]
    for _ in range(3):
        for state in states:
            store.save(0, state)
    large = store._read_number(0)
    store.save(1, states[0])
    assert store._read_number(0) == large, "what client 0 grew out of"
    store.save(2, states[0])
    assert store._read_number(0) > large
    assert all(same(store.load(c), states[0 if c else 1]) for c in range(3))


def test_a_client_that_remembers_nothing_but_its_round_takes_64_bytes() -> None:
    store = SlotStore(2)
    before = store._read_number(0)
    nothing = ClientState({}, UncommittedState(10**6, {}, {}))
    store.save(1, nothing)
    assert store._read_number(0) == before + 64 == before + stored_bytes(nothing)
    assert same(store.load(1), nothing)


def test_clients_that_are_not_there_and_arrays_that_are_none_are_refused() -> None:
    store = SlotStore(3)
    for client in (-1, 3):
        with pytest.raises(IndexError, match=f"client {client} of 3"):
            store.load(client)
    with pytest.raises(TypeError, match=r"the client state entry words is object"):
        store.save(0, ClientState({"words": np.array(["a", None], dtype=object)}))


def fill(store: SlotStore, first: int, n: int) -> None:
    for size in (1, 10, 600, 5000, 70_000):
        for client in range(first, n, 2):
            store.save(client, ClientState({"residual": np.full(size + client, client, np.float32)}))


@pytest.mark.parametrize("folder", [None, FOLDER])
def test_processes_that_save_at_once_do_not_get_in_each_others_way(folder: Path | None) -> None:
    store = SlotStore(40, folder)
    helper = mp.get_context("spawn").Process(target=fill, args=(store, 0, 40))
    helper.start()
    fill(store, 1, 40)
    helper.join(60)
    assert helper.exitcode == 0
    for client in range(40):
        residual = store.load(client).committed_state["residual"]
        assert residual.tolist() == [client] * (70_000 + client)


# ------------------------------------------------------------------------------------------------------------------- at scale


def taken(store: SlotStore) -> int:
    """What the file takes, in bytes: pages that nothing was written to take nothing."""
    return os.fstat(store.file.descriptor).st_blocks * 512


@pytest.mark.parametrize("folder", [None, FOLDER])
def test_clients_that_never_take_part_cost_nothing(folder: Path | None) -> None:
    state = ClientState({"residual": np.ones(3000, np.float32)})
    sizes = []
    for clients in (10**4, 10**7):
        store = SlotStore(clients, folder)
        assert taken(store) <= 2 * PAGE_BYTES
        chosen = np.random.default_rng(clients).choice(clients, 100, replace=False).tolist()
        tracemalloc.start()
        for client in chosen:
            store.save(client, state)
            assert same(store.load(client), state)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10 * stored_bytes(state)
        sizes.append(taken(store))
        assert store.load(chosen[0] + 1 if chosen[0] + 1 not in chosen else chosen[0] - 1).committed_state == {}
        store.close()
    assert stored_bytes(state) == 3 * PAGE_BYTES
    assert sizes[1] <= 100 * (stored_bytes(state) + 2 * PAGE_BYTES) + 2 * PAGE_BYTES, (
        "pages that begin or end in between, and of the index"
    )
    assert sizes[1] - sizes[0] <= 100 * PAGE_BYTES


@given(CLIENT_STATES)
def test_the_footprint_is_what_is_written_and_less_than_a_page_or_as_much_again(state: ClientState) -> None:
    written = sum(-(-len(part) // 64) * 64 for part in serialize_state(state))
    assert 0 <= stored_bytes(state) - written < min(PAGE_BYTES, written)


# -------------------------------------------------------------------------------------------------------------- nothing is left


def test_a_file_on_disk_has_no_name(tmp_path: Path) -> None:
    store = SlotStore(3, tmp_path)
    store.save(1, ClientState({"a": np.ones(10)}))
    assert list(tmp_path.iterdir()) == []
    store.close()
    with pytest.raises(OutputError, match=r"nowhere: cannot create a file there \(No such file or directory\)"):
        SlotStore(3, tmp_path / "nowhere")


@linux
def test_what_is_killed_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib, numpy as np\n"
        "from fedsgd.federation.client_state import ClientState\n"
        "from fedsgd.runtime.stores.shared import SlotStore\n"
        "store = SlotStore(10, pathlib.Path(sys.argv[1]))\n"
        "store.save(0, ClientState({'a': np.ones(10**6)}))\n"
        "print('saved', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"saved\n"
        assert list(tmp_path.iterdir()) == []
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def files_in(folder: Path) -> list[str]:
    """Files that this process has open there, those without a name too."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except OSError:
            continue
    return [link for link in links if link.startswith(str(folder))]


@linux
@pytest.mark.parametrize("workers", [1, 2])
def test_the_file_is_gone_after_an_exception(scenario: Callable[..., Scenario], workers: int, tmp_path: Path) -> None:
    experiment = build_experiment(scenario({"state.store": "disk", "state.folder": str(tmp_path)}), share_data=True)

    def fails() -> None:
        with with_worker_pool(experiment, workers):
            assert len(files_in(tmp_path)) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    gc.collect()
    assert files_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_room_the_state_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    store, small, large = SlotStore(2), ClientState({"a": np.ones(3)}), ClientState({"a": np.ones(10**4)})
    store.save(0, small)

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("fedsgd.runtime.stores.shared.SlotStore._taken", full)
        with pytest.raises(OSError, match="No space left"):
            store.save(0, large)
    assert same(store.load(0), small)
    original, calls = os.pwrite, []

    def soon_full(descriptor: int, data: Any, at: int) -> int:
        calls.append(at)
        return original(descriptor, data, at) if len(data) < 10**4 else full()

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", soon_full)
        with pytest.raises(OSError, match="No space left"):
            store.save(0, large)
    assert calls
    assert same(store.load(0), small)


# ---------------------------------------------------------------------------------------------- the same run wherever states are


@pytest.mark.parametrize("compressor", ["top-k", "dgc", "ef21"])
def test_a_run_is_the_same_wherever_states_are_kept(scenario: Callable[..., Scenario], compressor: str, tmp_path: Path) -> None:
    own = {} if compressor == "top-k" else {"uplink.error_feedback": "none", "server.weighting": "uniform"}
    asked = {"uplink.compressor.name": compressor, "downlink.policy": "difference", "state.folder": str(tmp_path), **own}
    frames = []
    for workers, store in ((1, "memory"), (1, "disk"), (2, "memory"), (2, "disk")):
        with with_worker_pool(
            build_experiment(scenario({**asked, "state.store": store}), share_data=True), workers
        ) as experiment:
            server, sent = experiment.initial_server_state, []
            for cohort in ([0, 1, 2, 3], [0, 2, 4, 6], [7, 3, 2, 0]):
                messages, server = broadcast(experiment.plan, server, sorted(cohort))
                replies = sorted(experiment.runtime.exchange(messages, None), key=lambda reply: reply.client)
                sent.append([reply.frames for reply in replies])
                server, _ = aggregate(experiment.plan, server, replies)
            frames.append(sent)
    assert all(sent == frames[0] for sent in frames)


# ------------------------------------------------------------------------------------------------------------------ at half size

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
FLOATS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9), elements=FINITE)
OTHERS = hnp.arrays(
    st.sampled_from(["<f8", "<i8", "|u1", "|b1", ">f4", "<u4"]), hnp.array_shapes(min_dims=0, max_dims=2, min_side=0)
)
MIXED = st.dictionaries(st.sampled_from("abcdef"), FLOATS | OTHERS, max_size=5)
MIXED_CLIENTS = st.builds(
    ClientState,
    MIXED,
    st.none()
    | st.builds(
        UncommittedState,
        st.integers(1, 99),
        MIXED,
        st.dictionaries(st.sampled_from("abcdef"), st.none() | st.builds(EntryPatch, st.none(), FLOATS | OTHERS), max_size=3),
    ),
)


@settings(max_examples=60)
@given(MIXED)
def test_float32_is_rounded_to_nearest_even_and_nothing_else_is_touched(memory: dict[str, Any]) -> None:
    half = to_bfloat16_state(ClientState(memory))
    back = to_float32_state(half)
    assert list(half.committed_state) == list(back.committed_state) == list(memory)
    for name, array in memory.items():
        found = back.committed_state[name]
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        if array.dtype == np.float32:
            assert half.committed_state[name].dtype == np.uint16
            assert half.committed_state[name].nbytes * 2 == array.nbytes
            assert found.tobytes() == encode_values(array.reshape(-1), "bfloat16")[1].tobytes()
            assert np.isfinite(found).all()
        else:
            assert half.committed_state[name] is array
    assert same(to_bfloat16_state(back), half), "rounding twice is rounding once"


@settings(max_examples=60)
@given(MIXED_CLIENTS)
def test_all_that_a_client_remembers_is_rounded_and_kept_alike_by_every_store(state: ClientState) -> None:
    half, expected = to_bfloat16_state(state), to_float32_state(to_bfloat16_state(state))
    for made in STORES.values():
        store = made(1)
        store.save(0, half)
        assert same(to_float32_state(store.load(0)), expected)
    if state.uncommitted_state is not None:
        assert expected.uncommitted_state is not None
        assert same(
            expected.uncommitted_state.state_if_accepted,
            to_float32_state(to_bfloat16_state(ClientState(state.uncommitted_state.state_if_accepted))).committed_state,
        )


def test_what_is_part_of_the_model_is_never_rounded() -> None:
    third = np.full(3, 1 / 3, np.float32)
    half = to_bfloat16_state(ClientState({"own/parameters": third, "scheme/residual": third}))
    assert half.committed_state["own/parameters"] is third
    assert half.committed_state["scheme/residual"].dtype == np.uint16


def test_what_is_undone_is_the_rounded_state_from_before() -> None:
    """Rounded before or after it is undone: the same, so what a lost reply leaves does not depend on when it is rounded."""
    before, indices = np.float32(np.random.default_rng(0).standard_normal(50)), np.array([3, 7, 20])
    after = before.copy()
    after[indices] = 0
    kept = to_bfloat16_state(
        ClientState({"r": before}, UncommittedState(1, {"r": after}, {"r": EntryPatch(indices, before[indices])}))
    )
    pending = to_float32_state(kept).uncommitted_state
    assert pending is not None
    assert same(
        apply_rollback(pending.state_if_accepted, pending.rollback),
        to_float32_state(to_bfloat16_state(ClientState({"r": before}))).committed_state,
    )


def test_an_array_that_is_there_twice_is_rounded_once() -> None:
    array = np.ones(10, np.float32)
    state = to_bfloat16_state(ClientState({"a": array}, UncommittedState(1, {"a": array}, {"a": EntryPatch(None, array)})))
    assert state.uncommitted_state is not None
    assert state.committed_state["a"] is state.uncommitted_state.state_if_accepted["a"]
    undo = state.uncommitted_state.rollback["a"]
    assert undo is not None
    assert undo.values is state.committed_state["a"]


def test_the_largest_stay_finite_and_what_cannot_be_told_apart_is_refused() -> None:
    most = np.finfo(np.float32).max
    back = to_float32_state(to_bfloat16_state(ClientState({"a": np.float32([most, -most, 1e-45, 0.0, -0.0])}))).committed_state[
        "a"
    ]
    assert np.isfinite(back).all()
    assert back[0] == -back[1] == np.float32(3.3895314e38)
    with pytest.raises(TypeError, match=r"the client state entry a is uint16"):
        to_bfloat16_state(ClientState({"a": np.zeros(3, np.uint16)}))
