"""Figures for papers: their content, their legends and their files."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import fedsgd
from fedsgd.analysis import Method, load_methods, price
from fedsgd.analysis.figures import FIGURES, FigureFormat, build_figures, draw_figures, style
from fedsgd.analysis.figures.accuracy import pareto_front
from fedsgd.analysis.figures.breakdown import BREAKDOWN_COLOURS
from fedsgd.analysis.figures.series import interpolate_band
from fedsgd.analysis.page.payload import ReportOptions
from fedsgd.analysis.pricing import MethodTiming, break_evens, time_to_target
from fedsgd.errors import OutputError
from fedsgd.network import Link, Network, PricingModel, get_device, get_network
from fedsgd.scenario.scenario import load
from fedsgd.scenario.target import Criterion, parse_target
from tests.effort import nightly_unless

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
DENSE = {"uplink.compressor.name": "dense", "uplink.error_feedback": "none", "downlink.policy": "model"}
TARGET = 0.5
STARTS = {"pdf": b"%PDF-", "png": b"\x89PNG\r\n", "svg": b"<?xml"}
DEPENDENT = "depends on time"


def make_options(target: float = TARGET, name: str = "3g") -> ReportOptions:
    return ReportOptions(
        "Test", parse_target(target), PricingModel(get_network(name), get_device("phone"), get_device("server")), name
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    quickstart = ROOT / "scenarios" / "quickstart.toml"
    for seed in (0, 1):
        for name, settings in (("a-dense", DENSE), ("b-sparse", {"uplink.compressor.density": 0.05})):
            tiny = {"rounds": 6, "client.epochs": 1, "seed": seed, **settings}
            fedsgd.run(load(quickstart, tiny), out=folder / "priced" / f"{name}-{seed}")
    stragglers = ROOT / "scenarios" / "participation" / "stragglers.toml"
    fedsgd.run(load(stragglers, {"rounds": 2, "client.epochs": 1}), out=folder / "c-stragglers")
    return folder


@pytest.fixture(scope="module")
def methods(runs: Path) -> list[Method]:
    return with_labels(
        [*load_methods([runs / "priced"], TARGET), *load_methods([runs / "c-stragglers"], TARGET)], "dense", "sparse", DEPENDENT
    )


@pytest.fixture(scope="module")
def drawn(methods: list[Method]) -> dict[str, Figure]:
    return build_figures(methods, make_options())


def with_labels(methods: list[Method], *labels: str) -> list[Method]:
    return [replace(method, label=label) for method, label in zip(methods, labels, strict=True)]


def with_best_variant(method: Method, **changes: Any) -> Method:
    """Return a method with a changed best variant and no other variants."""
    variant = replace(method.best_variant, **changes)
    return replace(method, best_variant=variant, variants=(variant,))


def limit_figures(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Draw only these figures."""
    for name in set(FIGURES) - {*names}:
        monkeypatch.delitem(FIGURES, name)


def find_lines(figure: Figure, gid: str, panel: int = 0) -> list[Line2D]:
    return [line for line in figure.axes[panel].lines if re.fullmatch(gid, str(line.get_gid()))]


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def axes_texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.axes[0].texts)


def test_runs_with_all_data_have_all_figures(drawn: dict[str, Figure]) -> None:
    assert list(drawn) == list(FIGURES)
    assert {round(float(figure.get_size_inches()[0]), 3) for figure in drawn.values()} == {3.4, 7.0}


@pytest.mark.parametrize("format", nightly_unless("svg".__eq__, ["pdf", "svg", "png"]))
def test_figure_files_have_their_format_and_are_reproducible(
    methods: list[Method], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: FigureFormat
) -> None:
    first = draw_figures(methods, make_options(), tmp_path / "one", format)
    assert [path.name for path in first] == [f"{name}.{format}" for name in FIGURES]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(path.name for path in first), "no other files"
    for path in first:
        data = path.read_bytes()
        assert data.startswith(STARTS[format])
        assert b"Type3" not in data, "publishers refuse such fonts"
        assert not re.search(rb"CreationDate|dc:date", data), "no dates"
    limit_figures(monkeypatch, "link-speed", "anatomy", "memory")
    for path in draw_figures(methods, make_options(), tmp_path / "two", format):
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes(), path.name


