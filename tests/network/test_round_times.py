"""The network model: a closed form for each piece, and that what is left out can never be the slowest."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsgd.errors import DataError, ReportError, ScenarioError
from fedsgd.network import (
    ClientTraffic,
    ComputeProfile,
    Device,
    HomogeneousLinks,
    Link,
    LogNormalLinks,
    Network,
    PricingModel,
    RoundTimeModel,
    build_pricing_model,
    format_network_label,
    get_device,
    get_network,
    round_time_models,
)
from fedsgd.network.heterogeneity import draw_log_normal_factors, read_link_trace
from fedsgd.network.profiles import load_devices, load_networks
from fedsgd.numerics.rng import derive_generator

NOTHING = ComputeProfile(parameters=1, flops_per_example=1e-30, encode_copies=0, decode_copies=0, server_copies=0)
INSTANT = Device(flops_per_second=1e30, copy_bytes_per_second=1e30)


def trips(rows: list[dict[str, int]], distinct: list[float] | None = None) -> ClientTraffic:
    """rows: by round and client; one message each way unless said otherwise."""

    def column(name: str, default: int = 0) -> Any:
        return np.array([row.get(name, default) for row in rows], dtype=np.int64)

    n_rounds = max((row["round"] for row in rows), default=1)
    return ClientTraffic(
        first_round=1,
        round=column("round"),
        client=column("client"),
        down_bytes=column("down"),
        up_bytes=column("up"),
        down_messages=column("down_messages", 1),
        up_messages=column("up_messages", 1),
        examples=column("examples"),
        accepted=column("taken", 1) > 0,
        down_distinct_bytes=np.zeros(n_rounds) if distinct is None else np.array(distinct),
    )


def line(
    rows: list[dict[str, int]], terms: PricingModel, work: ComputeProfile = NOTHING, distinct: list[float] | None = None
) -> RoundTimeModel:
    (made,) = round_time_models([trips(rows, distinct)], work, 0, [terms])
    return made


def seconds(rows: list[dict[str, int]], net: Network, work: ComputeProfile = NOTHING, **terms: Any) -> list[float]:
    asked = PricingModel(net, terms.pop("device", INSTANT), terms.pop("server", INSTANT), **terms)
    link = net.link
    made = line(rows, asked, work)
    return made.round_seconds(link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds).tolist()


PLAIN = Network(Link(1000, 4000))


def test_a_transfer_takes_eight_bits_a_byte() -> None:
    assert seconds([{"round": 1, "client": 0, "down": 500, "up": 250}], PLAIN) == pytest.approx(
        [500 * 8 / 4000 + 250 * 8 / 1000]
    )


def test_a_round_lasts_until_its_slowest_client_and_rounds_follow_each_other() -> None:
    rows = [{"round": 1, "client": 0, "up": 125}, {"round": 1, "client": 7, "up": 250}, {"round": 2, "client": 0, "up": 375}]
    made = line(rows, PricingModel(PLAIN, INSTANT, INSTANT))
    assert made.round_seconds(1000, 4000, 0).tolist() == pytest.approx([2, 3])
    assert made.cumulative_seconds(1000, 4000, 0).tolist() == pytest.approx([0, 2, 5])


def test_latency_is_paid_for_each_message() -> None:
    slow = replace(PLAIN, link=replace(PLAIN.link, latency_seconds=0.25))
    assert seconds([{"round": 1, "client": 0}], slow) == pytest.approx([0.5])
    assert seconds([{"round": 1, "client": 0, "down_messages": 2, "up_messages": 2}], slow) == pytest.approx([1.0])
    assert seconds([{"round": 1, "client": 0, "up_messages": 0}], slow) == pytest.approx([0.25]), "nothing was heard of it"


def test_what_the_transport_adds_is_added_to_each_message() -> None:
    with_overhead = replace(PLAIN, up_overhead_bytes=1000, down_overhead_bytes=500)
    assert seconds([{"round": 1, "client": 0, "up": 0, "up_messages": 2}], with_overhead) == pytest.approx([16 + 1])


def test_jitter_is_exponential_for_each_message_and_reproducible() -> None:
    jittery = replace(PLAIN, link=replace(PLAIN.link, jitter_seconds=0.1))
    rows = [{"round": r, "client": 0} for r in range(1, 4001)]
    drawn = np.array(seconds(rows, jittery))
    assert drawn.tolist() == seconds(rows, jittery)
    assert drawn.mean() == pytest.approx(0.2, rel=0.05), "two messages"
    assert drawn.var() == pytest.approx(2 * 0.1**2, rel=0.15)
    assert drawn[0] == pytest.approx(0.1 * derive_generator(0, "jitter", 1).standard_gamma([2.0])[0])


def test_log_normal_links_are_their_clients_own_whoever_else_is_asked() -> None:
    some, all_of_them = np.array([3, 5000]), np.arange(6000)
    few, many = (LogNormalLinks(0.5).compute_factors(7, clients) for clients in (some, all_of_them))
    assert few.up.tolist() == many.up[some].tolist() == many.down[some].tolist()
    logs = np.log(many.up)
    assert logs.mean() == pytest.approx(0, abs=0.03)
    assert logs.std() == pytest.approx(0.5, rel=0.05)
    assert (LogNormalLinks(0.5).compute_factors(8, some).up != few.up).all()
    factor = float(few.up[0])
    net = replace(PLAIN, draws=LogNormalLinks(0.5))
    rows = [{"round": 1, "client": 3, "down": 500, "up": 250}]
    (made,) = round_time_models([trips(rows)], NOTHING, 7, [PricingModel(net, INSTANT, INSTANT)])
    assert made.round_seconds(1000, 4000, 0).tolist() == pytest.approx([(1 + 2) / factor])


def test_links_from_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "links.csv"
    path.write_text(
        "client,up_bits_per_second,down_bits_per_second,latency_seconds\n1,2000,4000,0.2\n0,1000,8000,0.1\n2,4000,6000,0.3\n"
    )
    traced = read_link_trace(path)
    assert (traced.up_bits_per_second, traced.down_bits_per_second, traced.latency_seconds) == (2000, 6000, 0.2)
    terms = build_pricing_model(trace=path)
    assert terms.network.link == Link(2000, 6000, 0.2)
    net, rows = terms.network, [{"round": 1, "client": 0, "up": 125, "down": 1000}, {"round": 2, "client": 4, "up": 125}]
    assert seconds(rows, net) == pytest.approx([1.0 + 1.0 + 0.2, 0.5 + 0.4]), "client 4 has the link of 4 modulo 3"
    made = line(rows, PricingModel(net, INSTANT, INSTANT))
    assert made.round_seconds(4000, 6000, 0.0)[0] == pytest.approx(0.5 + 1.0), "no latency is less than none"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("client,up\n0,1\n", "line 1: expected the header"),
        ("client,up_bits_per_second,down_bits_per_second,latency_seconds\n", "expected lines below the header"),
        ("client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,1,1\n", "line 2: expected 4 values"),
        (
            "client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,1,x,0\n",
            "line 2: down_bits_per_second: expected a number",
        ),
        (
            "client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,0,1,0\n",
            "line 2: up_bits_per_second: expected a number above 0",
        ),
        (
            "client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,1,1,-1\n",
            "latency_seconds: expected a number of at least 0",
        ),
        (
            "client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,1,1,0\n0,1,1,0\n",
            "line 3: client: 0 is repeated",
        ),
        ("client,up_bits_per_second,down_bits_per_second,latency_seconds\n0,1,1,0\n2,1,1,0\n", "1 is missing"),
        ("client,up_bits_per_second,down_bits_per_second,latency_seconds\n-1,1,1,0\n", "client: expected a whole number"),
    ],
)
def test_a_trace_that_is_wrong_is_refused_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "links.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        read_link_trace(path)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_link_trace(tmp_path / "none.csv")


def test_the_servers_link_is_shared() -> None:
    rows = [{"round": 1, "client": c, "down": 500, "up": 125} for c in range(10)]
    assert seconds(rows, replace(PLAIN, server_down_bits_per_second=1e9, server_up_bits_per_second=1e9)) == pytest.approx([2.0])
    assert seconds(rows, replace(PLAIN, server_up_bits_per_second=2000)) == pytest.approx([1 + 10 * 125 * 8 / 2000])
    assert seconds(rows, replace(PLAIN, server_down_bits_per_second=2000)) == pytest.approx([10 * 500 * 8 / 2000 + 1])


def test_a_broadcast_downlink_carries_each_distinct_frame_once() -> None:
    rows = [{"round": 1, "client": c, "down": 500, "up": 125} for c in range(10)]
    net = replace(PLAIN, downlink="broadcast")
    made = line(rows, PricingModel(net, INSTANT, INSTANT), distinct=[750.0])
    assert made.round_seconds(1000, 4000, 0).tolist() == pytest.approx([750 * 8 / 4000 + 1])
    shared = replace(net, server_down_bits_per_second=3000)
    assert line(rows, PricingModel(shared, INSTANT, INSTANT), distinct=[750.0]).round_seconds(
        1000, 4000, 0
    ).tolist() == pytest.approx([3])


def test_computing_takes_the_recorded_work_over_the_devices_throughput() -> None:
    work = replace(NOTHING, flops_per_example=2e6)
    phone = Device(flops_per_second=1e9, copy_bytes_per_second=1e30)
    rows = [{"round": 1, "client": 0, "examples": 600}, {"round": 1, "client": 1, "examples": 30}]
    assert seconds(rows, PLAIN, work, device=phone) == pytest.approx([600 * 2e6 / 1e9])
    spread = replace(phone, spread=0.7)
    speed = float(draw_log_normal_factors(0, "device", np.array([0]), 0.7)[0])
    assert seconds(rows[:1], PLAIN, work, device=spread) == pytest.approx([1.2 / speed])


def test_coding_is_counted_in_copies_of_the_vector() -> None:
    work = ComputeProfile(parameters=1000, flops_per_example=1e-30, encode_copies=5, decode_copies=2, server_copies=3)
    slow, server = Device(1e30, 8000), Device(1e30, 16000)
    both = [{"round": 1, "client": 0}, {"round": 1, "client": 1}]
    assert seconds(both, PLAIN, work, device=slow) == pytest.approx([7 * 4000 / 8000])
    assert seconds(both, PLAIN, work, server=server) == pytest.approx([2 * 3 * 4000 / 16000]), "the server decodes both"
    lost = [{"round": 1, "client": 0, "taken": 0}, {"round": 1, "client": 1}]
    assert seconds(lost, PLAIN, work, server=server) == pytest.approx([3 * 4000 / 16000])
    silent = [{"round": 1, "client": 0, "up_messages": 0, "taken": 0}]
    assert seconds(silent, PLAIN, work, device=slow) == pytest.approx([2 * 4000 / 8000]), "it decoded, and was heard no more"


def test_a_round_in_which_a_reply_never_comes_lasts_until_the_deadline() -> None:
    rows = [
        {"round": 1, "client": 0, "up": 125},
        {"round": 1, "client": 1, "up": 125, "taken": 0},
        {"round": 2, "client": 0, "up": 125},
    ]
    assert seconds(rows, PLAIN) == pytest.approx([1, 1])
    assert seconds(rows, PLAIN, deadline_seconds=10.0) == pytest.approx([10, 1])
    with pytest.raises(
        ReportError, match=r"round 1 would arrive after 1 s, later than the deadline of 500 ms: on this network other"
    ):
        seconds(rows, PLAIN, deadline_seconds=0.5)
    nobody = [{"round": 1, "client": 1, "up": 10**9, "taken": 0}]
    assert seconds(nobody, PLAIN, deadline_seconds=2.0) == [2.0], "whose reply is lost is not waited for beyond it"


def test_a_round_of_nobody_takes_no_time() -> None:
    rows = [{"round": 1, "client": 0, "up": 125}, {"round": 3, "client": 0, "up": 125}]
    assert seconds(rows, PLAIN) == pytest.approx([1, 0, 1])


def test_the_stack_adds_up_to_the_round() -> None:
    work = ComputeProfile(parameters=1000, flops_per_example=1e6, encode_copies=5, decode_copies=2, server_copies=3)
    rows = [
        {"round": 1, "client": 0, "down": 500, "up": 125, "examples": 10},
        {"round": 1, "client": 1, "down": 10, "up": 10, "examples": 9000, "taken": 0},
        {"round": 2, "client": 2, "up": 125, "examples": 10},
    ]
    net = Network(Link(1000, 4000, 0.01, 0.02), LogNormalLinks(0.4), server_up_bits_per_second=500.0)
    made = line(rows, PricingModel(net, Device(1e9, 1e5), Device(1e9, 1e4), 60.0), work)
    parts = made.breakdown(1000, 4000, 0.01)
    assert sum(parts).tolist() == pytest.approx(made.round_seconds(1000, 4000, 0.01).tolist())
    assert parts.lost_reply_wait[0] > 0
    assert parts.lost_reply_wait[1] == 0
    assert parts.compute[1] == pytest.approx(10 * 1e6 / 1e9)
    assert parts.server_seconds.tolist() == pytest.approx([3 * 4000 / 1e4] * 2)


@st.composite
def cohorts(draw: st.DrawFn) -> ClientTraffic:
    n_rounds = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(0, 12), min_size=n_rounds, max_size=n_rounds).filter(any))
    rows = [
        {"round": r + 1, "client": c, **{key: draw(st.integers(0, 50)) for key in ("down", "up", "examples", "up_messages")}}
        for r, size in enumerate(sizes)
        for c in range(size)
    ]
    made = trips(rows)
    return replace(made, down_distinct_bytes=np.full(n_rounds, 20.0))


speeds = st.tuples(st.floats(1, 1e6), st.floats(1, 1e6), st.floats(0, 3))
nets = st.builds(
    Network,
    st.just(Link(1000, 1000, 0.1, 0.05)),
    st.sampled_from([HomogeneousLinks(), LogNormalLinks(1.0)]),
    st.sampled_from([None, 500.0]),
    st.sampled_from([None, 700.0]),
    st.sampled_from(["unicast", "broadcast"]),
)


@settings(max_examples=150)
@given(cohorts(), nets, st.lists(speeds, min_size=1, max_size=4))
def test_leaving_out_whoever_is_outdone_changes_no_round(
    cohort: ClientTraffic, net: Network, at: list[tuple[float, float, float]]
) -> None:
    """Against every client by itself, priced one at a time."""
    work = ComputeProfile(parameters=10, flops_per_example=1e3, encode_copies=5, decode_copies=2, server_copies=3)
    terms = PricingModel(net, Device(1e4, 1e3, 0.5), INSTANT)
    (whole,) = round_time_models([cohort], work, 3, [terms])
    n_rounds = len(cohort.down_distinct_bytes)
    longest = np.zeros((len(at), n_rounds))
    every = whole_columns(cohort, work, terms)
    for i, speed in enumerate(at):
        up, down, latency = speed
        messages, delay, d, compute, coding, u = every
        rounds = cohort.round - 1
        each = np.maximum(0, messages * latency + delay) + compute + coding
        each = each + np.maximum(d / down, whole.shared_down[rounds]) + np.maximum(u / up, whole.shared_up[rounds])
        np.maximum.at(longest[i], rounds, each)
        empty = np.bincount(rounds, minlength=n_rounds) == 0
        got = whole.round_seconds(up, down, latency) - whole.server_seconds
        np.testing.assert_allclose(got[~empty], longest[i][~empty], rtol=1e-12)
    assert len(whole.down) <= max(1, len(cohort.round)) + n_rounds


def whole_columns(cohort: ClientTraffic, work: ComputeProfile, terms: PricingModel) -> Any:
    """Of all trips: a stretch of one trip each cannot leave anybody out."""
    from fedsgd.network.round_times import _candidate_columns

    return _candidate_columns(cohort, cohort.round - cohort.first_round, terms.network, work, terms.device, 3)


@given(hnp.arrays(np.int64, st.tuples(st.just(30), st.just(2)), elements=st.integers(1, 10**6)))
def test_faster_links_never_take_longer(figures: Any) -> None:
    rows = [{"round": 1 + i // 10, "client": i, "down": int(d), "up": int(u)} for i, (d, u) in enumerate(figures)]
    made = line(rows, PricingModel(replace(PLAIN, draws=LogNormalLinks(0.8)), INSTANT, INSTANT))
    slow, fast = made.round_seconds(1000, 4000, 0.1), made.round_seconds(2000, 5000, 0.05)
    assert (fast < slow).all()


def test_stretches_of_rounds_join_to_the_same_timeline() -> None:
    rows = [{"round": r, "client": c, "down": 10 * c + r, "up": 7 * r} for r in range(1, 6) for c in range(4)]
    at_once = trips(rows, [1.0] * 5)
    cut = [
        replace(trips([row for row in rows if row["round"] <= 2], [1.0] * 2), first_round=1),
        replace(trips([row for row in rows if row["round"] > 2], [1.0] * 3), first_round=3),
    ]
    terms = [PricingModel(replace(PLAIN, draws=LogNormalLinks(0.5), link=Link(1000, 4000, 0.1, 0.1)), INSTANT, INSTANT)]
    whole, joined = (round_time_models(parts, NOTHING, 1, terms)[0] for parts in ([at_once], cut))
    for name in ("offsets", "messages", "delay", "down", "compute", "coding", "up", "server_seconds"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(joined, name))
    half = whole.first_rounds(3)
    np.testing.assert_array_equal(half.round_seconds(1000, 4000, 0.1), whole.round_seconds(1000, 4000, 0.1)[:3])


# ------------------------------------------------------------------------------------------------------------------- profiles


def test_every_profile_has_a_source_and_figures_that_can_be() -> None:
    assert {"3g", "4g", "5g", "broadband", "wifi", "lora", "1g", "10g", "satellite"} <= set(load_networks())
    for known in (*load_networks().values(), *load_devices().values()):
        assert len(known.source) > 40
        assert known.title
    for name, net in load_networks().items():
        assert net.link.up_bits_per_second <= net.link.down_bits_per_second, name
        assert net.link.latency_seconds < 1, name
    assert load_networks()["10g"].link.up_bits_per_second == 10 * load_networks()["1g"].link.up_bits_per_second == 1e10


def test_a_profile_that_is_not_there_is_answered_with_the_nearest() -> None:
    with pytest.raises(ScenarioError, match='did you mean "satellite"'):
        get_network("satelite")
    with pytest.raises(ScenarioError, match='did you mean "phone"'):
        get_device("phones")


def test_what_is_asked_for_takes_the_place_of_the_profiles_figures() -> None:
    terms = build_pricing_model(
        "3g", up="2 Mbit/s", latency="10ms", spread=0.3, broadcast=True, overhead_up="12 kB", flops="1 GFLOP/s"
    )
    assert terms.network.link.up_bits_per_second == 2e6
    assert terms.network.link.down_bits_per_second == get_network("3g").link.down_bits_per_second
    assert terms.network.link.latency_seconds == 0.01
    assert (terms.network.draws, terms.network.downlink, terms.network.up_overhead_bytes) == (
        LogNormalLinks(0.3),
        "broadcast",
        12000,
    )
    assert terms.device.flops_per_second == 1e9
    assert "2 Mbit/s up, 1.6 Mbit/s down, 10 ms one way, log-normal rates, spread 0.3, downlink broadcast" in str(terms.network)


@pytest.mark.parametrize(
    ("options", "heading"),
    [
        ({}, "3g"),
        ({"up": "1.6 Mbit/s", "latency": "0.05 s"}, "3g with 1.6 Mbit/s up, 50 ms one way"),
        ({"down": "1.6 Mbit/s"}, "3g"),  # the profile's own figure
        ({"jitter": "5 ms", "spread": 0.3}, "3g with jitter 5 ms, log-normal rates, spread 0.3"),
        ({"server_up": "1 Gbit/s", "server_down": "2 Gbit/s"}, "3g with 1 Gbit/s into the server, 2 Gbit/s out of the server"),
        (
            {"broadcast": True, "overhead_up": "12 kB", "overhead_down": "3 kB"},
            "3g with downlink broadcast, 12,000 B of overhead in each message up, 3,000 B of overhead in each message down",
        ),
        ({"flops": "1 GFLOP/s", "deadline": "5 s"}, "3g"),  # of the devices, not of the network
    ],
)
def test_network_label_names_every_override(options: dict[str, Any], heading: str) -> None:
    terms = build_pricing_model("3g", **options)
    assert format_network_label("3g", terms) == heading
    assert (terms.network.title == get_network("3g").title) == (heading == "3g")
    assert terms.network.source.endswith(get_network("3g").source)
    overrides = heading.removeprefix("3g with ")
    assert terms.network.source.startswith(f"set by options: {overrides}; ") == (heading != "3g")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"up": "2 Mbit/s"}, "--down: expected a rate, or a network"),
        ({"up": "2 Mb/s", "down": "1 Mbit/s"}, "--up: got '2 Mb/s'"),
        ({"network_name": "brodband"}, '--network: got "brodband", did you mean "broadband"'),
        ({"network_name": "4g", "deadline": "0 s"}, "--deadline"),
        ({"network_name": "4g", "spread": -1.0}, "--spread"),
        ({"network_name": "4g", "device_name": "fone"}, "--device: got"),
        ({"network_name": "4g", "trace": Path("x.csv"), "spread": 0.5}, "--spread: got 0.5 in addition to a trace"),
    ],
)
def test_what_is_asked_for_and_cannot_be_names_its_option(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        build_pricing_model(**options)
    assert says in str(caught.value)


def test_a_speed_that_floats_cannot_hold_is_refused() -> None:
    with pytest.raises(DataError, match="exceeds the range of floats"):
        draw_log_normal_factors(0, "link", np.arange(2000), 400.0)
    assert math.isfinite(float(draw_log_normal_factors(0, "link", np.arange(2000), 5.0).max()))
