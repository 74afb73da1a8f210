"""`FactoredMatrix`: a product of two thin matrices that is never multiplied out."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float

from jax_interp.analysis.parts import check_index
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class FactoredMatrix:
    """The matrix `A @ B` of low rank, `[..., ldim, rdim]`, stored as its two factors.

    `@` on either side gives another `FactoredMatrix` (a vector gives a vector). `[...]` indexes leading axes, rows and
    columns. Singular values, eigenvalues and the norm are computed in the inner dimension: for the OV circuit of a head
    in GPT-2 this is 64, instead of 768 or 50,257. The names are those of TransformerLens. This is a pytree of two
    arrays.

    Args:
      A: left factors `[*lead, ldim, mdim]`.
      B: right factors `[*lead, mdim, rdim]`; the leading axes of the two broadcast.

    Raises:
      UserError: the factors have no inner dimension in common.

    Example:

        ov = FactoredMatrix(W_V(model), W_O(model))     # [layer, head, d_model, d_model]
        ov[3, 1].S                                      # singular values of one head
        W_E(model) @ ov[3, 1] @ W_U(model)              # [vocab, vocab], still factored
    """

    A: Float[Array, "*lead ldim mdim"]
    B: Float[Array, "*lead mdim rdim"]

    __array_ufunc__ = None  # makes a NumPy array on the left use this class's `@`

    def __post_init__(self):
        # JAX also fills pytrees with objects that have no shape.
        a, b = getattr(self.A, "shape", ()), getattr(self.B, "shape", ())
        if a and b and len(a) > 1 and len(b) > 1 and a[-1] != b[-2]:
            raise UserError(f"factors of shapes {a} and {b} have no inner dimension in common")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the product, leading axes first."""
        return (*self._lead, self.A.shape[-2], self.B.shape[-1])

    @property
    def ndim(self) -> int:
        """The number of axes of the product."""
        return len(self.shape)

    @property
    def ldim(self) -> int:
        """Rows of the product."""
        return self.A.shape[-2]

    @property
    def mdim(self) -> int:
        """The inner dimension."""
        return self.A.shape[-1]

    @property
    def rdim(self) -> int:
        """Columns of the product."""
        return self.B.shape[-1]

    @property
    def pair(self) -> tuple[Array, Array]:
        """`(A, B)`."""
        return self.A, self.B

    @property
    def AB(self) -> Float[Array, "*lead ldim rdim"]:
        """The matrix itself, multiplied out."""
        return _matmul(self.A, self.B)

    @property
    def BA(self) -> Float[Array, "*lead mdim mdim"]:
        """The product in the other order, `[mdim, mdim]`. Raises UserError unless the matrix is square."""
        if self.ldim != self.rdim:
            raise UserError(f"BA needs a square matrix, this one is {self.shape}")
        return _matmul(self.B, self.A)

    @property
    def T(self) -> FactoredMatrix:
        """The transpose, factored."""
        return FactoredMatrix(jnp.swapaxes(self.B, -1, -2), jnp.swapaxes(self.A, -1, -2))

    def svd(
        self,
    ) -> tuple[Float[Array, "*lead ldim mdim"], Float[Array, "*lead mdim"], Float[Array, "*lead rdim mdim"]]:
        """The singular value decomposition: `U diag(S) Vᵀ` is the matrix.

        It uses a QR decomposition of both factors, and the SVD of the small product of the two R. Factors of 16 bits
        are converted to float32.

        Returns:
          `U, S, V`. There are as many singular values as the smallest of ldim, mdim and rdim.
        """
        (qa, ra), (qb, rb) = (
            jnp.linalg.qr(upcast(self.A)),
            jnp.linalg.qr(jnp.swapaxes(upcast(self.B), -1, -2)),
        )
        u, s, vt = jnp.linalg.svd(_matmul(ra, jnp.swapaxes(rb, -1, -2)), full_matrices=False)
        return _matmul(qa, u), s, _matmul(qb, jnp.swapaxes(vt, -1, -2))

    @property
    def U(self) -> Float[Array, "*lead ldim mdim"]:
        """Left singular vectors, as columns."""
        return self.svd()[0]

    @property
    def S(self) -> Float[Array, "*lead mdim"]:
        """Singular values, largest first."""
        return self.svd()[1]

    @property
    def V(self) -> Float[Array, "*lead rdim mdim"]:
        """Right singular vectors, as columns."""
        return self.svd()[2]

    @property
    def eigenvalues(self) -> Complex[Array, "*lead mdim"]:
        """The eigenvalues that can differ from zero, in no order. They are the eigenvalues of BA, which is small."""
        return jnp.linalg.eigvals(upcast(self.BA))

    def norm(self) -> Float[Array, "*lead"]:
        """The Frobenius norm: `‖A B‖ = ‖R B‖` for `A = Q R`."""
        return jnp.linalg.norm(self.reduced_left(), axis=(-2, -1))

    def reduced_left(self) -> Float[Array, "*lead mdim rdim"]:
        """This matrix up to a rotation of its rows, `[mdim, rdim]`. Scalar products between columns do not change."""
        return _matmul(jnp.linalg.qr(upcast(self.A), mode="r"), upcast(self.B))

    def collapse_l(self) -> Float[Array, "*lead mdim rdim"]:
        """`diag(S) Vᵀ`: the matrix without the rotation U of its rows."""
        _, s, v = self.svd()
        return s[..., :, None] * jnp.swapaxes(v, -1, -2)

    def collapse_r(self) -> Float[Array, "*lead ldim mdim"]:
        """`U diag(S)`: the matrix without the rotation V of its columns."""
        u, s, _ = self.svd()
        return u * s[..., None, :]

    def make_even(self) -> FactoredMatrix:
        """The same matrix with factors of equal singular values, `U √S` and `√S Vᵀ`."""
        u, s, v = self.svd()
        root = jnp.sqrt(s)
        return FactoredMatrix(u * root[..., None, :], root[..., :, None] * jnp.swapaxes(v, -1, -2))

    def get_corner(self, k: int = 3) -> Float[Array, "..."]:
        """The first `k` rows and columns (and entries of leading axes), multiplied out."""
        corner = self[(*(slice(k) for _ in self._lead), slice(k), slice(k))]
        return corner.AB

    def unsqueeze(self, axis: int) -> FactoredMatrix:
        """The same matrices with a leading axis of length one at `axis`. Raises UserError for an axis outside."""
        if not 0 <= axis <= len(self._lead):
            raise UserError(f"axis {axis} is not among the {len(self._lead)} leading axes of {self.shape}")
        a, b = self._broadcast()
        return FactoredMatrix(jnp.expand_dims(a, axis), jnp.expand_dims(b, axis))

    def __matmul__(self, other: FactoredMatrix | ArrayLike) -> Any:
        if isinstance(other, FactoredMatrix):
            return FactoredMatrix(self.A, _matmul(_matmul(self.B, other.A), other.B))
        other = jnp.asarray(other)
        if other.ndim == 1:
            return _apply(self.A, _apply(self.B, other))
        return FactoredMatrix(self.A, _matmul(self.B, other))

    def __rmatmul__(self, other: ArrayLike) -> Any:
        other = jnp.asarray(other)
        if other.ndim == 1:
            return self.T @ other
        return FactoredMatrix(_matmul(other, self.A), self.B)

    def __mul__(self, scalar: ArrayLike) -> FactoredMatrix:
        if jnp.ndim(scalar):
            raise UserError(f"* takes a number, got shape {jnp.shape(scalar)}; matrices are multiplied with @")
        return FactoredMatrix(self.A * jnp.asarray(scalar, self.A.dtype), self.B)

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> FactoredMatrix:
        """Index leading axes, then rows, then columns. An integer for a row or column keeps an axis of length one.

        Raises:
          UserError: an index is outside its axis (JAX would take the nearest entry), or there are too many.
        """
        index = index if isinstance(index, tuple) else (index,)
        if any(i is None for i in index):
            raise UserError("FactoredMatrix takes no new axes in an index: unsqueeze adds a leading one")
        if Ellipsis in [i for i in index if i is Ellipsis]:
            at = next(n for n, i in enumerate(index) if i is Ellipsis)
            index = (*index[:at], *[slice(None)] * (self.ndim - len(index) + 1), *index[at + 1 :])
        if len(index) > self.ndim:
            raise UserError(f"{len(index)} indices for a matrix of shape {self.shape}")
        index = (*index, *[slice(None)] * (self.ndim - len(index)))
        for axis, one in enumerate(index):
            check_index(one, self.shape[axis], f"index[{axis}]")
        lead, rows, columns = index[:-2], _kept(index[-2]), _kept(index[-1])
        a, b = self._broadcast()
        return FactoredMatrix(a[lead][..., rows, :], b[lead][..., columns])

    @property
    def _lead(self) -> tuple[int, ...]:
        return np.broadcast_shapes(self.A.shape[:-2], self.B.shape[:-2])

    def _broadcast(self) -> tuple[Array, Array]:
        return tuple(jnp.broadcast_to(x, (*self._lead, *x.shape[-2:])) for x in self.pair)  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"FactoredMatrix(shape={self.shape}, inner={self.mdim})"


def _kept(index: Any) -> Any:
    """The index of a row or column, as an index that keeps the axis."""
    if isinstance(index, (int, np.integer)):
        return slice(int(index), None if index == -1 else int(index) + 1)
    return index[None] if hasattr(index, "ndim") and index.ndim == 0 else index


def _matmul(a: Array, b: Array) -> Array:
    return jnp.einsum("...ij,...jk->...ik", a, b)


def _apply(a: Array, x: Array) -> Array:
    return jnp.einsum("...ij,...j->...i", a, x)
