"""Failures of a user's ClientApp: the server's log names each cause once, with the remedy."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, Strategy

from fedsgd.errors import ClientAppError
from fedsgd.flower import CompressedStrategy, compression_mod
from fedsgd.flower.app.failures import ERROR_MARK, explain_error
from fedsgd.flower.records import RECORD_KEY
from tests.flower.counting import CountingGrid, fed_avg, make_app, model_arrays, start

REMEDY = "expected ClientApp(mods=[compression_mod(), ...]), with compression_mod() first"
DENSE = "dense"


def collect_warnings(
    caplog: pytest.LogCaptureFixture,
    app: ClientApp,
    strategy: Strategy | None = None,
    prepare: Callable[[CountingGrid], None] | None = None,
) -> list[str]:
    """Run an app for two rounds, and return the warnings about nodes."""
    with caplog.at_level(logging.WARNING, "flwr"):
        start(app, CompressedStrategy(fed_avg(), DENSE) if strategy is None else strategy, 2, prepare=prepare)
    texts = [record.getMessage().removeprefix("fedsgd: ") for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for text in texts if text.startswith("node")]


def make_local_dp_mod() -> LocalDpMod:
    return LocalDpMod(clipping_norm=100.0, sensitivity=1.0, epsilon=100.0, delta=1e-5)


def wrap_client_side_clipping(strategy: Strategy) -> Strategy:
    """Return a strategy that sends the clipping norm for fixedclipping_mod."""
    return DifferentialPrivacyClientSideFixedClipping(strategy, 0.01, 100.0, 3)


# ------------------------------------------------------------------------------------------------------------------ mods


def test_app_without_the_mod_is_reported_once_for_all_nodes(caplog: pytest.LogCaptureFixture) -> None:
    train, evaluate = collect_warnings(caplog, make_app([]))
    for text in (train, evaluate):
        assert text.endswith(
            " and 2 other nodes: the ClientApp failed outside compression_mod() (KeyError: 'arrays'); it received the compressed "
            f'message, which has no record "arrays"; {REMEDY}'
        )


def test_mod_without_parentheses_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    train, evaluate = collect_warnings(caplog, make_app([compression_mod]))
    for text in (train, evaluate):
        assert text.endswith(f" and 2 other nodes: the ClientApp has compression_mod without parentheses; {REMEDY}")


def test_app_with_the_mod_in_its_train_handler_only_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    (text,) = collect_warnings(caplog, make_app([], train_mods=[compression_mod()]))
    assert " and 2 other nodes: the ClientApp failed outside compression_mod() (KeyError: 'arrays')" in text
    assert text.endswith(f"; only @app.train(mods=[...]) has the mod; {REMEDY}")


@pytest.mark.parametrize(
    ("mod", "reason"),
    [
        (fixedclipping_mod, "fixedclipping_mod expects exactly one ArrayRecord, but found 0 ArrayRecord(s)."),
        (make_local_dp_mod(), "LocalDpMod expects exactly one ArrayRecord, but found 0 ArrayRecord(s)."),
    ],
    ids=["fixedclipping_mod", "LocalDpMod"],
)
def test_mod_before_compression_mod_is_reported(mod: Any, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    train, evaluate = collect_warnings(caplog, make_app([mod, compression_mod()]))
    for text in (train, evaluate):
        assert text.endswith(
            f" and 2 other nodes: another mod received the compressed message and refused it ({reason}); {REMEDY}"
        )


def test_mods_behind_compression_mod_cause_no_warnings(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app([], train_mods=[compression_mod(), fixedclipping_mod])
    # in ClientApp(mods=[...]), Flower's mods would refuse evaluations, which have no arrays in this app's replies
    strategy = CompressedStrategy(wrap_client_side_clipping(fed_avg(min_train_nodes=3, fraction_evaluate=0.0)), DENSE)
    assert collect_warnings(caplog, app, strategy) == []
    app = make_app([], train_mods=[compression_mod(), make_local_dp_mod()])
    assert collect_warnings(caplog, app, CompressedStrategy(fed_avg(fraction_evaluate=0.0), DENSE)) == []


def test_mod_behind_compression_mod_that_refuses_is_reported_without_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    """The strategy sends no clipping norm, so the mod refuses; the order of the mods is right."""
    (text,) = collect_warnings(
        caplog,
        make_app([], train_mods=[compression_mod(), fixedclipping_mod]),
        CompressedStrategy(fed_avg(fraction_evaluate=0.0), DENSE),
    )
    assert " and 2 other nodes: the ClientApp failed: fixedclipping_mod requires the key 'clipping_norm'" in text
    assert REMEDY not in text


@pytest.fixture
def large_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record of fedsgd is an ArrayRecord, as for large payloads."""
    monkeypatch.setattr("fedsgd.flower.records.MAX_CONFIG_VALUE_BYTES", 10)


