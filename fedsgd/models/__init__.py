"""Models, one file or a few lines each. To add one: write it, add its line here. torch is imported when one is built."""

from fedsgd.component import Registry
from fedsgd.models.base import Loss, Metric, Model, Task, make_task
from fedsgd.models.metrics import accuracy
from fedsgd.models.perceptrons import Mlp
from fedsgd.models.reduction import LossReduction

MODELS: Registry[Model] = Registry(
    "model",
    Model,
    {
        "softmax": "fedsgd.models.perceptrons:Softmax",
        "mlp": "fedsgd.models.perceptrons:Mlp",
        "2nn": "fedsgd.models.perceptrons:TwoNN",
        "cnn": "fedsgd.models.convolutional:Cnn",
        "lenet": "fedsgd.models.convolutional:LeNet",
        "cifar-cnn": "fedsgd.models.convolutional:CifarCnn",
        "resnet-20": "fedsgd.models.resnet:ResNet20",
        "char-lstm": "fedsgd.models.char_lstm:CharLstm",
        "module": "fedsgd.models.user:UserModule",
    },
    implied={"module": "module"},
    unlisted={"python-object": "fedsgd.models.user:GivenModule"},
)

__all__ = ["MODELS", "Loss", "LossReduction", "Metric", "Mlp", "Model", "Task", "accuracy", "make_task"]
