"""Samplers: rules that draw the cohort of a round."""

from fedsgd.sampling import SAMPLERS
from fedsgd.sampling.availability_trace import TraceSampler
from fedsgd.sampling.cyclic import Cyclic
from fedsgd.sampling.uniform import Uniform
from fedsgd.sampling.weighted import Weighted

register = SAMPLERS.register

__all__ = [
    "Cyclic",
    "TraceSampler",
    "Uniform",
    "Weighted",
    "register",
]
