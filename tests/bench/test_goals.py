"""Tests of the cases of the benchmark of the codec, and of the other implementations in it."""

from __future__ import annotations

import math

from fedsgd.compression import CodecContext, ErrorFeedback
from fedsgd.compression.operators.topk import TopK
from fedsgd.numerics.parameter_layout import ParameterLayout
from tests.bench.goals import Clients, Work, time_relative_to_memcpy
from tests.bench.measure import Bench, Effort
from tests.bench.rivals import dgc_selection, torch_top_k

QUICK = Effort(pool_mib=1, repetitions=1)


def test_clients_keep_their_states_and_repeat_an_encoding() -> None:
    bench = Bench(3000, QUICK)
    clients = Clients(bench, ErrorFeedback(TopK(0.01)))
    assert all("residual" in state for state in clients.states)
    clients.find_support()
    assert len(clients.support) == 30
    reading = time_relative_to_memcpy(lambda bench: Work(clients.send, subtracted_step=clients.encode_again))(bench)
    assert math.isfinite(reading.measured)


def test_other_selections_find_large_coordinates() -> None:
    bench = Bench(20_000, QUICK)
    x, k = bench.tensor(0), 200
    exact = set(torch_top_k(x, k).tolist())
    _, update = TopK(0.01).encode(bench.vector(0), CodecContext(0, 1, 0, ParameterLayout.from_size(20_000)))
    assert exact == set(update.indices.tolist())
    positions = dgc_selection(x, k)
    assert 0 < len(positions) <= 1.3 * k
    assert abs(x[positions]).min() >= 0.8 * abs(x[list(exact)]).min()
