"""The report's page in a browser: equal figures to Python, no requests, accessibility, printing and saved files."""

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

import numpy as np
import pytest

import fedsgd
from fedsgd.analysis import Method, load_methods, price
from fedsgd.analysis.fleet import FleetConfig, MeasuredTraffic, build_fleet_row, measure_traffic
from fedsgd.analysis.fleet_result import describe_cap_limit, format_share, price_methods_in_fleet
from fedsgd.analysis.page.html import ASSETS, SCRIPTS, render
from fedsgd.analysis.page.payload import ReportOptions, build_payload, encode_array
from fedsgd.analysis.pricing import SPEEDS, MethodTiming, make_link_scaler, pairwise_break_evens, time_to_target
from fedsgd.analysis.utilization import compute_utilizations
from fedsgd.config.quantities import format_bytes, format_rate, format_seconds, format_significant, parse_rate, parse_seconds
from fedsgd.experiment.time_to_target import summarize_seeds
from fedsgd.network import Link, Network, PricingModel, get_device, get_network
from fedsgd.network.profiles import NETWORKS
from fedsgd.scenario.target import Criterion, Target, parse_target
from tests.effort import nightly_unless

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SETTINGS: dict[str, dict[str, Any]] = {
    "dense": {"uplink.compressor": {"name": "dense"}, "uplink.error_feedback": "none", "downlink.policy": "model"},
    "top-k": {"uplink.compressor.density": 0.05},
    "coarse": {"uplink.compressor.density": 0.001},
}
SEEDS = {"dense": (0, 1), "top-k": (0, 1), "coarse": (0,)}
TARGET = 0.6
PRICING_MODEL = PricingModel(get_network("4g"), get_device("phone"), get_device("server"))
HASHES = {
    "d3.min.js": "f2094bbf6141b359722c4fe454eb6c4b0f0e42cc10cc7af921fc158fceb86539",
    "plot.umd.min.js": "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb",
}
FIGURES = ("speed", "accuracy", "pareto", "parts", "round", "utilization", "traffic", "missed", "residual")
READY = "#break-evens[data-done=true]"


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of three methods, six rounds of the quickstart; the third method misses the target."""
    folder = tmp_path_factory.mktemp("page")
    for name, settings in SETTINGS.items():
        for seed in SEEDS[name]:
            tiny = {"rounds": 6, "client.epochs": 1, "seed": seed}
            fedsgd.run(fedsgd.load(root / "scenarios" / "quickstart.toml", {**tiny, **settings}), out=folder / f"{name}-{seed}")
    return folder


@pytest.fixture(scope="module")
def methods(folder: Path) -> list[Method]:
    """Methods of these runs, as in a report."""
    return load_methods([folder / f"{name}-{seed}" for name in SETTINGS for seed in SEEDS[name]], TARGET)


@pytest.fixture(scope="module")
def payload(methods: list[Method]) -> dict[str, Any]:
    """Payload of these methods."""
    return build_payload(methods, ReportOptions("Digits", parse_target(TARGET), PRICING_MODEL, "4g", 0.09))


@pytest.mark.slow
def test_payload_has_the_built_in_networks_alone(methods: list[Method], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NETWORKS, "_registered_plugins", {"lab": get_network("4g")})
    payload = build_payload(methods, ReportOptions("Digits", parse_target(TARGET), PRICING_MODEL, "4g", 0.09))
    assert [network["name"] for network in payload["networks"]] == [*NETWORKS], "a report imports no plugin"


@dataclass
class OpenPage:
    """Page with its requests and errors."""

    page: Page
    requests: list[str]
    errors: list[str]


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., OpenPage]]:
    """Return a function that opens the page of a payload from disk; at the end there must be no errors and no requests."""
    pages: list[OpenPage] = []

    def start(payload: Mapping[str, Any], address: str = "", **options: Any) -> OpenPage:
        file = tmp_path / "report of 'mine' & \"yours\" #1.html"
        file.write_text(render(payload), encoding="utf-8")
        page = browser.new_page(**options)
        one = OpenPage(page, [], [])
        page.on("request", lambda request: one.requests.append(request.url))
        page.on("pageerror", lambda error: one.errors.append(str(error)))
        page.on("console", lambda m: one.errors.append(m.text) if m.type in ("error", "warning") else None)
        page.goto(file.as_uri() + address)
        page.wait_for_selector(READY, state="attached")
        pages.append(one)
        return one

    yield start
    for one in pages:
        assert not one.errors
        urls = [url for url in one.requests if not url.startswith(("data:", "blob:"))]
        assert len(urls) == 1, urls
        assert urls[0].startswith("file:")
        one.page.close()


def edit_payload(payload: Mapping[str, Any], *changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the payload with changes to its first methods."""
    methods = [{**method, **change} for method, change in zip(payload["methods"], changes, strict=False)]
    return {**payload, "methods": [*methods, *payload["methods"][len(methods) :]]}


def read_ranking(page: Page) -> list[tuple[str, int, str, str]]:
    """Return rank, method, time and multiple of each row of the ranking, without the range over seeds."""
    script = """(rows) => rows.map((row) => {
      const time = row.querySelector("[data-seconds]");
      return [row.cells[0].textContent, Number(row.dataset.method), time.firstChild.textContent, time.nextSibling.textContent];
    })"""
    return [tuple(row) for row in page.locator("#ranking tbody tr").evaluate_all(script)]


def build_timings(methods: Sequence[Method], target: float) -> list[MethodTiming]:
    """Return the times of the methods, computed by Python."""
    return [
        MethodTiming(
            method.label, [time_to_target(price(run, [PRICING_MODEL])[0], parse_target(target)) for run in method.runs]
        )
        for method in methods
    ]


