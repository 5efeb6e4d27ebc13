"""The report's page, in a real browser: what it says is what Python says, it needs no network, and everybody can use it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

import fedsgd
from fedsgd.analysis import Method, load_methods, price
from fedsgd.analysis.page.html import ASSETS, SCRIPTS, render
from fedsgd.analysis.page.payload import ReportOptions, build_payload, encode_array
from fedsgd.analysis.pricing import MethodTiming, pairwise_break_evens, time_to_target
from fedsgd.config.quantities import format_rate, format_seconds, format_significant, parse_rate, parse_seconds
from fedsgd.experiment.time_to_target import summarize_seeds
from fedsgd.network import Link, Network, PricingModel, get_device, get_network

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SETTINGS: dict[str, dict[str, Any]] = {
    "dense": {"uplink.compressor": {"name": "dense"}, "uplink.error_feedback": "none", "downlink.policy": "model"},
    "top-k": {"uplink.compressor.density": 0.05},
    "coarse": {"uplink.compressor.density": 0.001},
}
SEEDS = {"dense": (0, 1), "top-k": (0, 1), "coarse": (0,)}
TARGET = 0.6
TERMS = PricingModel(get_network("4g"), get_device("phone"), get_device("server"))
HASHES = {
    "d3.min.js": "f2094bbf6141b359722c4fe454eb6c4b0f0e42cc10cc7af921fc158fceb86539",
    "plot.umd.min.js": "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb",
}
FIGURES = ("speed", "accuracy", "pareto", "parts", "round", "traffic", "missed", "residual")
READY = "#break-evens[data-done=true]"


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods, six rounds of the quickstart; the third does not get anywhere."""
    folder = tmp_path_factory.mktemp("page")
    for name, settings in SETTINGS.items():
        for seed in SEEDS[name]:
            tiny = {"rounds": 6, "client.epochs": 1, "seed": seed}
            fedsgd.run(fedsgd.load(root / "scenarios" / "quickstart.toml", {**tiny, **settings}), out=folder / f"{name}-{seed}")
    return folder


@pytest.fixture(scope="module")
def methods(folder: Path) -> list[Method]:
    """The runs, as a report has them."""
    return load_methods([folder / f"{name}-{seed}" for name in SETTINGS for seed in SEEDS[name]], TARGET)


@pytest.fixture(scope="module")
def known(methods: list[Method]) -> dict[str, Any]:
    """Their payload."""
    return build_payload(methods, ReportOptions("Digits", TARGET, TERMS, "4g", 0.09))


@dataclass
class Opened:
    """A page, and what went on behind it."""

    page: Page
    requests: list[str]
    troubles: list[str]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """opened(payload, ...): the page from disk, once it has settled; at the end it must have met no trouble."""
    pages: list[Opened] = []

    def start(known: Mapping[str, Any], address: str = "", **options: Any) -> Opened:
        file = tmp_path / "report of 'mine' & \"yours\" #1.html"
        file.write_text(render(known), encoding="utf-8")
        page = browser.new_page(**options)
        one = Opened(page, [], [])
        page.on("request", lambda request: one.requests.append(request.url))
        page.on("pageerror", lambda error: one.troubles.append(str(error)))
        page.on("console", lambda m: one.troubles.append(m.text) if m.type in ("error", "warning") else None)
        page.goto(file.as_uri() + address)
        page.wait_for_selector(READY, state="attached")
        pages.append(one)
        return one

    yield start
    for one in pages:
        assert not one.troubles
        foreign = [url for url in one.requests if not url.startswith(("data:", "blob:"))]
        assert len(foreign) == 1, foreign
        assert foreign[0].startswith("file:")
        one.page.close()


def edited(known: Mapping[str, Any], *changes: Mapping[str, Any]) -> dict[str, Any]:
    """The payload with its first methods changed."""
    methods = [{**method, **change} for method, change in zip(known["methods"], changes, strict=False)]
    return {**known, "methods": [*methods, *known["methods"][len(methods) :]]}


def row_texts(page: Page) -> list[tuple[str, int, str, str]]:
    """(rank, method, time, multiple) of the ranking's rows, without the spread."""
    script = """(rows) => rows.map((row) => {
      const time = row.querySelector("[data-seconds]");
      return [row.cells[0].textContent, Number(row.dataset.method), time.firstChild.textContent, time.nextSibling.textContent];
    })"""
    return [tuple(row) for row in page.locator("#ranking tbody tr").evaluate_all(script)]


def racers(methods: Sequence[Method], target: float) -> list[MethodTiming]:
    """As the report's Python has them."""
    return [
        MethodTiming(method.label, [time_to_target(price(run, [TERMS])[0], target) for run in method.runs])
        for method in methods
    ]


