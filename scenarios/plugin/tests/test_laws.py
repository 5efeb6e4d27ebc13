"""Laws of fedsgd for the components of this package, one test for each law."""

from __future__ import annotations

from collections.abc import Callable

from fedsgd_example.aggregator import MeanAroundMedian
from fedsgd_example.compressor import ChunkMax
from fedsgd_example.partitioner import Zipf
from fedsgd_example.sampler import TimeZones

from fedsgd.testing import parametrize_laws


@parametrize_laws(ChunkMax(chunk=16), MeanAroundMedian(discarded=0.3), Zipf(clients=10), TimeZones(zones=3))
def test_component_obeys_law(law: Callable[[], None]) -> None:
    law()