def test_matplotlib_settings_of_the_user_change_nothing(
    methods: list[Method], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    limit_figures(monkeypatch, "accuracy-bytes")
    (first,) = draw_figures(methods, make_options(), tmp_path / "one", "svg")
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "svg.fonttype": "path", "axes.grid": False}):
        (second,) = draw_figures(methods, make_options(), tmp_path / "two", "svg")
        assert matplotlib.rcParams["font.size"] == 20
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("name", "panels", "expected"),
    [
        ("accuracy-bytes", 2, 3), ("accuracy-rounds", 1, 3), ("accuracy-time", 1, 2), ("link-speed", 1, 2), ("pareto", 1, 3),
        ("clients", 2, 3), ("memory", 2, 2),
    ],
)  # fmt: skip
def test_method_has_one_line_in_its_style(drawn: dict[str, Figure], name: str, panels: int, expected: int) -> None:
    assert len(drawn[name].axes) == panels
    colours = {line.get_gid(): to_hex(line.get_color()) for line in find_lines(drawn["clients"], r"method-\d+")}
    assert len(set(colours.values())) == 3
    for panel in range(panels):
        panel_lines = find_lines(drawn[name], r"method-\d+", panel)
        assert len(panel_lines) == len({line.get_gid() for line in panel_lines}) == expected
        assert all(to_hex(line.get_color()) == colours[line.get_gid()] for line in panel_lines), "equal in all figures"


def test_target_is_a_horizontal_line(drawn: dict[str, Figure]) -> None:
    for name in ("accuracy-bytes", "accuracy-rounds", "accuracy-time"):
        for panel in range(len(drawn[name].axes)):
            (rule,) = find_lines(drawn[name], "target", panel)
            assert list(rule.get_ydata()) == [TARGET, TARGET]
        assert f"target {TARGET:g}" in legend_labels(drawn[name])


def test_line_reaches_the_target_at_the_value_of_the_tables(methods: list[Method]) -> None:
    single = [with_best_variant(method, runs=method.runs[:1]) for method in methods[:2]]
    figures = build_figures(single, make_options())
    checked = 0
    for i, method in enumerate(single):
        (priced,) = price(method.runs[0], [make_options().pricing_model])
        reached = time_to_target(priced, parse_target(TARGET))
        if reached is None or reached.target_reached.before == reached.target_reached.after:
            continue
        for name, expected in (
            ("accuracy-rounds", reached.target_reached.rounds),
            ("accuracy-time", reached.target_reached.interpolate_on(priced.cumulative_seconds)),
            ("accuracy-bytes", reached.target_reached.interpolate_on(method.runs[0].get_cumulative("uplink_bytes"))),
        ):
            (line,) = find_lines(figures[name], f"method-{i + 1}")
            accuracy = np.interp(expected, np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
            assert accuracy == pytest.approx(TARGET, rel=1e-9), (method.label, name)
            checked += 1
    assert checked, "a method reaches the target between two rounds"


def test_unpriced_run_is_named_in_figures_of_time(drawn: dict[str, Figure]) -> None:
    for name in ("accuracy-time", "link-speed"):
        assert f"{DEPENDENT}\n(not priced: participation depended on time)" in legend_labels(drawn[name])
    assert "not priced: participation depended on time" in axes_texts(drawn["round-time"])
    assert DEPENDENT in legend_labels(drawn["accuracy-bytes"])


def test_unpriced_runs_alone_have_no_figures_of_time(methods: list[Method]) -> None:
    remaining = set(FIGURES) - {"accuracy-time", "link-speed", "round-time"}
    assert set(build_figures(methods[2:], make_options())) == remaining


def test_break_even_markers_are_at_the_break_evens(methods: list[Method]) -> None:
    pricing_model = PricingModel(Network(Link(1e6, 1e6)), get_device("phone"), get_device("server"))
    options = ReportOptions("Test", parse_target(TARGET), pricing_model, "mine")
    timings = [
        MethodTiming(
            method.label, [time_to_target(price(run, [pricing_model])[0], parse_target(TARGET)) for run in method.runs]
        )
        for method in methods[:2]
    ]
    expected = break_evens(*timings, pricing_model.network)
    assert expected, "dense needs fewer rounds and more bytes"
    figure = build_figures(methods[:2], options)["link-speed"]
    for gid in ("break-even", "soonest"):
        marks = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in find_lines(figure, gid)]
        assert [x for x, _ in marks] == pytest.approx([point.up_bits_per_second for point in expected], rel=1e-12)
        for x, y in marks:
            for timing in timings:
                assert y == pytest.approx(timing.compute_median_seconds(x, x, 0.0), rel=1e-9), "both methods need the same time"
    (rule,) = find_lines(figure, "network")
    assert list(rule.get_xdata()) == [1e6, 1e6]


