"""Order of the parameters in a flat vector."""

from __future__ import annotations

import numpy as np
import torch

from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.training.flat_module import TensorFormat


def test_channels_last_format_permutes_convolution_weights() -> None:
    layout = ParameterLayout(("conv", "dense"), ((2, 3, 4, 5), (7,)))
    tensor_format = TensorFormat(layout, channels_last=True)
    values = np.arange(127, dtype=np.float32)
    flat = torch.zeros(127)
    tensor_format.load(flat, values)
    conv, dense = tensor_format.view_tensors(flat)
    assert conv.is_contiguous(memory_format=torch.channels_last)
    assert conv.numpy().ravel().tolist() == values[:120].tolist()
    assert dense.tolist() == values[120:].tolist()
    assert tensor_format.to_wire_order(flat).tolist() == values.tolist()
