"""Models by name. To add a model, write its class and add a line here; torch is imported when a model is built."""

from fedsgd.config.registry import Registry
from fedsgd.models.base import Loss, Metric, MetricFunction, Model
from fedsgd.models.char_gpt import CharGpt
from fedsgd.models.char_lstm import CharLstm
from fedsgd.models.convolutional import CifarCnn, Cnn, LeNet
from fedsgd.models.custom import CustomModule
from fedsgd.models.loss_reduction import LossReduction
from fedsgd.models.metrics import accuracy
from fedsgd.models.perceptrons import Mlp, Softmax, TwoNN
from fedsgd.models.resnet import ResNet20

MODELS: Registry[type[Model]] = Registry(
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
        "char-gpt": "fedsgd.models.char_gpt:CharGpt",
        "module": "fedsgd.models.custom:CustomModule",
    },
    implied_names={"module": "module"},
    hidden_members={"python-object": "fedsgd.models.custom:PythonObjectModule"},
)

register = MODELS.register

__all__ = [
    "MODELS",
    "CharGpt",
    "CharLstm",
    "CifarCnn",
    "Cnn",
    "CustomModule",
    "LeNet",
    "Loss",
    "LossReduction",
    "Metric",
    "MetricFunction",
    "Mlp",
    "Model",
    "ResNet20",
    "Softmax",
    "TwoNN",
    "accuracy",
    "register",
]
