"""The strategy inside a CompressedStrategy: its own `start`, attributes and methods, and rules that resist wrong replies."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, Result, Strategy

from fedsgd.errors import ScenarioError
from fedsgd.flower import CompressedStrategy
from fedsgd.flower.app.inner_strategy import DEFAULT_TIMEOUT, HOOKS, find_setting, find_timeout, iterate_strategies
from tests.flower.grid import identity
from tests.flower.regression import NODES, Grid, examples, grid, last_mse, zeros

pytestmark = pytest.mark.usefixtures("quick_collection")


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FEDSGD_STATE", str(tmp_path / "state"))
    with identity(1):
        yield


# ------------------------------------------------------------------------------------------------------------ its own start


class Saving(FedAvg):
    """A strategy with a `start` of its own, which saves every model that is better than those before."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.saved: list[int] = []
        self.best = float("inf")
        self.path = "unset"

    def set_save_path(self, path: str) -> None:
        self.path = path

    def start(self, grid: Any, initial_arrays: ArrayRecord, project: str, num_rounds: int = 3, **settings: Any) -> Any:
        self.project = project
        self.result = super().start(grid, initial_arrays, num_rounds, evaluate_fn=self._save, **settings)
        return {"project": project, "path": self.path, "result": self.result}

    def _save(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        error = sum(float(((examples(p)[0] @ arrays["w"].numpy() - examples(p)[1]) ** 2).mean()) for p in range(NODES))
        if error < self.best:
            self.best = error
            self.saved.append(server_round)
        return MetricRecord({"error": error})


def test_bytes_of_all_rounds_of_one_start_are_logged_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flwr")
    strategy = CompressedStrategy(FedAvg(), "dense")
    for _ in range(2):
        begun = len(strategy.traffic)
        caplog.clear()
        strategy.start(grid(), zeros(), num_rounds=2)
        rows = strategy.traffic[begun:]
        up, plain = sum(row.message_up for row in rows), sum(row.plain_up + row.plain_down for row in rows)
        ratio = plain / sum(row.message_up + row.message_down for row in rows)
        (line,) = [record.message for record in caplog.records if "all rounds" in record.message]
        assert f"in Flower's messages {up:,} up," in line
        assert line.endswith(f"; compression ratio {ratio:,.1f} both ways (bytes without compression, divided by these bytes)")


def test_own_start_of_the_inner_strategy_runs_with_compressed_messages() -> None:
    plain, compressed = Saving(), CompressedStrategy(Saving(), "dense")
    plain.set_save_path("folder")
    compressed.set_save_path("folder")
    expected = plain.start(grid([]), zeros(), "project", num_rounds=4, timeout=60)
    over = grid()
    got = compressed.start(over, zeros(), "project", num_rounds=4, timeout=60)

    assert (got["project"], got["path"]) == ("project", "folder")
    assert compressed.inner.saved == plain.saved == [0, 1, 2, 3, 4]
    for weights in ("w", "b"):
        values = [result["result"].arrays[weights].numpy() for result in (got, expected)]
        np.testing.assert_allclose(*values, rtol=1e-5)
    assert [*got["result"].evaluate_metrics_serverapp] == [0, 1, 2, 3, 4]
    assert [traffic.round for traffic in compressed.traffic if traffic.what == "train"] == [1, 2, 3, 4]
    assert all("fedsgd" in content for content in over.contents)


@pytest.mark.parametrize("own_method", [True, False])
def test_methods_of_the_inner_strategy_are_restored_after_start(own_method: bool) -> None:
    inner, summary = FedAvg(), mock.Mock()
    if own_method:
        vars(inner)["summary"] = summary
    before = dict(vars(inner))
    strategy = CompressedStrategy(inner, "dense")
    strategy.start(grid(), zeros(), num_rounds=1)
    assert vars(inner) == before
    assert summary.call_count == own_method

    with mock.patch.object(Grid, "send_and_receive", side_effect=OSError("no link")), pytest.raises(OSError, match="no link"):
        strategy.start(grid(), zeros(), num_rounds=1)
    assert vars(inner) == before
    assert strategy.start(grid(), zeros(), num_rounds=1).train_metrics_clientapp


def test_start_within_the_start_of_the_inner_strategy_is_compressed() -> None:
    class Twice(FedAvg):
        def start(self, *args: Any, **kwargs: Any) -> Result:
            super().start(*args, **kwargs)
            depth.append(len(depth))
            return outer.start(*args, **kwargs) if len(depth) < 3 else super().start(*args, **kwargs)

    depth: list[int] = []
    outer = CompressedStrategy(Twice(), "dense")
    over = grid(nodes=2)
    outer.start(over, zeros(), num_rounds=1)
    assert [traffic.what for traffic in outer.traffic] == ["train", "evaluate"] * 4
    assert all("fedsgd" in content for content in over.contents)
    assert not {*HOOKS} & vars(outer.inner).keys()


def test_methods_that_call_each_other_get_messages_that_are_not_compressed() -> None:
    class Reusing(FedAvg):
        def configure_evaluate(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
        ) -> Iterable[Message]:
            for message in self.configure_train(server_round, arrays, config, grid):
                assert "arrays" in message.content
                yield Message(message.content, message.metadata.dst_node_id, "evaluate")

    strategy = CompressedStrategy(Reusing(), "dense")
    result = strategy.start(grid(nodes=2), zeros(), num_rounds=2)
    assert [*result.evaluate_metrics_clientapp] == [1, 2]
    assert [(t.round, t.what) for t in strategy.traffic] == [(1, "train"), (1, "evaluate"), (2, "train"), (2, "evaluate")]


def test_methods_of_a_subclass_of_compressed_strategy_are_called() -> None:
    class Counting(CompressedStrategy):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            rounds.append(server_round)
            return super().aggregate_train(server_round, replies)

    rounds: list[int] = []

    strategy = Counting(FedAvg(), "dense")
    strategy.start(grid(nodes=2), zeros(), num_rounds=2)
    assert rounds == [1, 2]
    assert len(strategy.traffic) == 4


def test_a_start_that_calls_no_method_of_its_object_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Bypassing(FedAvg):
        def start(self, grid: Any, initial_arrays: ArrayRecord) -> Any:
            messages = super().configure_train(1, initial_arrays, ConfigRecord(), grid)
            return super().aggregate_train(1, grid.send_and_receive(messages))

    caplog.set_level(logging.WARNING, logger="flwr")
    strategy = CompressedStrategy(Bypassing(), "dense")
    strategy.start(grid(nodes=2), zeros())
    assert "Bypassing.start() did not call self.configure_train(): nothing was compressed" in caplog.text
    caplog.clear()
    CompressedStrategy(Saving(), "dense").start(grid(nodes=2), zeros(), "project", num_rounds=1)
    assert "nothing was compressed" not in caplog.text


class Looping(FedAvg):
    """A strategy with a `start` of its own, for which the subclasses have methods of their own."""

    def start(self, grid: Any, initial_arrays: ArrayRecord, num_rounds: int = 2) -> ArrayRecord:
        arrays = initial_arrays
        for server_round in range(1, num_rounds + 1):
            arrays = self.finish(server_round, grid.send_and_receive(self.begin(server_round, arrays, grid)))
        return arrays

    def begin(self, server_round: int, arrays: ArrayRecord, grid: Any) -> Iterable[Message]:
        return self.configure_train(server_round, arrays, ConfigRecord(), grid)

    def finish(self, server_round: int, replies: Iterable[Message]) -> ArrayRecord:
        arrays, _ = self.aggregate_train(server_round, replies)
        assert arrays is not None
        return arrays


class ExtraKeyword(Looping):
    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any, rate: float = 0.1) -> Any:
        assert rate == 0.5
        return super().configure_train(server_round, arrays, config, grid)

    def begin(self, server_round: int, arrays: ArrayRecord, grid: Any) -> Iterable[Message]:
        return self.configure_train(server_round, arrays, ConfigRecord(), grid, rate=0.5)


