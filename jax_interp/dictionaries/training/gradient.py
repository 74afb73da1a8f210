"""The gradient of a step, over all latents or, where few of a batch take part, over those alone.

A ReLU dictionary starts with half of its latents on and ends with some tens of ten thousand: four of the five products
of a step then multiply zeros. So each step counts, and takes the cheaper way that is still exact: of the
pre-activations, which are always computed, those that take part are listed, and the decoder and the gradients of the
decoder and the encoder run over that list. What "takes part" is, the activation says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.dictionaries.activations.pre import dense_code_from_pre, entry_code_from_pre
from jax_interp.dictionaries.codes import Code
from jax_interp.dictionaries.losses.term import Term
from jax_interp.dictionaries.training.config import DictionaryConfig

# Lists longer than this part of all latents are no cheaper than products.
WORTHWHILE = 1 / 32

LossOf = Callable[[Any, Code], tuple[Float[Array, ""], Any]]


def list_lengths(config: DictionaryConfig, terms: Sequence[Term]) -> tuple[int, ...]:
    """The numbers of latents a row up to which a step is computed by lists; none where lists do not serve: for terms
    that need all latents, on a mesh, and where products are as fast as they are on accelerators."""
    suffice = all(term.entries_suffice for term in terms)
    if not suffice or jax.sharding.get_abstract_mesh().shape or jax.default_backend() != "cpu":
        return ()
    return tuple(sorted(n for n in config.sparse_gradient_sizes if n <= config.n_features * WORTHWHILE))


def loss_and_grad(
    config: DictionaryConfig, terms: Sequence[Term], loss_of: LossOf, dictionary: Any, x: Float[Array, "row d"]
) -> tuple[tuple[Float[Array, ""], Any], Any]:
    """((loss, aux), gradient for the dictionary) of `loss_of(dictionary, code) -> (loss, aux)`."""

    def through(encode: Callable[[Any], Code]) -> Any:
        return jax.value_and_grad(lambda dictionary: loss_of(dictionary, encode(dictionary)), has_aux=True)(dictionary)

    activation = dictionary.activation
    if not activation.elementwise:
        return through(lambda dictionary: dictionary.training_code(x))
    pre = jax.lax.stop_gradient(dictionary.linear(x) + dictionary.b_enc[None, :])
    by_products = lambda: through(lambda one: one.activation.decide(one, dense_code_from_pre(pre, one, x)))
    lengths = list_lengths(config, terms)
    if not lengths:
        return by_products()
    takes_part = activation.takes_part(dictionary, pre)

    def by_lists(n: int) -> Callable[[], Any]:
        return lambda: through(lambda one: one.activation.decide(one, entry_code_from_pre(pre, takes_part, n, one, x)))

    sizes = [length * x.shape[0] for length in lengths]
    count = jnp.sum(takes_part, dtype=jnp.int32)
    branch = sum((count > size).astype(jnp.int32) for size in sizes)
    return jax.lax.switch(branch, [*(by_lists(size) for size in sizes), by_products])
