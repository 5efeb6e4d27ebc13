"""Kernels and their references: equal bytes on ordinary and extreme input."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsgd
from fedsgd.compression.kernels import top_k
from fedsgd.compression.kernels.cosine import cosine_basis
from fedsgd.compression.kernels.hadamard import compute_block_ends
from fedsgd.compression.operators.eden import CENTROIDS
from fedsgd.numerics import kernels
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.kernels import (
    FALLBACK_CACHE_VARIABLE,
    KERNELS,
    REFERENCE_BUDGET_NS,
    SHORT_CALL_ELEMENTS,
    Kernel,
    kernel,
    set_fallback_cache,
)
from fedsgd.wire import bits, chunk_codec, floats, gap_codec, levels, rans, rans_kernels

for module in pkgutil.walk_packages(fedsgd.__path__, "fedsgd."):
    if module.name not in ("fedsgd.__main__", "fedsgd.trackers.mlflow"):  # mlflow takes two seconds
        importlib.import_module(module.name)

SIZES = (1, 2, 15, 63, 64, 65, 127, 128, 129, 1000, 4097)
U64 = np.uint64


def draw_floats(rng: np.random.Generator, size: int) -> F32:
    """Draw numbers of many magnitudes, with zeros of both signs, ties, subnormals and extreme numbers."""
    x = (rng.standard_normal(size) * 10.0 ** rng.integers(-12, 12, size)).astype(np.float32)
    special = np.array([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 3.4e38, -3.4e38, 2.0**-14, 2.0**127], dtype=np.float32)
    mask = rng.random(size) < 0.2
    x[mask] = rng.choice(special, int(mask.sum()))
    return x


def clip_magnitudes(x: F32) -> F32:
    """Clip magnitudes, so that no square and no sum overflows."""
    return np.clip(x, -1e6, 1e6)


def draw_symbols(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw symbols with draw_symbols frequencies."""
    return np.minimum(rng.geometric(rng.uniform(0.02, 0.99), size) - 1, 255).astype(np.uint8)


