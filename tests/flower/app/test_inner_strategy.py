"""The strategy inside a CompressedStrategy: its own `start`, methods of other signatures, attributes and settings."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, FedMedian, Result, Strategy

from fedsgd.errors import ScenarioError
from fedsgd.flower import CompressedStrategy
from fedsgd.flower.app.inner_strategy import DEFAULT_TIMEOUT, HOOKS, find_setting, find_timeout, iterate_strategies
from tests.flower.regression import NODES, Grid, make_examples, make_grid, make_zeros

pytestmark = pytest.mark.usefixtures("quick_collection")


# --------------------------------------------------------------------------------------------------------------- own `start`


class SavingFedAvg(FedAvg):
    """FedAvg with its own `start`, which records the rounds whose model is the best so far."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.saved_rounds: list[int] = []
        self.best_error = float("inf")
        self.path = "unset"

    def set_save_path(self, path: str) -> None:
        self.path = path

    def start(self, grid: Any, initial_arrays: ArrayRecord, project: str, num_rounds: int = 3, **settings: Any) -> Any:
        self.project = project
        self.result = super().start(grid, initial_arrays, num_rounds, evaluate_fn=self._save, **settings)
        return {"project": project, "path": self.path, "result": self.result}

    def _save(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        error = 0.0
        for inputs, targets in map(make_examples, range(NODES)):
            error += float(((inputs @ arrays["w"].numpy() - targets) ** 2).mean())
        if error < self.best_error:
            self.best_error = error
            self.saved_rounds.append(server_round)
        return MetricRecord({"error": error})


@pytest.mark.slow
def test_start_logs_the_bytes_of_its_own_rounds_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flwr")
    strategy = CompressedStrategy(FedAvg(), "dense")
    for _ in range(2):
        n_previous = len(strategy.traffic)
        caplog.clear()
        strategy.start(make_grid(), make_zeros(), num_rounds=2)
        rows = strategy.traffic[n_previous:]
        up, plain = sum(row.message_up for row in rows), sum(row.plain_up + row.plain_down for row in rows)
        ratio = plain / sum(row.message_up + row.message_down for row in rows)
        (line,) = [record.message for record in caplog.records if "all rounds" in record.message]
        assert f"in Flower's messages {up:,} up," in line
        assert line.endswith(f"; compression ratio {ratio:,.1f} both ways (bytes without compression, divided by these bytes)")


@pytest.mark.slow
def test_own_start_of_the_inner_strategy_runs_with_compressed_messages() -> None:
    plain, compressed = SavingFedAvg(), CompressedStrategy(SavingFedAvg(), "dense")
    plain.set_save_path("folder")
    compressed.set_save_path("folder")
    expected = plain.start(make_grid([]), make_zeros(), "project", num_rounds=4, timeout=60)
    grid = make_grid()
    outcome = compressed.start(grid, make_zeros(), "project", num_rounds=4, timeout=60)

    assert (outcome["project"], outcome["path"]) == ("project", "folder")
    assert compressed.inner.saved_rounds == plain.saved_rounds == [0, 1, 2, 3, 4]
    for name in ("w", "b"):
        values = [each["result"].arrays[name].numpy() for each in (outcome, expected)]
        np.testing.assert_allclose(*values, rtol=1e-5)
    assert [*outcome["result"].evaluate_metrics_serverapp] == [0, 1, 2, 3, 4]
    assert [traffic.round for traffic in compressed.traffic if traffic.what == "train"] == [1, 2, 3, 4]
    assert all("fedsgd" in content for content in grid.contents)


@pytest.mark.slow
@pytest.mark.parametrize("has_instance_method", [True, False])
def test_methods_of_the_inner_strategy_are_restored_after_start(has_instance_method: bool) -> None:
    inner, summary = FedAvg(), mock.Mock()
    if has_instance_method:
        vars(inner)["summary"] = summary
    attributes = dict(vars(inner))
    strategy = CompressedStrategy(inner, "dense")
    strategy.start(make_grid(), make_zeros(), num_rounds=1)
    assert vars(inner) == attributes
    assert summary.call_count == has_instance_method

    with mock.patch.object(Grid, "send_and_receive", side_effect=OSError("no link")), pytest.raises(OSError, match="no link"):
        strategy.start(make_grid(), make_zeros(), num_rounds=1)
    assert vars(inner) == attributes
    assert strategy.start(make_grid(), make_zeros(), num_rounds=1).train_metrics_clientapp


def test_nested_start_of_the_inner_strategy_is_compressed() -> None:
    class NestedFedAvg(FedAvg):
        def start(self, *args: Any, **kwargs: Any) -> Result:
            super().start(*args, **kwargs)
            calls.append(len(calls))
            return outer.start(*args, **kwargs) if len(calls) < 3 else super().start(*args, **kwargs)

    calls: list[int] = []
    outer = CompressedStrategy(NestedFedAvg(), "dense")
    grid = make_grid(nodes=2)
    outer.start(grid, make_zeros(), num_rounds=1)
    assert [traffic.what for traffic in outer.traffic] == ["train", "evaluate"] * 4
    assert all("fedsgd" in content for content in grid.contents)
    assert not {*HOOKS} & vars(outer.inner).keys()


def test_inner_method_that_calls_another_inner_method_gets_uncompressed_messages() -> None:
    class ReusingFedAvg(FedAvg):
        def configure_evaluate(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
        ) -> Iterable[Message]:
            for message in self.configure_train(server_round, arrays, config, grid):
                assert "arrays" in message.content
                yield Message(message.content, message.metadata.dst_node_id, "evaluate")

    strategy = CompressedStrategy(ReusingFedAvg(), "dense")
    result = strategy.start(make_grid(nodes=2), make_zeros(), num_rounds=2)
    assert [*result.evaluate_metrics_clientapp] == [1, 2]
    assert [(row.round, row.what) for row in strategy.traffic] == [(1, "train"), (1, "evaluate"), (2, "train"), (2, "evaluate")]


def test_methods_of_a_subclass_of_compressed_strategy_are_called() -> None:
    class RecordingStrategy(CompressedStrategy):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            rounds.append(server_round)
            return super().aggregate_train(server_round, replies)

    rounds: list[int] = []

    strategy = RecordingStrategy(FedAvg(), "dense")
    strategy.start(make_grid(nodes=2), make_zeros(), num_rounds=2)
    assert rounds == [1, 2]
    assert len(strategy.traffic) == 4


def test_start_that_bypasses_its_own_methods_is_named_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class BypassingFedAvg(FedAvg):
        def start(self, grid: Any, initial_arrays: ArrayRecord) -> Any:
            messages = super().configure_train(1, initial_arrays, ConfigRecord(), grid)
            return super().aggregate_train(1, grid.send_and_receive(messages))

    caplog.set_level(logging.WARNING, logger="flwr")
    strategy = CompressedStrategy(BypassingFedAvg(), "dense")
    strategy.start(make_grid(nodes=2), make_zeros())
    assert "BypassingFedAvg.start() did not call self.configure_train(): nothing was compressed" in caplog.text
    caplog.clear()
    CompressedStrategy(SavingFedAvg(), "dense").start(make_grid(nodes=2), make_zeros(), "project", num_rounds=1)
    assert "nothing was compressed" not in caplog.text


class LoopFedAvg(FedAvg):
    """FedAvg with its own `start`. Its subclasses have methods with other signatures, and call them accordingly."""

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


class ExtraKeywordFedAvg(LoopFedAvg):
    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any, rate: float = 0.1) -> Any:
        assert rate == 0.5
        return super().configure_train(server_round, arrays, config, grid)

    def begin(self, server_round: int, arrays: ArrayRecord, grid: Any) -> Iterable[Message]:
        return self.configure_train(server_round, arrays, ConfigRecord(), grid, rate=0.5)


