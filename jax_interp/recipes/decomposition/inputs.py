"""The target of a decomposition run, a toy or a language model, and its data."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.data.text import text_for
from jax_interp.models.hf import load
from jax_interp.recipes.decomposition.config import DecompositionRunConfig
from jax_interp.recipes.decomposition.method import HeldOut, Inputs
from jax_interp.recipes.run_inputs import fingerprint
from jax_interp.toys import find_toy, target_forms


def inputs_for(config: DecompositionRunConfig) -> Inputs:
    """Train or load the target of a run.

    Args:
      config: the run; its `target` says which model.

    Returns:
      The target, and functions that give its data.

    Raises:
      UserError: there is no such target, or the language model has no tokenizer, or there is too little text.
    """
    kind, colon, preset = config.target.partition(":")
    if not colon:
        return _language_model(config)
    try:
        toy = find_toy(kind)
    except UserError as error:
        raise UserError(
            f"target {config.target!r}: {error}. A target is {target_forms()}, or a language model that `load` takes"
        ) from None
    loaded = toy.target(preset, config.target_seed)
    model = toy.collapse(loaded) if config.collapsed else loaded
    sample, batch = partial(toy.sample, model), config.decomposition.batch

    def for_page(sequences: int) -> HeldOut:
        x = sample(jax.random.key(98), 100 * sequences)
        return HeldOut([(x, jnp.ones(x.shape[:-1], bool))])

    held_out = lambda rows: (sample(jax.random.key(99), rows), None)
    return Inputs(model, held_out, for_page, fingerprint(loaded), sample=lambda key: sample(key, batch))


def _language_model(config: DecompositionRunConfig) -> Inputs:
    model, tokenizer = load(config.target)
    if tokenizer is None:
        raise UserError(f"{config.target} has no tokenizer.json, which is needed to turn the text into tokens")
    text = text_for(config.text, tokenizer, column=config.text_column)
    batch_at = text.training_batches(config.decomposition.batch, config.context, config.decomposition.seed)

    def held_out(rows: int) -> tuple[Array, Array]:
        tokens, keep = text.validation_batches(rows, config.context, rows)[0]
        return jnp.asarray(tokens), next_tokens(tokens, keep)

    def for_page(sequences: int) -> HeldOut:
        batch = min(sequences, config.decomposition.batch, config.evaluate_rows)  # `held_out` has checked this
        return HeldOut(text.validation_batches(batch, config.context, sequences), tokenizer.strings)

    fingerprints = fingerprint(model, text)
    training = batch_at.map(lambda batch: batch[0])
    return Inputs(model, held_out, for_page, fingerprints, batch_at=training, text_tokens=int(text.train.size))


def next_tokens(tokens: Int[np.ndarray, "seq pos"], keep: Bool[np.ndarray, "seq pos"]) -> Int[Array, "seq pos"]:
    """The label of each position: the next token, or -1 if there is no next token or one of the two is not kept."""
    kept = np.asarray(keep, bool)
    labels = np.where(kept[:, :-1] & kept[:, 1:], tokens[:, 1:], -1)
    return jnp.asarray(np.pad(labels, ((0, 0), (0, 1)), constant_values=-1))
