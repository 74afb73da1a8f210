"""One step of training after its gradient is known: the same for every trainer.

A trainer computes a loss and its gradient in its own way: on harvested rows, over several layers, through the model, or
together with the model. Everything after that is `apply_gradient`, in this order:

    1. the part of the gradient along decoder rows is removed where rows are held at norm 1
    2. the optimizer (clipping included)
    3. biases and activation parameters move `offset_rate` times as far
    4. decoder rows are brought back to norm 1 where they are held there
    5. what an activation measures follows the batch (BatchTopK's running threshold)
    6. the counters of tokens since a latent fired
    7. dead latents are resampled, where that is asked for
    8. a member of a sweep that has diverged is left as it was
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core import optimizers
from jax_interp.core.leaves import PyTree
from jax_interp.core.optimizers import unit_rows, without_parallel
from jax_interp.dictionaries.activations import Activation
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.losses.forward import Forward
from jax_interp.dictionaries.training.config import Decoder
from jax_interp.dictionaries.training.learner import Learner

Trained = TypeVar("Trained")


@dataclasses.dataclass(frozen=True)
class Where(Generic[Trained]):
    """Where the dictionaries are in the pytree that is trained.

    Attributes:
      get: the pytree, or its gradient -> the dictionaries in it. `write_sites` of each says into how many parts its
        decoder rows are cut, each of which is held at norm 1 by itself.
      put: (the pytree, dictionaries) -> the pytree with these dictionaries in the places of its own.
    """

    get: Callable[[Trained], Sequence[Dictionary]]
    put: Callable[[Trained, Sequence[Dictionary]], Trained]


ALONE: Where[Dictionary] = Where(lambda dictionary: (dictionary,), lambda dictionary, changed: changed[0])
"""The pytree is one dictionary."""

BESIDE_MODEL: Where[tuple[PyTree, tuple[Dictionary, ...]]] = Where(
    lambda params: params[1], lambda params, changed: (params[0], tuple(changed))
)
"""The pytree is (model, dictionaries)."""


def _sources(params: CrossLayer) -> list[Dictionary]:
    return [dataclasses.replace(source.dictionary, write_sites=1) for source in params.sources]


def _with_sources(params: CrossLayer, changed: Sequence[Dictionary]) -> CrossLayer:
    sources = (source.with_dictionary(one) for source, one in zip(params.sources, changed, strict=True))
    return dataclasses.replace(params, sources=tuple(sources))


SOURCES: Where[CrossLayer] = Where(_sources, _with_sources)
"""The pytree is a cross-layer dictionary. A row is one over all targets of its source, taken together."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepResult:
    """What a trainer has computed on a batch.

    Attributes:
      loss: the loss.
      gradient: its gradient, a pytree like the one that is trained.
      fires: how often each latent was on in the batch, a pytree like `Learner.since_fired`.
      observed: for each dictionary its activation after the batch, None where it measures nothing (`observe`).
      tokens: how many tokens the batch has.
      x: the rows read, [row, d_in]; needed for resampling alone.
      error: what is left unexplained, [row, d_out]; needed for resampling alone.
    """

    loss: Float[Array, ""]
    gradient: PyTree
    fires: PyTree
    observed: tuple[Activation | None, ...]
    tokens: Int[Array, ""] | int
    x: Float[Array, "row d_in"] | None = None
    error: Float[Array, "row d_out"] | None = None


Resample = Callable[[Learner, StepResult], Learner]


@dataclasses.dataclass(frozen=True)
class UpdateRule(Generic[Trained]):
    """How a gradient changes what is trained.

    Attributes:
      optimizer: of the whole pytree, its clipping included.
      where: where the dictionaries are in the pytree.
      decoders: "unit" or "free" for each dictionary.
      offset_rate: how many times longer the steps of biases and activation parameters are.
      resample: (learner after the step, result) -> learner. None: dead latents are left as they are.
    """

    optimizer: optax.GradientTransformation
    where: Where[Trained]
    decoders: tuple[Decoder, ...]
    offset_rate: float = 1.0
    resample: Resample | None = None


def apply_gradient(
    rule: UpdateRule[Trained],
    learner: Learner[Trained],
    result: StepResult,
    next_key: Key[Array, ""],
    ended: Bool[Array, ""] | None = None,
) -> tuple[Learner[Trained], Bool[Array, ""] | None]:
    """The learner after one step.

    Args:
      rule: how the gradient is applied.
      learner: the learner before the step.
      result: the loss, its gradient, and what the batch has shown.
      next_key: the key of the next step.
      ended: where True, and where the loss or the gradient is not finite, the learner stays as it is. None: this is not
        looked at.

    Returns:
      The learner, and whether it has ended; None where `ended` is None.
    """
    before, where = learner.dictionary, rule.where
    unit = [decoder == "unit" for decoder in rule.decoders]
    pairs = zip(where.get(result.gradient), where.get(before), unit, strict=True)
    gradient = where.put(result.gradient, [_tangent(g, d) if held else g for g, d, held in pairs])

    updated, opt = optimizers.update(rule.optimizer, gradient, learner.opt, before)
    updated = faster_offsets(rule.offset_rate, before, updated)
    changed = []
    for dictionary, held, activation in zip(where.get(updated), unit, result.observed, strict=True):
        one = _by_site(unit_rows, dictionary, dictionary.W_dec) if held else dictionary.W_dec
        activation = dictionary.activation if activation is None else activation
        changed.append(dataclasses.replace(dictionary, W_dec=one, activation=activation))
    updated = where.put(updated, changed)

    count = lambda fires, since: jnp.where(fires > 0, 0, jnp.minimum(since, 2**30) + result.tokens)
    since_fired = jax.tree.map(count, result.fires, learner.since_fired)
    after = Learner(updated, opt, since_fired, learner.step + 1, next_key)
    if rule.resample is not None:
        after = rule.resample(after, result)
    if ended is None:
        return after, None
    finite = [jnp.isfinite(a).all() for a in jax.tree.leaves((result.loss, gradient))]
    ended = ended | ~jnp.stack(finite).all()
    return jax.tree.map(lambda old, new: jnp.where(ended, old, new), learner, after), ended


def observe(forward: Forward) -> Activation | None:
    """The activation of a dictionary after a batch, None where it measures nothing."""
    return forward.dictionary.activation.observe(forward.dictionary, forward.code)


def faster_offsets(rate: float, before: Trained, after: Trained) -> Trained:
    """`after` an optimizer's step, with the steps of biases and activation parameters `rate` times as long."""
    if rate == 1:
        return after

    def longer(path: tuple[object, ...], old: Array, new: Array) -> Array:
        is_offset = any(getattr(key, "name", None) in ("b_enc", "b_dec", "activation") for key in path)
        return old + rate * (new - old) if is_offset else new

    return jax.tree_util.tree_map_with_path(longer, before, after)


def _tangent(gradient: Dictionary, dictionary: Dictionary) -> Dictionary:
    """The gradient without the part that would change the norms of decoder rows."""
    return dataclasses.replace(gradient, W_dec=_by_site(without_parallel, dictionary, gradient.W_dec, dictionary.W_dec))


def _by_site(act: Callable[..., Array], dictionary: Dictionary, *matrices: Array) -> Array:
    """`act` on decoder rows, the part of a row for each written value by itself."""
    if dictionary.write_sites == 1:
        return act(*matrices)
    apart = [a.reshape(a.shape[0], dictionary.write_sites, -1) for a in matrices]
    return act(*apart).reshape(matrices[0].shape)