def test_method_that_misses_the_target_is_named_in_the_legend(methods: list[Method]) -> None:
    single = [with_best_variant(method, runs=method.runs[:1]) for method in methods[:2]]
    best = [method.best_variant.summarize_best(Criterion()).median for method in single]
    assert best[0] != best[1]
    figures = build_figures(single, make_options(sum(best) / 2))
    missing = [label for label in legend_labels(figures["link-speed"]) if "target not reached" in label]
    assert len(missing) == 1
    assert len(find_lines(figures["link-speed"], r"method-\d+")) == 1
    assert f"{'dense' if best[0] < best[1] else 'sparse'} (target not reached)" in missing
    assert "link-speed" not in build_figures(single, make_options(0.9999))


def test_failed_seeds_are_named_in_the_legend(methods: list[Method]) -> None:
    figures = build_figures([with_best_variant(methods[0], n_failed=1)], make_options())
    assert "dense (1 of 3 seeds failed)" in legend_labels(figures["accuracy-rounds"])
    (path,) = [path for path in figures["link-speed"].axes[0].collections if len(path.get_paths())]
    assert path.get_paths()[0].vertices[:, 1].max() > 1e3 * find_lines(figures["link-speed"], "method-1")[0].get_ydata().max()


HOSTILE = ["$x_1", "_hidden", r"\frac{", "a\nb\x00c\x1b[0m", "%&<>\"'", "", "x" * 60, "x" * 61, "W" * 200, "$$", "\ud800"]


@pytest.mark.nightly
def test_hostile_labels_are_drawn_as_text(methods: list[Method], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_figures(monkeypatch, "accuracy-bytes", "link-speed", "anatomy", "round-time")
    many = [replace(methods[i % 2], label=label) for i, label in enumerate(HOSTILE)]
    labels = legend_labels(build_figures(many, make_options())["accuracy-bytes"])[: len(HOSTILE)]
    assert len(set(labels)) == len(HOSTILE), "different labels stay different"
    with style.paper_style():
        assert all(style.measure_width(text) <= style.MAX_LABEL_POINTS for text in labels)
    for path in draw_figures(many, make_options(), tmp_path / "svg", "svg"):
        text = "".join(ElementTree.parse(path).getroot().itertext())
        for label in ("$x_1", "_hidden", r"\frac{", "a b c [0m", "%&<>\"'", "(no name)", "$$"):
            assert label in text, path.name


def test_svg_contains_text_as_text(methods: list[Method], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_figures(monkeypatch, "clients", "pareto", "memory")
    for path in draw_figures(methods, make_options(), tmp_path / "svg", "svg"):
        text = "".join(ElementTree.parse(path).getroot().itertext())
        assert "sparse" in text, path.name


@pytest.mark.nightly
def test_thirteen_methods_fit_and_have_different_styles(methods: list[Method], monkeypatch: pytest.MonkeyPatch) -> None:
    limit_figures(monkeypatch, "accuracy-bytes", "accuracy-time", "pareto", "anatomy")
    many = [replace(methods[i % 2], label=f"method {i} of thirteen, with a long name") for i in range(13)]
    method_styles = style.method_styles([method.label for method in many])
    assert len({(one.colour, str(one.dashes)) for one in method_styles}) == len({one.marker for one in method_styles}) == 13
    for name, figure in build_figures(many, make_options()).items():
        figure.draw_without_rendering()
        bounds = figure.bbox
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert box.x0 >= bounds.x0 - 1, name
            assert box.x1 <= bounds.x1 + 1, name
            for ax in figure.axes:
                assert box.y1 <= ax.get_tightbbox().y0 + 1, f"{name}: the legend covers the axes"


def test_figure_contains_all_of_its_axes(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        for ax in figure.axes:
            box = ax.get_tightbbox()
            assert box is not None
            assert box.x0 >= -1, name
            assert box.y0 >= -1, name
            assert box.x1 <= figure.bbox.x1 + 1, name
            assert box.y1 <= figure.bbox.y1 + 1, name


def test_byte_breakdown_equals_the_summary(drawn: dict[str, Figure], methods: list[Method]) -> None:
    bars: dict[float, float] = {}
    for patch in drawn["anatomy"].axes[0].patches:
        row = round(patch.get_y() + patch.get_height() / 2, 6)
        bars[row] = bars.get(row, 0.0) + patch.get_width()
    assert bars == pytest.approx({0.0: 100.0, 1.0: 100.0, 2.0: 100.0})
    values = [patch.get_width() for patch in drawn["anatomy"].axes[0].patches if to_hex(patch.get_facecolor()) == "#4477aa"]
    sums = [
        [sum(run.summary["uplink"][part] for run in m.runs) for part in ("value", "index", "header", "side")] for m in methods
    ]
    assert values == pytest.approx([100 * value / (value + sum(rest)) for value, *rest in sums])


def test_round_time_bars_add_up_to_the_mean_duration(drawn: dict[str, Figure], methods: list[Method]) -> None:
    widths = [0.0, 0.0]
    for patch in drawn["round-time"].axes[0].patches:
        widths[round(patch.get_y() + 0.2)] += patch.get_width()
    pricing_model = make_options().pricing_model
    expected = [
        np.mean([np.diff(price(run, [pricing_model])[0].cumulative_seconds).mean() for run in method.runs])
        for method in methods[:2]
    ]
    assert widths == pytest.approx(expected)


def test_pareto_front_has_the_points_that_none_dominates() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.5), (2.0, 0.8), (4.0, 0.9), (5.0, 0.95), (6.0, 0.1)]
    assert pareto_front(points) == [(1.0, 0.5), (2.0, 0.8), (3.0, 0.9), (5.0, 0.95)]


def test_pareto_front_is_drawn_as_steps_through_its_points(drawn: dict[str, Figure]) -> None:
    (front,) = find_lines(drawn["pareto"], "front")
    assert front.get_drawstyle() == "steps-post"
    dots = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in find_lines(drawn["pareto"], r"method-\d+")]
    xy = np.asarray(front.get_xydata())[:-1]
    assert [tuple(point) for point in xy.tolist()] == pareto_front(dots)


