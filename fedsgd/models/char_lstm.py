"""LSTM for next-character prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedsgd.config.registry import import_by_path
from fedsgd.errors import ModelError
from fedsgd.models.base import Model

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CharLstm(Model):
    """McMahan et al.'s character LSTM: embedding 8, two layers of 256; 798,720 + 265·K parameters for K characters.

    Inputs are characters [B, T], numbers below K. Outputs are scores of the next character at each position, [B, K, T]. The
    paper's 866,578 parameters are impossible with torch.nn.LSTM, which has two biases in each layer. With the 65 characters of
    the Shakespeare file the model has 815,945 parameters.
    """

    name: ClassVar[str] = "char-lstm"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        ClassDimSecond = import_by_path("fedsgd.models.layers:ClassDimSecond")
        LstmSequence = import_by_path("fedsgd.models.layers:LstmSequence")

        if len(shape) != 1:
            raise ModelError(f"expected sequences of characters [T], the examples have shape {list(shape)}")
        lstm = LstmSequence(nn.LSTM(8, 256, num_layers=2, batch_first=True))
        return nn.Sequential(nn.Embedding(classes, 8), lstm, nn.Linear(256, classes), ClassDimSecond())
