"""Within-class shuffle: a control that keeps the class means and removes the correlations between columns.

For each class, each column is permuted over the rows of the class, independently of the other columns. Class means and
the distribution of each column in each class stay exactly the same. The covariances within the classes become 0, up to
sampling. A probe that needs these covariances to read well loses them.

Two facts about logistic regression on shuffled rows:

- It finds about D⁻¹θ, where θ = μ₊ - μ₋ and D holds the variance of each column within the classes. This is the mean
  difference only if these variances are equal.
- The result depends on the basis. In the basis of the eigenvectors of the covariance, the shuffle changes nothing that
  a linear probe can use. So say in which basis it was done.

Proposed by Shai and Garriga-Alonso (LessWrong, comment Ae6PEJrGbBhLZBF7Y). The two facts are tested in
tests/probes/test_reading_and_writing.py.
"""

from __future__ import annotations

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.errors import UserError

COLUMNS_AT_ONCE = 256


def shuffle_within_classes(
    key: Key[Array, ""],
    x: Float[Array, "row d"],
    y: Int[Array, " row"],
    rotation: Float[Array, "d d"] | None = None,
) -> Float[Array, "row d"]:
    """Permute each column of `x` over the rows of each class.

    Args:
      key: the key of the permutations.
      x: the rows.
      y: the class of each row, any integers.
      rotation: an orthogonal matrix whose columns are the directions to permute along. The result is in the basis of
        `x` again. None: the columns of `x`.

    Raises:
      UserError: `y` is not one class for each row, or the rotation is not orthogonal. A traced rotation is not checked.

    Example:
        shuffled = shuffle_within_classes(jax.random.key(0), x, y)
    """
    if jnp.ndim(x) != 2 or jnp.shape(y) != jnp.shape(x)[:1]:
        raise UserError(f"x has shape {jnp.shape(x)} and y {jnp.shape(y)}: give [row, d] and the class of each row")
    if rotation is None:
        return _shuffle(key, x, y)
    _check_orthogonal(rotation, x.shape[1])
    rotation = rotation.astype(x.dtype)
    turned = jnp.matmul(x, rotation, precision=jax.lax.Precision.HIGHEST)
    return jnp.matmul(_shuffle(key, turned, y), rotation.T, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _shuffle(key: Key[Array, ""], x: Float[Array, "row d"], y: Int[Array, " row"]) -> Float[Array, "row d"]:
    by_class = jnp.argsort(y, stable=True)

    def column(inputs: tuple[Array, Array]) -> Array:
        key, values = inputs
        # Sorted by class, and at random within a class: two orders of the same rows.
        at_random = jnp.lexsort((jax.random.bits(key, y.shape), y))
        return jnp.zeros_like(values).at[by_class].set(values[at_random])

    keys = jax.random.split(key, x.shape[1])
    return jax.lax.map(column, (keys, x.T), batch_size=COLUMNS_AT_ONCE).T


def _check_orthogonal(rotation: Float[Array, "d d"], d: int) -> None:
    if rotation.shape != (d, d):
        raise UserError(f"the rotation has shape {rotation.shape}: the rows have {d} columns")
    if isinstance(rotation, jax.core.Tracer):
        return
    Q = np.asarray(rotation, np.float64)
    if not np.allclose(Q.T @ Q, np.eye(d), atol=1e-3):
        raise UserError("the rotation is not orthogonal: its columns must have length 1 and be at right angles")
