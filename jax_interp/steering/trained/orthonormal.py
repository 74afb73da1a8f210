"""Matrices with orthonormal rows.

    rows = orthonormal(A)          A = L Q with L lower triangular: the rows of Q span the same spaces as those of A

In training the loss is a function of `orthonormal(A)`, and after each step A is replaced by `orthonormal(A)`. So the
gradient is orthogonal to every change of A that Gram-Schmidt undoes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def orthonormal(matrix: Float[Array, "k d"]) -> Float[Array, "k d"]:
    """The rows after Gram-Schmidt, from the first row on. Rows that are orthonormal already stay, up to rounding.

    It needs a Cholesky factor `[k, k]` twice (CholeskyQR2), so that the error of a badly conditioned matrix is removed.

    Args:
      matrix: k linearly independent rows, k ≤ d. If they are dependent, the result is NaN.
    """
    return _half(_half(matrix))


def _half(matrix: Float[Array, "k d"]) -> Float[Array, "k d"]:
    gram = jnp.einsum("kd,jd->kj", matrix, matrix, precision=jax.lax.Precision.HIGHEST)
    return jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(gram), matrix, lower=True)


def random_rows(key: Key[Array, ""], k: int, d: int) -> Float[Array, "k d"]:
    """Random orthonormal rows, uniform over all of them."""
    return orthonormal(jax.random.normal(key, (k, d), jnp.float32))
