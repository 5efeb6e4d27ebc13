"""Equal figures and texts from Python and from the arithmetic of the page."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from fedsgd.analysis.page.html import ASSETS
from tests.golden.pricing import FILE, vectors

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

GOLDEN: dict[str, Any] = json.loads(FILE.read_text())
EXACT = 1e-12

# The script takes the golden values and returns them as the page computes them; null replaces NaN and infinity.
SCRIPT = """
(golden) => {
  const P = fedsgdPricing;
  const plain = (value) => {
    if (typeof value === "number") return Number.isFinite(value) ? value : null;
    if (Array.isArray(value) || ArrayBuffer.isView(value)) return Array.from(value, plain);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, plain(v)]));
    return value;
  };
  const over = (table, make) => Object.fromEntries(Object.entries(table).map(([name, one]) => [name, make(one)]));
  const timelines = over(golden.timelines, ({ columns, prices }) => {
    const line = P.buildRoundTimeModel(columns);
    return { columns, prices: prices.map(({ at }) => ({
      at, seconds: P.roundSeconds(line, ...at), cumulative: P.cumulativeSeconds(line, ...at), stack: P.computeBreakdown(line, ...at),
    })) };
  });
  const crossings = over(golden.crossings, ({ rounds, accuracies, target, axis }) => {
    const crossing = P.firstReached(rounds, accuracies.map((a) => (a === null ? NaN : a)), target);
    return { rounds, accuracies, target, axis, crossing, on: crossing && P.valueAtTarget(crossing, axis) };
  });
  const falling_crossings = over(golden.falling_crossings, ({ rounds, losses, target }) => {
    const values = losses.map((a) => (a === null ? NaN : a));
    return { rounds, losses, target, crossing: P.firstReached(rounds, values, target, -1), best: P.bestSoFar(values, -1) };
  });
  const medians = golden.medians.map(({ figures }) => ({ figures, ...P.summarizeSeeds(figures) }));
  const speeds = golden.speeds;
  const races = over(golden.races, ({ timelines, crossings }) => {
    const racers = timelines.map((lines, i) => ({
      label: ["first", "second"][i],
      reaches: lines.map((line, seed) => line && { timeline: P.buildRoundTimeModel(line), crossing: crossings[i][seed] }),
    }));
    const breakEvens = P.findBreakEvens(...racers, golden.link, speeds);
    return {
      timelines, crossings, curves: racers.map((racer) => P.computeCurve(racer, golden.link, speeds)),
      break_evens: breakEvens.map(({ below, above, speed }) => ({ below, above, up_bits_per_second: speed })),
    };
  });
  const utilizations = over(golden.utilizations, ({ columns, levels }) => {
    const line = P.buildRoundTimeModel(columns);
    const shares = speeds.map((speed) => P.utilization(line, ...P.linkAtSpeed(golden.link, speed)));
    const found = levels.map((level) => P.findUtilizationSpeed(line, golden.link, level, speeds, shares));
    return { columns, levels, shares, found };
  });
  const write = {
    three_figures: P.formatSignificant, seconds_text: P.formatSeconds, rate_text: P.formatRate, size_text: P.formatBytes,
  };
  const texts = Object.fromEntries(Object.entries(golden.texts).map(([name, rows]) => [name, rows.map(([value]) => [value, write[name](value)])]));
  return plain({ timelines, crossings, falling_crossings, medians, link: golden.link, speeds, races, utilizations, texts });
}
"""


def test_python_reproduces_the_golden_values() -> None:
    assert json.loads(json.dumps(vectors(), allow_nan=False)) == GOLDEN


@pytest.fixture(scope="module")
def page_values(browser: Browser) -> dict[str, Any]:
    """Return the golden values as the page computes them."""
    page = browser.new_page()
    page.add_script_tag(content=(ASSETS / "pricing.js").read_text())
    values: dict[str, Any] = page.evaluate(SCRIPT, GOLDEN)
    page.close()
    return values


@pytest.mark.sampled
@pytest.mark.parametrize("part", GOLDEN)
def test_page_reproduces_the_golden_values(page_values: dict[str, Any], part: str) -> None:
    assert not list(find_differences(GOLDEN[part], page_values[part], part))


def find_differences(a: Any, b: Any, where: str) -> Any:
    """Yield the places at which two values differ by more than the last digits of a float."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from find_differences(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from find_differences(x, y, f"{where}[{i}]")
    elif isinstance(a, float | int) and isinstance(b, float | int):
        if not math.isclose(a, b, rel_tol=EXACT):
            yield f"{where}: {a!r}, the page computes {b!r}"
    elif a != b:
        yield f"{where}: {a!r}, the page computes {b!r}"
