"""Which latents are exchanged between two prompts: a learned mask, or the latents that separate the values.

The interchange is x = decode((1 - m) ∘ f_base + m ∘ f_source), at the last token of the base's entity. As published,
the reconstruction error is dropped; `keep_error=True` adds that of the base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation.ravel.pairs import Pairs, answer_loss, batches_of
from jax_interp.dictionaries.sparse_coder import SparseCoder
from jax_interp.surgery import Model, Replace, at, edit, values_at


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """How a mask is learned. The defaults are SAEBench's."""

    learning_rate: float = 1e-3
    """Of Adam, on θ. θ begins at 0."""
    epochs: int = 2
    batch: int = 32
    first_temperature: float = 1.0
    last_temperature: float = 1e-4
    """The temperature falls from the first to the last by a constant factor for each step."""
    keep_error: bool = False
    """Whether the reconstruction error of the base is added."""

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and self.first_temperature >= self.last_temperature > 0):
            raise UserError("a mask needs a learning rate above 0, and temperatures that fall and stay above 0")
        if self.epochs < 1 or self.batch < 1:
            raise UserError(f"epochs={self.epochs}, batch={self.batch}: at least 1 of each")


@partial(jax.jit, static_argnames="address")
def _at_position(model: Model, tokens: Array, position: Array, address: str) -> Float[Array, "pair d"]:
    value = values_at(model, address)(tokens)[address]
    rows = value.reshape(*tokens.shape, -1)
    return jnp.take_along_axis(rows, position[:, None, None], axis=1)[:, 0]


def entity_values(model: Model, address: str, pairs: Pairs, batch: int) -> tuple[Array, Array]:
    """The values at the last token of the entity, of the base and of the source, each [pair, d]."""
    both = ((pairs.base, pairs.base_position), (pairs.source, pairs.source_position))
    base, source = (
        jnp.concatenate([_at_position(model, *part, address) for part in batches_of(one, batch)])[: len(pairs)]
        for one in both
    )
    return base, source


def interchange(
    dictionary: SparseCoder,
    mask: Float[Array, " feature"],
    base: Float[Array, "pair d"],
    source: Float[Array, "pair d"],
    keep_error: bool = False,
) -> Float[Array, "pair d"]:
    """The base with the masked latents of the source.

    Args:
      dictionary: encodes and decodes.
      mask: 1 for latents that are taken from the source, 0 for those of the base, or between.
      base: the values of the base.
      source: the values of the source.
      keep_error: whether to add what the dictionary does not reconstruct of the base.
    """
    f_base, f_source = dictionary.encode(base), dictionary.encode(source)
    mask = mask.astype(f_base.dtype)[None, :]
    x = dictionary.decode((1 - mask) * f_base + mask * f_source)
    if keep_error:
        x = x + base.astype(x.dtype) - dictionary.decode(f_base)
    return x


def answers(model: Model, address: str, pairs: Pairs, x: Float[Array, "pair d"]) -> tuple[Array, Array]:
    """(loss, whether right) of each pair, with `x` in place of the value at the base's entity."""
    here = jnp.arange(pairs.base.shape[1])[None, :] == pairs.base_position[:, None]
    logits = edit(model, at(address, Replace(x[:, None, :]), where=here))(pairs.base)
    return answer_loss(logits, pairs.base, pairs.answer)


@partial(jax.jit, static_argnames=("address", "keep_error"))
def right_answers(
    model: Model,
    address: str,
    dictionary: SparseCoder,
    mask: Array,
    part: tuple[Pairs, Array, Array],
    keep_error: bool,
) -> Bool[Array, " pair"]:
    """Whether each pair of one batch is answered rightly after the interchange."""
    pairs, base, source = part
    return answers(model, address, pairs, interchange(dictionary, mask, base, source, keep_error))[1]


