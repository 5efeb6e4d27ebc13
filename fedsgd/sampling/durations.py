"""Duration models: simulated durations of the clients' replies."""

from fedsgd.sampling import DURATIONS
from fedsgd.sampling.client_durations import LogNormalDurations

register = DURATIONS.register

__all__ = [
    "LogNormalDurations",
    "register",
]
