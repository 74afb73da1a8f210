"""Check that the parts to decompose are linear maps `x @ weight + bias`, or embeddings.

A decomposition replaces a part by sums over the components of its `weight`. If a part computes something else from this
weight (`x @ weight.T`, a scaled product), every masked output is wrong. The type of a part does not say what it
computes, so each part is called once with random weights on random inputs, and compared with NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.decomposition.matrices import addresses_of, part_of
from jax_interp.surgery import Site
from jax_interp.surgery.contract import Model

TOLERANCE = 1e-3  # of the largest output; float32 sums of random numbers agree far better
RANDOM_NUMBERS = 65_537  # a prime, so that no two rows of a matrix are equal


def check_linear(model: Model, names: Sequence[str], tied: Sequence[tuple[str, str]] = ()) -> None:
    """Check that each part computes `x @ weight + bias`, or `weight[ids] + bias`.

    Only the shapes of the model's leaves are used, so this also works inside `jax.jit` and `jax.eval_shape`.

    Args:
      model: the target.
      names: entries of parts with a matrix.
      tied: pairs (name, twin). A twin that holds no matrix is called with the other part's matrix as its third
        argument, and must compute `x @ weight.T + bias`.

    Raises:
      UserError: a part computes something else.
    """
    seen: list[Any] = []
    for name, other in [*((name, None) for name in names), *((twin, one) for one, twin in tied)]:
        for address in addresses_of(model, name):
            part = jax.eval_shape(lambda model, at=address: part_of(model, at), model)
            given = None
            if getattr(part, "weight", None) is None and other is not None:
                holder = addresses_of(model, other)[0]
                given = jax.eval_shape(lambda model, at=holder: part_of(model, at).weight[...], model)
            leaves, structure = jax.tree.flatten((part, given))
            kind = structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
            if kind not in seen:
                seen.append(kind)
                _check(address, part, given)


def _check(address: str, part: Any, given: Any) -> None:
    rng = np.random.default_rng(0)
    part, given = jax.tree.map(partial(_random, rng), (part, given))
    weight = np.asarray(part.weight[...]) if given is None else np.asarray(given).T
    if not np.issubdtype(weight.dtype, np.floating):
        raise UserError(f"{address!r} cannot be decomposed: its weights are {weight.dtype}, not floating-point numbers")
    bias = getattr(part, "bias", None)
    bias = np.zeros((), np.float32) if bias is None else np.asarray(bias[...])
    more = () if given is None else (given,)

    def computes(x: np.ndarray, product: np.ndarray) -> bool:
        """Whether part(x) is the product plus the bias. Some parts take inputs with a position axis only, others
        without."""
        if bias.shape not in ((), product.shape[-1:]):
            return False
        return any(_agree((part, x, *more), y + bias) for x, y in [(x, product), (x[0], product[0])])

    vectors = lambda width: rng.standard_normal((2, 3, width)).astype(np.float32)
    x, ids = vectors(weight.shape[0]), rng.integers(0, weight.shape[0], (2, 3), np.int32)
    if computes(x, x @ weight) or computes(ids, weight[ids]):
        return
    x = vectors(weight.shape[1])
    if computes(x, x @ weight.T):
        found = "It computes `x @ weight.T`. Store the transposed matrix, [d_in, d_out], and compute `x @ weight`"
    else:
        found = (
            "On a random x, part(x, site) gives something else: a scale, a bias under another name, another shape, or "
            "it needs other arguments. Select other matrices, or split the part into a linear map and the rest"
        )
    raise UserError(f"{address!r} cannot be decomposed, because it is not `x @ weight + bias`. {found}")


def _agree(call: tuple[Any, ...], want: np.ndarray) -> bool:
    """Whether the part called with these arguments gives `want`. If it raises, it does not."""
    try:
        with jax.ensure_compile_time_eval(), jax.default_matmul_precision("float32"):
            part, x, *more = jax.tree.map(jnp.asarray, call)
            value = np.asarray(part(x, Site.open(()), *more))
    except Exception:  # any part of any user: whatever it raises, it is not a linear map of these inputs
        return False
    same = value.shape == want.shape and value.dtype == np.float32
    return same and bool(np.max(np.abs(value - want), initial=0) <= TOLERANCE * np.max(np.abs(want), initial=1e-30))


def _random(rng: np.random.Generator, leaf: Any) -> np.ndarray:
    """Random float32 numbers in the shape of a floating-point leaf; zeros for another leaf."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.zeros(leaf.shape, leaf.dtype)
    numbers = rng.standard_normal(RANDOM_NUMBERS).astype(np.float32)
    return np.resize(numbers, leaf.shape)
