"""The gradient of a training step, over all latents or only over the latents that take part in the batch.

A ReLU dictionary starts with half of its latents on, and ends with some tens out of ten thousand. Four of the five
matrix products of a step then mostly multiply zeros. Each step therefore counts the latents that take part
(`ElementwiseActivation.takes_part`) and chooses the cheaper of two exact methods. All pre-activations are always
computed. If few latents take part, they are put into a list. The decoder and the gradients of decoder and encoder are
then computed from the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.leaves import PyTree
from jax_interp.dictionaries.activations import ElementwiseActivation
from jax_interp.dictionaries.activations.pre import dense_code_from_pre, entry_code_from_pre
from jax_interp.dictionaries.codes import Code
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.losses.term import Term
from jax_interp.dictionaries.training.config import DictionaryConfig

# A list with more than this fraction of all latents is not cheaper than dense products.
WORTHWHILE = 1 / 32

LossOf = Callable[[Dictionary, Code], tuple[Float[Array, ""], PyTree]]
LossAndGradient = tuple[tuple[Float[Array, ""], PyTree], Dictionary]


def list_lengths(config: DictionaryConfig, terms: Sequence[Term]) -> tuple[int, ...]:
    """The sizes of lists that a step can use, in latents per row, in ascending order.

    There are none if a term needs all latents, on a mesh, and on accelerators, whose dense products are fast.
    """
    suffice = all(term.entries_suffice for term in terms)
    if not suffice or jax.sharding.get_abstract_mesh().shape or jax.default_backend() != "cpu":
        return ()
    return tuple(sorted(n for n in config.sparse_gradient_sizes if n <= config.n_features * WORTHWHILE))


def loss_and_grad(
    config: DictionaryConfig, terms: Sequence[Term], loss_of: LossOf, dictionary: Dictionary, x: Float[Array, "row d"]
) -> LossAndGradient:
    """Return ((loss, aux), gradient with respect to the dictionary).

    Args:
      config: the config, for `sparse_gradient_sizes`.
      terms: the terms of the loss.
      loss_of: a function (dictionary, code of the batch) -> (loss, aux).
      dictionary: the dictionary.
      x: the input rows.
    """

    def through(encode: Callable[[Dictionary], Any]) -> LossAndGradient:
        return jax.value_and_grad(lambda dictionary: loss_of(dictionary, encode(dictionary)), has_aux=True)(dictionary)

    activation = dictionary.activation
    if not isinstance(activation, ElementwiseActivation):
        return through(lambda dictionary: dictionary.training_code(x))
    pre = jax.lax.stop_gradient(dictionary.linear(x) + dictionary.b_enc[None, :])

    def by_products() -> LossAndGradient:
        return through(lambda one: _elementwise(one).decide(one, dense_code_from_pre(pre, one, x)))

    lengths = list_lengths(config, terms)
    if not lengths:
        return by_products()
    takes_part = activation.takes_part(dictionary, pre)

    def by_lists(n: int) -> Callable[[], LossAndGradient]:
        return lambda: through(
            lambda one: _elementwise(one).decide(one, entry_code_from_pre(pre, takes_part, n, one, x))
        )

    sizes = [length * x.shape[0] for length in lengths]
    count = jnp.sum(takes_part, dtype=jnp.int32)
    branch = sum((count > size).astype(jnp.int32) for size in sizes)
    return jax.lax.switch(branch, [*(by_lists(size) for size in sizes), by_products])


def _elementwise(dictionary: Dictionary) -> ElementwiseActivation:
    assert isinstance(dictionary.activation, ElementwiseActivation)
    return dictionary.activation