class ReorderedFedAvg(LoopFedAvg):
    def configure_train(self, rate: float, grid: Any, arrays: Any, server_round: int, config: Any = None) -> Any:
        assert rate == 0.5
        return super().configure_train(server_round, arrays, ConfigRecord() if config is None else config, grid)

    def begin(self, server_round: int, arrays: ArrayRecord, grid: Any) -> Iterable[Message]:
        return self.configure_train(0.5, grid, arrays, server_round)


class RenamedFedAvg(LoopFedAvg):
    def aggregate_train(self, rnd: int, results: Any) -> Any:
        return super().aggregate_train(rnd, results)

    def finish(self, server_round: int, replies: Iterable[Message]) -> Any:
        return self.aggregate_train(results=replies, rnd=server_round)[0]


class AnyArgumentsFedAvg(LoopFedAvg):
    def configure_train(self, *args: Any, **kwargs: Any) -> Any:
        assert kwargs.pop("rate") == 0.5
        return super().configure_train(*args, **kwargs)

    def begin(self, server_round: int, arrays: ArrayRecord, grid: Any) -> Any:
        return self.configure_train(server_round, arrays, grid=grid, config=ConfigRecord(), rate=0.5)


class ThreeResultsFedAvg(LoopFedAvg):
    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return *super().aggregate_train(server_round, replies), 3

    def finish(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, _, number = self.aggregate_train(server_round, replies)
        assert number == 3
        return arrays


class OneResultFedAvg(LoopFedAvg):
    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return super().aggregate_train(server_round, replies)[0]

    def finish(self, server_round: int, replies: Iterable[Message]) -> Any:
        return self.aggregate_train(server_round, replies)


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(
    "strategy_class",
    [
        LoopFedAvg,
        ExtraKeywordFedAvg,
        ReorderedFedAvg,
        RenamedFedAvg,
        AnyArgumentsFedAvg,
        ThreeResultsFedAvg,
        OneResultFedAvg,
    ],
)
def test_own_start_with_methods_of_other_signatures_runs_as_without_compression(strategy_class: type[LoopFedAvg]) -> None:
    expected = strategy_class().start(make_grid([]), make_zeros())
    strategy, grid = CompressedStrategy(strategy_class(), "dense"), make_grid()
    arrays = strategy.start(grid, make_zeros())
    np.testing.assert_allclose(arrays["w"].numpy(), expected["w"].numpy(), rtol=1e-4, atol=1e-6)
    assert all("fedsgd" in content for content in grid.contents)
    assert [traffic.round for traffic in strategy.traffic] == [1, 2]


def test_own_start_without_the_argument_grid_is_refused() -> None:
    class GridlessFedAvg(LoopFedAvg):
        def configure_train(self, server_round: int, arrays: Any) -> Any:
            raise AssertionError("not reached")

        def begin(self, server_round: int, arrays: ArrayRecord, grid: Any) -> Any:
            return self.configure_train(server_round, arrays)

    with pytest.raises(ScenarioError) as raised:
        CompressedStrategy(GridlessFedAvg(), "dense").start(make_grid(nodes=2), make_zeros())
    assert "configure_train: got server_round, arrays from start()" in str(raised.value)
    assert "expected server_round, arrays, config, grid" in str(raised.value)


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
def test_timeout_in_a_call_of_start_is_returned(
    start: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None
) -> None:
    assert find_timeout(start, args, kwargs) == timeout


def test_timeout_of_start_applies_to_second_messages(state_root: Path) -> None:
    grid = make_grid(nodes=2)
    strategy = CompressedStrategy(FedAvg(), "dense", downlink={"policy": "difference"})
    arrays = strategy.start(grid, make_zeros(), num_rounds=1, timeout=41).arrays
    for folder in state_root.rglob(f"node-{grid.find_id(0)}-*"):
        for file in sorted(folder.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
    strategy.start(grid, arrays, num_rounds=1, timeout=42)
    assert grid.timeouts[2:] == [42, 42, 42], "train, the second message, evaluate"


def test_wrong_arguments_of_start_are_reported_by_the_inner_start() -> None:
    with pytest.raises(TypeError, match="num_round"):
        CompressedStrategy(FedAvg(), "dense").start(make_grid(), make_zeros(), num_round=1)


# ------------------------------------------------------------------------------------------------------ attributes and copies


def test_attributes_are_read_from_and_set_on_the_inner_strategy() -> None:
    inner = SavingFedAvg()
    strategy = CompressedStrategy(inner, "dense")
    strategy.fraction_train = 0.5
    strategy.note = "a note"
    assert (inner.fraction_train, vars(inner)["note"], strategy.best_error) == (0.5, "a note", float("inf"))
    del strategy.note
    assert "note" not in vars(inner)
    with mock.patch.object(strategy, "min_train_nodes", 3):
        assert inner.min_train_nodes == 3
    assert inner.min_train_nodes == 2
    strategy.traffic = []
    assert "traffic" not in vars(inner)
    assert isinstance(strategy, Strategy)
    with pytest.raises(AttributeError, match="unknown_name"):
        attrgetter("unknown_name")(strategy)


def test_inner_strategy_cannot_be_replaced() -> None:
    inner = FedAvg()
    strategy = CompressedStrategy(inner, "dense")
    with pytest.raises(AttributeError, match="create a new CompressedStrategy"):
        strategy.inner = FedMedian()
    with pytest.raises(AttributeError, match="the FedAvg of a CompressedStrategy cannot be replaced"):
        del strategy.inner
    assert strategy.inner is inner


def test_setting_of_a_strategy_in_any_attribute_is_returned() -> None:
    class ContainerStrategy(FedMedian):
        def __init__(self, *parts: Strategy) -> None:
            self.itself, self.list, self.dict = self, [*parts[:1]], {"last": parts[1]}

    first, last = FedAvg(weighted_by_key="size"), FedAvg()
    outermost = ContainerStrategy(first, last)
    assert [*iterate_strategies(outermost)] == [outermost, first, last]
    assert find_setting(outermost, "weighted_by_key", "num-examples") == "size"


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_of_a_strategy_are_complete(clone: Callable[[Any], Any]) -> None:
    strategy = CompressedStrategy(FedAvg(fraction_train=0.5), "dense")
    copied = clone(strategy)
    assert (copied.fraction_train, copied._seed, type(copied.inner)) == (0.5, 0, FedAvg)


class CheckpointFedAvg(FedAvg):
    """FedAvg that stores itself at the end of each round."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        self.pickle = pickle.dumps(self)
        self.copy = copy.deepcopy(self)
        return super().aggregate_train(server_round, replies)


def test_strategy_stored_while_its_methods_are_replaced_has_its_own_methods() -> None:
    strategy = CompressedStrategy(CheckpointFedAvg(), "dense")
    strategy.start(make_grid(nodes=2), make_zeros(), num_rounds=2)
    for checkpoint in (pickle.loads(strategy.pickle), strategy.copy):
        assert checkpoint.aggregate_train == CheckpointFedAvg.aggregate_train.__get__(checkpoint)


def test_compressed_strategy_in_a_compressed_strategy_is_refused() -> None:
    with pytest.raises(ScenarioError, match="inner: got a CompressedStrategy"):
        CompressedStrategy(CompressedStrategy(FedAvg()))


def test_strategy_around_a_compressed_strategy_is_named_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class OuterFedAvg(FedAvg):
        def configure_train(self, *args: Any) -> Iterable[Message]:
            return wrapped.configure_train(*args)

        def aggregate_train(self, *args: Any) -> Any:
            return wrapped.aggregate_train(*args)

    caplog.set_level(logging.WARNING, logger="flwr")
    wrapped = CompressedStrategy(FedAvg(), "dense")
    OuterFedAvg().start(make_grid(nodes=2), make_zeros(), num_rounds=2)
    (line,) = (record.message for record in caplog.records if "OuterFedAvg wraps CompressedStrategy" in record.message)
    assert "CompressedStrategy(OuterFedAvg(FedAvg(...), ...), ...)" in line
