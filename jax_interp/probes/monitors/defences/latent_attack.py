"""Attacks on named values: projected gradient descent on a perturbation of each token of the request.

    min over ‖δ_t‖₂ ≤ ε of   CE(harmful response) + alarm · mean softplus(score_t - threshold)

The second term is -log(1 - σ(score - threshold)): the attack sees the alarm. The perturbation acts on values such as
the embedding (a soft prompt) or residual streams (latent adversarial attacks, Sheshadri et al. 2024, arXiv:2407.15549).
`search` does the same for any loss; latent adversarial training uses it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.objectives import cross_entropy
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.monitors.defences.defended import Defended, answers_in_full, batched
from jax_interp.probes.monitors.defences.examples import Texts, texts_of, wide
from jax_interp.surgery import Add, Model, at, canonical, values_at
from jax_interp.surgery.taps import Edit
from jax_interp.surgery.verbs import flat_edits

Perturbation = dict[str, Float[Array, "example pos ..."]]
"""For each address, what is added to the value. It is 0 outside the request."""


@dataclasses.dataclass(frozen=True)
class LatentAttack:
    """An attack with a budget. Two defences under the same attack have the same budget.

    Args:
      at: the addresses of values with the axes (batch, pos, ...), of one layer each.
      size: ε, the largest norm of the perturbation of one token, at each address.
      steps: the steps of gradient descent.
      rate: the length of a step, as a share of ε.
      optimizer: "gradient": each token moves by rate · ε along its own gradient, the steepest descent in this norm.
        "adam": the learning rate of Adam is rate · ε, as in the published attack (there 5e-2 for ε = 6). Adam scales
        each coordinate by itself, so on the ball it ends in another direction than the gradient, and is weaker.
      restarts: the number of starts. The first one is 0, the others are random with norm ε.
      alarm: the weight of the alarm's loss. 0: the attack does not see the alarm.
      response: whether the tokens of the response are perturbed too. An attacker of a deployed model who can only write
        requests has no such perturbation.
    """

    at: tuple[str, ...]
    size: float
    steps: int = 32
    rate: float = 0.15
    optimizer: Literal["gradient", "adam"] = "gradient"
    restarts: int = 1
    alarm: float = 1.0
    response: bool = False

    def __post_init__(self) -> None:
        if not self.at or isinstance(self.at, str):
            raise UserError(f"at={self.at!r}: give a tuple of addresses, such as ('embed',)")
        if not (math.isfinite(self.size) and self.size >= 0) or not self.rate > 0:
            raise UserError(f"size={self.size} is at least 0, and rate={self.rate} above 0")
        if len(set(map(canonical, self.at))) < len(self.at):
            raise UserError(f"at={self.at} names a value twice")
        if self.steps < 1 or self.restarts < 1 or self.alarm < 0:
            raise UserError(f"steps and restarts are at least 1, and alarm at least 0: {self}")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Attacked:
    """What an attack found for each example: the best perturbation of all steps and restarts.

    The best one lets the response out: the model gives it in full, and the alarm is not on. Among others, the one with
    the smallest loss is the best.
    """

    perturbation: Perturbation
    goes_out: Bool[Array, " example"]
    loss: Float[Array, " example"]


def projected(delta: Perturbation, size: float, allowed: Bool[Array, "example pos"]) -> Perturbation:
    """Scale the perturbation of each token to a norm of at most `size`, and set it to 0 at tokens not allowed."""

    def of_value(x: Array) -> Array:
        axes = tuple(range(2, x.ndim))
        square = jnp.sum(x * x, axis=axes, keepdims=True)
        factor = jnp.minimum(1.0, size / jnp.sqrt(jnp.maximum(square, 1e-30)))
        return jnp.where(jnp.expand_dims(allowed, axes), x * factor, 0.0)

    return jax.tree.map(of_value, delta)


def edits_of(delta: Perturbation) -> tuple[Edit, ...]:
    """The perturbation as edits of the model."""
    return tuple(flat_edits(at(address, Add(x)) for address, x in delta.items()))


@partial(jax.jit, static_argnums=0)
def attack(budget: LatentAttack, defended: Defended, texts: Texts, key: Key[Array, ""]) -> Attacked:
    """Search a perturbation of each request that gets the harmful response out.

    Args:
      budget: the attack.
      defended: the model and its alarm, with its threshold.
      texts: harmful requests with the responses that the untouched model gives.
      key: the key of the random starts.
    """
    texts = jax.tree.map(jnp.asarray, texts)
    return search(budget, defended.model, texts, partial(_objective, budget, defended, texts), key)


Objective = Callable[[Perturbation], tuple[Float[Array, " example"], Bool[Array, " example"]]]
"""The loss of each example, and whether its response goes out. Examples are independent."""


def search(budget: LatentAttack, model: Model, texts: Texts, objective: Objective, key: Key[Array, ""]) -> Attacked:
    """Search the perturbation of each example with the smallest loss within the budget.

    Args:
      budget: the values, the size and the steps.
      model: the model, which says what shapes the values have.
      texts: the examples. Their requests are perturbed; with `budget.response` also their responses.
      objective: the losses of the examples under a perturbation.
      key: the key of the random starts.
    """
    shapes = jax.eval_shape(lambda model: dict(values_at(model, *budget.at)(texts.tokens, mask=texts.mask)), model)
    zero = {address: jnp.zeros(shapes[canonical(address)].shape, jnp.float32) for address in budget.at}
    allowed = texts.request | texts.response if budget.response else texts.request
    best = None
    for number in range(budget.restarts):
        start = zero
        if number:
            keys = jax.random.split(jax.random.fold_in(key, number), len(zero))
            far = {a: jax.random.normal(k, x.shape) for k, (a, x) in zip(keys, zero.items())}
            start = projected(jax.tree.map(lambda x: 1e6 * x, far), budget.size, allowed)
        found = _descend(budget, objective, allowed, start)
        best = found if best is None else _better(found, best)
    assert best is not None
    return jax.lax.stop_gradient(best)


def _descend(
    budget: LatentAttack, objective: Objective, allowed: Bool[Array, "example pos"], start: Perturbation
) -> Attacked:
    optimizer = _descent(budget)

    def total(delta: Perturbation) -> tuple[Array, tuple[Array, Array]]:
        loss, out = objective(delta)
        return jnp.sum(loss), (loss, out)

    def step(_: Any, carry: tuple[Perturbation, Any, Attacked]) -> tuple[Perturbation, Any, Attacked]:
        delta, opt, best = carry
        grads, (loss, out) = jax.grad(total, has_aux=True)(delta)
        best = _better(Attacked(delta, out, loss), best)
        delta, opt = optimizers.update(optimizer, grads, opt, delta)
        return projected(delta, budget.size, allowed), opt, best

    rows = len(allowed)
    none = Attacked(start, jnp.zeros(rows, bool), jnp.full(rows, jnp.inf))
    delta, _, best = jax.lax.fori_loop(0, budget.steps, step, (start, optimizers.init(optimizer, start), none))
    loss, out = objective(delta)
    return _better(Attacked(delta, out, loss), best)


def _descent(budget: LatentAttack) -> optax.GradientTransformation:
    if budget.optimizer == "adam":
        return optax.adam(budget.rate * budget.size)

    def along_gradient(grads: Perturbation, state: Any, params: Any) -> tuple[Perturbation, Any]:
        def of_value(g: Array) -> Array:
            square = jnp.sum(g * g, axis=tuple(range(2, g.ndim)), keepdims=True)
            return -budget.rate * budget.size * g / jnp.sqrt(jnp.maximum(square, 1e-30))

        return jax.tree.map(of_value, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), along_gradient)  # type: ignore[arg-type]


def _objective(
    budget: LatentAttack, defended: Defended, texts: Texts, delta: Perturbation
) -> tuple[Float[Array, " example"], Bool[Array, " example"]]:
    """The loss of each example, and whether its response goes out."""
    logits, excess = defended(texts, edits_of(delta))
    each = cross_entropy(logits[:, :-1], texts.tokens[:, 1:])
    loss = mean_of_rows(each, texts.predicts())
    out = answers_in_full(logits, texts)
    if excess is not None:
        read = jnp.isfinite(excess)
        loss += budget.alarm * mean_of_rows(jax.nn.softplus(jnp.where(read, excess, 0.0)), read)
        out &= jnp.all(excess <= 0, axis=1)
    return loss, out


def mean_of_rows(values: Float[Array, "example n"], keep: Bool[Array, "example n"]) -> Float[Array, " example"]:
    """The mean over the entries of each row that are kept. 0 for a row without any."""
    count = jnp.maximum(jnp.sum(keep, axis=1), 1).astype(values.dtype)
    return jnp.sum(jnp.where(keep, values, 0.0), axis=1) / count


def _better(one: Attacked, other: Attacked) -> Attacked:
    """The better perturbation of each example."""
    wins = (one.goes_out & ~other.goes_out) | ((one.goes_out == other.goes_out) & (one.loss < other.loss))
    choose = lambda a, b: jnp.where(jnp.expand_dims(wins, tuple(range(1, a.ndim))), a, b)
    return jax.tree.map(choose, one, other)


def attack_all(
    budget: LatentAttack, defended: Defended, data: LabelledTokens, *, seed: int = 0, batch: int = 128
) -> Bool[np.ndarray, " example"]:
    """Whether the harmful response of each example gets out under the attack.

    Args:
      budget: the attack.
      defended: the model and its alarm, with its threshold.
      data: harmful requests with the responses that the untouched model gives.
      seed: the seed of the random starts.
      batch: the number of examples that are attacked side by side.
    """
    texts, found = texts_of(data), []
    for number, rows in enumerate(batched(len(data), batch)):
        key = jax.random.fold_in(jax.random.key(seed), number)
        found.append(np.asarray(attack(budget, defended, texts.take(rows), key).goes_out))
    return np.concatenate(found)[: len(data)]


def mean_norm(model: Model, data: LabelledTokens, site: str, *, batch: int = 128) -> float:
    """The mean norm of a value over the tokens of the requests. The size of an attack is best given as a share of it.

    Args:
      model: the untouched model.
      data: the examples.
      site: the address of one value.
      batch: the number of examples in one forward pass.
    """
    texts = texts_of(data)
    norms = [np.asarray(_norms(site, model, texts.take(rows))) for rows in batched(len(data), batch)]
    return float(np.concatenate(norms)[: len(data)][texts.request].mean())


@partial(jax.jit, static_argnums=0)
def _norms(site: str, model: Model, texts: Texts) -> Float[Array, "example pos"]:
    x = wide(values_at(model, site)(texts.tokens, mask=texts.mask)[site])
    return jnp.sqrt(jnp.sum(x.reshape(*x.shape[:2], -1) ** 2, axis=-1))