def expected(methods: Sequence[Method], link: Link, target: float) -> list[tuple[str, int, str, str]]:
    """What Python says in the ranking."""
    at = (link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds)
    times = [racer.compute_median_seconds(*at) for racer in racers(methods, target)]
    best = [method.best_variant.summarize_best_accuracy().median for method in methods]
    order = sorted(range(len(methods)), key=lambda i: (times[i], -best[i] if math.isinf(times[i]) else 0, i))
    made = []
    for rank, i in enumerate(order, 1):
        if math.isinf(times[i]):
            made.append(("–", i, "not reached", "–"))
        else:
            multiple = f"{format_significant(times[i] / times[0])}×" if math.isfinite(times[0]) else "–"
            made.append((str(rank), i, format_seconds(times[i]), multiple))
    return made


def link_now(page: Page) -> Link:
    """What the sliders say."""
    up, down, latency = (page.get_attribute(f"#{name}", "aria-valuetext") or "" for name in ("up", "down", "latency"))
    return Link(parse_rate(up), parse_rate(down), parse_seconds(latency))


def press(page: Page, slider: str, key: str, times: int = 1) -> None:
    """Keys on a slider, and the page as it is then."""
    page.focus(f"#{slider}")
    for _ in range(times):
        page.keyboard.press(key)
    settle(page)