def evaluate_mask(
    model: Model, address: str, dictionary: SparseCoder, mask: Array, data: tuple[Pairs, Array, Array], c: MaskConfig
) -> Bool[np.ndarray, " pair"]:
    """Whether each pair is answered rightly after the interchange. `data`: pairs, base values, source values."""
    parts = (right_answers(model, address, dictionary, mask, part, c.keep_error) for part in batches_of(data, c.batch))
    return np.concatenate([np.asarray(part) for part in parts])[: len(data[0])]


def train_mask(
    model: Model,
    address: str,
    dictionary: SparseCoder,
    data: tuple[Pairs, Array, Array],
    config: MaskConfig,
    seed: int = 0,
) -> Bool[np.ndarray, " feature"]:
    """Learn which latents to exchange: m = σ(θ / T), with T falling, on the loss of cause and isolation together.

    Args:
      model: any causal model that returns logits.
      address: what the dictionary reads.
      dictionary: the dictionary.
      data: training pairs, and their values from `entity_values`.
      config: how the mask is learned.
      seed: the order of the pairs.

    Returns:
      The mask θ > 0. A latent that the loss does not depend on stays off.

    Raises:
      UserError: the loss is not finite.
    """
    pairs = data[0]
    size = min(config.batch, len(pairs))
    steps = config.epochs * (len(pairs) // size)
    temperature = jnp.geomspace(config.first_temperature, config.last_temperature, steps)
    adam = optax.adam(config.learning_rate)
    features = jax.eval_shape(dictionary.encode, data[1]).shape[1]
    state = (jnp.zeros(features), optimizers.init(adam, jnp.zeros(features)))
    for step, chosen in enumerate(_orders(len(pairs), size, config.epochs, seed)):
        part = (pairs[chosen], data[1][chosen], data[2][chosen])
        state = _step(state, model, dictionary, part, temperature[step], address, config)
    theta = np.asarray(state[0])
    if not np.isfinite(theta).all():
        raise UserError(
            f"the mask at {address} became NaN: the model's loss, or its gradient, is not finite after the interchange"
        )
    return theta > 0


def _orders(n: int, size: int, epochs: int, seed: int) -> Iterator[Int[np.ndarray, " batch"]]:
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(n)
        for i in range(n // size):
            yield order[i * size : (i + 1) * size]


@partial(jax.jit, static_argnames=("address", "config"))
def _step(
    state: tuple[Array, Any],
    model: Model,
    dictionary: SparseCoder,
    part: tuple[Pairs, Array, Array],
    temperature: Array,
    address: str,
    config: MaskConfig,
) -> tuple[Array, Any]:
    pairs, base, source = part

    def loss(theta: Array) -> Array:
        mask = jax.nn.sigmoid(theta / temperature)
        x = interchange(dictionary, mask, base, source, config.keep_error)
        return jnp.mean(answers(model, address, pairs, x)[0])

    theta, adam_state = state
    return optimizers.update(optax.adam(config.learning_rate), jax.grad(loss)(theta), adam_state, theta)


def separation(latents: Float[np.ndarray, "row feature"], classes: Int[np.ndarray, " row"]) -> Float[np.ndarray, " f"]:
    """How well each latent separates classes: the F ratio of its variance between classes to that within them.

    This is scikit-learn's `f_classif`. A latent that is constant has 0; one that is constant within each class and
    differs between them has infinity.
    """
    z, names = np.asarray(latents, np.float64), np.unique(classes)
    n, k = len(z), len(names)
    if k < 2 or n <= k:
        raise UserError(f"{n} rows of {k} classes: separation needs at least two classes, and more rows than classes")
    z = z - z.mean(0)
    groups = [z[np.asarray(classes) == name] for name in names]
    between = sum(len(g) * g.mean(0) ** 2 for g in groups)
    within = sum(((g - g.mean(0)) ** 2).sum(0) for g in groups)
    tiny = 1e-12 * (z * z).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (between / (k - 1)) / np.where(within > tiny, within / (n - k), 0.0)
    return np.where(between > tiny, ratio, 0.0)
