"""Layers of a transformer of characters. This module imports torch: import it only where a module is built."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

INITIAL_STD = 0.02
"""Standard deviation of initial weights, as in nanoGPT."""


class CausalSelfAttention(nn.Module):
    """Attention of each position to itself and to earlier positions, in several heads: [B, T, width] to [B, T, width]."""

    def __init__(self, width: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(width, 3 * width, bias=bias)
        self.output = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        n_sequences, length, width = x.shape
        projections = self.projections(x).view(n_sequences, length, 3, self.heads, width // self.heads)
        queries, keys, values = projections.permute(2, 0, 3, 1, 4).unbind()
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        mixed_positions: Tensor = self.output(mixed.transpose(1, 2).reshape(n_sequences, length, width))
        return mixed_positions


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), and then x + perceptron(norm(x)), for x [B, T, width]."""

    def __init__(self, width: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=bias)
        self.attention = CausalSelfAttention(width, heads, bias=bias)
        self.perceptron_norm = nn.LayerNorm(width, bias=bias)
        self.hidden = nn.Linear(width, 4 * width, bias=bias)
        self.output = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = x + self.attention(self.attention_norm(x))
        result: Tensor = attended + self.output(functional.gelu(self.hidden(self.perceptron_norm(attended))))
        return result


class CharTransformer(nn.Module):
    """Transformer of characters [B, T] below K = `characters`, with scores of the next character at each position, [B, K, T].

    The output layer uses the weights of the character embedding.
    """

    def __init__(self, characters: int, layers: int, heads: int, width: int, context: int, *, bias: bool) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, bias=bias) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=bias)
        self._initialize(layers)

    def _initialize(self, layers: int) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual_scale = math.sqrt(2 * layers) if name.endswith("output.weight") else 1.0
                nn.init.normal_(parameter, std=INITIAL_STD / residual_scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.characters(x) + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            features = block(features)
        scores = functional.linear(self.norm(features), self.characters.weight)
        return torch.transpose(scores, 1, 2)