class Reordered(Looping):
    def configure_train(self, rate: float, grid: Any, arrays: Any, server_round: int, config: Any = None) -> Any:
        assert rate == 0.5
        return super().configure_train(server_round, arrays, ConfigRecord() if config is None else config, grid)

    def begin(self, server_round: int, arrays: ArrayRecord, grid: Any) -> Iterable[Message]:
        return self.configure_train(0.5, grid, arrays, server_round)


class Renamed(Looping):
    def aggregate_train(self, rnd: int, results: Any) -> Any:
        return super().aggregate_train(rnd, results)

    def finish(self, server_round: int, replies: Iterable[Message]) -> Any:
        return self.aggregate_train(results=replies, rnd=server_round)[0]


class AnyArguments(Looping):
    def configure_train(self, *args: Any, **kwargs: Any) -> Any:
        assert kwargs.pop("rate") == 0.5
        return super().configure_train(*args, **kwargs)

    def begin(self, server_round: int, arrays: ArrayRecord, grid: Any) -> Any:
        return self.configure_train(server_round, arrays, grid=grid, config=ConfigRecord(), rate=0.5)


class ThreeResults(Looping):
    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return *super().aggregate_train(server_round, replies), 3

    def finish(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, _, number = self.aggregate_train(server_round, replies)
        assert number == 3
        return arrays


class OneResult(Looping):
    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return super().aggregate_train(server_round, replies)[0]

    def finish(self, server_round: int, replies: Iterable[Message]) -> Any:
        return self.aggregate_train(server_round, replies)


@pytest.mark.parametrize("inner", [Looping, ExtraKeyword, Reordered, Renamed, AnyArguments, ThreeResults, OneResult])
def test_own_start_with_methods_of_other_signatures_runs_as_without_compression(inner: type[Looping]) -> None:
    expected = inner().start(grid([]), zeros())
    strategy, over = CompressedStrategy(inner(), "dense"), grid()
    got = strategy.start(over, zeros())
    np.testing.assert_allclose(got["w"].numpy(), expected["w"].numpy(), rtol=1e-4, atol=1e-6)
    assert all("fedsgd" in content for content in over.contents)
    assert [traffic.round for traffic in strategy.traffic] == [1, 2]


def test_own_start_that_passes_no_grid_is_refused_by_name() -> None:
    class Gridless(Looping):
        def configure_train(self, server_round: int, arrays: Any) -> Any:
            raise AssertionError("not reached")

        def begin(self, server_round: int, arrays: ArrayRecord, grid: Any) -> Any:
            return self.configure_train(server_round, arrays)

    with pytest.raises(ScenarioError) as refused:
        CompressedStrategy(Gridless(), "dense").start(grid(nodes=2), zeros())
    assert "configure_train: start() calls it with server_round, arrays" in str(refused.value)
    assert "expected server_round, arrays, config, grid" in str(refused.value)


@pytest.mark.parametrize(
    ("start", "args", "kwargs", "timeout"),
    [
        (FedAvg().start, (None, None, 3, 50), {}, 50),
        (FedAvg().start, (None, None), {"timeout": 40}, 40),
        (FedAvg().start, (None, None), {}, 3600),
        (lambda grid, arrays, **settings: None, (None, None), {"timeout": 30}, 30),
        (lambda grid, timeout=20: None, (None,), {}, 20),
        (lambda grid, timeout=None: None, (None,), {}, None),
        (lambda grid: None, (), {}, DEFAULT_TIMEOUT),
    ],
)
def test_timeout_of_a_start_is_found(
    start: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None
) -> None:
    assert find_timeout(start, args, kwargs) == timeout


def test_timeout_of_start_holds_for_second_messages(tmp_path: Path) -> None:
    over = grid(nodes=2)
    strategy = CompressedStrategy(FedAvg(), "dense", downlink={"policy": "difference"})
    arrays = strategy.start(over, zeros(), num_rounds=1, timeout=41).arrays
    for folder in (tmp_path / "state").rglob("node-0-*"):
        for file in sorted(folder.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
    strategy.start(over, arrays, num_rounds=1, timeout=42)
    assert over.timeouts[2:] == [42, 42, 42], "train, the second message, evaluate"


def test_wrong_arguments_of_start_are_reported_by_the_inner_start() -> None:
    with pytest.raises(TypeError, match="num_round"):
        CompressedStrategy(FedAvg(), "dense").start(grid(), zeros(), num_round=1)


def test_attributes_are_those_of_the_inner_strategy() -> None:
    inner = Saving()
    strategy = CompressedStrategy(inner, "dense")
    strategy.fraction_train = 0.5
    strategy.note = "kept"
    assert (inner.fraction_train, vars(inner)["note"], strategy.best) == (0.5, "kept", float("inf"))
    del strategy.note
    assert "note" not in vars(inner)
    with mock.patch.object(strategy, "min_train_nodes", 3):
        assert inner.min_train_nodes == 3
    assert inner.min_train_nodes == 2
    strategy.traffic = []
    assert "traffic" not in vars(inner)
    assert isinstance(strategy, Strategy)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        attrgetter("nothing_like_it")(strategy)


def test_inner_strategy_cannot_be_replaced() -> None:
    inner = FedAvg()
    strategy = CompressedStrategy(inner, "dense")
    with pytest.raises(AttributeError, match="create a new CompressedStrategy"):
        strategy.inner = FedMedian()
    with pytest.raises(AttributeError, match="the FedAvg of a CompressedStrategy cannot be replaced"):
        del strategy.inner
    assert strategy.inner is inner


def test_settings_of_strategies_in_any_attribute_are_found() -> None:
    class Choosing(FedMedian):
        def __init__(self, *parts: Strategy) -> None:
            self.myself, self.parts, self.named = self, [*parts[:1]], {"last": parts[1]}

    first, last = FedAvg(weighted_by_key="size"), FedAvg()
    outermost = Choosing(first, last)
    assert [*iterate_strategies(outermost)] == [outermost, first, last]
    assert find_setting(outermost, "weighted_by_key", "num-examples") == "size"


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_of_a_strategy_are_complete(clone: Callable[[Any], Any]) -> None:
    strategy = CompressedStrategy(FedAvg(fraction_train=0.5), "dense")
    other = clone(strategy)
    assert (other.fraction_train, other._seed, type(other.inner)) == (0.5, 0, FedAvg)


class Checkpointing(FedAvg):
    """A strategy that stores itself at the end of each round."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        self.stored = pickle.dumps(self)
        self.copied = copy.deepcopy(self)
        return super().aggregate_train(server_round, replies)


def test_a_strategy_can_be_stored_while_its_methods_are_replaced() -> None:
    strategy = CompressedStrategy(Checkpointing(), "dense")
    strategy.start(grid(nodes=2), zeros(), num_rounds=2)
    for stored in (pickle.loads(strategy.stored), strategy.copied):
        assert stored.aggregate_train == Checkpointing.aggregate_train.__get__(stored)


def test_compressing_a_compressed_strategy_is_refused() -> None:
    with pytest.raises(ScenarioError, match="inner: got a CompressedStrategy"):
        CompressedStrategy(CompressedStrategy(FedAvg()))


def test_a_strategy_around_a_compressed_one_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Around(FedAvg):
        def configure_train(self, *args: Any) -> Iterable[Message]:
            return wrapped.configure_train(*args)

        def aggregate_train(self, *args: Any) -> Any:
            return wrapped.aggregate_train(*args)

    caplog.set_level(logging.WARNING, logger="flwr")
    wrapped = CompressedStrategy(FedAvg(), "dense")
    Around().start(grid(nodes=2), zeros(), num_rounds=2)
    (line,) = (record.message for record in caplog.records if "Around wraps CompressedStrategy" in record.message)
    assert "CompressedStrategy(Around(FedAvg(...), ...), ...)" in line


# --------------------------------------------------------------------------------------------------------- robust strategies

SPARSE = {
    "top-k": ({"name": "top-k", "density": 0.1}, "persist"),
    "rand-k": ({"name": "rand-k", "density": 0.1}, "none"),
    "qsgd": ({"name": "qsgd", "levels": 1}, "none"),
}
WORKING = {
    "bfloat16": ({"name": "dense", "values": "bfloat16"}, "none"),
    "natural": ("natural", "none"),
    "eden": ("eden", "none"),
    "drive": ("drive", "none"),
    "qsgd": ({"name": "qsgd", "levels": 15}, "none"),
    "top-k": ({"name": "top-k", "density": 0.5}, "persist"),
}
RULES: dict[str, Callable[[], Strategy]] = {
    "FedMedian": FedMedian,
    "FedTrimmedAvg": FedTrimmedAvg,
    "Bulyan": lambda: Bulyan(num_malicious_nodes=1),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("compressor", SPARSE)
def test_rules_by_coordinate_with_sparse_updates_are_warned_of(
    rule: str, compressor: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="flwr")
    table, feedback = SPARSE[compressor]
    strategy = CompressedStrategy(RULES[rule](), table, error_feedback=feedback)
    compressed, plain = last_mse(strategy), last_mse(RULES[rule](), [])
    assert compressed > 3 * plain, "the warning is right"
    (line,) = (record.message for record in caplog.records if "a median of mostly zeros is zero" in record.message)
    assert f"{rule} discards most of each update" in line
    assert all(f'"{table["name"] if isinstance(table, dict) else table}"' in line for table, _ in WORKING.values())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("compressor", WORKING)
def test_rules_by_coordinate_learn_with_the_compressors_that_are_named(
    rule: str, compressor: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="flwr")
    table, feedback = WORKING[compressor]
    compressed = last_mse(CompressedStrategy(RULES[rule](), table, error_feedback=feedback))
    plain = last_mse(RULES[rule](), [])
    assert compressed < 1.3 * plain
    assert "zeros" not in caplog.text


def test_krum_with_sparse_unbiased_updates_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="flwr")
    rand_k = {"name": "rand-k", "density": 0.1}
    compressed = last_mse(CompressedStrategy(Krum(num_malicious_nodes=1), rand_k))
    plain = last_mse(Krum(num_malicious_nodes=1), [])
    mean = last_mse(CompressedStrategy(FedAvg(), rand_k)) / last_mse(FedAvg(), [])
    assert compressed / plain > 2 * mean, "the warning is right"
    assert "Krum averages only 1 of 7 updates" in caplog.text


@pytest.mark.parametrize(
    ("inner", "compressor"),
    [
        (FedAvg, "top-k"),
        (FedMedian, "dense"),
        (FedMedian, "eden"),
        (Krum, "top-k"),
        (Bulyan, "top-k"),  # without malicious nodes, a mean of all
        (lambda: FedTrimmedAvg(beta=0.1), "top-k"),  # of seven replies, none is cut off
    ],
)
def test_other_combinations_are_not_warned_of(
    inner: Callable[[], Strategy], compressor: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="flwr")
    last_mse(CompressedStrategy(inner(), compressor), rounds=1)
    assert "of the changed coordinates" not in caplog.text