def expected_ranking(methods: Sequence[Method], link: Link, target: float) -> list[tuple[str, int, str, str]]:
    """Return the rows of the ranking, computed by Python."""
    speeds = (link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds)
    times = [timing.compute_median_seconds(*speeds) for timing in build_timings(methods, target)]
    best = [method.best_variant.summarize_best(Criterion()).median for method in methods]
    order = sorted(range(len(methods)), key=lambda i: (times[i], -best[i] if math.isinf(times[i]) else 0, i))
    rows = []
    for rank, i in enumerate(order, 1):
        if math.isinf(times[i]):
            rows.append(("–", i, "not reached", "–"))
        else:
            multiple = f"{format_significant(times[i] / times[0])}×" if math.isfinite(times[0]) else "–"
            rows.append((str(rank), i, format_seconds(times[i]), multiple))
    return rows


def read_link(page: Page) -> Link:
    """Return the link of the sliders."""
    up, down, latency = (page.get_attribute(f"#{name}", "aria-valuetext") or "" for name in ("up", "down", "latency"))
    return Link(parse_rate(up), parse_rate(down), parse_seconds(latency))


def press(page: Page, slider: str, key: str, times: int = 1) -> None:
    """Press a key on a slider, and wait for the page."""
    page.focus(f"#{slider}")
    for _ in range(times):
        page.keyboard.press(key)
    settle(page)


