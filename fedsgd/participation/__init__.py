"""Who takes part in a round, and how long clients take. To add a member: write its file, add its line here.

N clients in all, m of them wanted in a round.
"""

from fedsgd.component import Registry
from fedsgd.participation.attendance import Attendance, Fate
from fedsgd.participation.base import Draw, Drawn, Pool, Sampler, checked_draw
from fedsgd.participation.durations import Durations
from fedsgd.participation.replies import in_time, lost

SAMPLERS: Registry[Sampler] = Registry(
    "sampler",
    Sampler,
    {
        "uniform": "fedsgd.participation.uniform:Uniform",
        "weighted": "fedsgd.participation.weighted:Weighted",
        "cyclic": "fedsgd.participation.cyclic:Cyclic",
        "trace": "fedsgd.participation.trace:Trace",
    },
)
DURATIONS: Registry[Durations] = Registry(
    "duration model",
    Durations,
    {"log-normal": "fedsgd.participation.log_normal:LogNormal"},
    plural="durations",
)

__all__ = [
    "DURATIONS",
    "SAMPLERS",
    "Attendance",
    "Draw",
    "Drawn",
    "Durations",
    "Fate",
    "Pool",
    "Sampler",
    "checked_draw",
    "in_time",
    "lost",
]
