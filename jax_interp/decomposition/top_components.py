"""The components of each matrix with the largest mean importance on given inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.processes import to_host
from jax_interp.decomposition.importance import causal_importance, read_inputs
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.matrices import address_order, is_stacked, layer_address
from jax_interp.decomposition.train import Trained

Batches = Sequence[tuple[Array | np.ndarray, Bool[Array | np.ndarray, "*rows"]]]
"""Pairs of model inputs and a mask of the rows that count, as NumPy or JAX arrays."""


@dataclasses.dataclass(frozen=True)
class TopComponents:
    """The components of one matrix with the largest mean importance, the largest first.

    C: the number of components of the matrix.
    alive: the number of components that are important on some row.
    components: the indices of the top components. Components that are never important are left out.
    mean: the mean importance of each top component over all rows.
    rate: the fraction of rows on which the importance of each top component is above the threshold.
    V, U: the vectors that each top component reads and writes.
    """

    C: int
    alive: int
    components: Int[np.ndarray, " card"]
    mean: Float[np.ndarray, " card"]
    rate: Float[np.ndarray, " card"]
    V: Float[np.ndarray, "card d_in"]
    U: Float[np.ndarray, "card d_out"]


def top_components(trained: Trained, batches: Batches, n: int = 6, threshold: float = 0.1) -> dict[str, TopComponents]:
    """The most important components of every matrix on these batches.

    Args:
      trained: the decomposition.
      batches: pairs of model inputs and a mask of the rows that count. Importances are summed on the device.
      n: the number of components to return for each matrix.
      threshold: a component is important on a row if its importance there is above this.

    Returns:
      `TopComponents` by address, with one address for each layer (`blocks.2.mlp.up`).

    Raises:
      UserError: no row counts.

    Example:
        top_components(trained, [(x, jnp.ones(x.shape[:-1], bool))])["linear1"].components
    """
    sums: dict[str, np.ndarray] = {}
    rows = 0
    for x, keep in batches:
        keep = jnp.asarray(keep)
        added = to_host(_totals(trained, jnp.asarray(x), keep, threshold))
        sums = {name: sums.get(name, 0.0) + np.asarray(both, np.float64) for name, both in added.items()}
        rows += int(np.sum(keep))
    if not rows:
        raise UserError("no row of these batches counts: give at least one, with a mask that is True somewhere")
    found = {}
    for name, both in sums.items():
        parts = to_host(trained.model.of(name))
        for layer in range(both.shape[1]) if is_stacked(name) else [None]:
            total, count = both if layer is None else both[:, layer]
            V, U = (parts.V, parts.U) if layer is None else (parts.V[layer], parts.U[layer])
            best = np.argsort(-total, kind="stable")
            best = best[count[best] > 0][:n]
            mean, rate = total[best] / rows, count[best] / rows
            alive = int(np.sum(count > 0))
            found[layer_address(name, layer)] = TopComponents(len(total), alive, best, mean, rate, V.T[best], U[best])
    return dict(sorted(found.items(), key=lambda item: address_order(item[0])))


def target_and_importance(trained: Trained, x: Array) -> tuple[Array, PerMatrix, PerMatrix]:
    """The target's output, the input of each matrix, and the lower importances. Negative importances, which leaky
    sigmoids can give, are set to 0."""
    output, inputs, _ = read_inputs(trained.model, x)
    lower = causal_importance(trained.ci_fn(trained.model, inputs), trained.sigmoid).lower
    positive = {name: jnp.maximum(g.astype(jnp.float32), 0.0) for name, g in lower.items()}
    return output, inputs, positive


@jax.jit
def _totals(trained: Trained, x: Array, keep: Bool[Array, "*rows"], threshold: float | Array) -> PerMatrix:
    """For each entry `[2, *layer, C]`: the sum of each importance over kept rows, and the number of rows above the
    threshold."""
    kept = keep.reshape(-1).astype(jnp.float32)

    def count(name: str, g: Float[Array, "*layer_and_rows C"]) -> Float[Array, "two *layer C"]:
        flat = g.reshape(*g.shape[: 1 if is_stacked(name) else 0], -1, g.shape[-1])
        on = (flat > threshold).astype(jnp.float32)
        return jnp.stack([jnp.einsum("...rc,r->...c", both, kept) for both in (flat, on)])

    return {name: count(name, g) for name, g in target_and_importance(trained, x)[2].items()}
