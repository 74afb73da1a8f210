"""`FactoredMatrix` is the matrix: everything it gives equals NumPy's of the product, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.analysis import FactoredMatrix
from jax_interp.core.errors import UserError


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture(params=[(), (2, 3)], ids=["one", "leading axes"])
def pair(request):
    a, b = draw(*request.param, 9, 4), draw(*request.param, 4, 9, seed=1)
    return FactoredMatrix(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)), a @ b


def close(got, wanted, atol=1e-4):
    np.testing.assert_allclose(got, wanted, atol=atol, rtol=1e-4)


def test_product_norm_and_spectrum(pair):
    fm, ab = pair
    close(fm.AB, ab)
    assert fm.shape == ab.shape
    assert fm.ndim == ab.ndim
    close(fm.norm(), np.linalg.norm(ab, axis=(-2, -1)))
    u, s, v = fm.svd()
    close(s, np.linalg.svd(ab, compute_uv=False)[..., :4])
    close((u * s[..., None, :]) @ jnp.swapaxes(v, -1, -2), ab)
    close(jnp.swapaxes(u, -1, -2) @ u, np.broadcast_to(np.eye(4), (*ab.shape[:-2], 4, 4)))
    values = np.linalg.eigvals(ab)
    largest = np.take_along_axis(values, np.argsort(-np.abs(values), -1)[..., :4], -1)
    close(np.sort_complex(np.asarray(fm.eigenvalues).round(4)), np.sort_complex(largest.round(4)), 1e-3)
    even = fm.make_even()
    close(even.AB, ab)
    close(np.linalg.norm(even.A, axis=-2), np.linalg.norm(even.B, axis=-1))
    close(jnp.swapaxes(fm.collapse_l(), -1, -2) @ fm.collapse_l(), np.swapaxes(ab, -1, -2) @ ab, 1e-3)
    close(fm.collapse_r() @ jnp.swapaxes(fm.collapse_r(), -1, -2), ab @ np.swapaxes(ab, -1, -2), 1e-3)
    close(fm.get_corner(2), ab[tuple(slice(2) for _ in range(ab.ndim))])


def test_products_on_either_side(pair):
    fm, ab = pair
    x, v = draw(9, 9, seed=2).astype(np.float32), draw(9, seed=3).astype(np.float32)
    for left in (x, jnp.asarray(x)):  # NumPy leaves @ to the class as well
        assert isinstance(left @ fm, FactoredMatrix)
        close((left @ fm).AB, x @ ab, 1e-3)
    close((fm @ x).AB, ab @ x, 1e-3)
    close(fm @ v, ab @ v)
    close(v @ fm, v @ ab)
    assert (fm @ fm).mdim == 4
    close((fm @ fm).AB, ab @ ab, 1e-3)
    close((2 * fm * 3.0).AB, 6 * ab, 1e-3)
    close(fm.T.AB, np.swapaxes(ab, -1, -2))


@pytest.mark.parametrize(
    "index", [1, (slice(None), 2), (..., slice(2), slice(3, 5)), (0, 1, 3, -1), (..., 0), ([1, 0], 2)]
)
def test_indexing_is_that_of_the_product(index):
    a, b = draw(2, 3, 9, 4), draw(2, 3, 4, 9, seed=1)
    fm = FactoredMatrix(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    spelled = tuple(jnp.asarray(i) if isinstance(i, list) else i for i in index) if isinstance(index, tuple) else index
    got, wanted = fm[spelled].AB, (a @ b)[index]
    close(got.reshape(wanted.shape), wanted)  # an integer row or column keeps an axis of length one


def test_leading_axes_broadcast_and_unsqueeze():
    a, b = draw(5, 1, 9, 4), draw(3, 4, 9, seed=1)
    fm = FactoredMatrix(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    assert fm.shape == (5, 3, 9, 9)
    close(fm.AB, a @ b)
    close(fm.norm(), np.linalg.norm(a @ b, axis=(-2, -1)))
    close(fm[2].AB, (a @ b)[2])
    assert fm.unsqueeze(1).shape == (5, 1, 3, 9, 9)


def test_a_pytree_under_jit_vmap_and_grad(pair):
    fm, ab = pair
    close(jax.jit(lambda m: m.norm())(fm), np.linalg.norm(ab, axis=(-2, -1)))
    grad = jax.grad(lambda m: jnp.sum(m.norm() ** 2))(fm)
    assert isinstance(grad, FactoredMatrix)
    close(grad.A, 2 * ab @ np.swapaxes(np.asarray(fm.B, np.float64), -1, -2), 1e-2)
    if fm.ndim == 4:
        close(jax.vmap(lambda m: m.norm())(fm), np.linalg.norm(ab, axis=(-2, -1)))


def test_it_is_never_multiplied_out():
    """A vocabulary squared would be 40 GB."""
    fm = FactoredMatrix(jnp.ones((100_000, 2)), jnp.ones((2, 100_000)))
    np.testing.assert_allclose(fm.norm(), 2e5, rtol=1e-4)
    np.testing.assert_allclose(fm.S[0], 2e5, rtol=1e-4)
    assert fm[5:7, -3:].AB.shape == (2, 3)


def test_mistakes():
    with pytest.raises(UserError, match="no inner dimension in common"):
        FactoredMatrix(jnp.ones((3, 2)), jnp.ones((3, 2)))
    fm = FactoredMatrix(jnp.ones((3, 2)), jnp.ones((2, 4)))
    with pytest.raises(UserError, match="square"):
        _ = fm.eigenvalues
    with pytest.raises(UserError, match="3 indices"):
        fm[0, 0, 0]
    with pytest.raises(UserError, match="takes a number"):
        fm * jnp.ones(3)
