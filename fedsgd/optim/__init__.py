"""Optimizers (SGD, its momentum forms, Adam and AdamW, server optimizers) and learning-rate schedules.

η is the learning rate (lr), β the momentum, g the gradient, v the velocity (initially zero), w the parameters.

    sgd               w ← w − ηg
    momentum          v ← βv − ηg;  w ← w + v          the velocity holds steps (Polyak 1964; Sutskever et al. 2013)
    momentum-pytorch  v ← βv + g;   w ← w − ηv          the velocity holds gradients (torch.optim.SGD)
    nesterov          v ← βv + g;   w ← w − η(g + βv)   torch.optim.SGD(nesterov=True)

The two momentum forms make the same steps while η is constant: v of "momentum" is −η times v of "momentum-pytorch". After a
change of η, "momentum" scales each past gradient by the η of its own step, and "momentum-pytorch" by the new η.

On a client, optimizers run on flat torch vectors inside the engine. On the server, the same classes take the negative mean
update as a gradient ("pseudo-gradient", Reddi et al. 2021). On the server, "sgd" with lr = 1 is FedAvg and "momentum-pytorch"
is FedAvgM (Hsu, Qi and Brown 2019). The aliases "fedavg" and "fedavgm" do not change the default lr. FedAdam, FedYogi,
FedAdagrad and DiLoCo run on the server only.

To add an optimizer or a schedule, write its class in a module and add a line to OPTIMIZERS or SCHEDULES.

    >>> OPTIMIZERS["fedavgm"](lr=0.5, schedule=SCHEDULES["step"](every=10)).learning_rate(round=11)
    0.05
"""

from fedsgd.config.registry import Registry
from fedsgd.optim.adam import Adam, AdamW
from fedsgd.optim.adaptive import FedAdagrad, FedAdam, FedYogi
from fedsgd.optim.base import Optimizer, ScaledStep
from fedsgd.optim.schedules import SCHEDULES, ConstantSchedule, Schedule
from fedsgd.optim.sgd import SGD, DiLoCo, Momentum, Nesterov, PyTorchMomentum

OPTIMIZERS: Registry[type[Optimizer]] = Registry(
    "optimizer",
    Optimizer,
    {
        "sgd": "fedsgd.optim.sgd:SGD",
        "momentum": "fedsgd.optim.sgd:Momentum",
        "momentum-pytorch": "fedsgd.optim.sgd:PyTorchMomentum",
        "nesterov": "fedsgd.optim.sgd:Nesterov",
        "adam": "fedsgd.optim.adam:Adam",
        "adamw": "fedsgd.optim.adam:AdamW",
        "diloco": "fedsgd.optim.sgd:DiLoCo",
        "fedadagrad": "fedsgd.optim.adaptive:FedAdagrad",
        "fedadam": "fedsgd.optim.adaptive:FedAdam",
        "fedyogi": "fedsgd.optim.adaptive:FedYogi",
    },
    aliases={"fedavg": "sgd", "fedavgm": "momentum-pytorch"},
)

register = OPTIMIZERS.register

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "ConstantSchedule",
    "DiLoCo",
    "FedAdagrad",
    "FedAdam",
    "FedYogi",
    "Momentum",
    "Nesterov",
    "Optimizer",
    "PyTorchMomentum",
    "ScaledStep",
    "Schedule",
    "register",
]
