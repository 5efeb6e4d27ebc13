"""A module whose initialisation is sensitive to the number of threads."""

from torch import nn


def make() -> nn.Module:
    """A square layer with orthogonal weights."""
    layer = nn.Linear(64, 700)
    square = nn.Linear(700, 700)
    nn.init.orthogonal_(square.weight)
    return nn.Sequential(nn.Flatten(), layer, square)
