"""Fixtures that many tests share: small data, small scenarios, the folder of real data."""

from __future__ import annotations

import os

# One thread for each worker of pytest, in its child processes too. The threads of several torch processes on few cores spin while
# they wait for one another: five times the processor time in tests/flower/app/test_example_apps.py.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fcntl
import gc
import importlib.util
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

COLLECTION_LOCKS: list[IO[str]] = []
"""Lock of this worker of pytest until its tests are collected, in a new checkout."""

# In a new checkout one worker imports and collects alone. The others wait for it, and then find the bytecode files that Python and
# pytest wrote: collection takes 30 s of processor time without them and 16 s with them.
HAS_BYTECODE = sys.dont_write_bytecode or (Path(__file__).parent / "wire" / "__pycache__").exists()
if "PYTEST_XDIST_WORKER" in os.environ and not HAS_BYTECODE:
    lock = (Path(tempfile.gettempdir()) / f"fedsgd-collection-{os.environ.get('PYTEST_XDIST_TESTRUNUID')}").open("w")
    COLLECTION_LOCKS.append(lock)
    with suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # wait for the first worker, but not for the others
            fcntl.flock(lock, fcntl.LOCK_SH)

import numpy as np
import pytest
from hypothesis import settings

from fedsgd.data import Dataset, Examples
from fedsgd.numerics.kernels import Kernel
from fedsgd.scenario.scenario import Scenario, load
from tests.effort import EFFORT, find_nightly_items

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent

SLOW_KINDS = ("deployment", "browser", "examples")
"""Markers of tests that are slow by their kind."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a process in the background, from which all processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True, max_examples=50 if EFFORT == 1 else 100)
settings.load_profile("default")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one worker more than there are cores if there are slow tests, because tests of processes spend their time waiting."""
    return len(os.sched_getaffinity(0)) + (config.option.markexpr != "not slow")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Collect tests without garbage collection, and exclude their objects from it: they would dominate its time, a second each."""
    gc.disable()
    try:
        return (yield)
    finally:
        while COLLECTION_LOCKS:
            lock = COLLECTION_LOCKS.pop()
            Path(lock.name).unlink(missing_ok=True)
            lock.close()
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Search no examples in the helper modules of the tests, some of which need libraries that are not installed."""
    is_helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if is_helper else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark docstrings' examples and tests that open a browser, and tests of each slow kind with `slow`; leave out nightly cases.

    Modules with slow tests come first. One of them alone at the end would leave the other workers of pytest without work.
    """
    nightly = find_nightly_items(items) if EFFORT == 1 else []
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        left_out = set(nightly)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker("examples")
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
        if any(item.get_closest_marker(kind) for kind in SLOW_KINDS):
            item.add_marker("slow")
    slow_modules = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_modules)


@pytest.fixture(scope="session", autouse=True)
def unsynced_files() -> Iterator[None]:
    """Replace `os.fsync` in this process, because no test survives a power failure: a run with checkpoints waits 37 times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def single_compilation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let one worker of pytest compile a loop while the others wait for it, and then load it from numba's cache.

    In a new checkout, all loops together take a minute of processor time, which each worker would spend.
    """
    folder = tmp_path_factory.getbasetemp().parent
    compile_loop = Kernel.compile

    def compile_locked(kernel: Kernel[..., Any]) -> Any:
        function: Any = compile_loop(kernel)
        compile_signature = getattr(function, "compile", None)

        def compile_alone(signature: Any) -> Any:
            with (folder / f"{kernel.loop.__module__}.{kernel.loop.__name__}.lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                return compile_signature(signature)

        if compile_signature is not None and kernel.loop.__module__.startswith("fedsgd."):
            function.compile = compile_alone
        return function

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernel, "compile", compile_locked)
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the project's root."""
    return ROOT


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of real data; skip the test if there is none."""
    folder = Path(os.environ.get("FEDSGD_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "mnist").is_dir():
        pytest.skip(f"no real data in {folder}: set FEDSGD_DATA")
    return folder


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of a user's modules, on the path of this process only. The modules that a test imports are removed at the end."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    modules = set(sys.modules)
    yield folder
    for name in set(sys.modules) - modules:
        if str(folder) in str(getattr(sys.modules[name], "__file__", None) or getattr(sys.modules[name], "__path__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def quick_collection() -> None:
    """Exclude the objects of earlier tests from garbage collection, which Flower runs for each record that it reads as arrays."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the Hugging Face libraries offline, with a cache in the test's folder."""
    import datasets

    for name, value in (("HF_HUB_OFFLINE", True), ("HF_DATASETS_OFFLINE", True), ("HF_DATASETS_CACHE", tmp_path / "cache")):
        monkeypatch.setattr(datasets.config, name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def scenario() -> Callable[..., Scenario]:
    """Return a function that builds the quickstart at a tiny size, with the whole model as downlink.

    Its argument overrides settings by dotted key: scenario({"rounds": 3}).
    """

    def make(settings: dict[str, Any] | None = None) -> Scenario:
        tiny = {"rounds": 3, "client.epochs": 1, "server.cohort": 4, "data.partition.clients": 8}
        tiny["downlink.policy"] = "model"
        for key, alternative in (("client.steps", "client.epochs"), ("server.fraction", "server.cohort")):
            if key in (settings or {}):
                del tiny[alternative]
        return load(ROOT / "scenarios" / "quickstart.toml", {**tiny, **(settings or {})})

    return make


@pytest.fixture(scope="session")
def blobs() -> Dataset:
    """Return three Gaussian classes in eight dimensions: 120 training and 60 test examples."""
    rng = np.random.default_rng(7)
    y = rng.integers(0, 3, 180)
    x = (rng.standard_normal((180, 8)) + 2 * np.eye(3, 8)[y]).astype(np.float32)
    return Dataset(Examples(x[:120], y[:120]), Examples(x[120:], y[120:]), classes=3)


@pytest.fixture
def failing_metrics(blobs: Dataset) -> dict[str, Callable[..., Any]]:
    """Return a metric that fails at the second evaluation of the test examples of `blobs`; the first is the trial before a run."""
    evaluations = 0

    def odd(output: Any, target: Any) -> Any:
        nonlocal evaluations
        evaluations += len(target) == len(blobs.test)
        return target / (evaluations < 2 or 1 / 0)

    return {"odd": odd}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Open a headless Chromium. Without Chromium or Playwright, tests are skipped; under CI they fail.

    The scope is a module because Playwright's event loop runs in its thread while the browser is open.
    """
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None or importlib.util.find_spec("playwright") is None:
        missing = "Chromium on PATH: apt-get install chromium" if chromium is None else "Playwright: pip install playwright"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no {missing}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        chromium_browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        yield chromium_browser
        chromium_browser.close()
