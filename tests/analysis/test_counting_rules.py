"""Counting rules against published figures and independent counts, and the tables of their page."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from fedsgd.analysis.replication.counting_rules import (
    COUNTING_RULES,
    MessageCounts,
    get_counting_rule,
    golomb_position_bits,
)
from fedsgd.errors import ReportError, ScenarioError
from tests.docs.blocks import DOCS
from tests.scripts import load_script

TWO_NN = ((200, 784), (200,), (200, 200), (200,), (10, 200), (10,))
PAGE = DOCS / "results" / "counting-rules.md"


def count_ratio(rule: str, counts: MessageCounts) -> float:
    return get_counting_rule(rule).count_ratio(counts)


# ------------------------------------------------------------------------------------------------------ published figures


@pytest.mark.parametrize(
    ("n_parameters", "n_vector_parameters", "mebibytes", "ratio"),
    [(25_557_032, 54_120, 0.35, 277), (60_965_224, 10_568, 0.39, 597), (51_034_000, 34_000, 0.42, 462)],
)
def test_dgc_rule_gives_the_published_sizes(
    n_parameters: int, n_vector_parameters: int, mebibytes: float, ratio: float
) -> None:
    """Lin et al. 2018, tables 3 and 4: ResNet-50, AlexNet and the PTB model."""
    n_coordinates = round(0.001 * (n_parameters - n_vector_parameters))
    counts = MessageCounts(n_parameters, n_coordinates, n_whole_parameters=n_vector_parameters)
    assert get_counting_rule("dgc-runs").count_bytes(counts) / 2**20 == pytest.approx(mebibytes, abs=0.005)
    assert count_ratio("dgc-runs", counts) == pytest.approx(ratio, abs=1)


@pytest.mark.parametrize(
    ("inverse", "bits", "ratio"), [(25, 7.08, 113), (100, 9.11, 351), (400, 11.11, 1152), (1000, 12.49, 2563)]
)
def test_stc_rule_gives_the_bits_and_ratios_of_its_formula(inverse: int, bits: float, ratio: int) -> None:
    counts = MessageCounts(1_000_000, 1_000_000 // inverse)
    assert 8 * get_counting_rule("stc-golomb").count_bytes(counts) / counts.n_coordinates == pytest.approx(bits, abs=0.006)
    assert count_ratio("stc-golomb", counts) == pytest.approx(ratio, rel=1e-3)


@pytest.mark.parametrize(("k", "ratio"), [(32, 292.57), (64, 146.29), (128, 73.14)])
def test_rule_of_12_and_2_bits_gives_the_ratio_of_covenant(k: int, ratio: float) -> None:
    assert count_ratio("int12-2bit", MessageCounts(4096 * 100, 100 * k)) == pytest.approx(ratio, abs=0.005)


def test_rule_of_12_and_8_bits_exceeds_the_announced_ratio() -> None:
    assert count_ratio("int12-8bit", MessageCounts(4096, 64)) == pytest.approx(102.4)


@pytest.mark.parametrize(
    ("percent", "float_percent", "natural_percent"), [(0.39, 0.78, 0.48), (1.56, 3.12, 1.95), (6.25, 12.5, 7.81)]
)
def test_rules_of_horvath_give_the_published_percentages(percent: float, float_percent: float, natural_percent: float) -> None:
    """Shares of dense bits in the table of top-k with and without natural compression, to its two digits."""
    counts = MessageCounts(10_000, round(100 * percent))
    assert 100 / count_ratio("float32-int32", counts) == pytest.approx(float_percent, abs=0.011)
    assert 100 / count_ratio("natural-int32", counts) == pytest.approx(natural_percent, abs=0.011)


# ---------------------------------------------------------------------------------------------------- independent counts


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05, 0.3])
def test_golomb_bits_are_the_mean_length_of_a_code_of_random_gaps(density: float) -> None:
    gaps = np.random.default_rng(7).geometric(density, 400_000)
    lengths = {b: float(np.mean((gaps - 1) // 2**b + 1 + b)) for b in range(14)}  # unary quotient and its end, b bits
    assert golomb_position_bits(density) == pytest.approx(min(lengths.values()), rel=0.005)


def test_golomb_bits_of_all_coordinates_are_one() -> None:
    assert golomb_position_bits(1.0) == 1.0
    assert golomb_position_bits(0.999) == pytest.approx(1 / 0.999)


def test_coo_and_bitmask_rules_equal_a_loop_over_tensors() -> None:
    rng = np.random.default_rng(3)
    masks = [rng.random(shape) < 0.01 for shape in TWO_NN]
    coo = sum(mask.ndim * 8 + 4 for mask in masks for _ in range(int(mask.sum())))
    bitmask = sum(4 * int(mask.sum()) + mask.size / 8 for mask in masks)
    vectors = sum(int(mask.sum()) for mask in masks if mask.ndim == 1)
    counts = MessageCounts(199_210, sum(int(mask.sum()) for mask in masks), n_vector_coordinates=vectors)
    assert vectors > 0
    assert get_counting_rule("coo-int64").count_bytes(counts) == coo
    assert get_counting_rule("bitmask").count_bytes(counts) == bitmask


@pytest.mark.parametrize(
    ("rule", "dtypes"), [("float32-int64", "f4 i8"), ("float32-int32", "f4 i4"), ("float16-int32", "f2 i4")]
)
def test_rule_of_pairs_equals_the_size_of_the_buffers(rule: str, dtypes: str) -> None:
    buffers = [np.zeros(1992, dtype) for dtype in dtypes.split()]
    assert get_counting_rule(rule).count_bytes(MessageCounts(199_210, 1992)) == sum(buffer.nbytes for buffer in buffers)


@pytest.mark.parametrize("name", COUNTING_RULES)
def test_bytes_of_a_rule_are_proportional_to_the_messages(name: str) -> None:
    one = MessageCounts(199_210, 1988, n_vector_coordinates=20, n_whole_parameters=410, n_cells=110_000)
    five = replace(one, n_messages=5, n_coordinates=5 * 1988, n_vector_coordinates=100)
    rule = COUNTING_RULES[name]
    assert rule.name == name
    assert rule.count_bytes(five) == pytest.approx(5 * rule.count_bytes(one))
    assert rule.count_ratio(five) == pytest.approx(4 * 199_210 / rule.count_bytes(one))


# ----------------------------------------------------------------------------------------------------------------- errors


def test_unknown_rule_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ScenarioError, match=r'^counting rule: got "dgc_run", did you mean "dgc-runs"\?$'):
        get_counting_rule("dgc_run")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"n_parameters": 0}, "n_parameters: got 0, expected at least 1"),
        ({"n_coordinates": 21}, "n_coordinates: got 21, expected 0 to 20"),
        ({"n_vector_coordinates": 6}, "n_vector_coordinates: got 6, expected 0 to 5"),
        ({"n_whole_parameters": 11}, "n_whole_parameters: got 11, expected 0 to 10"),
        ({"n_messages": -1}, "n_messages: got -1, expected at least 0"),
    ],
)
def test_impossible_counts_are_refused(counts: dict[str, int], message: str) -> None:
    valid = {"n_parameters": 10, "n_coordinates": 5, "n_messages": 2}
    with pytest.raises(ReportError, match=f"^{message}$"):
        MessageCounts(**{**valid, **counts})


def test_sketch_without_a_size_is_refused() -> None:
    with pytest.raises(ReportError, match="n_cells: got 0, expected the rows"):
        get_counting_rule("count-sketch").count_bytes(MessageCounts(10, 1))


def test_density_without_a_position_is_refused() -> None:
    with pytest.raises(ReportError, match="density: got 0, expected a number above 0"):
        golomb_position_bits(0)


def test_messages_without_coordinates_have_no_bytes() -> None:
    assert get_counting_rule("stc-golomb").count_bytes(MessageCounts(10, 0)) == 0
    assert get_counting_rule("values-only").count_ratio(MessageCounts(10, 0, 0)) == math.inf


# ------------------------------------------------------------------------------------------------------------------- page


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("replication/counting-rules/measure.py")


def test_page_has_the_rows_of_the_formulas_and_sources(script: ModuleType) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for row in [*script.formula_rows(script.draw_update()), *script.source_rows()]:
        assert f"| {' | '.join(row)} |" in text, "out of date; run scenarios/replication/counting-rules/measure.py --data DIR"
    names = re.findall(r"^\| `([\w-]+)`", text, re.MULTILINE)
    assert sorted(names) == sorted([*COUNTING_RULES, *COUNTING_RULES, "count-sketch"])


def test_page_has_the_measured_bytes_of_a_gaussian_update(script: ModuleType) -> None:
    """Frames are equal to the byte; the libraries behind the other buffers differ between versions by a few percent."""
    text = PAGE.read_text(encoding="utf-8")
    for name, n_bytes in script.measure(script.draw_update()).items():
        row = re.search(rf"^\| {re.escape(name)} \| ([\d,]+) \| ([\d.]+)× \| ", text, re.MULTILINE)
        assert row is not None, name
        assert int(row[1].replace(",", "")) == pytest.approx(math.ceil(n_bytes), rel=0 if "fedsgd" in name else 0.03), name
        assert float(row[2]) == pytest.approx(4 * 199_210 / int(row[1].replace(",", "")), rel=0.01), name


def test_measured_gaps_of_stc_exceed_its_formula_by_a_bit(script: ModuleType) -> None:
    """STC's repository adds one bit to a Golomb code; sizes of single tensors change the mean a little."""
    _, decoded = script.encode(script.draw_update(), "ternary")
    n_bytes = get_counting_rule("stc-golomb").count_bytes(MessageCounts(199_210, 1992))
    assert 8 * (script.golomb_bytes(decoded) - n_bytes) / 1992 == pytest.approx(1, abs=0.05)


def test_entropy_of_ternary_values_is_near_that_of_the_positions_and_signs(script: ModuleType) -> None:
    _, decoded = script.encode(script.draw_update(), "ternary")
    p = 1992 / 199_210
    entropy = 199_210 * (-p * math.log2(p) - (1 - p) * math.log2(1 - p) + p) / 8
    assert entropy < script.entropy_bytes(decoded) < 1.05 * entropy