def settle(page: Page) -> None:
    """Wait for two frames."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


# ---------------------------------------------------------------------------------------------------------- figures and texts


@pytest.mark.slow
def test_ranking_equals_prices_of_python(
    open_page: Callable[..., OpenPage], payload: dict[str, Any], methods: list[Method]
) -> None:
    page = open_page(payload).page
    orders = set()
    moves = [(), ("up", "PageDown", 3), ("down", "ArrowLeft", 30), ("latency", "End"), ("up", "End"), ("latency", "Home")]
    moves.append(("up", "Home"))
    for move in moves:
        if move:
            press(page, *move)
        rows = read_ranking(page)
        assert rows == expected_ranking(methods, read_link(page), TARGET), move
        orders.add(tuple(method for _, method, _, _ in rows))
    assert len(orders) > 1, "the order never changed"


@pytest.mark.nightly
def test_intervals_over_seeds_are_shown_if_there_are_any(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    assert not payload["statistics"]["tables"], "there are two seeds"
    assert not open_page(payload).page.is_visible("#statistics")
    table = {"title": "dense / method", "headings": ["method", "uplink"], "rows": [[["<b>top-k"], ["7.3×", "6.1–8.8"]]]}
    page = open_page(
        {**payload, "statistics": {"tables": [table], "notes": ["confidence 75 %"]}, "baseline": payload["methods"][1]["label"]}
    ).page
    assert page.is_visible("#statistics")
    cells = page.locator("#statistics-tables tbody td")
    assert [cells.nth(i).inner_text().split("\n") for i in range(2)] == [["<b>top-k"], ["7.3×", "6.1–8.8"]]
    assert page.inner_text("#statistics-notes") == "confidence 75 %."
    assert "× dense" not in page.inner_text("#ranking thead")


@pytest.mark.nightly
def test_ranking_shows_the_range_over_seeds(
    open_page: Callable[..., OpenPage], payload: dict[str, Any], methods: list[Method]
) -> None:
    page = open_page(payload).page
    link = PRICING_MODEL.network.link
    at = (link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds)
    for i, timing in enumerate(build_timings(methods, TARGET)):
        seeds = summarize_seeds([time and time.compute_seconds(*at) for time in timing.times_to_target])
        if seeds.reached == seeds.n:
            low, high = format_seconds(seeds.low), format_seconds(seeds.high)
            text = page.inner_text(f"#ranking tr[data-method='{i}'] [data-seconds] .small")
            assert text in (f"{low} – {high}", f"{low.split()[0]}–{high}")


@pytest.mark.slow
def test_break_evens_equal_those_of_python(
    open_page: Callable[..., OpenPage], payload: dict[str, Any], methods: list[Method]
) -> None:
    page = open_page(payload).page
    for link in (PRICING_MODEL.network.link, replace(PRICING_MODEL.network.link, latency_seconds=0.5)):
        page.evaluate(f"location.hash = 'latency={link.latency_seconds}'")
        settle(page)
        assert page.get_attribute("#latency", "aria-valuetext") == format_seconds(link.latency_seconds)
        page.wait_for_selector(READY, state="attached")
        speeds = {
            float(text) for text in page.locator("#break-evens li").evaluate_all("(all) => all.map((one) => one.dataset.speed)")
        }
        points = pairwise_break_evens(build_timings(methods, TARGET), Network(link))
        assert points
        assert sorted(speeds) == pytest.approx(sorted(point.up_bits_per_second for point in points), rel=1e-9)
        text = page.locator("#break-evens").text_content() or ""
        for point in points:
            assert f"below {format_rate(point.up_bits_per_second)} of uplink" in text


@pytest.mark.slow
@pytest.mark.parametrize("back_after", nightly_unless((125).__eq__, [20, 80, 125, 160, 400]))
def test_break_evens_are_those_of_the_last_slider_position(
    open_page: Callable[..., OpenPage], payload: dict[str, Any], methods: list[Method], back_after: int
) -> None:
    """The latency changes, returns and changes again, before the first curve is computed or during the computation."""
    page = open_page(payload).page
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
    link = read_link(page)
    assert link.latency_seconds > PRICING_MODEL.network.link.latency_seconds
    speeds = page.locator("#break-evens li").evaluate_all("(all) => all.map((one) => Number(one.dataset.speed))")
    points = pairwise_break_evens(build_timings(methods, TARGET), Network(link))
    assert sorted(speeds) == pytest.approx(sorted(point.up_bits_per_second for point in points), rel=1e-9)


@pytest.mark.nightly
def test_answer_is_a_sentence(open_page: Callable[..., OpenPage], payload: dict[str, Any], methods: list[Method]) -> None:
    page = open_page(payload).page
    first, *_ = expected_ranking(methods, PRICING_MODEL.network.link, TARGET)
    answer = page.inner_text("#answer")
    assert answer.startswith("On 4G (LTE), UK average (7.6 Mbit/s up, 29.5 Mbit/s down, 10.5 ms one way), ")
    assert f"reaches 60 % first, after {first[2]}; " in answer
    page.fill("#target-number", "99.9")
    settle(page)
    best = max(method.best_variant.summarize_best(Criterion()).median for method in methods)
    assert page.inner_text("#answer").startswith("No method reaches 99.9 % in these runs. The best, ")
    assert f"gets to {100 * best:.2f}".rstrip("0").rstrip(".") in page.inner_text("#answer")
    assert {time for _, _, time, _ in read_ranking(page)} == {"not reached"}


@pytest.mark.slow
def test_typed_target_is_in_the_address(
    open_page: Callable[..., OpenPage], payload: dict[str, Any], methods: list[Method]
) -> None:
    first = open_page(payload)
    for text in ("75", "61.25"):
        first.page.fill("#target-number", text)
        settle(first.page)
        assert read_ranking(first.page) == expected_ranking(methods, PRICING_MODEL.network.link, float(text) / 100)
    first.page.wait_for_url("**target=0.6125")
    second = open_page(payload, "#" + first.page.url.rpartition("#")[2])
    assert read_ranking(second.page) == read_ranking(first.page)
    second.page.click("#reset")
    settle(second.page)
    assert read_ranking(second.page) == expected_ranking(methods, PRICING_MODEL.network.link, TARGET)


@pytest.mark.nightly
def test_preset_sets_the_link(open_page: Callable[..., OpenPage], payload: dict[str, Any], methods: list[Method]) -> None:
    page = open_page(payload).page
    page.select_option("#preset", label=get_network("lora").title)
    settle(page)
    link = get_network("lora").link
    assert read_ranking(page) == expected_ranking(methods, link, TARGET)
    assert page.inner_text("#settings").startswith(format_rate(link.up_bits_per_second))
    press(page, "up", "ArrowRight")
    assert page.input_value("#preset") == "own"


@pytest.mark.nightly
def test_ratio_option_keeps_the_ratio_of_downlink_to_uplink(
    open_page: Callable[..., OpenPage], payload: dict[str, Any]
) -> None:
    page = open_page(payload).page
    page.check("#ratio")
    press(page, "up", "ArrowLeft", 20)
    current, link = read_link(page), PRICING_MODEL.network.link
    ratio = link.down_bits_per_second / link.up_bits_per_second
    assert current.down_bits_per_second / current.up_bits_per_second == pytest.approx(ratio, rel=0.01)
    before = read_link(page)
    for key in ("End", "Home"):
        press(page, "up", key)
    press(page, "up", "PageUp", 3)
    after = read_link(page)
    ratios = [link.down_bits_per_second / link.up_bits_per_second for link in (before, after)]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.02), "the ends of the scale do not change the ratio"


@pytest.mark.nightly
def test_network_with_overridden_figures_has_no_profile_name(
    open_page: Callable[..., OpenPage], payload: dict[str, Any]
) -> None:
    page = open_page({**payload, "terms": {**payload["terms"], "title": "", "network": "4g"}}).page
    assert page.inner_text("#answer").startswith("At 7.6 Mbit/s up")
    names = page.locator("#preset option").all_inner_texts()
    assert names[0] == "network of the report"
    assert "4G (LTE), UK average" in names


@pytest.mark.nightly
def test_other_target_than_the_tuned_one_is_noted(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    tuned = {"tuned": {"lr": 0.1}, "tried": [{"lr": 0.1}, {"lr": 0.2}]}
    page = open_page({**edit_payload(payload, tuned), "notes": ["a remark"]}).page
    assert "at lr 0.1, the best of 2 for 60 %" in page.inner_text("#ranking")
    assert "a remark." in page.inner_text("#notes")
    assert "write a report with this target" not in page.inner_text("#notes")
    page.fill("#target-number", "70")
    settle(page)
    assert "tuned values are those that are best for 60 %, not for 70 %" in page.inner_text("#notes")


@pytest.mark.sampled
@pytest.mark.parametrize(
    "address", ["#up=abc&down=-5&latency=1e99&target=7&axis=pie&hide=Z.&best=maybe", "#%E0%A4%A", "#target=", "#"]
)
def test_invalid_address_is_ignored(open_page: Callable[..., OpenPage], payload: dict[str, Any], address: str) -> None:
    link = read_link(open_page(payload, address).page)
    assert 100 <= link.up_bits_per_second <= 1e12
    assert link.latency_seconds <= 2


# ----------------------------------------------------------------------------------------------------------------------- fleet


def read_fleet(page: Page) -> list[list[str]]:
    """Return the cells of the fleet's table without the method, a byte figure and its cost as two texts."""
    script = """(rows) => rows.map((row) => [...row.cells].slice(1).flatMap((cell) => [...cell.childNodes].map((n) => n.textContent)))"""
    cells: list[list[str]] = page.locator("#fleet-table tbody tr").evaluate_all(script)
    return cells


def expected_fleet(traffic: Sequence[Sequence[MeasuredTraffic]], fleet: FleetConfig) -> list[list[str]]:
    """Return the cells of the fleet's table, computed by Python."""
    rows = []
    for each in traffic:
        row = build_fleet_row("", each, fleet)
        pairs = [
            (row.fleet_uplink_bytes_per_month, None),
            (row.fleet_downlink_bytes_per_month, None),
            (row.fleet_bytes_per_month, row.fleet_cost_per_month),
            (
                replace(
                    row.uplink_bytes_per_participation,
                    median=summarize_seeds([one.mean_bytes for one in each]).median,
                ),
                None,
            ),
            (row.client_median_bytes_per_month, row.client_median_cost_per_month),
            (row.client_95th_percentile_bytes_per_month, row.client_95th_percentile_cost_per_month),
        ]
        cells = []
        for n_bytes, cost in pairs:
            assert n_bytes is not None
            cells += [format_bytes(round(n_bytes.median)), *([f"costs {format_significant(cost.median)}"] if cost else [])]
        within = row.share_of_clients_within_cap
        rows.append([*cells, *([format_share(within.median)] if within else [])])
    return rows


