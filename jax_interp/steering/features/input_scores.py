"""The input score of a latent: how well its highest activation in a text tells texts of a concept from other texts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.measures.roc import auroc
from jax_interp.probes.text_reader import TextReader, wide_values
from jax_interp.surgery import Dictionary, Model
from jax_interp.surgery.sparse_coder import as_sparse_coder
from jax_interp.training.placement import automatic

_AT_ONCE = 1024  # latents whose scores are ranked at once


def highest_by_text(
    model: Model, address: str, dictionary: Dictionary, data: LabelledTokens, *, batch: int = 32
) -> Float[np.ndarray, "example feature"]:
    """The highest activation of each latent over the readable tokens of each text, on the host.

    Args:
      model: any model that names its values, with or without edits.
      address: the address that the dictionary reads.
      dictionary: an object with `encode`.
      data: the texts.
      batch: the number of texts in one forward pass.

    Raises:
      UserError: a text has no readable token, there is no such value, or an activation is not finite.
    """
    if not data.readable.any(axis=1).all():
        raise UserError(f"{data.name}: example {int(np.argmin(data.readable.any(axis=1)))} has no readable token")
    reader = TextReader.of(model, data, address, batch, None)
    found = None
    for some, values in reader.batches(functools.partial(_highest, dictionary), data.readable):
        values = on_host(values)[: len(some.rows)]
        found = np.empty((len(data), values.shape[1]), np.float32) if found is None else found
        found[some.rows] = values
    assert found is not None  # `TextReader` refuses data without examples
    if not np.isfinite(found).all():
        raise UserError(f"{data.name}: some activations of the latents are not finite")
    return found


def input_scores(
    model: Model, address: str, dictionary: Dictionary, data: LabelledTokens, *, batch: int = 32
) -> Float[np.ndarray, " feature"]:
    """The AUROC of the highest activation of each latent in a text, for texts with and without a concept.

    Args:
      model: any model that names its values, with or without edits.
      address: the address that the dictionary reads.
      dictionary: an object with `encode`.
      data: texts of two classes, of which the second one is the concept.
      batch: the number of texts in one forward pass.

    Returns:
      The AUROC of each latent. A latent that is never on has 0.5.

    Raises:
      UserError: there are not two classes, or one has no text.
    """
    if len(data.classes) != 2:
        raise UserError(f"{data.name} has the classes {', '.join(data.classes) or 'none'}: give texts of two classes")
    highest = highest_by_text(model, address, dictionary, data, batch=batch).T
    positive = data.labels == 1
    return np.concatenate([auroc(highest[i : i + _AT_ONCE], positive) for i in range(0, len(highest), _AT_ONCE)])


@functools.partial(jax.jit, static_argnums=1)
@automatic
def _highest(
    dictionary: Dictionary,
    names: tuple[str, ...],
    model: Model,
    tokens: Array,
    mask: Bool[Array, "text pos"] | None,
    read: Bool[Array, "text pos"],
) -> Float[Array, "text feature"]:
    (x,) = wide_values(names, model, tokens, mask)
    latents = as_sparse_coder(dictionary).encode(x).astype(jnp.float32)
    return jnp.max(jnp.where(read[..., None], latents, -jnp.inf), axis=1)
