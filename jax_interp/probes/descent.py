"""How probes are trained: L-BFGS where the loss is convex, Adam where it is not. Both run inside `jit` and `vmap`.

Under `vmap` all lanes run until the last one has stopped; a lane that has stopped keeps its parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError

Loss = Callable[[Any, Any], Float[Array, ""]]
"""(parameters, rows) -> the mean loss over the rows. Each leaf of the rows begins with the row axis."""


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam with a learning rate that decays to 0 as a cosine.

    Args:
      passes: the largest number of passes over the training rows.
      learning_rate: the learning rate at the start.
      batch: the number of rows in one step. None: all, one step for each pass. Each pass takes the rows in a new random
        order; the rows that do not fill a batch wait for another pass.
      patience: stop after this many passes in a row without a new lowest loss.
      tolerance: by how much a loss must be lower to count as new, as a share of the lowest one.
    """

    passes: int = 300
    learning_rate: float = 0.02
    batch: int | None = None
    patience: int = 50
    tolerance: float = 1e-4

    def __post_init__(self):
        for name in ("passes", "patience", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if not (self.learning_rate > 0 and self.tolerance >= 0):
            raise UserError(
                f"learning_rate={self.learning_rate} must be positive, tolerance={self.tolerance} at least 0"
            )

    def minimise(self, loss: Loss, start: PyTree, rows: PyTree, key: Key[Array, ""]) -> PyTree:
        """Follow the gradient.

        Args:
          loss: the loss. With batches, its mean over all batches must be the loss of all rows.
          start: the first parameters.
          rows: the training data.
          key: the key of the order of the rows. Not used without batches.

        Returns:
          The parameters with the lowest loss over all rows, of all passes.
        """
        n = jax.tree.leaves(rows)[0].shape[0]
        size = min(self.batch or n, n)
        steps = n // size
        optimizer = optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.passes * steps))

        def step(carry: tuple[PyTree, optax.OptState], batch: Int[Array, " row"] | None):
            params, state = carry
            part = rows if batch is None else jax.tree.map(lambda a: a[batch], rows)
            value, gradient = jax.value_and_grad(loss)(params, part)
            after, state = optimizers.update(optimizer, gradient, state, params)
            return (after, state), value

        def one_pass(s: _Adam) -> _Adam:
            if steps == 1:
                (after, state), value = step((s.params, s.state), None)
                reached = s.params  # the loss of this step was that of the parameters before it
            else:
                order = jax.random.permutation(jax.random.fold_in(key, s.done), n)[: steps * size]
                (reached, state), _ = jax.lax.scan(step, (s.params, s.state), order.reshape(steps, size))
                after, value = reached, loss(reached, rows)
            lower = value < s.lowest - self.tolerance * jnp.abs(s.lowest)
            best = jax.tree.map(lambda new, old: jnp.where(value < s.lowest, new, old), reached, s.best)
            waited = jnp.where(lower, 0, s.waited + 1)
            lowest = jnp.where(value < s.lowest, value, s.lowest)
            return _Adam(after, state, best, lowest, waited, s.done + 1)

        zero = jnp.zeros((), jnp.int32)
        highest = jnp.asarray(jnp.finfo(jnp.float32).max)
        begin = _Adam(start, optimizers.init(optimizer, start), start, highest, zero, zero)
        end = jax.lax.while_loop(lambda s: (s.done < self.passes) & (s.waited < self.patience), one_pass, begin)
        return end.best


ADAM = Adam()


class _Adam(NamedTuple):
    params: PyTree
    state: optax.OptState
    best: PyTree
    lowest: Float[Array, ""]
    waited: Int[Array, ""]
    done: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class LBFGS:
    """L-BFGS with a zoom line search (optax).

    Args:
      steps: the largest number of steps.
      tolerance: stop if no entry of the gradient of the mean loss is larger. A weak penalty needs a small one.
    """

    steps: int = 300
    tolerance: float = 1e-8

    def minimise(self, loss: Callable[[Any], Float[Array, ""]], start: PyTree) -> PyTree:
        """The minimum of a smooth convex loss. It also stops where float32 can make the loss no smaller."""
        solver = optax.lbfgs(memory_size=10)
        value_and_grad = optax.value_and_grad_from_state(loss)

        def step(s: _LBFGS) -> _LBFGS:
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                value, gradient = value_and_grad(s.params, state=s.state)
                updates, state = solver.update(
                    gradient, s.state, s.params, value=value, grad=gradient, value_fn=loss
                )  # fmt: skip
                params = optax.apply_updates(s.params, updates)
            largest = _largest(optax.tree.get(state, "grad"))
            stuck = jnp.where(optax.tree.get(state, "value") < value, 0, s.stuck + 1)
            return _LBFGS(params, state, largest, stuck, s.done + 1)

        def goes_on(s: _LBFGS) -> Bool[Array, ""]:
            return (s.largest > self.tolerance) & (s.done < self.steps) & (s.stuck < 5)

        zero = jnp.zeros((), jnp.int32)
        begin = _LBFGS(start, optimizers.init(solver, start), _largest(jax.grad(loss)(start)), zero, zero)
        return jax.lax.while_loop(goes_on, step, begin).params


class _LBFGS(NamedTuple):
    params: PyTree
    state: optax.OptState
    largest: Float[Array, ""]
    stuck: Int[Array, ""]
    done: Int[Array, ""]


def _largest(gradient: PyTree) -> Float[Array, ""]:
    return jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient)]).max()
