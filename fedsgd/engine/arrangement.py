"""How parameters stand in a flat vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedsgd.arrays import F32
from fedsgd.layout import Layout


@dataclass(frozen=True)
class Arrangement:
    """As on the wire; or, channels_last, with the channels of each tensor of four axes (the weight of a convolution) last.

    That is what convolutions and pools are quickest with on a CPU. An elementwise rule is the same in both.
    """

    layout: Layout
    channels_last: bool = False

    def views(self, flat: Tensor) -> list[Tensor]:
        """Each tensor of a vector [P], in the shape that the module knows."""
        return [self._view(flat[where], shape) for _, where, shape in self.layout.slices()]

    def _view(self, stretch: Tensor, shape: tuple[int, ...]) -> Tensor:
        if not self._moves(shape):
            return stretch.view(shape)
        out, channels, height, width = shape
        return stretch.view(out, height, width, channels).permute(0, 3, 1, 2)

    def _moves(self, shape: tuple[int, ...]) -> bool:
        return self.channels_last and len(shape) == 4

    def load(self, flat: Tensor, values: F32) -> None:
        """Overwrite flat [P] with values [P] that stand as on the wire."""
        ours: F32 = flat.numpy()
        np.copyto(ours, values)
        for _, where, shape in self.layout.slices():
            if self._moves(shape):
                out, channels, height, width = shape
                ours[where].reshape(out, height, width, channels)[...] = values[where].reshape(shape).transpose(0, 2, 3, 1)

    def unload(self, flat: Tensor) -> F32:
        """A copy of flat [P] that stands as on the wire."""
        ours: F32 = flat.numpy()
        values = ours.copy()
        for _, where, shape in self.layout.slices():
            if self._moves(shape):
                out, channels, height, width = shape
                values[where].reshape(shape)[...] = ours[where].reshape(out, height, width, channels).transpose(0, 3, 1, 2)
        return values
