"""Encoding of a reply's differences from the model: missing arrays and other types."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsgd.errors import WireError
from fedsgd.flower import CompressedStrategy
from fedsgd.flower.app.array_layout import ReplyArrays, build_array_layout
from fedsgd.flower.app.messages import decode_reply, encode_reply
from fedsgd.flower.app.settings import CompressionSettings
from fedsgd.flower.records import write_payload
from fedsgd.runtime.workers import protocol
from tests.flower.app.fixed_updates import make_record

W = np.arange(40, dtype=np.float64).reshape(8, 5)
MODEL = {"base": W.astype(np.float32), "head": np.ones(6, dtype=np.float32), "n": np.array(5)}
ARRAY_LAYOUT = build_array_layout(make_record(MODEL), ())
WRONG_DIFFERENCES = [
    (b"[", "cannot be read"),
    (b'[["nothing"], {}]', "cannot be read"),
    (b'[[], {"float99": ["base"]}]', "cannot be read"),
    (b'[[], {"int64": []}]', "cannot be read"),
    (b'[[], {"float64": ["n"]}]', "cannot be read"),
    (b'[["base"], {"float64": ["base"]}]', "cannot be read"),
    (b"[[], []]", "cannot be read"),
]


@pytest.mark.parametrize(("differences", "message"), WRONG_DIFFERENCES)
def test_wrong_differences_of_a_reply_are_refused(differences: bytes, message: str) -> None:
    assert ARRAY_LAYOUT is not None
    data = protocol.pack_packets([(b"arrays", [b"frame"]), (b"", ()), (differences, ())])
    with pytest.raises(WireError, match=message):
        decode_reply(write_payload(RecordDict(), data), ARRAY_LAYOUT)


def test_decoded_differences_of_a_reply_equal_the_encoded_differences() -> None:
    assert ARRAY_LAYOUT is not None
    settings = CompressionSettings(*CompressedStrategy(FedAvg(), "dense")._link_settings, ARRAY_LAYOUT)
    exact_arrays = {"n": Array(np.array(5))}
    for values, missing_names, dtypes in [
        (MODEL, (), {}),
        ({"base": MODEL["base"]}, ("head", "n"), {}),
        ({"base": W, "head": np.ones(6), "n": np.array(1)}, (), {"base": "float64", "head": "float64"}),
        ({"base": W, "head": np.ones(6, dtype=np.float16)}, ("n",), {"base": "float64", "head": "float16"}),
        ({"base": W.astype(np.float32), "head": np.ones(6)}, ("n",), {"head": "float64"}),
    ]:
        reply_arrays = ReplyArrays.from_reply(ARRAY_LAYOUT, make_record(values), exact_arrays)
        data = encode_reply("arrays", (b"frame",), settings, reply_arrays)
        reply = decode_reply(write_payload(RecordDict(), data), ARRAY_LAYOUT)
        assert (reply.missing_names, reply.dtypes) == (missing_names, dtypes)