def measured_once(method: Method) -> Method:
    """Return the method with only its last evaluation."""
    rounds = {"accuracy": np.where(np.arange(6) == 5, method.runs[0].rounds["accuracy"], np.nan)}
    return with_best_variant(method, runs=tuple(replace(run, rounds={**run.rounds, **rounds}) for run in method.runs[:1]))


def test_line_of_one_point_has_the_marker_of_its_legend_entry(
    drawn: dict[str, Figure], methods: list[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line of one point needs a marker to be visible. Markers of long lines still start some way along the line."""
    assert {line.get_markevery() for line in find_lines(drawn["accuracy-rounds"], "method-[12]")} == {(0.02, 0.2), (0.07, 0.2)}
    limit_figures(monkeypatch, "accuracy-rounds", "accuracy-bytes")
    for figure in build_figures([replace(measured_once(methods[0]), label=str(i)) for i in range(4)], make_options()).values():
        entries = figure.legends[0].legend_handles
        for i, line in enumerate(find_lines(figure, r"method-\d+")):
            assert line.get_markevery() == [0]
            assert line.get_marker() == entries[i].get_marker()
            assert len(line.get_xdata()) == 1


def test_byte_breakdown_legend_has_the_drawn_parts_and_markers(drawn: dict[str, Figure], methods: list[Method]) -> None:
    figure = drawn["anatomy"]
    (bound, *_) = find_lines(figure, "bound")
    handles = dict(zip(legend_labels(figure), figure.legends[0].legend_handles, strict=True))
    mark = handles.pop("lower bound for random positions, log₂C(P, k)")
    assert isinstance(mark, Line2D)
    assert (mark.get_marker(), mark.get_linestyle()) == (bound.get_marker(), bound.get_linestyle()) == ("|", "None")
    sizes = {
        part: sum(run.summary[way][part] for m in methods for run in m.runs for way in ("uplink", "downlink"))
        for part in BREAKDOWN_COLOURS
    }
    assert list(handles) == [part for part, n in sizes.items() if n]
    assert "side" not in handles


def test_pareto_legend_has_other_tuned_values_if_drawn(methods: list[Method], monkeypatch: pytest.MonkeyPatch) -> None:
    limit_figures(monkeypatch, "pareto")
    assert "other values that were tried" not in legend_labels(build_figures(methods, make_options())["pareto"])
    tuned = replace(methods[0], variants=(methods[0].best_variant, replace(methods[1].best_variant, tuned={"lr": 0.1})))
    figure = build_figures([tuned], make_options())["pareto"]
    mark = dict(zip(legend_labels(figure), figure.legends[0].legend_handles, strict=True))["other values that were tried"]
    drawn = [line for line in figure.axes[0].lines if line.get_markersize() == 3]
    assert len(drawn) == 1
    assert isinstance(mark, Line2D)
    assert (mark.get_markersize(), mark.get_markerfacecolor()) == (drawn[0].get_markersize(), drawn[0].get_markerfacecolor())


def test_band_starts_at_the_last_start_and_ends_at_the_median_end() -> None:
    x = np.arange(1.0, 6)
    band = interpolate_band([(x, x), (x[:3], 2 * x[:3]), (x[1:], 3 * x[1:])])
    assert band is not None
    assert band.x.tolist() == [2, 3, 4, 5]
    assert band.median.tolist() == [4, 6, 6, 6]
    assert band.low.tolist() == [2, 3, 4, 5]
    assert band.high.tolist() == [6, 9, 12, 15]
    assert interpolate_band([(np.zeros(0), np.zeros(0))]) is None


def test_band_of_long_runs_is_downsampled() -> None:
    x = np.arange(1.0, 100_001)
    band = interpolate_band([(x, x)])
    assert band is not None
    assert len(band.x) <= 1000
    assert (band.x[0], band.x[-1]) == (1.0, 100_000.0)


@pytest.mark.parametrize(
    ("unit", "low", "high", "expected"),
    [
        (style.BYTES, 900, 2e6, ["1 kB", "10 kB", "100 kB", "1 MB"]),
        (style.BYTES, 1.1e6, 4.2e6, ["2 MB"]),
        (style.SECONDS, 0.5, 4000, ["1 s", "10 s", "1 min", "10 min", "1 h"]),
        (style.SECONDS, 20, 200, ["20 s", "30 s", "1 min", "2 min"]),
        (style.RATE, 1e3, 1e10, ["1 kbit/s", "1 Mbit/s", "1 Gbit/s"]),
    ],
)
def test_tick_labels_have_common_units(unit: style.AxisUnit, low: float, high: float, expected: list[str]) -> None:
    ax = Figure().add_subplot()
    style.scale_axis(ax.xaxis, unit, low, high)
    labels = [unit.format_value(float(x)) for x in ax.xaxis.get_majorticklocs() if ax.get_xlim()[0] <= x <= ax.get_xlim()[1]]
    assert ax.get_xscale() == "log"
    assert labels == expected if len(expected) > 1 else len(labels) >= 2


@pytest.mark.parametrize(("low", "high"), [(5.0, 5.0), (0.0, 0.0), (1.0, 2.0), (0.0, 1e9), (1e-9, 1e15)])
@pytest.mark.parametrize("log", [None, True, False])
def test_axis_contains_any_range(low: float, high: float, log: Any) -> None:
    figure = Figure()
    ax = figure.add_subplot()
    style.scale_axis(ax.yaxis, style.SECONDS, low, high, log=log)
    figure.draw_without_rendering()
    bottom, top = ax.get_ylim()
    assert bottom <= low <= high <= top
    assert bottom < top
    assert math.isfinite(top)


def test_wrong_format_or_folder_is_refused_before_writing(methods: list[Method], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match='got the format "pfd", did you mean "pdf"'):
        draw_figures(methods, make_options(), tmp_path / "out", "pfd")
    with pytest.raises(OutputError, match="there is no folder"):
        draw_figures(methods, make_options(), tmp_path / "no" / "such", "pdf")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        draw_figures(methods, make_options(), tmp_path / "file", "pdf")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_error_in_a_figure_leaves_no_files(methods: list[Method], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Figure:
        raise ValueError("broken")

    monkeypatch.setitem(FIGURES, "memory", broken)
    with pytest.raises(ValueError, match="broken"):
        draw_figures(methods, make_options(), tmp_path / "out", "pdf")
    assert not (tmp_path / "out").exists()


def test_analysis_package_does_not_import_matplotlib() -> None:
    code = "import sys, fedsgd.analysis; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
