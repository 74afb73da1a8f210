"""Functions that can be run with any of their parts masked. The linearity tests work on these functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast_leaves
from jax_interp.core.leaves import PyTree, flatten
from jax_interp.core.processes import to_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.linearity.report import ratio
from jax_interp.decomposition.masks import Mask, masked_output
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.surgery import Each, Scale, at, edit

TOLERANCE = 1e-3  # a fraction of the largest singular value; training leaves residues far above float32's rounding


class MaskedForward:
    """Base class of pytrees that can run a function with its parts masked."""

    @property
    def can_resample(self) -> bool:
        """Whether the subclass implements `resampled`."""
        return type(self).resampled is not MaskedForward.resampled

    def run(self, mask: Float[Array, "batch part"], x: Array) -> Array:
        """The output with each part multiplied by its mask, row by row."""
        raise NotImplementedError(f"{type(self).__name__} has no run")

    def target(self, x: Array) -> Array:
        """The output of the whole function."""
        raise NotImplementedError(f"{type(self).__name__} has no target")

    def resampled(self, keep: Float[Array, "batch part"], x: Array, donor: Array) -> Array:
        """The output when the parts that are not kept use the activations of row `donor[i]` instead of row i."""
        raise NotImplementedError(f"{type(self).__name__} has no resampled")


@dataclasses.dataclass(frozen=True)
class MaskedFunction:
    """A function, the parts of its weights, and properties of these parts.

    forward: runs the function. It is a pytree, so it can be an argument of a compiled program: a second decomposition
      of the same shape does not compile again.
    faithfulness: ‖Σθ_c - θ‖ / ‖θ‖ for each matrix. NaN for a matrix of zeros.
    ranks: the rank of each part, see `ranks_of`.
    """

    forward: MaskedForward
    faithfulness: Mapping[str, float]
    ranks: np.ndarray

    @property
    def count(self) -> int:
        """The number of parts."""
        return len(self.ranks)

    def run(self, mask: Float[Array, "batch part"], x: Array) -> Array:
        """The output with each part multiplied by its mask, row by row."""
        return _run(self.forward, mask, x)

    def target(self, x: Array) -> Array:
        """The output of the whole function."""
        return _target(self.forward, x)


_run = jax.jit(lambda forward, mask, x: forward.run(mask, x))
_target = jax.jit(lambda forward, x: forward.target(x))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightParts:
    """Weights, and parts that should add up to these weights.

    target: the weights θ, any pytree.
    parts: a pytree of the same structure, with a leading part axis on every leaf.
    """

    target: PyTree
    parts: PyTree


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class WeightsForward(MaskedForward):
    """`f(theta, x)`, where theta is the masked sum of the parts and differs from row to row."""

    weights: WeightParts
    f: Callable[[PyTree, Array], Array] = dataclasses.field(metadata={"static": True})

    def run(self, mask: Float[Array, "batch part"], x: Array) -> Array:
        def row(mask: Float[Array, " part"], x: Array) -> Array:
            summed = lambda part: jnp.einsum("c,c...->...", mask.astype(part.dtype), part)
            return self.f(jax.tree.map(summed, self.weights.parts), x[None])[0]

        return jax.vmap(row)(mask, x)

    def target(self, x: Array) -> Array:
        return self.f(self.weights.target, x)


def mask_weights(f: Callable[[PyTree, Array], Array], weights: WeightParts) -> MaskedFunction:
    """`f(theta, x)`, where theta is the masked sum of the parts.

    Every row has its own weights, so use this for small models only.

    Args:
      f: any function of weights and inputs x `[batch, ...]`.
      weights: the weights and their parts.
    """
    weights = upcast_leaves(weights)
    target, parts = flatten(weights.target), flatten(weights.parts)
    errors = {}
    for name, theta in target.items():
        whole = np.asarray(theta, np.float64)
        rest = np.asarray(parts[name], np.float64).sum(0) - whole
        errors[name or "theta"] = ratio(np.linalg.norm(rest), np.linalg.norm(whole))
    return MaskedFunction(WeightsForward(weights, f), errors, sum_of_ranks(target, parts))


def ranks_of(whole: Float[np.ndarray, "d_in d_out"], parts: Iterable[Float[np.ndarray, " value"]]) -> np.ndarray:
    """The numerical rank of each part of one matrix.

    A singular value counts if it is above `TOLERANCE` times the largest singular value of the matrix and of all parts.
    A Δ that training has made small then has rank 0, although its entries are not exactly zero.

    Args:
      whole: the matrix.
      parts: the singular values of each part.
    """
    parts = list(parts)
    largest = max([np.linalg.norm(whole, 2), *(values.max(initial=0.0) for values in parts)])
    return np.array([np.sum(values > TOLERANCE * largest) for values in parts], int)


def sum_of_ranks(target: Mapping[str, Array], parts: Mapping[str, Array]) -> np.ndarray:
    """For each part the sum of its ranks over all matrices. A vector has rank 1, or rank 0 if it is zero."""
    total: int | np.ndarray = 0
    for name, value in parts.items():
        array, whole = np.asarray(value, np.float64), np.asarray(target[name], np.float64)
        shape = (-1, *whole.shape[-2:]) if whole.ndim > 1 else (1, 1, whole.size)
        array, whole = array.reshape(len(array), *shape), whole.reshape(shape)
        for i, matrix in enumerate(whole):
            total = total + ranks_of(matrix, np.linalg.svd(array[:, i], compute_uv=False))
    return np.asarray(total)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DecompositionForward(MaskedForward):
    """A decomposed model. Its parts are the subcomponents of all matrices. With `delta`, the Δ of each matrix is a part
    too, after the subcomponents of this matrix.

    Δ has no inner activation to resample. Where Δ is not kept, `resampled` turns it off, as `run` does.
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
            resample, delta = Resample(mask.components, donor), Scale(mask.delta)
            if is_stacked(name):
                layers = mask.components.shape[0]
                resample = Each(Resample(mask.components, jnp.broadcast_to(donor, (layers, *donor.shape))))
                delta = Each(delta)
            edits += [at(f"{name}.components", resample), at(f"{name}.delta", delta)]
        return edit(self.model, *edits)(x)

    def masks(self, flat: Float[Array, "batch part"], x: Array) -> dict[str, Mask]:
        """One mask for each matrix. A row has the same mask at all positions."""
        rows = x.shape[1:-1] if jnp.issubdtype(x.dtype, jnp.floating) else x.shape[1:]
        found, first = {}, 0
        for name in self.model.names:
            C, layers = self.model.of(name).C, layer_count(self.model, name)
            width = C + self.delta
            block = flat[:, first : first + width * layers].reshape(flat.shape[0], layers, width)
            first += width * layers
            block = jnp.moveaxis(block, 1, 0)
            block = block.reshape(*block.shape[:2], *(1 for _ in rows), width)
            block = jnp.broadcast_to(block, (*block.shape[:2], *rows, width))
            block = block if is_stacked(name) else block[0]
            found[name] = Mask(block[..., :C], block[..., C:] if self.delta else jnp.zeros(()))
        return found


