"""Number of torch's threads. torch is imported where it is used, so that settings can be read without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def use_single_thread() -> Iterator[None]:
    """Run the body with one torch thread, and restore the user's setting: results differ between 1, 2 and 4 threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pin_single_thread() -> None:
    """Set one torch thread in a process that is one of several."""
    import torch

    torch.set_num_threads(1)
