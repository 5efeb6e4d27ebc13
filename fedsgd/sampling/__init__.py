"""Participation: the clients of each round, and the durations of their replies.

To add a sampler or a duration model, write a module and add a line to SAMPLERS or DURATIONS below.
"""

from fedsgd.config.registry import Registry
from fedsgd.sampling.base import CohortSampler, SampledCohort, Sampler, SamplingPool, bind_with_checks
from fedsgd.sampling.client_durations import DurationModel
from fedsgd.sampling.participation import Delivery, ParticipationModel, first_within_deadline, is_lost
from fedsgd.sampling.stragglers import StragglerModel, count_stragglers

SAMPLERS: Registry[type[Sampler]] = Registry(
    "sampler",
    Sampler,
    {
        "uniform": "fedsgd.sampling.uniform:Uniform",
        "weighted": "fedsgd.sampling.weighted:Weighted",
        "cyclic": "fedsgd.sampling.cyclic:Cyclic",
        "trace": "fedsgd.sampling.availability_trace:TraceSampler",
    },
)
DURATIONS: Registry[type[DurationModel]] = Registry(
    "duration model", DurationModel, {"log-normal": "fedsgd.sampling.client_durations:LogNormalDurations"}, plural="durations"
)

__all__ = [
    "DURATIONS",
    "SAMPLERS",
    "CohortSampler",
    "Delivery",
    "DurationModel",
    "ParticipationModel",
    "SampledCohort",
    "Sampler",
    "SamplingPool",
    "StragglerModel",
    "bind_with_checks",
    "count_stragglers",
    "first_within_deadline",
    "is_lost",
]