@pytest.mark.usefixtures("large_payloads")
def test_mod_that_fails_at_a_large_compressed_reply_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """The mod assumes that fedsgd's record is the model, and Flower cannot convert the record to numbers."""
    texts = collect_warnings(caplog, make_app([], train_mods=[make_local_dp_mod(), compression_mod()]))
    assert "the ClientApp failed outside compression_mod() (TypeError: Unsupported serialization type" in texts[0]
    assert texts[0].endswith(REMEDY)


@pytest.mark.usefixtures("large_payloads")
def test_mod_that_changes_a_compressed_reply_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def replace_arrays(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        arrays = reply.content.array_records[RECORD_KEY]
        reply.content[RECORD_KEY] = ArrayRecord({name: model_arrays()["w"] for name in arrays})
        return reply

    strategy = CompressedStrategy(fed_avg(fraction_evaluate=0.0), DENSE)
    (text,) = collect_warnings(caplog, make_app([], train_mods=[replace_arrays, compression_mod()]), strategy)
    assert text.endswith(f' and 2 other nodes: the reply is discarded: a mod has changed the record "fedsgd"; {REMEDY}')


def test_uncompressed_replies_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"arrays": model_arrays(), "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    (text,) = collect_warnings(caplog, app, CompressedStrategy(fed_avg(fraction_evaluate=0.0), DENSE))
    assert text.endswith(
        f" and 2 other nodes: the reply has uncompressed arrays, which the strategy uses; to compress them, {REMEDY}"
    )


# ------------------------------------------------------------------------------------------------------------------ apps


def raise_at_node_1(number: int) -> None:
    if number == 1:
        raise ZeroDivisionError("division\nby zero")


def test_app_that_raises_is_reported_without_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    def prepare(grid: CountingGrid) -> None:
        ids.append(grid.find_id(1))

    ids: list[int] = []
    (text,) = collect_warnings(caplog, make_app([compression_mod()], before_training=raise_at_node_1), prepare=prepare)
    assert text == f"node {ids[0]}: the ClientApp failed: the app raised ZeroDivisionError: division by zero"


def test_error_of_an_app_is_the_cause_of_the_mods_error() -> None:
    app = make_app([compression_mod()], before_training=raise_at_node_1)
    grid = start(app, fed_avg(), 0)
    strategy = CompressedStrategy(fed_avg(), DENSE)
    messages = list(strategy.configure_train(1, model_arrays(), ConfigRecord(), grid))
    message = next(m for m in messages if m.metadata.dst_node_id == grid.find_id(1))
    context = Context(77, grid.find_id(1), {"partition-id": 1}, RecordDict(), {})
    with pytest.raises(
        ClientAppError, match=r"^compression_mod\(\): the app raised ZeroDivisionError: division by zero$"
    ) as raised:
        app(message, context)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_error_of_the_mod_is_reported_without_its_class(caplog: pytest.LogCaptureFixture) -> None:
    def change(number: int, content: RecordDict) -> RecordDict:
        arrays = content.array_records["arrays"]
        arrays["b"] = Array(np.full(20, np.nan, np.float32))
        return content

    (text,) = collect_warnings(caplog, make_app([compression_mod()], change))
    pattern = r"node \d+ and 2 other nodes: the ClientApp failed: round 1, client \d: the update is not finite in 20 of 620 .*"
    assert re.fullmatch(pattern, text), text


def test_error_reply_of_an_app_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(message: Message, context: Context, call_next: Any) -> Message:
        return Message(Error(17, None), reply_to=message)

    train, evaluate = collect_warnings(caplog, make_app([compression_mod(), refuse]))
    assert train.endswith(" and 2 other nodes: the ClientApp failed: error 17")
    assert evaluate.endswith(" and 2 other nodes: the ClientApp failed: error 17")


def test_app_without_an_evaluation_is_reported_without_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    app = ClientApp(mods=[compression_mod()])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(
            RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}), reply_to=message
        )

    (text,) = collect_warnings(caplog, app)
    assert text.endswith(" and 2 other nodes: no result: ValueError: No evaluate function registered with name 'default'")