def settle(page: Page) -> None:
    """The next frame is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


# ------------------------------------------------------------------------------------------------------------- what it says


def test_the_page_says_what_python_says(opened: Callable[..., Opened], known: dict[str, Any], methods: list[Method]) -> None:
    page = opened(known).page
    seen = set()
    moves = [(), ("up", "PageDown", 3), ("down", "ArrowLeft", 30), ("latency", "End"), ("up", "End"), ("latency", "Home")]
    moves.append(("up", "Home"))
    for move in moves:
        if move:
            press(page, *move)
        found = row_texts(page)
        assert found == expected(methods, link_now(page), TARGET), move
        seen.add(tuple(method for _, method, _, _ in found))
    assert len(seen) > 1, "the order never changed"


def test_the_spread_over_seeds_is_shown(opened: Callable[..., Opened], known: dict[str, Any], methods: list[Method]) -> None:
    page = opened(known).page
    link = TERMS.network.link
    at = (link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds)
    for i, racer in enumerate(racers(methods, TARGET)):
        seeds = summarize_seeds([one and one.compute_seconds(*at) for one in racer.times_to_target])
        if seeds.reached == seeds.n:
            low, high = format_seconds(seeds.low), format_seconds(seeds.high)
            text = page.inner_text(f"#ranking tr[data-method='{i}'] [data-seconds] .small")
            assert text in (f"{low} – {high}", f"{low.split()[0]}–{high}")


def test_break_evens_are_those_of_python(opened: Callable[..., Opened], known: dict[str, Any], methods: list[Method]) -> None:
    page = opened(known).page
    for link in (TERMS.network.link, replace(TERMS.network.link, latency_seconds=0.5)):
        page.evaluate(f"location.hash = 'latency={link.latency_seconds}'")
        settle(page)
        assert page.get_attribute("#latency", "aria-valuetext") == format_seconds(link.latency_seconds)
        page.wait_for_selector(READY, state="attached")
        found = {
            float(each) for each in page.locator("#break-evens li").evaluate_all("(all) => all.map((one) => one.dataset.speed)")
        }
        evens = pairwise_break_evens(racers(methods, TARGET), Network(link))
        wanted = sorted(one.up_bits_per_second for one in evens)
        assert evens
        assert sorted(found) == pytest.approx(wanted, rel=1e-9)
        words = page.locator("#break-evens").text_content() or ""
        for one in evens:
            assert f"below {format_rate(one.up_bits_per_second)} of uplink" in words


@pytest.mark.parametrize("back_after", [20, 80, 125, 160, 400])
def test_break_evens_are_those_of_where_the_sliders_rest(
    opened: Callable[..., Opened], known: dict[str, Any], methods: list[Method], back_after: int
) -> None:
    """There and back, before the first curve is computed and in the middle of it, and there again."""
    page = opened(known).page
    page.wait_for_selector(READY, state="attached")
    moves = f"""async () => {{
      const slider = document.getElementById("latency");
      const to = (value) => {{ slider.value = value; slider.dispatchEvent(new Event("input", {{ bubbles: true }})); }};
      const wait = (ms) => new Promise((done) => setTimeout(done, ms));
      const start = slider.value;
      to(Number(start) + 60); await wait({back_after}); to(start); await wait({back_after}); to(Number(start) + 60);
    }}"""
    page.evaluate(moves)
    settle(page)
    page.wait_for_selector(READY, state="attached")
    link = link_now(page)
    assert link.latency_seconds > TERMS.network.link.latency_seconds
    found = page.locator("#break-evens li").evaluate_all("(all) => all.map((one) => Number(one.dataset.speed))")
    wanted = [one.up_bits_per_second for one in pairwise_break_evens(racers(methods, TARGET), Network(link))]
    assert sorted(found) == pytest.approx(sorted(wanted), rel=1e-9)


def test_the_answer_is_a_sentence(opened: Callable[..., Opened], known: dict[str, Any], methods: list[Method]) -> None:
    page = opened(known).page
    first, *_ = expected(methods, TERMS.network.link, TARGET)
    answer = page.inner_text("#answer")
    assert answer.startswith("On 4G (LTE), UK average (7.6 Mbit/s up, 29.5 Mbit/s down, 10.5 ms one way), ")
    assert f"reaches 60 % first, after {first[2]}; " in answer
    page.fill("#target-number", "99.9")
    settle(page)
    best = max(method.best_variant.summarize_best_accuracy().median for method in methods)
    assert page.inner_text("#answer").startswith("No method reaches 99.9 % in these runs. The best, ")
    assert f"gets to {100 * best:.2f}".rstrip("0").rstrip(".") in page.inner_text("#answer")
    assert {time for _, _, time, _ in row_texts(page)} == {"not reached"}


def test_the_target_can_be_typed_and_is_in_the_address(
    opened: Callable[..., Opened], known: dict[str, Any], methods: list[Method]
) -> None:
    one = opened(known)
    for text in ("75", "61.25"):
        one.page.fill("#target-number", text)
        settle(one.page)
        assert row_texts(one.page) == expected(methods, TERMS.network.link, float(text) / 100)
    one.page.wait_for_url("**target=0.6125")
    other = opened(known, "#" + one.page.url.rpartition("#")[2])
    assert row_texts(other.page) == row_texts(one.page)
    other.page.click("#reset")
    settle(other.page)
    assert row_texts(other.page) == expected(methods, TERMS.network.link, TARGET)


def test_a_preset_sets_the_link(opened: Callable[..., Opened], known: dict[str, Any], methods: list[Method]) -> None:
    page = opened(known).page
    page.select_option("#preset", label=get_network("lora").title)
    settle(page)
    link = get_network("lora").link
    assert row_texts(page) == expected(methods, link, TARGET)
    assert page.inner_text("#settings").startswith(format_rate(link.up_bits_per_second))
    press(page, "up", "ArrowRight")
    assert page.input_value("#preset") == "own"


def test_down_follows_up_where_asked(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    page = opened(known).page
    page.check("#ratio")
    press(page, "up", "ArrowLeft", 20)
    now, link = link_now(page), TERMS.network.link
    ratio = link.down_bits_per_second / link.up_bits_per_second
    assert now.down_bits_per_second / now.up_bits_per_second == pytest.approx(ratio, rel=0.01)
    before = link_now(page)
    for key in ("End", "Home"):
        press(page, "up", key)
    press(page, "up", "PageUp", 3)
    after = link_now(page)
    ratios = [link.down_bits_per_second / link.up_bits_per_second for link in (before, after)]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.02), "the ends of the scale do not wear it away"


def test_a_network_with_figures_of_ones_own_is_not_called_by_the_profiles_name(
    opened: Callable[..., Opened], known: dict[str, Any]
) -> None:
    page = opened({**known, "terms": {**known["terms"], "title": "", "network": "4g"}}).page
    assert page.inner_text("#answer").startswith("At 7.6 Mbit/s up")
    names = page.locator("#preset option").all_inner_texts()
    assert names[0] == "network of the report"
    assert "4G (LTE), UK average" in names


def test_a_target_of_ones_own_is_not_what_was_tuned_for(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    tuned = {"tuned": {"lr": 0.1}, "tried": [{"lr": 0.1}, {"lr": 0.2}]}
    page = opened({**edited(known, tuned), "notes": ["something to be known"]}).page
    assert "at lr 0.1, the best of 2 for 60 %" in page.inner_text("#ranking")
    assert "something to be known." in page.inner_text("#notes")
    assert "write a report with this target" not in page.inner_text("#notes")
    page.fill("#target-number", "70")
    settle(page)
    assert "tuned values are those that are best for 60 %, not for 70 %" in page.inner_text("#notes")


@pytest.mark.parametrize(
    "address", ["#up=abc&down=-5&latency=1e99&target=7&axis=pie&hide=Z.&best=maybe", "#%E0%A4%A", "#target=", "#"]
)
def test_a_bad_address_does_no_harm(opened: Callable[..., Opened], known: dict[str, Any], address: str) -> None:
    now = link_now(opened(known, address).page)
    assert 100 <= now.up_bits_per_second <= 1e12
    assert now.latency_seconds <= 2


# --------------------------------------------------------------------------------------------------------------- odd reports


def test_names_are_text_and_never_markup(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    label = "</script><script>alert(1)</script><img src=x onerror=alert(2)>, \"a\" & 'b'"
    runs = [
        {**run, "folder": '/tmp/"it\'s"<b>', "scenario": "</pre><script>alert(3)</script>"}
        for run in known["methods"][0]["runs"]
    ]
    hostile = edited({**known, "title": label}, {"label": label, "runs": runs})
    dialogs: list[Any] = []
    one = opened(hostile)
    one.page.on("dialog", lambda dialog: dialogs.append(dialog.dismiss()))
    assert one.page.inner_text("h1") == label
    assert one.page.title() == label
    assert one.page.locator("script, img").count() == len(SCRIPTS) + 1
    draw_all(one.page)
    assert not one.page.locator(".plot img, .plot script").count()
    for kind in ("svg", "csv"):
        assert saved(one.page, "pareto", kind)
    one.page.locator("#reproduction details").evaluate_all("(all) => all.forEach((one) => (one.open = true))")
    assert '/tmp/"it\'s"<b>' in one.page.inner_text("#reproduction")
    assert not dialogs


def test_one_run(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    method = known["methods"][0]
    page = opened({**known, "methods": [{**method, "runs": method["runs"][:1]}]}).page
    assert re.search(r"reaches 60 % after [\d.]+ m?s\.$", page.inner_text("#answer"))
    assert len(row_texts(page)) == 1
    draw_all(page)


def test_reproduction_of_a_run_of_python_objects_says_what_it_needs(
    opened: Callable[..., Opened], known: dict[str, Any]
) -> None:
    needs = 'needs Python objects that no file can hold (model: Net, 90 parameters): give it by fedsgd.run("<b>")'
    runs = [{**run, "needs": needs} for run in known["methods"][0]["runs"]]
    page = opened(edited(known, {"runs": runs})).page
    page.locator("#reproduction details").evaluate_all("(all) => all.forEach((one) => (one.open = true))")
    assert page.inner_text("#reproduction").count(f"{needs}.") == len(runs), "and none of the other methods says so"


def test_runs_without_a_time(opened: Callable[..., Opened], known: dict[str, Any], methods: list[Method]) -> None:
    why = "[participation] deadline = 60 s decided which replies were accepted"
    timeless = [{**run, "timeline": None, "not_priced": why} for run in known["methods"][0]["runs"]]
    page = opened(edited(known, {"runs": timeless})).page
    assert row_texts(page)[-1] == ("–", 0, "no time", "–")
    assert why in page.inner_text("#notes")
    page.check("input[name=axis][value=time]")
    draw_all(page)
    assert why in page.inner_text("#unpriced")
    every = {**known, "methods": [{**known["methods"][0], "runs": timeless}]}
    answer = opened(every).page.inner_text("#answer")
    assert re.search(
        r"with the fewest uplink bytes, [\d.]+ [kM]?B \([\d.]+ [kM]?B in both directions together\); it has", answer
    )


def test_a_deadline_that_others_would_have_missed(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    methods = [
        {**method, "runs": [{**run, "timeline": {**run["timeline"], "due": 1.0}} for run in method["runs"]]}
        for method in known["methods"]
    ]
    page = opened({**known, "methods": methods, "terms": {**known["terms"], "deadline_seconds": 1.0}}).page
    assert "no time" not in {time for _, _, time, _ in row_texts(page)}
    press(page, "up", "Home")
    assert {time for _, _, time, _ in row_texts(page)} == {"no time"}
    assert "after the deadline of 1 s" in page.inner_text("#notes")
    page.check("input[name=axis][value=time]")
    draw_all(page)
    assert "no method is shown" in page.inner_text("#accuracy .plot")
    assert "can be priced" in page.inner_text("#round .plot")
    assert page.url.partition("#")[2].count("up=100"), "it goes on"


def test_failed_seeds_and_the_edge_of_a_grid_are_marked(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    grid = [{"client.learning_rate": rate} for rate in (0.05, 0.1, 0.2)]
    page = opened(edited(known, {"failed_seeds": 3, "at_edge": ["client.learning_rate"], "tuned": grid[2], "tried": grid})).page
    assert "at learning_rate 0.2, the best of 3 for 60 %" in page.inner_text("#ranking")
    notes = page.inner_text("#notes")
    assert "client.learning_rate = 0.2 is at the edge of what was tried" in notes
    assert "3 of 5 seeds failed; they count as not reached" in notes
    assert next(time for _, method, time, _ in row_texts(page) if method == 0) == "not reached"
    assert page.locator("#ranking tr[data-method='0'] td").last.inner_text() == "2 of 5"


def test_nothing_was_measured(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    nothing = {"round": {"f8": ""}, "accuracy": {"f8": ""}}
    bare = [{**method, "runs": [{**run, "measured": nothing} for run in method["runs"]]} for method in known["methods"]]
    page = opened({**known, "methods": bare}).page
    draw_all(page)
    assert "accuracy was not measured" in page.inner_text("#accuracy .plot")


HELD_TIMERS = """() => {
  const real = window.setTimeout;
  const held = [];
  window.setTimeout = (call, ...rest) => (window.released ? real(call, ...rest) : held.push(() => real(call, ...rest)));
  window.release = () => { window.released = true; held.forEach((call) => call()); };
}"""
"""Timers, in which the curves are computed, wait until they are released."""
NOT_REACHED = "No method that is shown reaches the target"


def test_speed_figure_while_curves_are_computed_denies_no_method(
    browser: Browser, known: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    file.write_text(render(known), encoding="utf-8")
    page = browser.new_page()
    page.add_init_script(f"({HELD_TIMERS})()")
    page.goto(file.as_uri())
    page.wait_for_selector("#speed .plot > *", state="attached")
    assert "are being computed" in page.inner_text("#speed .plot")
    assert NOT_REACHED not in page.inner_text("main")
    assert page.is_disabled("#speed [data-save=csv]")
    page.evaluate("release()")
    page.wait_for_selector(READY, state="attached")
    assert page.locator("#speed .plot svg").count() == 1
    assert page.is_enabled("#speed [data-save=csv]")
    page.close()


def test_speed_figure_after_another_target_shows_what_holds_for_it(
    opened: Callable[..., Opened], known: dict[str, Any]
) -> None:
    page = opened(known).page
    page.locator("#speed").scroll_into_view_if_needed()
    page.fill("#target-number", "99.9")
    page.locator("#speed .plot").get_by_text(NOT_REACHED).wait_for()
    script = """() => new Promise((done) => {
      const number = document.getElementById("target-number");
      number.value = 60;
      number.dispatchEvent(new Event("input", { bubbles: true }));
      requestAnimationFrame(() => requestAnimationFrame(() => done(document.querySelector("#speed .plot").textContent)));
    })"""
    assert NOT_REACHED not in page.evaluate(script), "the frame before its curves are there"
    page.wait_for_selector("#speed .plot:not(.pending) svg")
    assert page.locator("#speed .legend .entry").count() == 2


def test_pareto_figure_counts_the_bytes_that_the_one_for_paper_counts(
    opened: Callable[..., Opened], known: dict[str, Any], methods: list[Method]
) -> None:
    """Both against the run's own columns: bytes of all clients until the round of the best accuracy, median over seeds."""
    from fedsgd.analysis.figures import build_figures

    page = opened(known).page
    paper = build_figures(methods, ReportOptions("Digits", TARGET, TERMS, "4g"))["pareto"].axes[0]
    points = {line.get_gid(): float(line.get_xdata()[0]) for line in paper.lines if str(line.get_gid()).startswith("method-")}
    for choice, columns in (("all", ["uplink_bytes", "downlink_bytes"]), ("up", ["uplink_bytes"])):
        page.check(f"input[name=bytes][value={choice}]")
        settle(page)
        spent = []
        for method in methods:
            best = [max(run.measured_accuracies, key=lambda one: one[1])[0] for run in method.runs]
            each = [sum(run.get_cumulative(name)[at] for name in columns) for run, at in zip(method.runs, best, strict=True)]
            spent.append(summarize_seeds(each).median)
        rows = list(csv.DictReader(io.StringIO(saved(page, "pareto", "csv").decode())))
        assert [float(row["bytes"]) for row in rows] == spent
        label = "uplink and downlink" if choice == "all" else "uplink"
        assert f"{label} bytes until then, all clients" in (page.locator("#pareto .plot svg").text_content() or "")
        if choice == "all":
            assert [points[f"method-{i}"] for i in (1, 2, 3)] == spent
            assert paper.get_xlabel() == f"{label} bytes until then, all clients"
    assert any(
        run.measured_accuracies[-1][1] < max(a for _, a in run.measured_accuracies) for m in methods for run in m.runs
    ), "not all at the end"


