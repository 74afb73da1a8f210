"""What erasure is: a config with one function `fit` that finds an `AffineEraser`, an edit that removes a concept.

eraser = Leace().fit(x, concept_of(labels))
edited = edit(model, at("blocks.3.resid_post", eraser))
"""

from __future__ import annotations

import abc
import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.registry import Registry
from jax_interp.core.short_repr import ShortRepr
from jax_interp.probes.erasure.moments import HIGHEST, Moments, moments_of
from jax_interp.surgery.value_tokens import wide


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AffineEraser(ShortRepr):
    """r(x) = x - left right (x - mean): an edit. The mean of x stays as it is.

    The rank is the number of columns of `left`. Columns of a rank that the concept does not have are zero, so that the
    erasers of several layers have one shape and can be stacked in `Each`. `save_edits` writes an edit with it;
    `load_edits(path, types=[AffineEraser])` reads it.

    Args:
      left: the directions in which x is changed.
      right: what is read of x.
      mean: the point that stays as it is.
    """

    left: Float[Array, "d rank"]
    right: Float[Array, "rank d"]
    mean: Float[Array, " d"]

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        x = wide(x)
        left, right, mean = (jnp.asarray(array).astype(x.dtype) for array in (self.left, self.right, self.mean))
        centred = x - jnp.broadcast_to(mean, x.shape)
        read = jnp.einsum("...d,kd->...k", centred, right, precision=HIGHEST)
        return x - jnp.einsum("...k,dk->...d", read, left, precision=HIGHEST)

    def matrix(self) -> Float[Array, "d d"]:
        """P = I - left right."""
        return jnp.eye(len(self.mean), dtype=self.left.dtype) - jnp.matmul(self.left, self.right, precision=HIGHEST)

    @staticmethod
    def identity(d: int, rank: int) -> AffineEraser:
        """The eraser that changes nothing."""
        return AffineEraser(jnp.zeros((d, rank)), jnp.zeros((rank, d)), jnp.zeros(d))


class Erasure(abc.ABC):
    """How an eraser is found."""

    @abc.abstractmethod
    def fit(self, x: Float[ArrayLike, "row d"], z: Float[ArrayLike, "row k"]) -> AffineEraser:
        """Find the eraser of a concept.

        Args:
          x: the activations. Half precision is computed in float32.
          z: the concept, from `concept_of`.

        Raises:
          UserError: there are fewer than two rows, one class only, or entries that are not finite.
        """


class MomentErasure(Erasure):
    """An erasure that needs only means and covariances, so it can be fitted on a stream of any length."""

    @abc.abstractmethod
    def from_moments(self, moments: Moments) -> AffineEraser:
        """Find the eraser from the moments of activations and concept. Raises as `fit`."""

    def fit(self, x: Float[ArrayLike, "row d"], z: Float[ArrayLike, "row k"]) -> AffineEraser:
        return self.from_moments(moments_of(jnp.asarray(x), jnp.asarray(z)))


ERASURES = Registry("erasure", Erasure)


def concept_of(labels: Int[np.ndarray, " row"] | Float[np.ndarray, " row"], classes: int | None = None) -> np.ndarray:
    """Labels as numbers that an eraser can be fitted on, `[row, k]` in float32.

    Args:
      labels: the number of each row's class; or real numbers, which become one column.
      classes: the number of classes. None: the largest label and one more.

    Returns:
      One column for each class but the first: 1 in the rows of the class. The first class is where all are 0.

    Raises:
      UserError: a label is not finite, or lies outside the classes; or all rows have the same label.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels):
        raise UserError(f"labels have shape {labels.shape}: give one label for each row")
    if (labels == labels[0]).all():
        raise UserError(f"all {len(labels)} rows have the label {labels[0]}: there is no concept to erase")
    if not np.issubdtype(labels.dtype, np.integer) and labels.dtype != bool:
        if not np.isfinite(labels).all():
            raise UserError("a label is not finite")
        return labels.astype(np.float32)[:, None]
    count = int(labels.max()) + 1 if classes is None else classes
    if labels.min() < 0 or labels.max() >= count:
        raise UserError(f"labels go from {labels.min()} to {labels.max()}, and there are {count} classes")
    return (labels[:, None] == np.arange(1, count)[None, :]).astype(np.float32)


def affine_eraser(
    left: Float[np.ndarray, "d rank"], right: Float[np.ndarray, "rank d"], mean: Float[np.ndarray, " d"], rank: int
) -> AffineEraser:
    """An eraser in float32, filled up with zeros to a rank."""
    empty = rank - left.shape[1]
    left, right = np.pad(left, ((0, 0), (0, empty))), np.pad(right, ((0, empty), (0, 0)))
    return AffineEraser(*(jnp.asarray(array, jnp.float32) for array in (left, right, mean)))