# -------------------------------------------------------------------------------------------------------------- transport


def test_unavailable_node_is_reported_without_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    """The SuperLink itself creates this error, with its own id."""
    ids: list[int] = []

    def prepare(grid: CountingGrid) -> None:
        ids.append(grid.find_id(2))
        grid.unavailable_nodes.add(ids[0])

    train, evaluate = collect_warnings(caplog, make_app([compression_mod()]), prepare=prepare)
    assert train == evaluate == f"node {ids[0]}: no result: Error: Node Unavailable"


@pytest.mark.parametrize(
    ("code", "reason", "kind", "text"),
    [
        (
            ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
            "An exception was raised when attempting to load `ClientApp`",
            "flower",
            "no result: An exc",
        ),
        (ErrorCode.CLIENT_APP_CRASHED, "ClientApp stopped responding.", "flower", "no result: ClientApp stopped responding."),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, None, "flower", "no result: error 4, REPLY_MESSAGE_UNAVAILABLE"),
        (ErrorCode.UNKNOWN, "", "flower", "no result: error 0, UNKNOWN"),
        (
            ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
            "<class 'KeyError'>:<''model''>",
            "mod",
            "outside compression_mod() (KeyError: 'model');",
        ),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "<class 'KeyError'>:<''arrays''>", "mod", 'which has no record "arrays"'),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "<class 'a.b.MyError'>:<''>", "mod", "(MyError:);"),
        (
            ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
            "<class 'flwr.clientapp.client_app.ClientAppException'>:<'\nException ClientAppException occurred. Message: 'arrays''>",
            "mod",
            "outside compression_mod() ('arrays'); it received the compressed message",
        ),
        (
            ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
            "<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'ray::run()\n  File \"x\", line 1\nE: compression_mod(): the app "
            "raised ZeroDivisionError: division by zero\n\nException ClientAppException occurred. Message: compression_mod(): the app "
            "raised ZeroDivisionError: division by zero'>",
            "app",
            "the ClientApp failed: the app raised ZeroDivisionError: division by zero",
        ),
        (
            ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
            "<class 'fedsgd.errors.WireError'>:<'byte 3: x'>",
            "app",
            "failed: WireError: byte 3: x",
        ),
        (ErrorCode.MOD_FAILED_PRECONDITION, f"{ERROR_MARK}it expects one", "app", "the ClientApp failed: it expects one"),
        (
            ErrorCode.MOD_FAILED_PRECONDITION,
            "it expects one",
            "order",
            "another mod received the compressed message and refused it (it exp",
        ),
    ],
)
def test_error_of_each_code_is_explained(code: int, reason: str | None, kind: str, text: str) -> None:
    failure = explain_error(Error(code, reason), "arrays", None)
    assert failure.kind == kind
    assert text in failure.text
    assert (REMEDY in failure.text) == (kind in ("mod", "order"))
