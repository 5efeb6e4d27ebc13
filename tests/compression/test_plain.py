"""The scheme without memory."""

from __future__ import annotations

import numpy as np

from fedsgd.compression import (
    MemorylessScheme,
)
from fedsgd.compression.operators.topk import TopK
from tests.compression.helpers import (
    make_context,
)


def test_memoryless_scheme_stores_no_state() -> None:
    update = MemorylessScheme(TopK(1 / 3)).send(np.array([4, 2, 1], dtype=np.float32), {}, make_context(3))
    assert update.state == update.state_if_lost == {}
