"""MELBO: vectors that change a later value as much as vectors of their norm can (Mack and Turner 2024).

    maximise over ‖θ‖ = R    Σ over prompts of  [ Σ_t ‖Z_t(θ) - Z_t(0)‖₂^p ]^(1/q)

No label and no contrast pair is needed: the vectors show what the model can be made to do. ‖·‖₂ is the norm over the
width of the target at one token, as in the paper. The published code takes the norm over the tokens for each entry of
the width; with p = 2 both are the same.

Two ways to climb. "power": θ ← R g / ‖g‖, with the gradient g. It has no rate, each step goes uphill wherever the
objective is convex, and for a linear model it is the power iteration for the top singular vector. "amsgrad": the
published one, Adam with the maximum of its second moments, on gradients that are projected to the tangent of the
sphere, and back to the sphere after each step. optax takes the maximum after the bias correction and torch before.
Both keep the best vector of all steps.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.sharding import rules_for
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.token_rules import TokenRule
from jax_interp.steering.elicitation.effects import Between, Prompts, changes, each, placed_prompts
from jax_interp.steering.elicitation.elicited import Elicited
from jax_interp.steering.elicitation.sphere import on_sphere, random_on_sphere, tangent, without
from jax_interp.surgery import Model
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic, automatic_step, fit, placed
from jax_interp.training.placement import replicated


@dataclasses.dataclass(frozen=True)
class MelboConfig:
    """A search for vectors with a large effect."""

    where: Between
    """Where the vectors are added, and where the effect is read. The paper adds to the output of an MLP and reads the
    residual stream some layers later."""
    radius: float
    """R, the norm of the vectors."""
    vectors: int = 32
    """The number of vectors, each from its own random start."""
    orthogonal: bool = False
    """False: all vectors climb side by side, and two may end at the same one. True: one after the other, each
    orthogonal to the earlier ones."""
    p: float = 2.0
    q: float = 1.0
    steps: int = 300
    """The steps of each vector."""
    ascent: Literal["power", "amsgrad"] = "power"
    learning_rate: float = 1e-3
    """Of "amsgrad"."""
    null: int = 64
    """The number of random vectors whose scores are given beside those of the vectors."""
    at_once: int | None = None
    """The number of vectors in one pass of the model. None: all."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.radius) and self.radius > 0):
            raise UserError(f"radius={self.radius}: give the norm of the vectors, a number above 0")
        if min(self.vectors, self.steps) < 1 or self.null < 0 or (self.at_once is not None and self.at_once < 1):
            raise UserError(f"vectors, steps and at_once are at least 1, and null at least 0: {self}")
        if not (self.p >= 1 and self.q > 0 and self.learning_rate > 0):
            raise UserError(f"p is at least 1, q and learning_rate are above 0: {self}")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Climb:
    """A vector that climbs: where it is, the best place so far, and the optimizer's state."""

    theta: Float[Array, "*vector d"]
    best: Float[Array, "*vector d"]
    value: Float[Array, "*vector"]
    opt: Any


def effect(config: MelboConfig, model: Model, prompts: Prompts, theta: Float[Array, " d"]) -> Float[Array, ""]:
    """The objective: the sum over prompts of [Σ_t ‖Z_t(θ) - Z_t(0)‖₂^p]^(1/q).

    Args:
      config: p and q.
      model: the model.
      prompts: the prompts, with the tokens that are read.
      theta: the bias.
    """
    square = jnp.sum(changes(model, prompts, theta) ** 2, axis=-1)
    each = jnp.where(prompts.read, _power(square, config.p / 2), 0.0)
    return jnp.sum(_power(jnp.sum(each, axis=1), 1 / config.q))


def _power(x: Float[Array, "..."], exponent: float) -> Float[Array, "..."]:
    """x^exponent for x ≥ 0, with the gradient 0 at 0."""
    if exponent == 1:
        return x
    some = x > 0
    return jnp.where(some, jnp.where(some, x, 1.0) ** exponent, 0.0)


def climb(config: MelboConfig, model: Model, prompts: Prompts, state: Climb, earlier: Float[Array, "n d"]) -> Climb:
    """One step uphill, orthogonal to earlier vectors.

    Args:
      config: the objective and the ascent.
      model: the model.
      prompts: the prompts.
      state: the vector.
      earlier: vectors that are orthogonal to each other. Zero rows do nothing.
    """
    value, gradient = jax.value_and_grad(partial(effect, config, model, prompts))(state.theta)
    state = _kept(state, value)
    gradient, opt = without(gradient, earlier), state.opt
    if config.ascent == "power":
        new = gradient
    else:
        away = -tangent(gradient, state.theta)
        new, opt = optimizers.update(_amsgrad(config), away, opt, state.theta)
    return Climb(on_sphere(new, config.radius, earlier, state.theta), state.best, state.value, opt)


def _kept(state: Climb, value: Float[Array, ""]) -> Climb:
    """The state with the better of the best vector and the present one, whose value is given."""
    better = value > state.value
    best = jnp.where(better, state.theta, state.best)
    return dataclasses.replace(state, best=best, value=jnp.where(better, value, state.value))


