"""Client states in shared files, in memory and on disk.

Every process loads the last saved state, of any size and with any number of clients, and no file remains after any kind of end.
"""

from __future__ import annotations

import gc
import math
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
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsgd.compression import EntryPatch, apply_rollback
from fedsgd.errors import OutputError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.execution import make_execution
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
from fedsgd.runtime.stores.shared import HEADER, PAGE_BYTES, SlotStore, deserialize_state, serialize_state, stored_bytes
from fedsgd.scenario.scenario import Scenario
from fedsgd.wire import encode_values
from tests.effort import examples, nightly_unless
from tests.systems import linux

FOLDER = Path(tempfile.gettempdir())
TEMPORARY_FOLDERS: list[str] = []
"""Folders that these tests created."""
STORES: dict[str, Callable[[int], ClientStore]] = {
    "memory": lambda n: InMemoryClientStore(),
    "nameless": SlotStore,
    "disk": lambda n: SlotStore(n, FOLDER),
    "folder": lambda n: FolderStore(
        Path(TEMPORARY_FOLDERS.append(tempfile.mkdtemp(prefix="fedsgd-test-")) or TEMPORARY_FOLDERS[-1])
    ),
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
def remove_temporary_folders() -> Iterator[None]:
    """Remove the folders at the end, because test processes do not run exit handlers."""
    yield
    for folder in TEMPORARY_FOLDERS:
        shutil.rmtree(folder, ignore_errors=True)


def is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and list(a) == list(b) and all(is_equal(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, ClientState | UncommittedState | EntryPatch):
        return type(a) is type(b) and all(is_equal(v, getattr(b, k)) for k, v in vars(a).items())
    return bool(a == b) or (a != a and b != b)  # NaN is equal to NaN


@pytest.mark.sampled
@pytest.mark.slow
@pytest.mark.parametrize("make_store", STORES.values(), ids=STORES.keys())
@examples(8, nightly=20)
@given(saves=st.lists(st.tuples(st.integers(0, 3), CLIENT_STATES), min_size=1, max_size=5))
def test_load_returns_the_last_saved_state(
    make_store: Callable[[int], ClientStore], saves: list[tuple[int, ClientState]]
) -> None:
    store, expected_states = make_store(4), dict.fromkeys(range(4), ClientState())
    for client, state in saves:
        store.save(client, state)
        expected_states[client] = state
        for loaded_client, expected in expected_states.items():
            assert is_equal(store.load(loaded_client), expected)


def test_loaded_arrays_are_writable_copies() -> None:
    store = SlotStore(1)
    store.save(0, ClientState({"residual": np.arange(5.0)}))
    store.load(0).committed_state["residual"][:] = 7
    assert store.load(0).committed_state["residual"].tolist() == [0, 1, 2, 3, 4]


def test_array_that_occurs_twice_is_stored_once() -> None:
    store, single, repeated = SlotStore(2), np.ones(10**5), np.ones(10**5)
    store.save(0, ClientState({"a": single}))
    store.save(1, ClientState({"a": repeated, "b": repeated}))
    used_bytes = [store._read_number(store._find_slot(client)[0]) for client in (0, 1)]
    assert used_bytes[1] < used_bytes[0] + 100
    assert is_equal(store.load(1), ClientState({"a": repeated, "b": repeated}))


def test_freed_slot_is_reused() -> None:
    store = SlotStore(3)
    states = [ClientState({"a": np.ones(n)}) for n in (1000, 10_000)]
    for _ in range(3):
        for state in states:
            store.save(0, state)
    end = store._read_number(0)
    store.save(1, states[0])
    assert store._read_number(0) == end, "client 1 uses the slot that client 0 outgrew"
    store.save(2, states[0])
    assert store._read_number(0) > end
    assert all(is_equal(store.load(c), states[0 if c else 1]) for c in range(3))


def test_state_with_only_a_round_takes_64_bytes() -> None:
    store = SlotStore(2)
    end = store._read_number(0)
    empty = ClientState({}, UncommittedState(10**6, {}, {}))
    store.save(1, empty)
    assert store._read_number(0) == end + 64 == end + stored_bytes(empty)
    assert is_equal(store.load(1), empty)


@pytest.mark.parametrize(("norms", "rounds_missed"), [((1 / 3, 2e-300), 17), ((0.0, 0.0), 0), ((math.nan, math.nan), -1)])
def test_statistics_of_the_last_reply_are_stored_with_the_uncommitted_state(
    norms: tuple[float, float], rounds_missed: int
) -> None:
    state = ClientState({}, UncommittedState(3, {}, {}, b"reply", *norms, rounds_missed))
    store = SlotStore(1)
    store.save(0, state)
    assert is_equal(store.load(0), state)
    lengths = [sum(map(len, serialize_state(ClientState({}, UncommittedState(3, {}, {}, None, x, x))))) for x in (0.5, 1 / 3)]
    assert lengths[0] == lengths[1], "the size of a state does not depend on its norms"


def test_state_without_statistics_of_its_reply_can_be_read() -> None:
    text = b"[2, 5, []]"
    data = HEADER.pack(64, len(text)) + text
    state = deserialize_state(np.frombuffer(data.ljust(64, b"\0"), dtype=np.uint8))
    assert is_equal(state, ClientState({}, UncommittedState(5, {}, {}), 2))


def test_unknown_client_and_object_array_raise_errors() -> None:
    store = SlotStore(3)
    for client in (-1, 3):
        with pytest.raises(IndexError, match=f"client: got {client}, expected 0 to 2"):
            store.load(client)
    with pytest.raises(TypeError, match=r"the client state entry words is object"):
        store.save(0, ClientState({"words": np.array(["a", None], dtype=object)}))


def save_many_states(store: SlotStore, first: int, n: int) -> None:
    for size in (1, 10, 600, 5000, 70_000):
        for client in range(first, n, 2):
            store.save(client, ClientState({"residual": np.full(size + client, client, np.float32)}))


@pytest.mark.slow
@pytest.mark.parametrize("folder", nightly_unless(lambda folder: folder is not None, [None, FOLDER]))
@pytest.mark.nightly
def test_concurrent_processes_save_all_states(folder: Path | None) -> None:
    store = SlotStore(40, folder)
    helper = mp.get_context("spawn").Process(target=save_many_states, args=(store, 0, 40))
    helper.start()
    save_many_states(store, 1, 40)
    helper.join(60)
    assert helper.exitcode == 0
    for client in range(40):
        residual = store.load(client).committed_state["residual"]
        assert residual.tolist() == [client] * (70_000 + client)


# ------------------------------------------------------------------------------------------------------------- many clients


def allocated_bytes(store: SlotStore) -> int:
    """Return the bytes that the file occupies. Pages that were never written occupy none."""
    return os.fstat(store.file.descriptor).st_blocks * 512


@pytest.mark.parametrize("folder", [None, FOLDER])
def test_clients_without_a_state_take_no_memory(folder: Path | None) -> None:
    state = ClientState({"residual": np.ones(3000, np.float32)})
    sizes = []
    for n_clients in (10**4, 10**7):
        store = SlotStore(n_clients, folder)
        assert allocated_bytes(store) <= 2 * PAGE_BYTES
        clients_with_state = np.random.default_rng(n_clients).choice(n_clients, 100, replace=False).tolist()
        tracemalloc.start()
        for client in clients_with_state:
            store.save(client, state)
            assert is_equal(store.load(client), state)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10 * stored_bytes(state)
        sizes.append(allocated_bytes(store))
        first = clients_with_state[0]
        assert store.load(first + 1 if first + 1 not in clients_with_state else first - 1).committed_state == {}
        store.close()
    assert stored_bytes(state) == 3 * PAGE_BYTES
    assert sizes[1] <= 100 * (stored_bytes(state) + 2 * PAGE_BYTES) + 2 * PAGE_BYTES, (
        "states that straddle pages, and pages of the index"
    )
    assert sizes[1] - sizes[0] <= 100 * PAGE_BYTES


@pytest.mark.slow
@given(CLIENT_STATES)
def test_stored_bytes_exceed_written_bytes_by_less_than_a_page_and_less_than_double(state: ClientState) -> None:
    written = sum(-(-len(part) // 64) * 64 for part in serialize_state(state))
    assert 0 <= stored_bytes(state) - written < min(PAGE_BYTES, written)


# ----------------------------------------------------------------------------------------------------------- removal of files


def test_file_on_disk_has_no_name(tmp_path: Path) -> None:
    store = SlotStore(3, tmp_path)
    store.save(1, ClientState({"a": np.ones(10)}))
    assert list(tmp_path.iterdir()) == []
    store.close()
    with pytest.raises(OutputError, match=r"nowhere: cannot create a file there \(No such file or directory\)"):
        SlotStore(3, tmp_path / "nowhere")


@pytest.mark.slow
@linux
def test_killed_process_leaves_no_file(tmp_path: Path) -> None:
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


def list_open_files(folder: Path) -> list[str]:
    """Return the files in a folder that this process has open, including files without a name."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except OSError:
            continue
    return [link for link in links if link.startswith(str(folder))]


@pytest.mark.slow
@linux
@pytest.mark.parametrize("workers", [1, 2])
def test_file_is_removed_after_an_exception(scenario: Callable[..., Scenario], workers: int, tmp_path: Path) -> None:
    experiment = build_experiment(scenario({"state.store": "disk", "state.folder": str(tmp_path)}), workers=2)

    def fails() -> None:
        with make_execution(experiment, workers):
            assert len(list_open_files(tmp_path)) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    gc.collect()
    assert list_open_files(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_full_memory_leaves_the_old_state(monkeypatch: pytest.MonkeyPatch) -> None:
    store, small, large = SlotStore(2), ClientState({"a": np.ones(3)}), ClientState({"a": np.ones(10**4)})
    store.save(0, small)

    def raise_full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("fedsgd.runtime.stores.shared.SlotStore._allocate_slot", raise_full)
        with pytest.raises(OSError, match="No space left"):
            store.save(0, large)
    assert is_equal(store.load(0), small)
    original, calls = os.pwrite, []

    def write_until_full(descriptor: int, data: Any, offset: int) -> int:
        calls.append(offset)
        return original(descriptor, data, offset) if len(data) < 10**4 else raise_full()

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", write_until_full)
        with pytest.raises(OSError, match="No space left"):
            store.save(0, large)
    assert calls
    assert is_equal(store.load(0), small)


# ------------------------------------------------------------------------------------------- the same run with every store


@pytest.mark.slow
@pytest.mark.parametrize("compressor", nightly_unless("ef21".__ne__, ["top-k", "dgc", "ef21"]))
def test_run_sends_the_same_frames_with_every_store(scenario: Callable[..., Scenario], compressor: str, tmp_path: Path) -> None:
    scheme_settings = {} if compressor == "top-k" else {"uplink.error_feedback": "none", "server.weighting": "uniform"}
    settings = {
        "uplink.compressor.name": compressor,
        "downlink.policy": "difference",
        "state.folder": str(tmp_path),
        **scheme_settings,
    }
    frames = []
    for workers, store in ((1, "memory"), (1, "disk"), (2, "memory"), (2, "disk")):
        experiment = build_experiment(scenario({**settings, "state.store": store}), workers=2)
        with make_execution(experiment, workers) as execution:
            server, sent_frames = experiment.initial_server_state, []
            for cohort in ([0, 1, 2, 3], [0, 2, 4, 6], [7, 3, 2, 0]):
                messages, server = broadcast(experiment.plan, server, sorted(cohort))
                replies = sorted(execution.runtime.exchange(messages, None), key=lambda reply: reply.client)
                sent_frames.append([reply.frames for reply in replies])
                server, _ = aggregate(experiment.plan, server, replies)
            frames.append(sent_frames)
    assert all(sent_frames == frames[0] for sent_frames in frames)


# --------------------------------------------------------------------------------------------------------- states in bfloat16

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


@examples(20)
@given(MIXED)
def test_bfloat16_state_rounds_float32_to_nearest_even_only(entries: dict[str, Any]) -> None:
    rounded = to_bfloat16_state(ClientState(entries))
    restored = to_float32_state(rounded)
    assert list(rounded.committed_state) == list(restored.committed_state) == list(entries)
    for name, array in entries.items():
        value = restored.committed_state[name]
        assert (value.shape, value.dtype) == (array.shape, array.dtype)
        if array.dtype == np.float32:
            assert rounded.committed_state[name].dtype == np.uint16
            assert rounded.committed_state[name].nbytes * 2 == array.nbytes
            assert value.tobytes() == encode_values(array.reshape(-1), "bfloat16")[1].tobytes()
            assert np.isfinite(value).all()
        else:
            assert rounded.committed_state[name] is array
    assert is_equal(to_bfloat16_state(restored), rounded), "a second rounding changes nothing"


@pytest.mark.slow
@examples(20)
@given(MIXED_CLIENTS)
def test_bfloat16_state_is_stored_alike_by_every_store(state: ClientState) -> None:
    rounded, expected = to_bfloat16_state(state), to_float32_state(to_bfloat16_state(state))
    for make_store in STORES.values():
        store = make_store(1)
        store.save(0, rounded)
        assert is_equal(to_float32_state(store.load(0)), expected)
    if state.uncommitted_state is not None:
        assert expected.uncommitted_state is not None
        assert is_equal(
            expected.uncommitted_state.state_if_accepted,
            to_float32_state(to_bfloat16_state(ClientState(state.uncommitted_state.state_if_accepted))).committed_state,
        )


def test_bfloat16_state_does_not_round_model_entries() -> None:
    third = np.full(3, 1 / 3, np.float32)
    rounded = to_bfloat16_state(ClientState({"own/parameters": third, "optimizer/steps": third, "scheme/residual": third}))
    assert rounded.committed_state["own/parameters"] is third
    assert rounded.committed_state["optimizer/steps"] is third
    assert rounded.committed_state["scheme/residual"].dtype == np.uint16


def test_rollback_of_a_bfloat16_state_gives_the_rounded_old_state() -> None:
    """Rounding and rollback commute, so the state after a lost reply does not depend on when it is rounded."""
    before, indices = np.float32(np.random.default_rng(0).standard_normal(50)), np.array([3, 7, 20])
    after = before.copy()
    after[indices] = 0
    rounded = to_bfloat16_state(
        ClientState({"r": before}, UncommittedState(1, {"r": after}, {"r": EntryPatch(indices, before[indices])}))
    )
    uncommitted = to_float32_state(rounded).uncommitted_state
    assert uncommitted is not None
    assert is_equal(
        apply_rollback(uncommitted.state_if_accepted, uncommitted.rollback),
        to_float32_state(to_bfloat16_state(ClientState({"r": before}))).committed_state,
    )


def test_array_that_occurs_twice_is_rounded_once() -> None:
    array = np.ones(10, np.float32)
    state = to_bfloat16_state(ClientState({"a": array}, UncommittedState(1, {"a": array}, {"a": EntryPatch(None, array)})))
    assert state.uncommitted_state is not None
    assert state.committed_state["a"] is state.uncommitted_state.state_if_accepted["a"]
    patch = state.uncommitted_state.rollback["a"]
    assert patch is not None
    assert patch.values is state.committed_state["a"]


def test_bfloat16_state_keeps_large_values_finite_and_rejects_uint16() -> None:
    largest = np.finfo(np.float32).max
    restored = to_float32_state(
        to_bfloat16_state(ClientState({"a": np.float32([largest, -largest, 1e-45, 0.0, -0.0])}))
    ).committed_state["a"]
    assert np.isfinite(restored).all()
    assert restored[0] == -restored[1] == np.float32(3.3895314e38)
    with pytest.raises(TypeError, match=r"the client state entry a is uint16"):
        to_bfloat16_state(ClientState({"a": np.zeros(3, np.uint16)}))
