"""A function that can be run with any of its parts taken away: what the linearity suite works on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import flatten
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.inputs import PerMatrix
from jax_interp.decomposition.masks import Mask, masked_output
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.surgery import Each, Scale, at, edit

TOLERANCE = 1e-3  # of the largest singular value: what training leaves over is far above float32's rounding


@dataclasses.dataclass(frozen=True)
class Ablatable:
    """`run(mask [batch, part], x)` is the output with parts multiplied by their masks, `target(x)` that of the whole.

    `of` is a pytree with these two as methods, and `resampled(keep, x, donor)` where activations of parts that are not
    kept can be replaced by those of row `donor[i]`. It is an argument of what is compiled, so a second decomposition of
    one shape compiles nothing. `faithfulness` is ‖Σθ_c - θ‖ / ‖θ‖ by matrix, `ranks` that of each part by `ranks_of`.
    """

    of: Any
    faithfulness: Mapping[str, float]
    ranks: np.ndarray

    @property
    def count(self) -> int:
        return len(self.ranks)

    def run(self, mask: Float[Array, "batch part"], x: Array) -> Array:
        return _run(self.of, mask, x)

    def target(self, x: Array) -> Array:
        return _target(self.of, x)


_run = jax.jit(lambda of, mask, x: of.run(mask, x))
_target = jax.jit(lambda of, x: of.target(x))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightParts:
    """Weights θ (any pytree) and parts of them, the same pytree with a leading part axis, that should add up to it."""

    target: Any
    parts: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class OfWeights:
    """`f(theta, x)` with theta a masked sum of parts, another one for each row."""

    weights: WeightParts
    f: Callable[[Any, Array], Array] = dataclasses.field(metadata={"static": True})

    def run(self, mask: Float[Array, "batch part"], x: Array) -> Array:
        def row(mask: Float[Array, " part"], x: Array) -> Array:
            summed = lambda part: jnp.einsum("c,c...->...", mask.astype(part.dtype), part)
            return self.f(jax.tree.map(summed, self.weights.parts), x[None])[0]

        return jax.vmap(row)(mask, x)

    def target(self, x: Array) -> Array:
        return self.f(self.weights.target, x)


def of_weights(f: Callable[[Any, Array], Array], weights: WeightParts) -> Ablatable:
    """`f(theta, x)`, x `[batch, ...]`, with theta the masked sum of the parts. Every row gets weights of its own, so
    this is for small models."""
    target, parts = flatten(weights.target), flatten(weights.parts)
    off = {}
    for name, theta in target.items():
        whole = np.asarray(theta, np.float64)
        off[name or "theta"] = float(
            np.linalg.norm(np.asarray(parts[name], np.float64).sum(0) - whole) / max(np.linalg.norm(whole), 1e-30)
        )
    return Ablatable(OfWeights(weights, f), off, sum_of_ranks(target, parts))


def ranks_of(whole: Float[np.ndarray, "d_in d_out"], parts: Iterable[Float[np.ndarray, " value"]]) -> np.ndarray:
    """The numerical rank of each part of one matrix, given its singular values: how many are above `TOLERANCE` times
    the largest of the matrix and of all parts. A Δ that training has made small has then none, though it is no float32
    zero anywhere."""
    parts = list(parts)
    largest = max([np.linalg.norm(whole, 2), *(values.max(initial=0.0) for values in parts)])
    return np.array([np.sum(values > TOLERANCE * largest) for values in parts], int)


def sum_of_ranks(target: Mapping[str, Any], parts: Mapping[str, Any]) -> np.ndarray:
    """The rank of every part, over all its matrices (a vector counts as one, zero as none)."""
    total: Any = 0
    for name, value in parts.items():
        array, whole = np.asarray(value, np.float64), np.asarray(target[name], np.float64)
        shape = (-1, *whole.shape[-2:]) if whole.ndim > 1 else (1, 1, whole.size)
        array, whole = array.reshape(len(array), *shape), whole.reshape(shape)
        for i, matrix in enumerate(whole):
            total = total + ranks_of(matrix, np.linalg.svd(array[:, i], compute_uv=False))
    return np.asarray(total)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class OfDecomposition:
    """A decomposed model with its subcomponents side by side; with `delta` each matrix's Δ after its components.

    Δ has no inner activation that another row could lend: `resampled` drops it where it is not kept, as `run` does.
    """

    model: Decomposed
    delta: bool = dataclasses.field(default=False, metadata={"static": True})

    def run(self, mask: Float[Array, "batch part"], x: Array) -> Array:
        return masked_output(self.model, self.masks(mask, x), x)

    def target(self, x: Array) -> Array:
        return self.model(x)

    def resampled(self, keep: Float[Array, "batch part"], x: Array, donor: Array) -> Array:
        edits = []
        for name, mask in self.masks(keep, x).items():
            borrow, delta = Borrow(mask.components, donor), Scale(mask.delta)
            if is_stacked(name):
                layers = mask.components.shape[0]
                borrow = Each(Borrow(mask.components, jnp.broadcast_to(donor, (layers, *donor.shape))))
                delta = Each(delta)
            edits += [at(f"{name}.components", borrow), at(f"{name}.delta", delta)]
        return edit(self.model, *edits)(x)

    def masks(self, flat: Float[Array, "batch part"], x: Array) -> dict[str, Mask]:
        """One mask for each row, the same at all positions, matrix by matrix."""
        rows = x.shape[1:-1] if jnp.issubdtype(x.dtype, jnp.floating) else x.shape[1:]
        found, first = {}, 0
        for name in self.model.names:
            C, layers = self.model.of(name).C, layers_of(self.model, name)
            width = C + self.delta
            block = flat[:, first : first + width * layers].reshape(flat.shape[0], layers, width)
            first += width * layers
            block = jnp.moveaxis(block, 1, 0)
            block = block.reshape(*block.shape[:2], *(1 for _ in rows), width)
            block = jnp.broadcast_to(block, (*block.shape[:2], *rows, width))
            block = block if is_stacked(name) else block[0]
            found[name] = Mask(block[..., :C], block[..., C:] if self.delta else jnp.zeros(()))
        return found


def layers_of(model: Decomposed, name: str) -> int:
    return model.of(name).V.shape[0] if is_stacked(name) else 1


def of_decomposition(model: Decomposed, *, delta: bool = False) -> Ablatable:
    """The subcomponents of all matrices side by side, matrix by matrix in the order of `model.names`, layer by layer;
    with `delta` each matrix's Δ after its components, otherwise Δ is left out of all runs but the target's."""
    off, ranks = {}, []
    for name in model.names:
        weight, rest = (np.asarray(jax.device_get(m), np.float64) for m in (model.weight(name), model.delta(name)))
        off[name] = float(np.linalg.norm(rest) / max(np.linalg.norm(weight), 1e-30))
        V, U = (np.asarray(jax.device_get(m), np.float64) for m in (model.of(name).V, model.of(name).U))
        size = np.linalg.norm(V, axis=-2) * np.linalg.norm(U, axis=-1)
        stack = lambda m, axes: m.reshape(-1, *m.shape[-axes:])
        for whole, left, sizes in zip(stack(weight, 2), stack(rest, 2), stack(size, 1), strict=True):
            parts = [*sizes[:, None], *([np.linalg.svd(left, compute_uv=False)] if delta else [])]
            ranks += list(ranks_of(whole, parts))
    return Ablatable(OfDecomposition(model, delta), off, np.asarray(ranks))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Borrow:
    """An edit: inner activations where `keep` is 1, those of the row `donor[i]` where it is 0."""

    keep: Array
    donor: Array

    def __call__(self, a: Array) -> Array:
        return self.keep.astype(a.dtype) * a + (1 - self.keep.astype(a.dtype)) * jnp.take(a, self.donor, axis=0)


def side_by_side(model: Decomposed, importance: PerMatrix, *, delta: bool = False) -> Float[Array, "row part"]:
    """Importances as one row of parts for each row of data, in the order of `of_decomposition`; Δ has importance 0.

    Values with positions have one row for each example: the largest importance over its positions.
    """
    columns = []
    for name in model.names:
        g = importance[name]
        g = g if is_stacked(name) else g[None]
        if g.ndim > 3:
            g = jnp.max(g, axis=tuple(range(2, g.ndim - 1)))
        if delta:
            g = jnp.concatenate([g, jnp.zeros_like(g[..., :1])], axis=-1)
        columns.append(jnp.moveaxis(g, 0, 1).reshape(g.shape[1], -1))
    if not columns:
        raise UserError("a model without decomposed matrices has no parts")
    return jnp.concatenate(columns, axis=1)
