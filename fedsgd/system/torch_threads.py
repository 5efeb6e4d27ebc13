"""Number of torch's threads. Importing this module does not import torch; calling its functions does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def use_single_thread() -> Iterator[None]:
    """Run the body with one torch thread and restore the user's setting, because results depend on the number of threads."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def pin_single_thread() -> None:
    """Limit this process, one of several, to one torch thread."""
    import torch

    torch.set_num_threads(1)