def test_pareto_figure_of_a_broadcast_downlink_says_so(known: dict[str, Any], opened: Callable[..., Opened]) -> None:
    page = opened({**known, "terms": {**known["terms"], "downlink": "broadcast"}}).page
    draw_all(page)
    assert "uplink and broadcast downlink bytes until then" in (page.locator("#pareto .plot svg").text_content() or "")


def test_legend_marks_look_as_what_is_drawn(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    page = opened(known).page
    draw_all(page)
    script = """(figure) => {
      const look = (one) => ["fill", "stroke"].map((name) => getComputedStyle(one)[name]);
      const drawn = [...document.querySelectorAll(`#${figure} .plot g[aria-label=dot] circle`)].map(look);
      return [drawn, [...document.querySelectorAll(`#${figure} .legend circle`)].map(look)];
    }"""
    drawn, legend = page.evaluate(script, "pareto")
    assert legend == drawn
    assert len(legend) == 3
    names = page.locator("#pareto .legend text").evaluate_all("(all) => all.map((one) => one.firstChild.textContent)")
    assert names[-1] == "Pareto front"
    dashes = """(figure) => {
      const dash = (one) => getComputedStyle(one).strokeDasharray;
      const lines = [...document.querySelectorAll(`#${figure} .plot > svg > g[aria-label=line]`)].filter((g) => !g.getAttribute("stroke-opacity") || g.getAttribute("stroke-opacity") === "1");
      return [lines.map(dash), [...document.querySelectorAll(`#${figure} .legend .entry line`)].map(dash)];
    }"""
    drawn, legend = page.evaluate(dashes, "accuracy")
    assert legend == drawn[-3:]
    assert "target 60 %" in (page.locator("#accuracy .legend").text_content() or "")


def test_runs_with_one_evaluation_are_dots_in_figure_and_legend(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    once = [
        {**run, "measured": {"round": encode_array([6]), "accuracy": encode_array([0.5])}}
        for run in known["methods"][0]["runs"]
    ]
    page = opened(edited(known, {"runs": once})).page
    draw_all(page)
    assert page.locator("#accuracy .plot g[aria-label=dot] circle").count() == 1
    entry = page.locator("#accuracy .legend [data-method='0']")
    assert entry.locator("circle").count() == 1
    assert entry.locator("line").count() == 0


def test_page_flags_runs_that_differ_in_more_than_their_method(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    assert known["mixture"] is None
    assert not opened(known).page.is_visible("#mixture")
    sentence = "the runs differ in more than their method: dataset (digits; <b>mnist</b>)"
    page = opened({**known, "mixture": sentence}, viewport={"width": 375, "height": 700}).page
    assert page.inner_text("#mixture") == f"{sentence[0].upper()}{sentence[1:]}."
    assert page.is_visible("#mixture")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_page_marks_methods_that_diverged(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    text = "the run with seed 1 diverged: test loss 12.3 after round 6, 2.31 before round 1; try a smaller client.optimizer.lr"
    page = opened(edited(known, {"diverged": [text]})).page
    draw_all(page)
    assert page.locator("#ranking .warn").all_inner_texts() == ["1 of 2 seeds diverged"]
    assert f"{text}." in page.inner_text("#notes")
    entries = page.locator("#accuracy .legend .entry text").evaluate_all(
        "(all) => all.map((one) => one.firstChild.textContent)"
    )
    assert [entry.endswith(" (diverged)") for entry in entries] == [True, False, False]


def test_page_marks_methods_with_warnings(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    texts = [f"warning: uplink.compressor.{key} = 0.9: <b>no</b>; set 0" for key in ("momentum", "clip")]
    page = opened(edited(known, {"warnings": texts}, {"warnings": texts[:1]})).page
    assert page.locator("#ranking .warn").all_inner_texts() == ["1 warning", "2 warnings"], "ranked"
    notes = [f"{i} {text}." for i, text in enumerate([texts[0], *texts], 1)]
    assert page.locator("#notes li").all_inner_texts()[:3] == notes


FRAME = """() => new Promise((done) => {
  const slider = document.querySelector("#up");
  const times = [];
  const step = () => {
    if (times.length === 20) return done(times.sort((a, b) => a - b)[10]);
    slider.value = Number(slider.value) - 1;
    slider.dispatchEvent(new Event("input"));
    const from = performance.now();
    requestAnimationFrame(() => { times.push(performance.now() - from); setTimeout(step, 0); });
  };
  step();
})"""
"""Milliseconds from a slider's step to its frame, the median of twenty."""


def test_long_runs_stay_quick(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    """Thirteen methods of three seeds and two hundred rounds, eight candidates a round, beside a handful of short runs."""
    short = opened(known).page.evaluate(FRAME)
    long = opened({**known, "methods": long_methods(known, methods=13, seeds=3, rounds=200, candidates=8)}).page.evaluate(FRAME)
    assert long < 10 * short


def long_methods(known: Mapping[str, Any], methods: int, seeds: int, rounds: int, candidates: int) -> list[dict[str, Any]]:
    """Methods made up from the first real one."""
    model = known["methods"][0]["runs"][0]
    steps = list(range(1, rounds + 1))

    def run(method: int, seed: int) -> dict[str, Any]:
        wave = [1 + 0.5 * math.sin(0.7 * i + seed) for i in range(rounds * candidates)]
        curve = [0.95 * (1 - math.exp(-(r + seed) * 5 / rounds / (1 + method / 9))) + 0.01 * math.sin(r) for r in steps]
        bits = 8e6 / 1.5**method
        timeline = {
            **model["timeline"], "offsets": encode_array([candidates * r for r in range(rounds + 1)]), "messages": 2.0, "coding": 0.01 * method,
            "compute": encode_array(wave), "down": encode_array([bits * w for w in wave[::-1]]), "up": encode_array([bits * w for w in wave]),
        }  # fmt: skip
        axes = {name: encode_array([0.0, *(bits * r for r in steps)]) for name in ("up", "down", "broadcast")}
        measured = {"round": encode_array(steps), "accuracy": encode_array(curve)}
        return {**model, "seed": seed, "rounds": rounds, "timeline": timeline, "measured": measured, **axes}

    return [
        {
            **known["methods"][0],
            "label": f"method {m}, density {m / 100}",
            "uncompressed": m == 0,
            "runs": [run(m, s) for s in range(seeds)],
        }
        for m in range(methods)
    ]


# ---------------------------------------------------------------------------------------------------------------- for everybody


def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    page = opened(known).page
    draw_all(page)
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    script = """() => {
      const now = document.activeElement;
      const style = getComputedStyle(now);
      return [now.id || now.dataset.save || now.dataset.method || now.name || now.tagName, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
    }"""
    met: list[str] = []
    for _ in range(120):
        page.keyboard.press("Tab")
        name, visible = page.evaluate(script)
        if name == "BODY":
            break
        assert visible, name
        met.append(name)
    controls = {
        "preset",
        "up",
        "down",
        "latency",
        "target",
        "target-number",
        "ratio",
        "reset",
        "axis",
        "bytes",
        "best",
        "SUMMARY",
    }
    assert controls | {"0", "1", "2"} <= set(met)
    assert met.count("svg") == met.count("png") == met.count("csv") == page.locator("figure:not([hidden])").count()


def test_a_method_can_be_hidden(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    page = opened(known).page
    button = page.locator("#legend button").nth(1)
    draw_all(page)
    entries = page.locator("#accuracy .legend .entry")
    assert entries.count() == 3
    button.focus()
    page.keyboard.press("Space")
    settle(page)
    assert button.get_attribute("aria-pressed") == "false"
    draw_all(page)
    assert entries.count() == 2
    entries.first.click()
    settle(page)
    assert entries.count() == 1
    page.locator("#legend button[aria-pressed=true]").click()
    draw_all(page)
    assert "no method is shown" in page.inner_text("#accuracy .plot")


def test_a_narrow_screen_scrolls_down_only(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    page = opened(known, viewport={"width": 375, "height": 700}).page
    assert not page.is_visible("#up"), "the controls wait behind their summary"
    page.locator("details").evaluate_all("(all) => all.forEach((one) => (one.open = true))")
    for width in (375, 320, 768):
        page.set_viewport_size({"width": width, "height": 700})
        draw_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "auto"


def test_dark_where_it_is_asked_for(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    shade = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + Number(b), 0) / 3"
    assert opened(known, color_scheme="light").page.evaluate(shade) > 240
    page = opened(known, color_scheme="dark").page
    assert page.evaluate(shade) < 40
    page.emulate_media(media="print")
    assert page.evaluate(shade) > 240


def test_paper_has_the_settings_and_no_controls(opened: Callable[..., Opened], known: dict[str, Any], tmp_path: Path) -> None:
    page = opened(known).page
    assert not page.is_visible("#printed-settings")
    page.emulate_media(media="print")
    assert "4G (LTE), UK average: 7.6 Mbit/s up" in page.inner_text("#printed-settings")
    assert not page.is_visible("#controls")
    assert not page.is_visible(".save")
    pdf = page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert pdf.startswith(b"%PDF-")
    assert page.locator(".plot svg").count() == page.locator("figure:not([hidden])").count(), (
        "figures out of sight are drawn too"
    )


def test_without_scripts_there_is_a_word(browser: Browser, known: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(render(known), encoding="utf-8")
    page = browser.new_page(java_script_enabled=False)
    page.goto(file.as_uri())
    assert "Scripts are off" in page.inner_text("noscript")
    page.close()
    page = browser.new_page()
    page.add_init_script("delete globalThis.DecompressionStream")
    page.goto(file.as_uri())
    page.get_by_text("this browser is too old").wait_for()
    page.close()


# ------------------------------------------------------------------------------------------------------------------- files


def draw_all(page: Page) -> None:
    """All figures, also those out of sight."""
    for name in FIGURES:
        if page.is_visible(f"#{name}"):
            page.locator(f"#{name}").scroll_into_view_if_needed()
            page.wait_for_selector(f"#{name} .plot > *", state="attached")


def saved(page: Page, figure: str, kind: str) -> bytes:
    """What a button gives."""
    with page.expect_download() as waiting:
        page.click(f"#{figure} [data-save={kind}]")
    assert waiting.value.suggested_filename == f"fedsgd-{figure}.{kind}"
    return Path(waiting.value.path()).read_bytes()


def visible_figures(page: Page) -> list[str]:
    return [figure for figure in FIGURES if page.is_visible(f"#{figure}")]


def test_figures_can_be_saved_as_pictures(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    page = opened(known, color_scheme="dark").page
    for figure in visible_figures(page):  # eight: Chromium drops the eleventh download in quick succession
        svg = saved(page, figure, "svg").decode()
        tree = ElementTree.fromstring(svg)
        assert tree.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in svg
        assert "currentColor" not in svg
        assert tree.find("{http://www.w3.org/2000/svg}rect").attrib["fill"] == "#ffffff"
    png = saved(page, "speed", "png")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(png[16:20]) == 2 * page.locator("#speed .plot svg").evaluate("(svg) => svg.viewBox.baseVal.width")


def test_figures_can_be_saved_as_tables(opened: Callable[..., Opened], known: dict[str, Any]) -> None:
    page = opened(known).page
    for figure in visible_figures(page):
        rows = list(csv.reader(io.StringIO(saved(page, figure, "csv").decode())))
        assert len(rows) > 1
        assert {len(row) for row in rows} == {len(rows[0])}


def test_the_tables_are_the_numbers(opened: Callable[..., Opened], known: dict[str, Any], methods: list[Method]) -> None:
    page = opened(known).page
    header, *rows = csv.reader(io.StringIO(saved(page, "accuracy", "csv").decode()))
    assert header == ["method", "seed", "round", "uplink_bytes", "best_accuracy_so_far"]
    page.uncheck("#best")
    settle(page)
    _, *rows = csv.reader(io.StringIO(saved(page, "accuracy", "csv").decode()))
    wanted = [
        (method.label, run.seed, round, run.get_cumulative("uplink_bytes")[round], accuracy)
        for method in methods for run in method.runs for round, accuracy in run.measured_accuracies
    ]  # fmt: skip
    assert [(label, int(seed), int(round), float(n), float(a)) for label, seed, round, n, a in rows] == wanted
    header, *rows = csv.reader(io.StringIO(saved(page, "speed", "csv").decode()))
    curves = [racer.compute_curve(TERMS.network) for racer in racers(methods, TARGET)]
    shown = [i for i, curve in enumerate(curves) if math.isfinite(curve[0])]
    assert header[2:] == [methods[i].label for i in shown]
    assert [[float(cell) for cell in row[2:]] for row in rows] == [
        pytest.approx([curves[i][j] for i in shown], rel=1e-12) for j in range(len(curves[0]))
    ]


def test_the_page_is_one_small_file_and_the_same_each_time(known: dict[str, Any]) -> None:
    page = render(known)
    assert page == render(json.loads(json.dumps(known)))
    assert len(page.encode()) < 1_200_000
    assert page.count("Permission to use, copy, modify, and/or distribute this software") == 2
    for outside in re.findall(r"""(?:src|href)=["']?([^"' >]+)""", page.partition("<script>")[0]):
        assert outside.startswith(("data:", "https://observablehq.com", "https://d3js.org"))


def test_vendored_files_are_what_their_authors_published() -> None:
    for name, digest in HASHES.items():
        assert hashlib.sha256((ASSETS / "vendor" / name).read_bytes()).hexdigest() == digest
        assert f"`{digest}`" in (ASSETS / "vendor" / "README.md").read_text()
    for name in SCRIPTS:
        assert "</script" not in (ASSETS / name).read_text(encoding="utf-8").lower(), "would end the element that it is in"
