"""Scopes that pin what torch keeps globally, and give it back: results must depend on nothing that others have set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Pin torch to one thread (results differ between 1, 2 and 4), and give the user's setting back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def torch_generator(seed: int) -> Iterator[None]:
    """Seed torch's global generator, from which dropout draws, and give back the state it was in."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def only_one_thread() -> None:
    """Pin torch to one thread for good, in a process that is one of several."""
    torch.set_num_threads(1)