@pytest.mark.slow
def test_fleet_controls_give_the_figures_of_the_command(
    open_page: Callable[..., OpenPage], payload: dict[str, Any], methods: list[Method]
) -> None:
    traffic = [[measure_traffic(run) for run in method.runs] for method in methods]
    page = open_page(payload).page
    assert read_fleet(page) == expected_fleet(traffic, FleetConfig(30, clients=20, price_per_gigabyte=0.09))
    for clients, rounds, price_per_gigabyte, cap in (
        (1_000_000, 30, 0.02, 0.2),
        (1_000_000, 30, 0.02, 0.33),
        (12_345, 2000, None, 14.0),
    ):
        for name, value in {"clients": clients, "rounds": rounds, "price": price_per_gigabyte or "", "cap": cap}.items():
            page.fill(f"#fleet-{name}", str(value))
        settle(page)
        text = f"{format_bytes(round(cap * 1e6))}/month"
        fleet = FleetConfig(rounds, clients=clients, price_per_gigabyte=price_per_gigabyte, cap=text)
        assert read_fleet(page) == expected_fleet(traffic, fleet)
        limits = price_methods_in_fleet(methods, fleet).cap_limits
        assert [f"{describe_cap_limit(limit, fleet)}." for limit in limits] == page.locator("#cap-limits li").all_inner_texts()
        assert len(limits) == 1
    page.wait_for_url("**cap=14000000**")
    second = open_page(payload, "#" + page.url.rpartition("#")[2]).page
    assert read_fleet(second) == read_fleet(page)
    second.click("#reset")
    settle(second)
    assert second.input_value("#fleet-clients") == "20"
    assert "Cost" in second.inner_text("#ranking"), "the price of the report"


@pytest.mark.nightly
def test_fleet_of_other_samplers_has_the_figures_of_the_command(
    open_page: Callable[..., OpenPage], payload: dict[str, Any], methods: list[Method]
) -> None:
    samplers = ("cyclic", "weighted", "uniform")
    traffic, plain = [], []
    for sampler, method, seeds in zip(samplers, methods, payload["fleet"]["traffic"], strict=True):
        traffic.append([replace(measure_traffic(run), sampler=sampler) for run in method.runs])
        plain.append(
            [
                {**p, "sampler": sampler, "client_bytes": encode_array(t.client_bytes)}
                for p, t in zip(seeds, traffic[-1], strict=True)
            ]
        )
    fleet = FleetConfig(31, clients=1000, cohort=37, cap="200 kB/month")
    start = {"rounds_per_month": 31, "clients": 1000, "cohort": 37, "cap_bytes": 2e5, "price_per_gigabyte": 0}
    page = open_page({**payload, "fleet": {**payload["fleet"], **start, "traffic": plain}}).page
    assert read_fleet(page) == expected_fleet(traffic, fleet)
    notes = page.inner_text("#fleet-notes")
    assert "sampler weighted: the clients' shares of the bytes are those of the run's clients" in notes
    n_bounded = sum(seeds[0]["whole_model_bytes"] is not None for seeds in payload["fleet"]["traffic"])
    assert notes.count("lower bound for ") == n_bounded > 0
    assert open_page({**payload, "fleet": None}).page.locator("#fleet:visible").count() == 0, "a broadcast downlink"


# ------------------------------------------------------------------------------------------------------------ unusual reports


