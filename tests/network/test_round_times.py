"""Round times: a closed form for each term of the model, and the clients that it omits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsgd.errors import ReportError
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
    round_time_models,
)
from fedsgd.network.heterogeneity import draw_log_normal_factors, read_link_trace
from fedsgd.numerics.rng import derive_generator
from tests.effort import examples

NO_WORK = ComputeProfile(parameters=1, flops_per_example=1e-30, encode_copies=0, decode_copies=0, server_copies=0)
INSTANT = Device(flops_per_second=1e30, copy_bytes_per_second=1e30)


def make_traffic(rows: list[dict[str, int]], distinct: list[float] | None = None) -> ClientTraffic:
    """Return the traffic of rows, ascending by round and client; by default with one message in each direction."""

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
        accepted=column("accepted", 1) > 0,
        down_distinct_bytes=np.zeros(n_rounds) if distinct is None else np.array(distinct),
    )


def build_model(
    rows: list[dict[str, int]], pricing_model: PricingModel, work: ComputeProfile = NO_WORK, distinct: list[float] | None = None
) -> RoundTimeModel:
    """Return the round time model of rows of traffic."""
    (model,) = round_time_models([make_traffic(rows, distinct)], work, 0, [pricing_model])
    return model


def compute_seconds(
    rows: list[dict[str, int]], network: Network, work: ComputeProfile = NO_WORK, **options: Any
) -> list[float]:
    """Return the duration of each round on a network, by default with instant devices."""
    pricing_model = PricingModel(network, options.pop("device", INSTANT), options.pop("server", INSTANT), **options)
    link = network.link
    model = build_model(rows, pricing_model, work)
    return model.round_seconds(link.up_bits_per_second, link.down_bits_per_second, link.latency_seconds).tolist()


PLAIN = Network(Link(1000, 4000))


def test_transfer_takes_eight_bits_for_each_byte() -> None:
    assert compute_seconds([{"round": 1, "client": 0, "down": 500, "up": 250}], PLAIN) == pytest.approx(
        [500 * 8 / 4000 + 250 * 8 / 1000]
    )


def test_round_lasts_as_long_as_its_slowest_client() -> None:
    rows = [{"round": 1, "client": 0, "up": 125}, {"round": 1, "client": 7, "up": 250}, {"round": 2, "client": 0, "up": 375}]
    model = build_model(rows, PricingModel(PLAIN, INSTANT, INSTANT))
    assert model.round_seconds(1000, 4000, 0).tolist() == pytest.approx([2, 3])
    assert model.cumulative_seconds(1000, 4000, 0).tolist() == pytest.approx([0, 2, 5])


def test_latency_counts_for_each_message() -> None:
    slow = replace(PLAIN, link=replace(PLAIN.link, latency_seconds=0.25))
    assert compute_seconds([{"round": 1, "client": 0}], slow) == pytest.approx([0.5])
    assert compute_seconds([{"round": 1, "client": 0, "down_messages": 2, "up_messages": 2}], slow) == pytest.approx([1.0])
    assert compute_seconds([{"round": 1, "client": 0, "up_messages": 0}], slow) == pytest.approx([0.25]), (
        "the client did not reply"
    )


def test_overhead_counts_for_each_message() -> None:
    with_overhead = replace(PLAIN, up_overhead_bytes=1000, down_overhead_bytes=500)
    assert compute_seconds([{"round": 1, "client": 0, "up": 0, "up_messages": 2}], with_overhead) == pytest.approx([16 + 1])


@pytest.mark.slow
def test_jitter_is_exponential_for_each_message_and_reproducible() -> None:
    network = replace(PLAIN, link=replace(PLAIN.link, jitter_seconds=0.1))
    rows = [{"round": r, "client": 0} for r in range(1, 4001)]
    delays = np.array(compute_seconds(rows, network))
    assert delays.tolist() == compute_seconds(rows, network)
    assert delays.mean() == pytest.approx(0.2, rel=0.05), "two messages"
    assert delays.var() == pytest.approx(2 * 0.1**2, rel=0.15)
    assert delays[0] == pytest.approx(0.1 * derive_generator(0, "jitter", 1).standard_gamma([2.0])[0])


def test_log_normal_links_depend_on_seed_and_client_only() -> None:
    subset, all_clients = np.array([3, 5000]), np.arange(6000)
    few, many = (LogNormalLinks(0.5).compute_factors(7, clients) for clients in (subset, all_clients))
    assert few.up.tolist() == many.up[subset].tolist() == many.down[subset].tolist()
    logs = np.log(many.up)
    assert logs.mean() == pytest.approx(0, abs=0.03)
    assert logs.std() == pytest.approx(0.5, rel=0.05)
    assert (LogNormalLinks(0.5).compute_factors(8, subset).up != few.up).all()
    factor = float(few.up[0])
    network = replace(PLAIN, draws=LogNormalLinks(0.5))
    rows = [{"round": 1, "client": 3, "down": 500, "up": 250}]
    (model,) = round_time_models([make_traffic(rows)], NO_WORK, 7, [PricingModel(network, INSTANT, INSTANT)])
    assert model.round_seconds(1000, 4000, 0).tolist() == pytest.approx([(1 + 2) / factor])


def test_link_trace_gives_links_relative_to_medians(tmp_path: Path) -> None:
    path = tmp_path / "links.csv"
    path.write_text(
        "client,up_bits_per_second,down_bits_per_second,latency_seconds\n1,2000,4000,0.2\n0,1000,8000,0.1\n2,4000,6000,0.3\n"
    )
    trace = read_link_trace(path)
    assert (trace.up_bits_per_second, trace.down_bits_per_second, trace.latency_seconds) == (2000, 6000, 0.2)
    network = build_pricing_model(trace=path).network
    assert network.link == Link(2000, 6000, 0.2)
    rows = [{"round": 1, "client": 0, "up": 125, "down": 1000}, {"round": 2, "client": 4, "up": 125}]
    assert compute_seconds(rows, network) == pytest.approx([1.0 + 1.0 + 0.2, 0.5 + 0.4]), "client 4 has the link of 4 modulo 3"
    model = build_model(rows, PricingModel(network, INSTANT, INSTANT))
    assert model.round_seconds(4000, 6000, 0.0)[0] == pytest.approx(0.5 + 1.0), "no latency is below 0"


def test_server_link_is_shared_by_all_clients() -> None:
    rows = [{"round": 1, "client": c, "down": 500, "up": 125} for c in range(10)]
    assert compute_seconds(
        rows, replace(PLAIN, server_down_bits_per_second=1e9, server_up_bits_per_second=1e9)
    ) == pytest.approx([2.0])
    assert compute_seconds(rows, replace(PLAIN, server_up_bits_per_second=2000)) == pytest.approx([1 + 10 * 125 * 8 / 2000])
    assert compute_seconds(rows, replace(PLAIN, server_down_bits_per_second=2000)) == pytest.approx([10 * 500 * 8 / 2000 + 1])


def test_broadcast_downlink_carries_each_distinct_frame_once() -> None:
    rows = [{"round": 1, "client": c, "down": 500, "up": 125} for c in range(10)]
    network = replace(PLAIN, downlink="broadcast")
    model = build_model(rows, PricingModel(network, INSTANT, INSTANT), distinct=[750.0])
    assert model.round_seconds(1000, 4000, 0).tolist() == pytest.approx([750 * 8 / 4000 + 1])
    limited = replace(network, server_down_bits_per_second=3000)
    model = build_model(rows, PricingModel(limited, INSTANT, INSTANT), distinct=[750.0])
    assert model.round_seconds(1000, 4000, 0).tolist() == pytest.approx([3])


def test_compute_time_is_recorded_work_over_device_speed() -> None:
    work = replace(NO_WORK, flops_per_example=2e6)
    phone = Device(flops_per_second=1e9, copy_bytes_per_second=1e30)
    rows = [{"round": 1, "client": 0, "examples": 600}, {"round": 1, "client": 1, "examples": 30}]
    assert compute_seconds(rows, PLAIN, work, device=phone) == pytest.approx([600 * 2e6 / 1e9])
    spread = replace(phone, spread=0.7)
    speed = float(draw_log_normal_factors(0, "device", np.array([0]), 0.7)[0])
    assert compute_seconds(rows[:1], PLAIN, work, device=spread) == pytest.approx([1.2 / speed])


def test_coding_time_is_counted_in_copies_of_the_vector() -> None:
    work = ComputeProfile(parameters=1000, flops_per_example=1e-30, encode_copies=5, decode_copies=2, server_copies=3)
    slow, server = Device(1e30, 8000), Device(1e30, 16000)
    accepted = [{"round": 1, "client": 0}, {"round": 1, "client": 1}]
    assert compute_seconds(accepted, PLAIN, work, device=slow) == pytest.approx([7 * 4000 / 8000])
    assert compute_seconds(accepted, PLAIN, work, server=server) == pytest.approx([2 * 3 * 4000 / 16000]), (
        "two updates are decoded"
    )
    lost = [{"round": 1, "client": 0, "accepted": 0}, {"round": 1, "client": 1}]
    assert compute_seconds(lost, PLAIN, work, server=server) == pytest.approx([3 * 4000 / 16000])
    no_reply = [{"round": 1, "client": 0, "up_messages": 0, "accepted": 0}]
    assert compute_seconds(no_reply, PLAIN, work, device=slow) == pytest.approx([2 * 4000 / 8000]), (
        "the client decoded a message and did not reply"
    )


def test_round_with_lost_reply_lasts_until_the_deadline() -> None:
    rows = [
        {"round": 1, "client": 0, "up": 125},
        {"round": 1, "client": 1, "up": 125, "accepted": 0},
        {"round": 2, "client": 0, "up": 125},
    ]
    assert compute_seconds(rows, PLAIN) == pytest.approx([1, 1])
    assert compute_seconds(rows, PLAIN, deadline_seconds=10.0) == pytest.approx([10, 1])
    with pytest.raises(
        ReportError, match=r"round 1 would arrive after 1 s, later than the deadline of 500 ms: on this network other"
    ):
        compute_seconds(rows, PLAIN, deadline_seconds=0.5)
    lost = [{"round": 1, "client": 1, "up": 10**9, "accepted": 0}]
    assert compute_seconds(lost, PLAIN, deadline_seconds=2.0) == [2.0], "the wait for a lost reply ends at the deadline"


def test_round_without_clients_takes_no_time() -> None:
    rows = [{"round": 1, "client": 0, "up": 125}, {"round": 3, "client": 0, "up": 125}]
    assert compute_seconds(rows, PLAIN) == pytest.approx([1, 0, 1])


def test_breakdown_adds_up_to_the_round() -> None:
    work = ComputeProfile(parameters=1000, flops_per_example=1e6, encode_copies=5, decode_copies=2, server_copies=3)
    rows = [
        {"round": 1, "client": 0, "down": 500, "up": 125, "examples": 10},
        {"round": 1, "client": 1, "down": 10, "up": 10, "examples": 9000, "accepted": 0},
        {"round": 2, "client": 2, "up": 125, "examples": 10},
    ]
    network = Network(Link(1000, 4000, 0.01, 0.02), LogNormalLinks(0.4), server_up_bits_per_second=500.0)
    model = build_model(rows, PricingModel(network, Device(1e9, 1e5), Device(1e9, 1e4), 60.0), work)
    phases = model.breakdown(1000, 4000, 0.01)
    assert sum(phases).tolist() == pytest.approx(model.round_seconds(1000, 4000, 0.01).tolist())
    assert phases.lost_reply_wait[0] > 0
    assert phases.lost_reply_wait[1] == 0
    assert phases.compute[1] == pytest.approx(10 * 1e6 / 1e9)
    assert phases.server_seconds.tolist() == pytest.approx([3 * 4000 / 1e4] * 2)


@st.composite
def draw_traffic(draw: st.DrawFn) -> ClientTraffic:
    """Draw the traffic of one to four rounds."""
    n_rounds = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(0, 12), min_size=n_rounds, max_size=n_rounds).filter(any))
    rows = [
        {"round": r + 1, "client": c, **{key: draw(st.integers(0, 50)) for key in ("down", "up", "examples", "up_messages")}}
        for r, size in enumerate(sizes)
        for c in range(size)
    ]
    return replace(make_traffic(rows), down_distinct_bytes=np.full(n_rounds, 20.0))


LINK_SPEEDS = st.tuples(st.floats(1, 1e6), st.floats(1, 1e6), st.floats(0, 3))
NETWORKS = st.builds(
    Network,
    st.just(Link(1000, 1000, 0.1, 0.05)),
    st.sampled_from([HomogeneousLinks(), LogNormalLinks(1.0)]),
    st.sampled_from([None, 500.0]),
    st.sampled_from([None, 700.0]),
    st.sampled_from(["unicast", "broadcast"]),
)


@pytest.mark.slow
@examples(50)
@given(draw_traffic(), NETWORKS, st.lists(LINK_SPEEDS, min_size=1, max_size=4))
def test_omitted_clients_change_no_round(
    traffic: ClientTraffic, network: Network, link_speeds: list[tuple[float, float, float]]
) -> None:
    """The model agrees with the maximum over all clients, each priced alone."""
    work = ComputeProfile(parameters=10, flops_per_example=1e3, encode_copies=5, decode_copies=2, server_copies=3)
    pricing_model = PricingModel(network, Device(1e4, 1e3, 0.5), INSTANT)
    (model,) = round_time_models([traffic], work, 3, [pricing_model])
    n_rounds = len(traffic.down_distinct_bytes)
    slowest = np.zeros((len(link_speeds), n_rounds))
    columns = compute_all_columns(traffic, work, pricing_model)
    for i, (up, down, latency) in enumerate(link_speeds):
        messages, delay, down_bits, compute, coding, up_bits = columns
        rounds = traffic.round - 1
        seconds = np.maximum(0, messages * latency + delay) + compute + coding
        seconds = seconds + np.maximum(down_bits / down, model.shared_down[rounds])
        seconds = seconds + np.maximum(up_bits / up, model.shared_up[rounds])
        np.maximum.at(slowest[i], rounds, seconds)
        empty = np.bincount(rounds, minlength=n_rounds) == 0
        result = model.round_seconds(up, down, latency) - model.server_seconds
        np.testing.assert_allclose(result[~empty], slowest[i][~empty], rtol=1e-12)
    assert len(model.down) <= max(1, len(traffic.round)) + n_rounds


def compute_all_columns(traffic: ClientTraffic, work: ComputeProfile, pricing_model: PricingModel) -> Any:
    """Return the columns of all rows, before any client is omitted."""
    from fedsgd.network.round_times import _candidate_columns

    return _candidate_columns(traffic, traffic.round - traffic.first_round, work, pricing_model, 3)


@pytest.mark.slow
@given(hnp.arrays(np.int64, st.tuples(st.just(30), st.just(2)), elements=st.integers(1, 10**6)))
def test_faster_links_never_take_longer(figures: Any) -> None:
    rows = [{"round": 1 + i // 10, "client": i, "down": int(d), "up": int(u)} for i, (d, u) in enumerate(figures)]
    model = build_model(rows, PricingModel(replace(PLAIN, draws=LogNormalLinks(0.8)), INSTANT, INSTANT))
    slow, fast = model.round_seconds(1000, 4000, 0.1), model.round_seconds(2000, 5000, 0.05)
    assert (fast < slow).all()


def test_chunks_of_rounds_give_the_model_of_all_rounds() -> None:
    rows = [{"round": r, "client": c, "down": 10 * c + r, "up": 7 * r} for r in range(1, 6) for c in range(4)]
    traffic = make_traffic(rows, [1.0] * 5)
    chunks = [
        replace(make_traffic([row for row in rows if row["round"] <= 2], [1.0] * 2), first_round=1),
        replace(make_traffic([row for row in rows if row["round"] > 2], [1.0] * 3), first_round=3),
    ]
    pricing_model = PricingModel(replace(PLAIN, draws=LogNormalLinks(0.5), link=Link(1000, 4000, 0.1, 0.1)), INSTANT, INSTANT)
    model, joined = (round_time_models(parts, NO_WORK, 1, [pricing_model])[0] for parts in ([traffic], chunks))
    for name in ("offsets", "messages", "delay", "down", "compute", "coding", "up", "server_seconds"):
        np.testing.assert_array_equal(getattr(model, name), getattr(joined, name))
    first_rounds = model.first_rounds(3)
    np.testing.assert_array_equal(first_rounds.round_seconds(1000, 4000, 0.1), model.round_seconds(1000, 4000, 0.1)[:3])
