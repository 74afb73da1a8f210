"""The part of a training step that follows the gradient. All trainers share it.

Each trainer computes a loss and its gradient in its own way: on harvested rows, over several layers, through the model,
or together with the model. `apply_gradient` then does the rest, in this order:

    1. with `decoder="unit"`, remove the part of the gradient along decoder rows
    2. apply the optimizer, including clipping
    3. make the steps of biases and activation parameters `offset_rate` times as long
    4. with `decoder="unit"`, scale decoder rows to norm 1
    5. update the activation from the batch (the running threshold of BatchTopK)
    6. update the counters of tokens since each latent fired
    7. resample dead latents, if the config has resampling
    8. undo the step for a member of a sweep that has diverged
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
from jax_interp.core.pytrees import register_dataclass
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
      get: a function that returns the dictionaries in the pytree, or in its gradient. A decoder row is cut into
        `write_sites` parts, and each part is held at norm 1 separately.
      put: a function of the pytree and of dictionaries. It returns the pytree with its dictionaries replaced.
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
"""The pytree is a cross-layer dictionary. A decoder row covers all targets of its source together."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class StepResult:
    """The results of a trainer on one batch.

    Attributes:
      loss: the loss.
      gradient: the gradient of the loss, a pytree like the trained one.
      fires: the number of rows on which each latent was on, a pytree like `Learner.since_fired`.
      observed: for each dictionary, the activation after the batch. None if the batch does not change it (`observe`).
      tokens: the number of tokens in the batch.
      x: the input rows, [row, d_in]. Only resampling needs it.
      error: the error of the reconstruction, [row, d_out]. Only resampling needs it.
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
    """How a gradient is applied.

    Attributes:
      optimizer: the optimizer of the whole pytree, including clipping.
      where: where the dictionaries are in the pytree.
      decoders: "unit" or "free" for each dictionary.
      offset_rate: the factor on the steps of biases and activation parameters.
      resample: a function (learner after the step, result) -> learner. None: dead latents are not resampled.
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
    """Apply a gradient to a learner.

    Args:
      rule: how the gradient is applied.
      learner: the learner before the step.
      result: the loss, its gradient, and other results of the batch.
      next_key: the random key of the next step.
      ended: whether the learner has diverged before. It does not change if `ended` is True, or if the loss or the
        gradient is not finite. None: this is not checked.

    Returns:
      (the learner after the step, whether it has diverged or None if `ended` is None).
    """
    before, where = learner.dictionary, rule.where
    unit = [decoder == "unit" for decoder in rule.decoders]
    pairs = zip(where.get(result.gradient), where.get(before), unit, strict=True)
    gradient = where.put(result.gradient, [_tangent(g, d) if held else g for g, d, held in pairs])

    updated, opt = optimizers.update(rule.optimizer, gradient, learner.opt, before)
    updated = faster_offsets(rule.offset_rate, before, updated)
    changed = []
    for dictionary, held, activation in zip(where.get(updated), unit, result.observed, strict=True):
        W_dec = _by_site(unit_rows, dictionary, dictionary.W_dec) if held else dictionary.W_dec
        activation = dictionary.activation if activation is None else activation
        changed.append(dataclasses.replace(dictionary, W_dec=W_dec, activation=activation))
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
    """The activation of a dictionary after a batch. None if the batch does not change it."""
    return forward.dictionary.activation.observe(forward.dictionary, forward.code)


def faster_offsets(rate: float, before: Trained, after: Trained) -> Trained:
    """Return `after` with the steps of biases and activation parameters multiplied by `rate`."""
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
    """Apply `act` to decoder rows, separately to the part of a row for each written value."""
    if dictionary.write_sites == 1:
        return act(*matrices)
    apart = [a.reshape(a.shape[0], dictionary.write_sites, -1) for a in matrices]
    return act(*apart).reshape(matrices[0].shape)