@pytest.mark.slow
def test_hostile_names_are_text(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    label = "</script><script>alert(1)</script><img src=x onerror=alert(2)>, \"a\" & 'b'"
    runs = [
        {**run, "folder": '/tmp/"it\'s"<b>', "scenario": "</pre><script>alert(3)</script>"}
        for run in payload["methods"][0]["runs"]
    ]
    hostile = edit_payload({**payload, "title": label}, {"label": label, "runs": runs})
    dialogs: list[Any] = []
    one = open_page(hostile)
    one.page.on("dialog", lambda dialog: dialogs.append(dialog.dismiss()))
    assert one.page.inner_text("h1") == label
    assert one.page.title() == label
    assert one.page.locator("script, img").count() == len(SCRIPTS) + 1
    draw_all(one.page)
    assert not one.page.locator(".plot img, .plot script").count()
    for kind in ("svg", "csv"):
        assert save_figure(one.page, "pareto", kind)
    one.page.locator("#reproduction details").evaluate_all("(all) => all.forEach((one) => (one.open = true))")
    assert '/tmp/"it\'s"<b>' in one.page.inner_text("#reproduction")
    assert not dialogs


@pytest.mark.nightly
def test_single_run_has_a_complete_page(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    method = payload["methods"][0]
    page = open_page({**payload, "methods": [{**method, "runs": method["runs"][:1]}]}).page
    assert re.search(r"reaches 60 % after [\d.]+ m?s\.$", page.inner_text("#answer"))
    assert len(read_ranking(page)) == 1
    draw_all(page)


@pytest.mark.nightly
def test_reproduction_of_a_run_of_python_objects_says_what_it_needs(
    open_page: Callable[..., OpenPage], payload: dict[str, Any]
) -> None:
    needs = 'needs Python objects that no file can hold (model: Net, 90 parameters): give it by fedsgd.run("<b>")'
    runs = [{**run, "needs": needs} for run in payload["methods"][0]["runs"]]
    page = open_page(edit_payload(payload, {"runs": runs})).page
    page.locator("#reproduction details").evaluate_all("(all) => all.forEach((one) => (one.open = true))")
    assert page.inner_text("#reproduction").count(f"{needs}.") == len(runs), "other methods need nothing"


@pytest.mark.nightly
def test_unpriced_runs_have_no_time(open_page: Callable[..., OpenPage], payload: dict[str, Any], methods: list[Method]) -> None:
    reason = "[participation] deadline = 60 s decided which replies were accepted"
    timeless = [{**run, "timeline": None, "not_priced": reason} for run in payload["methods"][0]["runs"]]
    page = open_page(edit_payload(payload, {"runs": timeless})).page
    assert read_ranking(page)[-1] == ("–", 0, "no time", "–")
    assert reason in page.inner_text("#notes")
    page.check("input[name=axis][value=time]")
    draw_all(page)
    assert page.inner_text("#unpriced").startswith("A has no bar, because it cannot be priced")
    assert page.inner_text("main").count(reason) == 1, "a reason stands once"
    every = {**payload, "methods": [{**payload["methods"][0], "runs": timeless}]}
    answer = open_page(every).page.inner_text("#answer")
    assert re.search(
        r"with the fewest uplink bytes, [\d.]+ [kM]?B \([\d.]+ [kM]?B in both directions together\); this method has", answer
    )


@pytest.mark.nightly
def test_missed_deadline_on_a_slow_link_leaves_no_time(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    methods = [
        {**method, "runs": [{**run, "timeline": {**run["timeline"], "due": 1.0}} for run in method["runs"]]}
        for method in payload["methods"]
    ]
    page = open_page({**payload, "methods": methods, "terms": {**payload["terms"], "deadline_seconds": 1.0}}).page
    assert "no time" not in {time for _, _, time, _ in read_ranking(page)}
    press(page, "up", "Home")
    assert {time for _, _, time, _ in read_ranking(page)} == {"no time"}
    assert "after the deadline of 1 s" in page.inner_text("#notes")
    page.check("input[name=axis][value=time]")
    draw_all(page)
    assert "no method is shown" in page.inner_text("#accuracy .plot")
    assert "can be priced" in page.inner_text("#round .plot")
    assert page.url.partition("#")[2].count("up=100"), "the page still works"


@pytest.mark.nightly
def test_failed_seeds_and_grid_edges_are_noted(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    grid = [{"client.learning_rate": rate} for rate in (0.05, 0.1, 0.2)]
    page = open_page(
        edit_payload(payload, {"failed_seeds": 3, "at_edge": ["client.learning_rate"], "tuned": grid[2], "tried": grid})
    ).page
    assert "at learning_rate 0.2, the best of 3 for 60 %" in page.inner_text("#ranking")
    notes = page.inner_text("#notes")
    assert "client.learning_rate = 0.2 is at the edge of the values that were tried" in notes
    assert "3 of 5 seeds failed; they count as not reached" in notes
    assert next(time for _, method, time, _ in read_ranking(page) if method == 0) == "not reached"
    assert page.locator("#ranking tr[data-method='0'] td").last.inner_text() == "2 of 5"


@pytest.mark.slow
def test_runs_without_accuracy_have_no_accuracy_figure(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    nothing = {"round": {"f8": ""}, "value": {"f8": ""}}
    bare = [{**method, "runs": [{**run, "measured": nothing} for run in method["runs"]]} for method in payload["methods"]]
    page = open_page({**payload, "methods": bare}).page
    draw_all(page)
    assert "accuracy was not measured" in page.inner_text("#accuracy .plot")


STOPPED_TIMERS = """() => {
  const real = window.setTimeout;
  const waiting = [];
  window.setTimeout = (call, ...rest) => (window.released ? real(call, ...rest) : waiting.push(() => real(call, ...rest)));
  window.release = () => { window.released = true; waiting.forEach((call) => call()); };
}"""
"""Script that stops all timers, which compute the curves, until `release` is called."""
NOT_REACHED = "No method that is shown reaches the target"


@pytest.mark.nightly
def test_speed_figure_while_curves_are_computed_says_so(browser: Browser, payload: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(render(payload), encoding="utf-8")
    page = browser.new_page()
    page.add_init_script(f"({STOPPED_TIMERS})()")
    page.goto(file.as_uri())
    page.locator("#speed").scroll_into_view_if_needed()
    page.wait_for_selector("#speed .plot > *", state="attached")
    assert "are being computed" in page.inner_text("#speed .plot")
    assert NOT_REACHED not in page.inner_text("main")
    assert page.is_disabled("#speed [data-save=csv]")
    page.evaluate("release()")
    page.wait_for_selector(READY, state="attached")
    assert page.locator("#speed .plot svg").count() == 1
    assert page.is_enabled("#speed [data-save=csv]")
    page.close()


@pytest.mark.nightly
def test_speed_figure_after_another_target_is_drawn_again(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    page = open_page(payload).page
    page.locator("#speed").scroll_into_view_if_needed()
    page.fill("#target-number", "99.9")
    page.locator("#speed .plot").get_by_text(NOT_REACHED).wait_for()
    script = """() => new Promise((done) => {
      const number = document.getElementById("target-number");
      number.value = 60;
      number.dispatchEvent(new Event("input", { bubbles: true }));
      requestAnimationFrame(() => requestAnimationFrame(() => done(document.querySelector("#speed .plot").textContent)));
    })"""
    assert NOT_REACHED not in page.evaluate(script), "the frame before the curves are computed"
    page.wait_for_selector("#speed .plot:not(.pending) svg")
    assert page.locator("#speed .legend .entry").count() == 2


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("seconds", [0.5, None])
def test_utilization_table_and_figure_have_the_speeds_of_the_command(
    seconds: float | None, methods: list[Method], open_page: Callable[..., OpenPage]
) -> None:
    """Without --training, the small model trains for less than a millisecond, so no level is reached."""
    model = replace(PRICING_MODEL, training_seconds=seconds)
    page = open_page(build_payload(methods, ReportOptions("Digits", parse_target(TARGET), model, "4g"))).page
    rows = page.locator("#utilization-table tbody tr").evaluate_all(
        "(rows) => rows.map((r) => [...r.cells].map((c) => c.innerText))"
    )
    expected = compute_utilizations(methods, {"4g": model})["4g"]
    for (label, here, *levels), method in zip(rows, expected, strict=True):
        assert method.label.startswith(label.split("\n")[-1])
        assert float(here.removesuffix(" %")) == pytest.approx(100 * method.utilization.median, abs=0.006)
        speeds = [summary.median for summary in method.speeds.values()]
        if seconds is None:
            assert {text.split()[:2] == ["at", "most"] for text in levels} == {math.isinf(speed) for speed in speeds} == {True}
        else:
            assert levels == [format_rate(speed) for speed in speeds]
    _, *lines = csv.reader(io.StringIO(save_figure(page, "utilization", "csv").decode()))
    scale_link = make_link_scaler(model.network)
    dense = [price(run, [model])[0].round_time_model for run in methods[0].runs]
    assert len(lines) == len(SPEEDS)
    shares = [np.median([run.utilization(*scale_link(speed)) for run in dense]) for speed in SPEEDS[::40]]
    assert [float(line[2]) for line in lines[::40]] == pytest.approx(shares, rel=1e-9)


@pytest.mark.nightly
def test_pareto_figure_counts_the_bytes_of_the_figure_for_paper(
    open_page: Callable[..., OpenPage], payload: dict[str, Any], methods: list[Method]
) -> None:
    """Both count the columns of the runs: bytes of all clients up to the best accuracy, median over seeds."""
    from fedsgd.analysis.figures import build_figures

    page = open_page(payload).page
    paper = build_figures(methods, ReportOptions("Digits", parse_target(TARGET), PRICING_MODEL, "4g"))["pareto"].axes[0]
    points = {line.get_gid(): float(line.get_xdata()[0]) for line in paper.lines if str(line.get_gid()).startswith("method-")}
    for choice, columns in (("all", ["uplink_bytes", "downlink_bytes"]), ("up", ["uplink_bytes"])):
        page.check(f"input[name=bytes][value={choice}]")
        settle(page)
        medians = []
        for method in methods:
            best = [max(run.get_measurements("accuracy"), key=lambda one: one[1])[0] for run in method.runs]
            each = [sum(run.get_cumulative(name)[at] for name in columns) for run, at in zip(method.runs, best, strict=True)]
            medians.append(summarize_seeds(each).median)
        rows = list(csv.DictReader(io.StringIO(save_figure(page, "pareto", "csv").decode())))
        assert [float(row["bytes"]) for row in rows] == medians
        label = "uplink and downlink" if choice == "all" else "uplink"
        assert f"{label} bytes until then, all clients" in (page.locator("#pareto .plot svg").text_content() or "")
        if choice == "all":
            assert [points[f"method-{i}"] for i in (1, 2, 3)] == medians
            assert paper.get_xlabel() == f"{label} bytes until then, all clients"
    assert any(
        run.get_measurements("accuracy")[-1][1] < max(a for _, a in run.get_measurements("accuracy"))
        for m in methods
        for run in m.runs
    ), "some best accuracies are before the end"


@pytest.mark.nightly
def test_pareto_figure_of_a_broadcast_downlink_says_so(payload: dict[str, Any], open_page: Callable[..., OpenPage]) -> None:
    page = open_page({**payload, "terms": {**payload["terms"], "downlink": "broadcast"}}).page
    draw_all(page)
    assert "uplink and broadcast downlink bytes until then" in (page.locator("#pareto .plot svg").text_content() or "")


@pytest.mark.nightly
def test_legend_marks_look_like_the_drawn_marks(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    page = open_page(payload).page
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


@pytest.mark.nightly
def test_runs_with_one_evaluation_are_dots_in_figure_and_legend(
    open_page: Callable[..., OpenPage], payload: dict[str, Any]
) -> None:
    once = [
        {**run, "measured": {"round": encode_array([6]), "value": encode_array([0.5])}} for run in payload["methods"][0]["runs"]
    ]
    page = open_page(edit_payload(payload, {"runs": once})).page
    draw_all(page)
    assert page.locator("#accuracy .plot g[aria-label=dot] circle").count() == 1
    entry = page.locator("#accuracy .legend [data-method='0']")
    assert entry.locator("circle").count() == 1
    assert entry.locator("line").count() == 0


@pytest.mark.nightly
def test_page_flags_runs_that_differ_in_more_than_their_method(
    open_page: Callable[..., OpenPage], payload: dict[str, Any]
) -> None:
    assert payload["mixture"] is None
    assert not open_page(payload).page.is_visible("#mixture")
    sentence = "the runs differ in more than their method: dataset (digits; <b>mnist</b>)"
    page = open_page({**payload, "mixture": sentence}, viewport={"width": 375, "height": 700}).page
    assert page.inner_text("#mixture") == f"{sentence[0].upper()}{sentence[1:]}."
    assert page.is_visible("#mixture")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


@pytest.mark.nightly
def test_page_marks_methods_that_diverged(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    text = "the run with seed 1 diverged: test loss 12.3 after round 6, 2.31 before round 1; try a smaller client.optimizer.lr"
    page = open_page(edit_payload(payload, {"diverged": [text]})).page
    draw_all(page)
    assert page.locator("#ranking .warn").all_inner_texts() == ["1 of 2 seeds diverged"]
    assert f"{text}." in page.inner_text("#notes")
    entries = page.locator("#accuracy .legend .entry text").evaluate_all(
        "(all) => all.map((one) => one.firstChild.textContent)"
    )
    assert [entry.endswith(" (diverged)") for entry in entries] == [True, False, False]


@pytest.mark.nightly
def test_page_marks_methods_with_warnings(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    texts = [f"warning: uplink.compressor.{key} = 0.9: <b>no</b>; set 0" for key in ("momentum", "clip")]
    page = open_page(edit_payload(payload, {"warnings": texts}, {"warnings": texts[:1]})).page
    assert page.locator("#ranking .warn").all_inner_texts() == ["1 warning", "2 warnings"], "ranked"
    assert page.locator("#notes li").all_inner_texts()[:-1] == [f"{i} {text}." for i, text in enumerate(texts, 1)]
    numbers = page.locator("#ranking sup").all_inner_texts()
    assert sorted(numbers) == ["1", "1, 2"], "both methods refer to the same note"


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
"""Script that returns the median of twenty times from a slider's step to its frame, in milliseconds."""


@pytest.mark.nightly
def test_slider_step_of_long_runs_is_fast(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    """Compare thirteen methods of three seeds, 200 rounds and eight candidates a round with the short runs."""
    short_milliseconds = open_page(payload).page.evaluate(FRAME)
    long_milliseconds = open_page(
        {**payload, "fleet": None, "methods": long_methods(payload, methods=13, seeds=3, rounds=200, candidates=8)}
    ).page.evaluate(FRAME)
    assert long_milliseconds < 10 * short_milliseconds


def long_methods(payload: Mapping[str, Any], methods: int, seeds: int, rounds: int, candidates: int) -> list[dict[str, Any]]:
    """Return generated methods that resemble the first one."""
    model = payload["methods"][0]["runs"][0]
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
        measured = {"round": encode_array(steps), "value": encode_array(curve)}
        return {**model, "seed": seed, "rounds": rounds, "timeline": timeline, "measured": measured, **axes}

    return [
        {
            **payload["methods"][0],
            "label": f"method {m}, density {m / 100}",
            "uncompressed": m == 0,
            "runs": [run(m, s) for s in range(seeds)],
        }
        for m in range(methods)
    ]


# ------------------------------------------------------------------------------------------------- accessibility and printing


@pytest.mark.nightly
def test_keyboard_reaches_all_controls_with_a_visible_focus(
    open_page: Callable[..., OpenPage], payload: dict[str, Any]
) -> None:
    page = open_page(payload).page
    draw_all(page)
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    script = """() => {
      const now = document.activeElement;
      const style = getComputedStyle(now);
      return [now.id || now.dataset.save || now.dataset.method || now.name || now.tagName, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
    }"""
    controls_reached: list[str] = []
    for _ in range(120):
        page.keyboard.press("Tab")
        name, visible = page.evaluate(script)
        if name == "BODY":
            break
        assert visible, name
        controls_reached.append(name)
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
    assert controls | {"0", "1", "2"} <= set(controls_reached)
    counts = {kind: controls_reached.count(kind) for kind in ("svg", "png", "csv")}
    assert counts["svg"] == counts["png"] == counts["csv"] == page.locator("figure:not([hidden])").count()


@pytest.mark.nightly
def test_hidden_method_is_not_drawn(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    page = open_page(payload).page
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


@pytest.mark.slow
def test_narrow_screen_has_no_horizontal_scroll(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    page = open_page(payload, viewport={"width": 375, "height": 700}).page
    assert not page.is_visible("#up"), "the controls are closed"
    page.locator("details").evaluate_all("(all) => all.forEach((one) => (one.open = true))")
    for width, n_hints in ((375, 4), (320, 4), (1300, 0), (768, 2)):
        page.set_viewport_size({"width": width, "height": 700})
        draw_all(page)
        settle(page)
        assert page.locator(".scroll-hint:visible").count() == n_hints, "only at tables that scroll"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "auto"


@pytest.mark.nightly
def test_dark_colours_follow_the_color_scheme(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    shade = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + Number(b), 0) / 3"
    assert open_page(payload, color_scheme="light").page.evaluate(shade) > 240
    page = open_page(payload, color_scheme="dark").page
    assert page.evaluate(shade) < 40
    page.emulate_media(media="print")
    assert page.evaluate(shade) > 240


@pytest.mark.nightly
def test_print_has_the_settings_and_no_controls(
    open_page: Callable[..., OpenPage], payload: dict[str, Any], tmp_path: Path
) -> None:
    page = open_page(payload).page
    assert not page.is_visible("#printed-settings")
    page.emulate_media(media="print")
    assert "4G (LTE), UK average: 7.6 Mbit/s up" in page.inner_text("#printed-settings")
    assert not page.is_visible("#controls")
    assert not page.is_visible(".save")
    pdf = page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert pdf.startswith(b"%PDF-")
    assert page.locator(".plot svg").count() == page.locator("figure:not([hidden])").count(), (
        "figures out of view are drawn, too"
    )


@pytest.mark.nightly
def test_page_without_scripts_explains_itself(browser: Browser, payload: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(render(payload), encoding="utf-8")
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
    """Draw all figures by scrolling to them."""
    for name in FIGURES:
        if page.is_visible(f"#{name}"):
            page.locator(f"#{name}").scroll_into_view_if_needed()
            page.wait_for_selector(f"#{name} .plot > *", state="attached")


def save_figure(page: Page, figure: str, kind: str) -> bytes:
    """Save a figure by its button, and return the file. Chromium drops a download now and then: then click again."""
    from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

    for n_milliseconds in (8_000, 8_000, 30_000):
        try:
            with page.expect_download(timeout=n_milliseconds) as waiting:
                page.click(f"#{figure} [data-save={kind}]")
            break
        except PlaywrightTimeoutError:
            if n_milliseconds > 8_000:
                raise
    assert waiting.value.suggested_filename == f"fedsgd-{figure}.{kind}"
    return Path(waiting.value.path()).read_bytes()


def visible_figures(page: Page) -> list[str]:
    return [figure for figure in FIGURES if page.is_visible(f"#{figure}")]


@pytest.mark.nightly
def test_figures_are_saved_as_pictures(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    page = open_page(payload, color_scheme="dark").page
    for figure in visible_figures(page):  # nine: Chromium drops the eleventh download in quick succession
        svg = save_figure(page, figure, "svg").decode()
        tree = ElementTree.fromstring(svg)
        assert tree.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in svg
        assert "currentColor" not in svg
        assert tree.find("{http://www.w3.org/2000/svg}rect").attrib["fill"] == "#ffffff"
    png = save_figure(page, "speed", "png")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(png[16:20]) == 2 * page.locator("#speed .plot svg").evaluate("(svg) => svg.viewBox.baseVal.width")


@pytest.mark.nightly
def test_figures_are_saved_as_tables(open_page: Callable[..., OpenPage], payload: dict[str, Any]) -> None:
    page = open_page(payload).page
    for figure in visible_figures(page):
        rows = list(csv.reader(io.StringIO(save_figure(page, figure, "csv").decode())))
        assert len(rows) > 1
        assert {len(row) for row in rows} == {len(rows[0])}


@pytest.mark.slow
def test_saved_tables_have_the_values_of_python(
    open_page: Callable[..., OpenPage], payload: dict[str, Any], methods: list[Method]
) -> None:
    page = open_page(payload).page
    header, *rows = csv.reader(io.StringIO(save_figure(page, "accuracy", "csv").decode()))
    assert header == ["method", "seed", "round", "uplink_bytes", "best_accuracy_so_far"]
    page.uncheck("#best")
    settle(page)
    _, *rows = csv.reader(io.StringIO(save_figure(page, "accuracy", "csv").decode()))
    values = [
        (method.label, run.seed, round, run.get_cumulative("uplink_bytes")[round], accuracy)
        for method in methods for run in method.runs for round, accuracy in run.get_measurements("accuracy")
    ]  # fmt: skip
    assert [(label, int(seed), int(round), float(n), float(a)) for label, seed, round, n, a in rows] == values
    header, *rows = csv.reader(io.StringIO(save_figure(page, "speed", "csv").decode()))
    curves = [timing.compute_curve(PRICING_MODEL.network) for timing in build_timings(methods, TARGET)]
    shown = [i for i, curve in enumerate(curves) if math.isfinite(curve[0])]
    assert header[2:] == [methods[i].label for i in shown]
    assert [[float(cell) for cell in row[2:]] for row in rows] == [
        pytest.approx([curves[i][j] for i in shown], rel=1e-12) for j in range(len(curves[0]))
    ]


@pytest.mark.slow
def test_page_is_one_small_reproducible_file(payload: dict[str, Any]) -> None:
    page = render(payload)
    assert page == render(json.loads(json.dumps(payload)))
    assert len(page.encode()) < 1_200_000
    assert page.count("Permission to use, copy, modify, and/or distribute this software") == 2
    for url in re.findall(r"""(?:src|href)=["']?([^"' >]+)""", page.partition("<script>")[0]):
        assert url.startswith(("data:", "https://observablehq.com", "https://d3js.org"))


def test_vendored_files_have_their_published_digests() -> None:
    for name, digest in HASHES.items():
        assert hashlib.sha256((ASSETS / "vendor" / name).read_bytes()).hexdigest() == digest
        assert f"`{digest}`" in (ASSETS / "vendor" / "README.md").read_text()
    for name in SCRIPTS:
        assert "</script" not in (ASSETS / name).read_text(encoding="utf-8").lower(), "would end its own element"


@pytest.mark.slow
def test_page_of_a_loss_has_its_direction_in_texts_controls_and_figures(
    open_page: Callable[..., OpenPage], methods: list[Method]
) -> None:
    lowest = [np.median([min(run.rounds["loss"]) for run in method.runs]) for method in methods]
    target = Target("loss", below=float(np.ceil(100 * min(lowest)) / 100))
    page = open_page(build_payload(methods, ReportOptions("Digits", target, PRICING_MODEL, "4g"))).page
    reached = [method.best_variant.summarize_rounds_to_target(target).median for method in methods]
    rows = page.locator("#ranking tbody tr").evaluate_all(
        "rows => rows.map((row) => [Number(row.dataset.method), row.cells[4].firstChild.textContent, row.cells[7].firstChild.textContent])"
    )
    for index, rounds, best in rows:
        assert rounds == ("not reached" if np.isinf(reached[index]) else format_significant(reached[index]))
        assert float(best) == pytest.approx(lowest[index], rel=1e-3)
    assert "Lowest loss" in page.inner_text("#ranking thead")
    assert f"reaches loss < {target.threshold:g}" in page.inner_text("#answer")
    assert "Target: loss below" in page.inner_text("#controls")
    draw_all(page)
    assert page.inner_text("#accuracy h3") == "Loss during training"
    assert "has a lower loss with fewer bytes" in " ".join(page.inner_text("#pareto figcaption").split())
    assert f"target loss < {target.threshold:g}" in (page.locator("#accuracy .legend").text_content() or "")
    page.fill("#target-number", "0.001")
    page.wait_for_url("**target=0.001")
    best_label = methods[int(np.argmin(lowest))].label.split(",")[0]
    assert f"No method reaches loss < 0.001 in these runs. The best, {best_label}" in page.inner_text("#answer")
    page.locator("#target").evaluate("e => { e.value = 1000; e.dispatchEvent(new Event('input')); }")
    page.wait_for_function("document.getElementById('answer').textContent.includes(' reaches loss < ')")
    highest = max(max(run.rounds["loss"]) for method in methods for run in method.runs)
    assert float(page.get_attribute("#target", "aria-valuetext") or "") == pytest.approx(highest, rel=0.01)
