"""Clients that are drawn from a distribution of clients: FedProx's Synthetic(α, β).

d dimensions, C classes, n examples of a client.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, NamedTuple

import numpy as np

from fedsgd.config.component import NonNegativeFloat, PositiveInt
from fedsgd.data.base import Examples
from fedsgd.data.generated import ClientGenerator
from fedsgd.numerics.arrays import F64
from fedsgd.numerics.rng import derive_generator


class SyntheticClient(NamedTuple):
    """What a client was drawn as. W: [C, d] and b: [C], the model that labels its examples, whose entries have the mean u;
    v: [d], the mean of its examples, whose entries have the mean B."""

    u: float
    B: float
    W: F64
    b: F64
    v: F64


@dataclass(frozen=True)
class Synthetic(ClientGenerator):
    """FedProx's Synthetic(alpha, beta): for each client a softmax model of its own, and a place where its examples lie.

    Li et al. 2020, "Federated optimization in heterogeneous networks", section 5.1 and appendix C.1, after Shamir et al. 2014:
    for client k, u ~ N(0, alpha), entries of W and b ~ N(u, 1); B ~ N(0, beta), entries of v ~ N(B, 1); x ~ N(v, Σ), Σ diagonal
    with Σ_jj = j^−1.2; y = argmax softmax(Wx + b). alpha: how much models differ, beta: how much examples do. The paper writes
    N(mean, variance), Σ being one, so alpha and beta are variances; its authors' code takes them for standard deviations, which
    is the same at 0 and 1 but not at their 0.5. iid: one W and b with entries ~ N(0, 1) for all clients, and v = 0; alpha and
    beta are not used. Unlike there all clients have the same number of examples. x: float32 [n, dimensions]. Any number of
    clients may be asked for: what a client has is made from (seed, its number) when it takes part.

    Two facts of that distribution. u adds the same to the score of every class, u·(Σ x_j + 1), so alpha changes no label. And
    without u the models have nothing in common, so unless `iid` what is learnt from some clients says nothing of others: on the
    test examples, which are others', accuracy stays near chance. The paper tests clients on examples of their own:
    `held_out_sizes` with `[evaluation] clients`; one linear model does well by dozens of them, not by thousands.
    """

    name: ClassVar[str] = "synthetic"

    alpha: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 1.0
    dimensions: PositiveInt = 60
    classes: PositiveInt = 10
    iid: bool = False

    @property
    def n_classes(self) -> int:
        """C."""
        return self.classes

    def draw_client(self, client: int, seed: int) -> SyntheticClient:
        """What this client is drawn as."""
        return self._draw_client(derive_generator(seed, "synthetic", client), seed)

    def examples_of(self, client: int, seed: int) -> Examples:
        """What this client has, x [n, d] and y [n]. Labels are those of the examples as they are rounded to float32."""
        rng = derive_generator(seed, "synthetic", client)
        truth = self._draw_client(rng, seed)
        deviation = np.arange(1, self.dimensions + 1) ** -0.6
        with np.errstate(over="ignore", invalid="ignore"):  # where settings are too large for float32: the dataset is checked
            x = (truth.v + deviation * rng.standard_normal((self.examples, self.dimensions))).astype(np.float32)
            scores = x.astype(np.float64) @ truth.W.T + truth.b
        return Examples(x, scores.argmax(axis=1))

    def _draw_client(self, rng: np.random.Generator, seed: int) -> SyntheticClient:
        """Drawn from the client's stream before its examples, so that it does not depend on how many these are."""
        size = (self.classes, self.dimensions)
        if self.iid:
            common = derive_generator(seed, "synthetic/iid")
            return SyntheticClient(
                0.0, 0.0, common.standard_normal(size), common.standard_normal(self.classes), np.zeros(size[1])
            )
        u, B = sqrt(self.alpha) * rng.standard_normal(), sqrt(self.beta) * rng.standard_normal()
        W, b = u + rng.standard_normal(size), u + rng.standard_normal(self.classes)
        return SyntheticClient(u, B, W, b, B + rng.standard_normal(self.dimensions))
