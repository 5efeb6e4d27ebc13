"""Layers that torch.nn does not have. This module imports torch: import it only where a module is built."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """ReLU(body(x) + shortcut(x)) for x [B, channels, height, width]; the shortcut has no parameters.

    If the body halves the image, the shortcut takes every second pixel. Channels that x does not have are zero: option A of
    He et al. 2016, section 4.2.
    """

    def __init__(self, body: nn.Module, stride: int, new_channels: int) -> None:
        super().__init__()
        self.body = body
        self.stride = stride
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return functional.relu(self.body(x) + functional.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels)))


class LstmSequence(nn.Module):
    """Outputs of an LSTM's last layer, without its final state: [B, T, features] to [B, T, hidden]."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.lstm(x)[0]
        return outputs


class ClassDimSecond(nn.Module):
    """Transposition of [B, T, K] to [B, K, T], because torch's losses expect the classes in the second axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)
