"""Studies of compression ratios and bits: verdicts are the expected ones, and a changed figure changes them."""

from __future__ import annotations

import shutil
from math import lgamma, log
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from fedsgd.analysis.replication.plan import ReplicationConfig
from fedsgd.analysis.replication.replicate import replicate
from fedsgd.analysis.replication.verdicts import NOT_RUN
from tests.effort import nightly_unless
from tests.scripts import load_script

STUDIES = ["stc2019-bits", "covenant-ratio", "natural-compression-ratios", "dgc2018-ratios"]
QUICK = ReplicationConfig(quick=True)


@pytest.mark.parametrize("name", nightly_unless(lambda name: name in ("stc2019-bits", "covenant-ratio"), STUDIES))
def test_ratio_study_has_the_expected_verdicts(name: str, root: Path) -> None:
    replication = replicate(root / "scenarios" / "replication" / name, config=QUICK)
    assert replication.changed == ()
    for cell in replication.cells:
        assert cell.verdict != NOT_RUN
        assert replication.study.get_cell(cell.label).expected == cell.verdict, "each cell states its verdict"
        assert cell.own_value is not None
        assert cell.rule_bytes is not None
        assert cell.uplink_bytes is not None


@pytest.mark.parametrize(
    ("old", "new", "unchanged"), [("1 + math.floor", "2 + math.floor", {"p = 1/1000"}), ("+ len(positions)", "", set())]
)
def test_changed_figure_of_a_script_changes_the_verdicts(
    old: str, new: str, unchanged: set[str], root: Path, tmp_path: Path
) -> None:
    """Another parameter of the code changes 1 % or more, except at 1/1000, where two parameters are nearly as good; or no sign."""
    folder = tmp_path / "stc2019-bits"
    shutil.copytree(root / "scenarios" / "replication" / "stc2019-bits", folder)
    script = folder / "measure.py"
    text = script.read_text()
    assert text.count(old) == 1
    script.write_text(text.replace(old, new))
    replication = replicate(folder, config=QUICK)
    assert {*replication.changed} == {*replication.study.cells} - unchanged


def test_golomb_bits_equal_the_written_code() -> None:
    script = load_script("replication/stc2019-bits/measure.py")
    positions = np.flatnonzero(np.random.default_rng(1).random(3000) < 0.02)
    written, last = "", -1
    for position in positions.tolist():
        quotient, remainder = divmod(position - last - 1, 2**5)
        written += "1" * quotient + "0" + f"{remainder:05b}"
        last = position
    assert script.golomb_bits(positions, 5) == len(written)
    assert [script.golomb_parameter(p) for p in script.DENSITIES.values()] == [4, 6, 8, 9]


def test_layout_of_resnet_18_equals_a_network_of_torch() -> None:
    script = load_script("replication/natural-compression-ratios/measure.py")
    layers: list[nn.Module] = []
    for n_in, n_out, side in [(3, 64, 3), *[(64, 64, 3)] * 4]:
        layers += [nn.Conv2d(n_in, n_out, side, bias=False), nn.BatchNorm2d(n_out)]
    for width in (128, 256, 512):
        for n_in, side in [(width // 2, 3), (width, 3), (width // 2, 1), (width, 3), (width, 3)]:
            layers += [nn.Conv2d(n_in, width, side, bias=False), nn.BatchNorm2d(width)]
    network = nn.Sequential(*layers, nn.Linear(512, 10))
    assert tuple(tuple(parameter.shape) for parameter in network.parameters()) == script.SHAPES
    assert script.LAYOUT.size == 11_173_962


@pytest.mark.nightly
def test_frames_of_top_k_take_the_entropy_of_their_positions() -> None:
    script = load_script("replication/natural-compression-ratios/measure.py")
    cells, size = script.compute_cells(), script.LAYOUT.size
    for percent, density in script.DENSITIES.items():
        k = round(density * size)
        entropy = (lgamma(size + 1) - lgamma(k + 1) - lgamma(size - k + 1)) / log(2) / k
        bits = 8 * cells[f"top-k {percent}, natural values"]["n_bytes"] / k
        assert 1 < bits - entropy < 2.2, "a sign, and an exponent"
    assert cells["PowerSGD rank 7"]["n_bytes"] - cells["PowerSGD rank 7"]["rule_bytes"] < 100