def draw_positions(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.sort(rng.choice(size, int(rng.integers(1, size + 1)), replace=False)).astype(np.int64)


def draw_gaps(rng: np.random.Generator, size: int) -> np.ndarray:
    return (rng.pareto(rng.uniform(0.1, 3), size) * rng.choice([0.1, 10, 1000])).clip(0, 2**31 - 1).astype(np.int64)


def normalise_symbols(rng: np.random.Generator, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    scale_bits = int(rng.choice([12, 15]))
    return (
        symbols,
        rans_kernels.normalise_frequencies(np.bincount(symbols, minlength=256).astype(np.int64), scale_bits),
        scale_bits,
    )


def draw_code(rng: np.random.Generator, size: int) -> tuple[Any, ...]:
    symbols = draw_symbols(rng, size)
    _, frequencies, scale_bits = normalise_symbols(rng, symbols)
    words, states = rans_kernels.encode.reference(symbols, frequencies, scale_bits)
    return words, states.astype(U64), frequencies, scale_bits, size


def damage(rng: np.random.Generator, data: bytes) -> np.ndarray:
    """Return bytes, with one byte replaced in half of the cases."""
    array = np.frombuffer(data, dtype=np.uint8).copy()
    if len(array) and rng.random() < 0.5:
        array[rng.integers(len(array))] = rng.integers(256)
    return array


def draw_stream(rng: np.random.Generator, size: int) -> tuple[np.ndarray, int, int]:
    symbols, mode = draw_symbols(rng, size), int(rng.integers(1, 3))
    code = rans._encode_mode(symbols, np.bincount(symbols, minlength=256).astype(np.int64), mode)
    return damage(rng, code), rans.SCALE_BITS[mode], size


def draw_rice_code(rng: np.random.Generator, size: int) -> tuple[np.ndarray, int]:
    gaps = np.minimum(draw_gaps(rng, size), 10**5)
    return damage(rng, gap_codec.encode_rice(gaps, gap_codec.choose_rice_parameters(gaps)[0])), size


def draw_mantissas(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    gaps = draw_gaps(rng, size)
    classes = gap_codec._bit_lengths.reference(gaps)
    return damage(rng, bits.pack(gaps, gap_codec._mantissa_widths(classes))), classes


def draw_fields(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    widths = rng.integers(0, 33, size)
    return rng.integers(0, 2**32, size), widths, int(widths.sum())


def draw_packed_words(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    values, widths, n_bits = draw_fields(rng, size)
    return bits._to_words32(bits._pack.reference(values, widths, n_bits).tobytes()), widths


def draw_levels(rng: np.random.Generator, size: int) -> tuple[Any, ...]:
    x, bucket, level = (
        clip_magnitudes(draw_floats(rng, size)),
        int(rng.choice([size, 128, 7])),
        int(rng.choice([1, 7, 64, 127])),
    )
    scales = np.array([np.abs(x[i : i + bucket]).max() for i in range(0, size, bucket)], dtype=np.float32)
    return x, scales, level, bucket


def draw_digits(rng: np.random.Generator, size: int) -> tuple[np.ndarray, int, int]:
    base = int(rng.choice([2, 3, 9, 15, 255]))
    return rng.integers(0, base, size).astype(np.uint8), base, levels.digits_per_byte(base)


def draw_halves(rng: np.random.Generator, size: int) -> np.ndarray:
    words = rng.integers(0, 65536, size).astype(np.uint32)
    return np.where((words & 0x7C00) == 0x7C00, words & np.uint32(0x83FF), words)


def draw_candidates(rng: np.random.Generator, size: int) -> tuple[Any, ...]:
    words = rng.integers(0, 50, size).astype(np.uint32) | rng.integers(0, 2, size).astype(np.uint32) << np.uint32(31)
    k = int(rng.integers(1, size + 1))
    return np.cumsum(rng.integers(1, 9, size)), words, top_k._kth_largest.reference(words, k), k


def draw_matrix(rng: np.random.Generator, rows: int, columns: int) -> F32:
    return clip_magnitudes(draw_floats(rng, rows * columns)).reshape(rows, columns)


def draw_chunks(rng: np.random.Generator, size: int) -> tuple[int, np.ndarray]:
    """Draw the length of chunks, and a limit of positions for each chunk."""
    length = min(size, int(rng.choice([1, 7, 64, 2000])))
    lengths = np.minimum(length, size - np.arange(0, size, length))
    return length, rng.integers(1, lengths + 1).astype(np.int64)


def draw_chunk_positions(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    positions, (length, limits) = draw_positions(rng, size), draw_chunks(rng, size)
    return positions, np.bincount(positions // length, minlength=len(limits)).astype(np.int64), length, size


def draw_chunk_code(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    arguments = draw_chunk_positions(rng, size)
    return damage(rng, chunk_codec._encode_decisions.reference(*arguments).tobytes()), *arguments[1:]


Case = Callable[[np.random.Generator, int], tuple[Any, ...]]
CASES: dict[str, Case] = {
    "wire.bits._pack": draw_fields,
    "wire.bits._unpack": draw_packed_words,
    "wire.bits._pack_unary": lambda r, n: ((v := r.integers(0, 90, n)), int(v.sum()) + n),
    "wire.bits.bitmap_positions": lambda r, n: ((w := r.integers(0, 2**63, n).astype(U64)), int(np.bitwise_count(w).sum())),
    "wire.gap_codec.positions_to_gaps": lambda r, n: (draw_positions(r, n),),
    "wire.gap_codec.encode_short": lambda r, n: (np.cumsum(draw_gaps(r, n) + 1) - 1,),
    "wire.gap_codec._decode_rice": lambda r, n: draw_rice_code(r, n),
    "wire.gap_codec._unpack_mantissas": lambda r, n: draw_mantissas(r, n),
    "wire.index_codec._gaps_to_positions": lambda r, n: (
        (gaps := draw_gaps(r, n)),
        int(gaps.sum()) + n + int(r.integers(-1, 2)),
    ),
    "wire.gap_codec._choose_rice_parameters": lambda r, n: (draw_gaps(r, n),),
    "wire.gap_codec._bit_lengths": lambda r, n: (draw_gaps(r, n),),
    "wire.chunk_codec._encode_decisions": draw_chunk_positions,
    "wire.chunk_codec._decode_decisions": draw_chunk_code,
    "wire.grouped_values._assign_bins": lambda r, n: (
        clip_magnitudes(draw_floats(r, n)),
        (c := np.diff([0, *(draw_positions(r, n)[: int(r.integers(0, n))] + 1), n]))[c > 0],
    ),
    "wire.rans.encode_short": lambda r, n: (draw_symbols(r, n),),
    "wire.rans._decode_stream": lambda r, n: draw_stream(r, n),
    "wire.floats._encode_short": lambda r, n: (
        draw_floats(r, n).view(np.uint32) >> np.uint32(16 * (width := int(r.integers(2)))),
        32 - 16 * width,
    ),
    "wire.rans_kernels.histogram": lambda r, n: (draw_symbols(r, n),),
    "wire.rans_kernels.normalise_frequencies": lambda r, n: (
        np.bincount(draw_symbols(r, n), minlength=256).astype(np.int64),
        int(r.choice([12, 15])),
    ),
    "wire.rans_kernels.encode": lambda r, n: normalise_symbols(r, draw_symbols(r, n)),
    "wire.rans_kernels.decode": draw_code,
    "wire.floats._split": lambda r, n: (draw_floats(r, n).view(np.uint32), 32),
    "wire.floats._join": lambda r, n: (*floats._split.reference(draw_floats(r, n).view(np.uint32), 32), 32),
    "wire.floats._to_bfloat16": lambda r, n: (draw_floats(r, n).view(np.uint32),),
    "wire.floats._round_to_powers_of_two": lambda r, n: (draw_floats(r, n).view(np.uint32), U64(r.integers(2**63))),
    "wire.floats._to_float16": lambda r, n: ((x := draw_floats(r, n)), 2.0 ** -floats.choose_scale_exponent(x)),
    "wire.floats._from_float16": lambda r, n: (draw_halves(r, n), 2.0 ** int(r.integers(-163, 114))),
    "wire.levels._quantise": lambda r, n: (*draw_levels(r, n), U64(r.integers(2**63)), bool(r.integers(2))),
    "wire.levels.dequantise": lambda r, n: (
        (c := draw_levels(r, n)) and r.integers(0, 2 * c[2] + 1, n).astype(np.uint8),
        *c[1:],
    ),
    "wire.levels._pack_digits": draw_digits,
    "wire.levels._unpack_digits": lambda r, n: ((d := draw_digits(r, n)) and levels._pack_digits.reference(*d), *d[1:]),
    "numerics.reductions.bucket_sums": lambda r, n: (
        clip_magnitudes(draw_floats(r, n)),
        int(r.choice([n, 128, 7])),
        int(r.integers(1, 3)),
    ),
    "numerics.reductions.bucket_max_magnitudes": lambda r, n: (draw_floats(r, n), int(r.choice([n, 128, 7]))),
    "numerics.reductions.first_non_finite": lambda r, n: (
        np.where(r.random(n) < 1 / n, np.float32(r.choice([np.nan, -np.inf])), draw_floats(r, n)),
    ),
    "numerics.reductions.patched_squared_norms": lambda r, n: (
        (x := clip_magnitudes(draw_floats(r, n))),
        (i := draw_positions(r, n)),
        x[i] * np.float32(0.5),
    ),
    "numerics.reductions.scatter_add": lambda r, n: (
        (out := r.standard_normal(3 * n)),
        (i := draw_positions(r, n)),
        out[i].astype(np.float32),
        0.1,
    ),
    "compression.kernels.top_k._collect": lambda r, n: (
        draw_floats(r, n).view(np.uint32),
        np.uint32(r.integers(1, 2**31)),
        int(r.integers(n, 2 * n)),
    ),
    "compression.kernels.top_k._top_k": lambda r, n: (draw_floats(r, n).view(np.uint32), int(r.integers(1, n + 1))),
    "compression.kernels.top_k._chunk_top_k": lambda r, n: (draw_floats(r, n).view(np.uint32), *draw_chunks(r, n)),
    "compression.kernels.cosine.multiply_blocks": lambda r, n: (
        clip_magnitudes(draw_floats(r, n)) * (r.random(n) < 0.7).astype(np.float32),
        cosine_basis(n if n < 130 else next(m for m in (125, 17, 1) if n % m == 0)),
    ),
    "compression.updates._is_ascending": lambda r, n: (np.cumsum(r.integers(0 if r.random() < 0.5 else 1, 9, n)), 5 * n),
    "compression.updates._scatter_add_float32": lambda r, n: (
        (out := r.standard_normal(3 * n).astype(np.float32)),
        (i := draw_positions(r, n)),
        out[i] * np.float32(3),
        np.float32(0.1),
    ),
    "compression.kernels.top_k._keep_with_ties": draw_candidates,
    "compression.kernels.top_k._kth_largest": lambda r, n: (draw_floats(r, n).view(np.uint32), int(r.integers(1, n + 1))),
    "compression.updates._add_levels": lambda r, n: (
        r.standard_normal(n),
        r.integers(0, 2 * (c := draw_levels(r, n))[2] + 1, n).astype(np.uint8),
        *c[1:],
        float(r.random()),
    ),
    "compression.updates._add_signs": lambda r, n: (
        r.standard_normal(n),
        r.integers(0, 256, (n + 7) // 8).astype(np.uint8),
        0.3,
    ),
    "compression.updates.pack_signs": lambda r, n: (draw_floats(r, n),),
    "compression.operators.eden._quantise": lambda r, n: (
        clip_magnitudes(draw_floats(r, n)),
        compute_block_ends(n),
        U64(r.integers(2**63)),
        np.array(CENTROIDS[int(r.integers(1, 5))]),
        bool(r.integers(2)),
    ),
    "compression.operators.eden._restore": lambda r, n: (
        r.integers(0, 8, (e := compute_block_ends(n))[-1]).astype(np.uint8),
        r.random(len(e)).astype(np.float32),
        e,
        U64(r.integers(2**63)),
        np.array(CENTROIDS[3]),
        n,
    ),
    "compression.operators.count_sketch._sketch": lambda r, n: (
        clip_magnitudes(draw_floats(r, n)),
        int(r.choice([1, 3, 5])),
        int(r.integers(1, n + 1)),
        U64(r.integers(2**63)),
    ),
    "compression.operators.count_sketch._unsketch": lambda r, n: (
        np.round(r.standard_normal((int(r.choice([1, 3, 5])), 7))),
        n,
        U64(r.integers(2**63)),
    ),
    "compression.schemes.dgc._accumulate": lambda r, n: (
        *(clip_magnitudes(draw_floats(r, n)) for _ in range(3)),
        np.float32(0.9),
        np.float32(r.choice([1, 0.3])),
        bool(r.integers(2)),
    ),
    "compression.schemes.power_sgd._multiply": lambda r, n: (draw_matrix(r, 3, n), draw_matrix(r, n, 2)),
    "compression.schemes.power_sgd._multiply_transposed": lambda r, n: (draw_matrix(r, n, 5), draw_matrix(r, n, 2)),
    "compression.schemes.power_sgd._product": lambda r, n: (draw_matrix(r, n, 2), draw_matrix(r, 4, 2)),
    "compression.operators.randk._sample": lambda r, n: (int(r.integers(1, n + 1)), n, U64(r.integers(2**63))),
}


def are_equal(a: Any, b: Any) -> bool:
    """Return True if all bits are equal. Arrays of different lengths are compared over the shorter one."""
    if isinstance(a, tuple):
        return all(are_equal(x, y) for x, y in zip(a, b, strict=True))
    if not isinstance(a, np.ndarray):
        return bool(a == b)
    n = min(len(a), len(b))
    return a.dtype == b.dtype and a[:n].tobytes() == b[:n].tobytes()


def list_kernels() -> Iterator[Any]:
    for name, loop in KERNELS.items():
        if name.startswith("fedsgd."):
            yield pytest.param(name.removeprefix("fedsgd."), loop, id=name.removeprefix("fedsgd."))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "loop"), list(list_kernels()))
def test_kernel_after_compilation_gives_the_bytes_of_its_reference(name: str, loop: Kernel[..., Any]) -> None:
    compiled = loop.compile()
    assert compiled is not None, "numba is not installed"
    rng = np.random.default_rng(0)
    for size in SIZES:
        for _ in range(5):
            arguments = CASES[name](rng, size)
            copies = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
            expected, result = loop.reference(*copies), compiled(*arguments)
            assert are_equal(result, expected), (size, arguments)
            assert all(are_equal(a, b) for a, b in zip(arguments, copies, strict=True)), "arguments after writes in place"


def test_every_kernel_has_a_case() -> None:
    assert {name.removeprefix("fedsgd.") for name in KERNELS if name.startswith("fedsgd.")} == set(CASES)


def test_kernel_with_another_order_of_operations_is_not_equal() -> None:
    """The comparison above detects such a kernel."""

    def total(x: F32) -> float:
        return float(np.add.accumulate(x.astype(np.float64))[-1])

    @kernel(total)
    def backwards(x: F32) -> float:
        out = 0.0
        for i in range(x.size - 1, -1, -1):
            out += np.float64(x[i])
        return out

    KERNELS.pop(f"{__name__}.backwards")
    x = np.array([1e20, 1, -1e20, 1], dtype=np.float32)
    compiled = backwards.compile()
    assert compiled is not None
    assert (compiled(x), backwards.reference(x)) == (0, 1)
    assert not are_equal(compiled(x), backwards.reference(x))


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat this process as a new one."""
    monkeypatch.setattr(kernels, "_PROCESS", kernels._Process())


def negate(x: F32) -> F32:
    return -x


def make_counting_kernel(element_ns: int = 0) -> tuple[Kernel[[F32], F32], list[str]]:
    """Return a kernel, and the list of the forms that its calls used."""
    forms: list[str] = []

    def run_reference(x: F32) -> F32:
        forms.append("reference")
        return -x

    counted = Kernel(run_reference, negate, element_ns=element_ns)
    KERNELS.pop(f"{__name__}.negate")

    def run_loop(x: F32) -> F32:
        forms.append("loop")
        return -x

    counted.compile = lambda: run_loop  # type: ignore[method-assign]
    return counted, forms


@pytest.mark.usefixtures("process")
def test_short_arrays_use_the_reference_until_the_first_long_array() -> None:
    first, first_forms = make_counting_kernel()
    second, second_forms = make_counting_kernel()
    short, long = np.ones(SHORT_CALL_ELEMENTS, np.float32), np.ones(SHORT_CALL_ELEMENTS + 1, np.float32)
    for x in (short, short, long, short):
        first(x)
    second(short)
    assert (first_forms, second_forms) == (["reference", "reference", "loop", "loop"], ["loop"])


@pytest.mark.usefixtures("process")
def test_loops_take_over_when_the_references_have_used_their_budget() -> None:
    costly, forms = make_counting_kernel(element_ns=REFERENCE_BUDGET_NS // 10)
    for _ in range(12):
        costly(np.ones(1, np.float32))
    assert forms == ["reference"] * 9 + ["loop"] * 3  # each call also costs REFERENCE_CALL_NS


@pytest.mark.usefixtures("process")
def test_use_loops_applies_to_short_arrays() -> None:
    counted, forms = make_counting_kernel()
    kernels.use_loops()
    counted(np.ones(1, np.float32))
    assert forms == ["loop"]


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
import numpy as np
from tests.golden.frames import frames
import json
golden = json.loads(open("tests/golden/frames.json").read())
for name, op, frame in frames():
    assert frame.hex() == golden[name], name
print(len(golden))
"""


@pytest.mark.nightly
@pytest.mark.parametrize("numba", ["missing", "disabled"])
def test_golden_frames_without_numba_are_equal(numba: str, root: Any) -> None:
    code = WITHOUT_NUMBA if numba == "missing" else WITHOUT_NUMBA.replace('sys.modules["numba"] = None', "")
    env = {"FEDSGD_KERNELS": "numpy"} if numba == "disabled" else {}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=env, check=False)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 20


def add_one(x: F32) -> F32:
    return x + np.float32(1)


@pytest.fixture
def numba_folders_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import CacheImpl, UserProvidedCacheLocator

    monkeypatch.setattr(CacheImpl, "_locator_classes", [UserProvidedCacheLocator])
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    monkeypatch.setattr("fedsgd.numerics.kernels.SHORT_CALL_ELEMENTS", 0)


def count_stored_loops(folder: Path) -> int:
    """Compile and call a loop; return the number of compiled loops in a folder."""
    import numba

    loop = Kernel(add_one, add_one)
    KERNELS.pop(f"{__name__}.add_one")
    assert loop(np.zeros(2, np.float32)).tolist() == [1, 1]
    assert not numba.config.CACHE_DIR
    return len(list(folder.rglob("*.nbi")))


@pytest.mark.slow
def test_signatures_that_are_stored_at_the_same_time_are_not_confused(
    user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process stores its signature between the first one's index and compiled file, from the same empty index."""
    (user_folder / "simultaneous.py").write_text("def add_one(x):\n    return x + 1\n")
    add_one = importlib.import_module("simultaneous").add_one

    def compile_add_one() -> Any:
        loop = Kernel(add_one, add_one)
        KERNELS.pop("simultaneous.add_one")
        return loop.compile()

    first, second = compile_add_one(), compile_add_one()
    store = first._cache._cache_file._save_data

    def store_late(*arguments: Any) -> None:
        second(np.zeros(2, np.float64))
        store(*arguments)

    monkeypatch.setattr(second._cache._cache_file, "_load_index", dict)
    monkeypatch.setattr(first._cache._cache_file, "_save_data", store_late)
    first(np.zeros(2, np.float32))
    later = compile_add_one()
    for dtype in (np.float64, np.float32):
        assert later(np.zeros(2, dtype)).tolist() == [1, 1]
    assert sum(later.stats.cache_hits.values()) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("numba_folders_cannot_be_written")
def test_fallback_cache_in_private_folder_is_created_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FALLBACK_CACHE_VARIABLE, "")
    assert count_stored_loops(tmp_path) == 0
    monkeypatch.delenv(FALLBACK_CACHE_VARIABLE)
    set_fallback_cache(tmp_path / "above" / "kernels")
    set_fallback_cache(tmp_path / "another")
    assert count_stored_loops(tmp_path / "above" / "kernels") == 1
    assert (tmp_path / "above" / "kernels").stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "another").exists()


@pytest.mark.sampled
@pytest.mark.usefixtures("numba_folders_cannot_be_written")
@pytest.mark.parametrize("fault", ["writable for all", "writable for the group", "parent", "owner", "file", "symbolic link"])
def test_fallback_cache_in_folder_that_others_can_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Numba unpickles the files in its cache."""
    folder = tmp_path / "above" / "kernels"
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv(FALLBACK_CACHE_VARIABLE, str(folder))
    if fault == "writable for all":
        folder.chmod(0o777)
    elif fault == "writable for the group":
        folder.chmod(0o770)
    elif fault == "parent":
        folder.parent.chmod(0o777)
    elif fault == "owner":
        owner = os.geteuid()
        monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    elif fault == "file":
        folder.rmdir()
        folder.touch()
    else:
        folder.chmod(0o777)
        (tmp_path / "link").symlink_to(folder)
        monkeypatch.setenv(FALLBACK_CACHE_VARIABLE, str(tmp_path / "link"))
    assert count_stored_loops(tmp_path) == 0


@pytest.mark.slow
def test_import_of_fedsgd_does_not_import_numba() -> None:
    code = "import sys, fedsgd, fedsgd.compression, fedsgd.cli; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