def layer_count(model: Decomposed, name: str) -> int:
    """The number of matrices in an entry."""
    return model.of(name).V.shape[0] if is_stacked(name) else 1


def mask_decomposition(model: Decomposed, *, delta: bool = False) -> MaskedFunction:
    """The subcomponents of a decomposed model as parts, in the order of `model.names`, layer by layer.

    Args:
      model: the decomposed model.
      delta: whether the Δ of each matrix is a part, after its components. Otherwise Δ is off, except in the target.
    """
    errors, ranks = {}, []
    for name in model.names:
        weight, rest = (np.asarray(to_host(m), np.float64) for m in (model.weight(name), model.delta(name)))
        errors[name] = ratio(np.linalg.norm(rest), np.linalg.norm(weight))
        V, U = (np.asarray(to_host(m), np.float64) for m in (model.of(name).V, model.of(name).U))
        size = np.linalg.norm(V, axis=-2) * np.linalg.norm(U, axis=-1)
        stack = lambda m, axes: m.reshape(-1, *m.shape[-axes:])
        for whole, left, sizes in zip(stack(weight, 2), stack(rest, 2), stack(size, 1), strict=True):
            parts = [*sizes[:, None], *([np.linalg.svd(left, compute_uv=False)] if delta else [])]
            ranks += list(ranks_of(whole, parts))
    return MaskedFunction(DecompositionForward(upcast_leaves(model), delta), errors, np.asarray(ranks))


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Resample:
    """An edit that keeps inner activations where `keep` is 1, and takes those of row `donor[i]` where `keep` is 0."""

    keep: Array
    donor: Array

    def __call__(self, a: Array) -> Array:
        return self.keep.astype(a.dtype) * a + (1 - self.keep.astype(a.dtype)) * jnp.take(a, self.donor, axis=0)


def importance_matrix(model: Decomposed, importance: PerMatrix, *, delta: bool = False) -> Float[Array, "row part"]:
    """Importances as a matrix over the parts of `mask_decomposition`.

    Args:
      model: the decomposed model.
      importance: lower importances by entry. If they have positions, the largest over the positions of an example
        counts.
      delta: whether Δ is a part. Its importance is 0.

    Raises:
      UserError: the model has no decomposed matrices, or one of them has no importances.
    """
    if missing := [name for name in model.names if name not in importance]:
        raise UserError(f"no importances of {', '.join(missing)}: give those of every decomposed matrix")
    columns = []
    for name in model.names:
        g = importance[name]
        g = g if is_stacked(name) else g[None]
        if g.ndim > 3:
            g = jnp.max(g, axis=tuple(range(2, g.ndim - 1)))
        if delta:
            g = jnp.concatenate([g, jnp.zeros_like(g[..., :1])], axis=-1)
        columns.append(jnp.moveaxis(g, 0, 1).reshape(g.shape[1], g.shape[0] * g.shape[2]))
    if not columns:
        raise UserError("a model without decomposed matrices has no parts")
    return jnp.concatenate(columns, axis=1)
