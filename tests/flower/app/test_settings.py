"""Settings of a CompressedStrategy: wrong settings, and their encoding in messages."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from fedsgd.compression.operators.topk import TopK
from fedsgd.errors import ScenarioError, WireError
from fedsgd.flower import CompressedStrategy
from fedsgd.flower.app.array_layout import build_array_layout
from fedsgd.flower.app.settings import SETTINGS_VERSION, CompressionSettings, decode_settings
from tests.flower.app.fixed_updates import TIED_VALUES, TOP_K, make_grid, make_model, make_record, run_rounds

pytestmark = pytest.mark.usefixtures("quick_collection")

WRONG_SETTINGS = [
    ({"compressor": "topk"}, 'compressor.name: got "topk", did you mean "top-k"?'),
    ({"compressor": {"name": "top-k", "densty": 0.1}}, 'compressor.densty: unknown key, did you mean "density"?'),
    ({"compressor": {"name": "top-k", "density": 2.0}}, "compressor.density: expected a number above 0 and at most 1, got 2.0"),
    ({"compressor": "cafe"}, 'compressor.name: got "cafe", whose server does more than decode updates'),
    ({"compressor": "scafold"}, 'compressor.name: got "scafold", expected one of: "count-sketch", "demo", "dense", "dgc"'),
    ({"compressor": "scaffold"}, 'expected one of: "count-sketch", "demo", "dense", "dgc"'),
    ({"compressor": "ef21"}, 'compressor.name: got "ef21"'),
    ({"compressor": "fetch-sgd"}, 'compressor.name: got "fetch-sgd"'),
    ({"error_feedback": "always"}, 'error_feedback: got "always", expected one of'),
    ({"compressor": "rand-k", "error_feedback": "persist"}, "error_feedback: "),
    ({"downlink": {"policy": "differences"}}, 'downlink.policy: got "differences", did you mean "difference"?'),
    ({"downlink": {"policy": "model", "compressor": "top-k"}}, 'downlink.compressor.name: got "top-k", expected "dense"'),
    ({"downlink": "differences"}, 'downlink.policy: got "differences", did you mean "difference"?'),
    ({"downlink": {"polcy": "model"}}, 'downlink.polcy: unknown key, did you mean "policy"?'),
    ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
    ({"seed": True}, "seed: expected a whole number of at least 0, got true"),
    ({"exact": "*bn*"}, 'exact: got "*bn*", expected a list of patterns of names, like ["*.mask"]'),
    ({"exact": None}, "exact: got None, expected a list of patterns"),
    ({"exact": [1]}, "exact: got [1], expected a list of patterns"),
    ({"exact": b"ab"}, "exact: got b'ab', expected a list of patterns"),
    ({"downlink": 5}, 'downlink: got 5, expected the name of a policy or a table with "policy"'),
    ({"downlink": []}, "downlink: got [], expected the name of a policy"),
    ({"compressor": {}}, 'compressor.name: missing, expected one of: "count-sketch", "demo", "dense", "dgc"'),
]


@pytest.mark.parametrize(("settings", "message"), WRONG_SETTINGS, ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_setting_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        CompressedStrategy(FedAvg(), **settings)
    assert message in str(raised.value)


def test_downlink_accepts_the_name_of_a_policy() -> None:
    link_settings = [
        CompressedStrategy(FedAvg(), downlink=downlink)._link_settings for downlink in ("difference", {"policy": "difference"})
    ]
    assert link_settings[0] == link_settings[1]


def test_seed_may_be_an_integer_of_numpy() -> None:
    assert type(CompressedStrategy(FedAvg(), seed=np.int64(3))._seed) is int  # type: ignore[arg-type]


def test_compressor_accepts_a_component() -> None:
    strategy = CompressedStrategy(FedAvg(), TopK(density=0.25))
    assert strategy._link_settings[0].compressor == TopK(density=0.25)


def test_setting_that_does_not_fit_the_model_is_refused_by_name() -> None:
    strategy = CompressedStrategy(FedAvg(), {"name": "per-layer", "rules": [{"pattern": "nowhere*", "op": "dense"}]})
    with pytest.raises(ScenarioError, match=r"^compressor\.rules"):
        list(run_rounds(strategy, make_grid(), make_model(), 1))


def test_encoded_settings_of_another_release_are_refused() -> None:
    strategy = CompressedStrategy(FedAvg(), TOP_K)
    settings = CompressionSettings(*strategy._link_settings, build_array_layout(make_model(), ()))
    assert decode_settings(settings.encode()) == settings
    for data in (b"", b"x" * 50, settings.encode()[:-9]):
        with pytest.raises(WireError, match="cannot be read"):
            decode_settings(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsgd.flower.app.settings.SETTINGS_VERSION", SETTINGS_VERSION + 1)
        later_data = settings.encode()
    with pytest.raises(WireError, match="different releases"):
        decode_settings(later_data)


def test_encoded_settings_with_wrong_tied_groups_are_refused() -> None:
    settings = CompressionSettings(
        *CompressedStrategy(FedAvg(), TOP_K)._link_settings,
        build_array_layout(make_record(TIED_VALUES), (), (("e", "o"),)),
    )
    assert decode_settings(settings.encode()) == settings
    assert settings.array_layout.layout.names == ("e", "mid")
    for group in ([0, 9], [0, 1], [0, 0], [[0], [1]]):
        table = json.loads(zlib.decompress(settings.encode()))
        table["model"][3] = [group]
        with pytest.raises(WireError):
            decode_settings(zlib.compress(json.dumps(table).encode()))