def _amsgrad(config: MelboConfig) -> optax.GradientTransformation:
    return optax.amsgrad(config.learning_rate, b1=0.9, b2=0.98)


def _begun(config: MelboConfig, theta: Float[Array, " d"]) -> Climb:
    opt = optimizers.init(_amsgrad(config), theta) if config.ascent == "amsgrad" else ()
    return Climb(theta, theta, jnp.full((), -jnp.inf, jnp.float32), opt)


@automatic_step
def melbo_step(
    config: MelboConfig, state: Climb, step: Int[Array, ""], model: Model, prompts: Prompts
) -> tuple[Climb, dict[str, Any]]:
    """One step of all vectors, side by side.

    Args:
      config: the search.
      state: the vectors, with a leading axis.
      step: the number of the step. It is not used.
      model: the model.
      prompts: the prompts.

    Returns:
      The next state, and the metrics `best` and `mean` of the best objectives so far.
    """
    none = jnp.zeros((0, state.theta.shape[-1]), jnp.float32)
    state = each(lambda one: climb(config, model, prompts, one, none), state, config.at_once)
    return state, {"best": jnp.max(state.value), "mean": jnp.mean(state.value)}


@automatic_step
def orthogonal_step(
    config: MelboConfig, state: Climb, number: Int[Array, ""], model: Model, prompts: Prompts
) -> tuple[Climb, dict[str, Any]]:
    """One whole vector, orthogonal to the vectors before it.

    Args:
      config: the search.
      state: the vectors, with a leading axis. `theta` has the starts, `best` the vectors that are found.
      number: the number of the vector.
      model: the model.
      prompts: the prompts.

    Returns:
      The next state, and the metric `best`, the objective of this vector.
    """
    found = jnp.arange(config.vectors) < number
    earlier = jnp.where(found[:, None], state.best, 0.0)
    start = on_sphere(state.theta[number], config.radius, earlier, state.theta[number])
    step = lambda one, _: (climb(config, model, prompts, one, earlier), None)
    one, _ = jax.lax.scan(step, _begun(config, start), None, length=config.steps)
    one = _kept(one, effect(config, model, prompts, one.theta))
    new = dataclasses.replace(
        state, best=state.best.at[number].set(one.best), value=state.value.at[number].set(one.value)
    )
    return new, {"best": one.value}


def melbo(
    config: MelboConfig,
    model: Model,
    data: LabelledTokens | Any,
    rule: TokenRule | None = None,
    *,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> Elicited:
    """Find vectors with a large effect (MELBO). Every step uses all prompts; one prompt is enough.

    Args:
      config: the addresses, the radius and the number of vectors.
      model: the model, under surgery or not.
      data: the prompts: labelled tokens, whose labels are not used, or the token ids of each prompt.
      rule: the tokens at which the effect is read, for labelled prompts. None: the last `config.where.last`, or all.
      run: where the run is saved, as in `training.fit`. A run that was killed resumes from its last checkpoint. With
        `orthogonal`, a step of the run is a vector.
      place: a mesh, a function, or None, as in `training.placed`. The prompts are split over its rows.
      log: what is shown and logged.

    Returns:
      The vectors with the largest objective first, and the objectives of random vectors of the same norm.

    Raises:
      UserError: an address is wrong, or there are more orthogonal vectors than the value has entries.
    """
    log = log.with_defaults(shown=("best",), title="MELBO")
    with placed(place, replicated) as there:
        model = there.frozen(model, rules_for(model))
        prompts = placed_prompts(there, config.where, model, data, rule)
        width = prompts.width
        if config.orthogonal and config.vectors > width:
            raise UserError(f"{config.vectors} vectors cannot be orthogonal in {width} dimensions")
        key, draws = jax.random.split(jax.random.key(config.seed))
        starts = random_on_sphere(key, (config.vectors, width), config.radius)
        state = there.state(jax.vmap(partial(_begun, config))(starts))
        step = partial(orthogonal_step if config.orthogonal else melbo_step, config)
        steps = config.vectors if config.orthogonal else config.steps
        state = fit(step, state, steps=steps, run=SaveTo.of(run, config), frozen=(model, prompts), log=log)
        vectors, scores = (state.best, state.value) if config.orthogonal else _last(config, model, prompts, state)
        null = _scores(config, model, prompts, random_on_sphere(draws, (config.null, width), config.radius))
    return Elicited(np.asarray(vectors), np.asarray(scores), np.asarray(null), config.where.source).ranked()


def _effects(config: MelboConfig, model: Model, prompts: Prompts, thetas: Float[Array, "n d"]) -> Float[Array, " n"]:
    return each(partial(effect, config, model, prompts), thetas, config.at_once)


_scores = jax.jit(automatic(_effects), static_argnums=0)


def _last(config: MelboConfig, model: Model, prompts: Prompts, state: Climb) -> tuple[Array, Array]:
    """The best vectors and their values, with the last step too, whose values the loop has not computed."""
    last = jax.vmap(_kept)(state, _scores(config, model, prompts, state.theta))
    return last.best, last.value
