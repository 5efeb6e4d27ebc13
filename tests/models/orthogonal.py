"""Module whose initialisation depends on the number of threads."""

from torch import nn


def make() -> nn.Module:
    """Return a module with a square layer of orthogonal weights."""
    layer = nn.Linear(64, 700)
    square = nn.Linear(700, 700)
    nn.init.orthogonal_(square.weight)
    return nn.Sequential(nn.Flatten(), layer, square)
