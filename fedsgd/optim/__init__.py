"""SGD and its relatives, and step-size schedules. To add one: write its file, add its line here.

η step size (lr), β momentum, g gradient, v velocity (zero at first), w parameters.

    sgd               w ← w − ηg
    momentum          v ← βv − ηg;  w ← w + v          the velocity holds the step (Polyak 1964; Sutskever et al. 2013)
    momentum-pytorch  v ← βv + g;   w ← w − ηv          the velocity holds gradients (torch.optim.SGD)
    nesterov          v ← βv + g;   w ← w − η(g + βv)   torch.optim.SGD(nesterov=True)

The two momentum forms make the same steps while η is constant: v of the one is −η times v of the other. When η changes they
part: the first keeps the steps that were taken at the old η in its velocity, the second rescales its whole memory to the
new η at once.

On the client they run on flat torch vectors inside the engine; on the server the same classes take the negative mean update
as a gradient ("pseudo-gradient", Reddi et al. 2021). So "sgd" with lr = 1 is FedAvg there, and "momentum-pytorch" is FedAvgM
(Hsu, Qi and Brown 2019): "fedavg" and "fedavgm" are other names for them. FedAdam, FedYogi and FedAdagrad are for the server
only.
"""

from fedsgd.config.component import Registry
from fedsgd.optim.base import Optimizer, ScaledStep, compute_server_step
from fedsgd.optim.schedules import ConstantSchedule, Schedule
from fedsgd.optim.sgd import SGD, Momentum, Nesterov, PyTorchMomentum

SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    Schedule,
    {
        "constant": "fedsgd.optim.schedules:ConstantSchedule",
        "step": "fedsgd.optim.schedules:StepSchedule",
        "exponential": "fedsgd.optim.schedules:ExponentialSchedule",
        "cosine": "fedsgd.optim.schedules:CosineSchedule",
        "inverse-sqrt": "fedsgd.optim.schedules:InverseSqrtSchedule",
        "warm-up": "fedsgd.optim.schedules:WarmUpSchedule",
    },
)
OPTIMIZERS: Registry[Optimizer] = Registry(
    "optimizer",
    Optimizer,
    {
        "sgd": "fedsgd.optim.sgd:SGD",
        "momentum": "fedsgd.optim.sgd:Momentum",
        "momentum-pytorch": "fedsgd.optim.sgd:PyTorchMomentum",
        "nesterov": "fedsgd.optim.sgd:Nesterov",
        "fedadagrad": "fedsgd.optim.adaptive:FedAdagrad",
        "fedadam": "fedsgd.optim.adaptive:FedAdam",
        "fedyogi": "fedsgd.optim.adaptive:FedYogi",
    },
    aliases={"fedavg": "sgd", "fedavgm": "momentum-pytorch"},
)

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "ConstantSchedule",
    "Momentum",
    "Nesterov",
    "Optimizer",
    "PyTorchMomentum",
    "ScaledStep",
    "Schedule",
    "compute_server_step",
]
