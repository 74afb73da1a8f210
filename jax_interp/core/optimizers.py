"""One optimizer step of optax, under any promotion setting."""

from __future__ import annotations

import jax
import optax

from jax_interp.core.leaves import PyTree


def init(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """The optimizer's state for `params`."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return optimizer.init(params)


def update(
    optimizer: optax.GradientTransformation, grads: PyTree, opt_state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """`(params, opt_state)` after one step along `grads`.

    optax mixes int32 counts with floats, which the strict promotion of our tests refuses, so promotion is the usual
    one inside. Parameters keep their dtype and sharding.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state
