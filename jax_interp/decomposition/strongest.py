"""Which components of each matrix matter most on given inputs: the largest mean importance.

    strongest(trained, [(x, jnp.ones(x.shape[:-1], bool))])["linear1"].components

Inputs come in batches, whose importances are summed on the device. An importance below zero, which a leaky sigmoid
gives, counts as none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.decomposition.importance import causal_importance, read_inputs
from jax_interp.decomposition.importance.inputs import PerMatrix
from jax_interp.decomposition.matrices import is_stacked, order_of
from jax_interp.decomposition.train import Trained

Batches = Sequence[tuple[Any, Bool[Array, "*rows"]]]  # what the model takes, and which of its rows count


@dataclasses.dataclass(frozen=True)
class Strongest:
    """Of one matrix the components with the largest mean importance, in that order; none that was never important.

    mean: of the importance over all rows. rate: the fraction of rows at which it is above the threshold. C: how many
    components the matrix has; alive: of how many the rate is above 0.
    """

    C: int
    alive: int
    components: Int[np.ndarray, " card"]
    mean: Float[np.ndarray, " card"]
    rate: Float[np.ndarray, " card"]
    V: Float[np.ndarray, "card d_in"]
    U: Float[np.ndarray, "card d_out"]


def strongest(trained: Trained, batches: Batches, n: int = 6, threshold: float = 0.1) -> dict[str, Strongest]:
    """Of every matrix, the layers of a stack apart, its `n` most important components on these batches."""
    sums: dict[str, Any] = {}
    rows = 0
    for x, keep in batches:
        keep = jnp.asarray(keep)
        added = jax.device_get(_totals(trained, jnp.asarray(x), keep, threshold))
        sums = {name: sums.get(name, 0.0) + np.asarray(both, np.float64) for name, both in added.items()}
        rows += int(np.sum(keep))
    found = {}
    for name, both in sums.items():
        parts = jax.device_get(trained.model.of(name))
        for layer in range(both.shape[1]) if is_stacked(name) else [None]:
            total, count = both if layer is None else both[:, layer]
            V, U = (parts.V, parts.U) if layer is None else (parts.V[layer], parts.U[layer])
            best = np.argsort(-total, kind="stable")
            best = best[count[best] > 0][:n]
            mean, rate = total[best] / max(rows, 1), count[best] / max(rows, 1)
            alive = int(np.sum(count > 0))
            found[concrete(name, layer)] = Strongest(len(total), alive, best, mean, rate, V.T[best], U[best])
    return dict(sorted(found.items(), key=lambda item: order_of(item[0])))


def looked_at(trained: Trained, x: Array) -> tuple[Array, PerMatrix, PerMatrix]:
    """(the target's output, what each matrix reads, the importances of its components)."""
    output, inputs, _ = read_inputs(trained.model, x)
    lower = causal_importance(trained.gates(trained.model, inputs), trained.sigmoid).lower
    positive = {name: jnp.maximum(g.astype(jnp.float32), 0.0) for name, g in lower.items()}
    return output, inputs, positive


@jax.jit
def _totals(trained: Trained, x: Array, keep: Bool[Array, "*rows"], threshold: Any) -> PerMatrix:
    """Of every entry `[2, *layer, C]`: the sum of importances over kept rows, and at how many they are important."""
    kept = keep.reshape(-1).astype(jnp.float32)

    def over(name: str, g: Float[Array, "*layer_and_rows C"]) -> Float[Array, "two *layer C"]:
        flat = g.reshape(*g.shape[: 1 if is_stacked(name) else 0], -1, g.shape[-1])
        on = (flat > threshold).astype(jnp.float32)
        return jnp.stack([jnp.einsum("...rc,r->...c", both, kept) for both in (flat, on)])

    return {name: over(name, g) for name, g in looked_at(trained, x)[2].items()}


def concrete(name: str, layer: int | None) -> str:
    """The address of one layer of an entry; None: of an entry that is no stack."""
    return name if layer is None else name.replace("*", str(layer), 1)
