"""Synthetic(α, β) of FedProx, whose clients are drawn from a distribution of clients."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from fedsgd.config.component import FieldError, NonNegativeFloat, PositiveInt
from fedsgd.data.base import Examples
from fedsgd.data.generated import ClientGenerator
from fedsgd.numerics.arrays import F64, I64
from fedsgd.numerics.rng import derive_generator, draw_client_normals

MAX_ADDITIONAL_EXAMPLES = 10**7
"""Limit of the additional examples of a client with log-normal sizes."""


class SyntheticClient(NamedTuple):
    """Random variables of a client, under the names of the paper (see `Synthetic`): W is [K, d], b is [K] and v is [d]."""

    u: float
    B: float
    W: F64
    b: F64
    v: F64


@dataclass(frozen=True)
class Synthetic(ClientGenerator):
    """FedProx's Synthetic(alpha, beta): each client has its own softmax model and its own mean of examples.

    Source: Li et al. 2020, "Federated optimization in heterogeneous networks", section 5.1 and appendix C.1, after Shamir et
    al. 2014. For each client

        u ~ N(0, alpha),  entries of W and b ~ N(u, 1)
        B ~ N(0, beta),   entries of v ~ N(B, 1)
        x ~ N(v, Σ),      Σ diagonal with Σ_jj = j^−1.2
        y = argmax softmax(Wx + b)

    The paper writes N(mean, variance), as Σ shows, so `alpha` and `beta` are variances. The authors' code uses them as
    standard deviations, which is equal for 0 and 1 but not for 0.5, another value of the paper. Their code has 30 clients of
    log-normal sizes, which is `sizes` = "log-normal" with `clients` = 30; here, the default is equal sizes. Inputs x are [n, d]
    float32. A client's examples are generated from the seed and the client's number when the client takes part, so any number
    of clients is possible.

    Traps: u adds u·(Σ x_j + 1) to the score of every class, so `alpha` changes no label. Unless `iid`, the clients' models are
    independent. The test examples belong to further clients, so the accuracy on them stays near chance.
    The paper tests clients on their own examples: set `[data] held_out`, and `[evaluation] test` = "clients" or `[evaluation]
    clients`. One linear model fits dozens of clients well, but not thousands.

    Attributes:
        alpha: variance of u, the mean of a client's W and b.
        beta: variance of B, the mean of a client's v.
        dimensions: d, features of an example.
        classes: K, number of classes.
        sizes: numbers of examples: `examples` for each client ("equal"), or `examples` + ⌊exp(`size_mean` + `size_sigma` · z)⌋
            with z ~ N(0, 1) for each client ("log-normal").
        size_mean, size_sigma: mean and standard deviation of the logarithm of a client's additional examples.
        iid: True for one W and b with entries ~ N(0, 1) for all clients, and v = 0; `alpha` and `beta` have no effect.
    """

    name: ClassVar[str] = "synthetic"

    alpha: NonNegativeFloat = 1.0
    beta: NonNegativeFloat = 1.0
    dimensions: PositiveInt = 60
    classes: PositiveInt = 10
    iid: bool = False
    sizes: Literal["equal", "log-normal"] = "equal"
    size_mean: NonNegativeFloat = 4.0
    size_sigma: NonNegativeFloat = 2.0

    @property
    def n_classes(self) -> int:
        return self.classes

    @property
    def has_equal_sizes(self) -> bool:
        return self.sizes == "equal"

    def sizes_of(self, clients: I64, seed: int) -> I64:
        if self.has_equal_sizes:
            return super().sizes_of(clients, seed)
        with np.errstate(over="ignore"):
            additions = np.exp(self.size_mean + self.size_sigma * draw_client_normals(seed, "synthetic/size", clients))
        if not (additions < MAX_ADDITIONAL_EXAMPLES).all():
            problem = f"got {self.size_sigma:g}, with which a client has {additions.max():.3g} additional examples"
            raise FieldError(self.name, "size_sigma", f"{problem}, expected fewer than {MAX_ADDITIONAL_EXAMPLES:,}")
        return self.examples + additions.astype(np.int64)

    def draw_client(self, client: int, seed: int) -> SyntheticClient:
        """Draw the random variables of a client.

        Args:
            client: number of the client, from 0.
            seed: seed of the run.
        """
        return self._draw_client(derive_generator(seed, "synthetic", client), seed)

    def examples_of(self, client: int, seed: int) -> Examples:
        """Generate a client's examples, x [n, d] and y [n]. Labels are computed from x after rounding to float32."""
        rng = derive_generator(seed, "synthetic", client)
        variables = self._draw_client(rng, seed)
        deviation = np.arange(1, self.dimensions + 1) ** -0.6
        n = int(self.sizes_of(np.array([client]), seed)[0])
        with np.errstate(over="ignore", invalid="ignore"):  # for large settings: `Dataset` refuses infinite values
            x = (variables.v + deviation * rng.standard_normal((n, self.dimensions))).astype(np.float32)
            scores = x.astype(np.float64) @ variables.W.T + variables.b
        return Examples(x, scores.argmax(axis=1))

    def _draw_client(self, rng: np.random.Generator, seed: int) -> SyntheticClient:
        """Draw the variables before any example, so that the variables do not depend on the number of examples."""
        size = (self.classes, self.dimensions)
        if self.iid:
            common = derive_generator(seed, "synthetic/iid")
            return SyntheticClient(
                0.0, 0.0, common.standard_normal(size), common.standard_normal(self.classes), np.zeros(size[1])
            )
        u, B = sqrt(self.alpha) * rng.standard_normal(), sqrt(self.beta) * rng.standard_normal()
        W, b = u + rng.standard_normal(size), u + rng.standard_normal(self.classes)
        return SyntheticClient(u, B, W, b, B + rng.standard_normal(self.dimensions))
