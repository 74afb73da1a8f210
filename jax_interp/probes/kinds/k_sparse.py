"""`KSparse`: logistic regression on the k best columns, as in sparse probing of neurons and dictionary latents.

Gurnee et al. 2023 (arXiv:2305.01610) choose neurons; Kantamneni et al. 2025 (arXiv:2502.16681, SAE Probes) choose
latents by the difference of their class means. For latents, read the activations of a model with a dictionary:

    spliced = edit(model, at("blocks.2.resid_post", Splice(sae, error=True)))
    vectors = gather(spliced, data, "blocks.2.resid_post.latents")
    fitted = fit_probes(KSparse(k=8), vectors, train=train)
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.probes.class_moments import HIGH, class_means, class_weights, counted_rows
from jax_interp.probes.kind import KINDS, Kind, Rows, Solved
from jax_interp.probes.kinds.logistic import Logistic
from jax_interp.probes.probe import LinearProbe


@KINDS.register
@dataclasses.dataclass(frozen=True)
class KSparse(Kind):
    """A logistic probe that is 0 outside k columns. The columns are chosen on the training rows only.

    Args:
      k: the number of columns.
      choose: "mean_difference": the columns with the largest |μ₊ - μ₋|. "logistic": those with the largest |weight| ·
        standard deviation in a logistic regression on all columns.
      C: inverse strengths of the penalty, as in `Logistic`.
    """

    k: int = 16
    choose: Literal["mean_difference", "logistic"] = "mean_difference"
    C: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"k={self.k} must be at least 1")
        Logistic(self.C)

    @property
    def strengths(self) -> tuple[float, ...]:
        return self.C

    def fit(self, data: Rows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> LinearProbe:
        return self._solved(data, strength, key).probes  # type: ignore[return-value]

    def fit_grid(
        self, data: Rows, y: Array, weight: Array, strengths: Array | None, keys: Key[Array, " seed"]
    ) -> Solved:
        def one(y: Array, weight: Array, strength: Array | None, key: Array) -> Solved:
            return self._solved(dataclasses.replace(data, y=y, weight=weight), strength, key)

        f = one
        for axis in (3, 2, 1, 0):
            f = jax.vmap(f, in_axes=tuple(0 if i == axis else None for i in range(4)))
        return f(y, weight, strengths, keys)

    def _solved(self, data: Rows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> Solved:
        """The probe, and how exactly the regression on its columns was solved."""
        if self.k > data.x.shape[1]:
            raise UserError(f"KSparse(k={self.k}) needs at least as many columns; there are {data.x.shape[1]}")
        assert strength is not None
        x = counted_rows(data.x, data.weight)
        columns = self._columns(dataclasses.replace(data, x=x), strength, key)
        chosen = dataclasses.replace(data, x=jnp.take(x, columns, axis=1))
        grid = Logistic(self.C).fit_grid(chosen, data.y[None], data.weight[None], strength[None], key[None])
        solved = jax.tree.map(lambda a: a[0, 0, 0, 0], grid)
        weight = jnp.zeros(x.shape[1], solved.probes.weight.dtype).at[columns].set(solved.probes.weight)
        return dataclasses.replace(solved, probes=dataclasses.replace(solved.probes, weight=weight))

    def _columns(self, data: Rows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> Int[Array, " k"]:
        """The k columns with the highest rank, in ascending order."""
        if self.choose == "mean_difference":
            means = class_means(data.x, class_weights(data.y, data.weight, data.x))
            rank = jnp.abs(means[1] - means[0])
        else:
            share = data.weight.astype(data.x.dtype) / jnp.sum(data.weight).astype(data.x.dtype)
            centred = data.x - jnp.matmul(share, data.x, precision=HIGH)[None, :]
            deviation = jnp.sqrt(jnp.matmul(share, centred * centred, precision=HIGH))
            rank = jnp.abs(Logistic(self.C).fit(data, strength, key).weight) * deviation
        return jnp.sort(jax.lax.top_k(rank, self.k)[1])
