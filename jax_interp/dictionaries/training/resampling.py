"""Resampling: dead latents are re-initialised from inputs with a large error (Bricken et al. 2023).

For each dead latent, one input of the batch is drawn with probability ∝ ‖y - ŷ‖⁴ (the squared loss). The direction of
the centred input becomes the decoder row. It also becomes the encoder column, with a norm of `encoder_scale` times the
mean norm of the columns of living latents. For a transcoder, the decoder row is the direction of the error at that
input. The part of a row for each written value gets norm 1. With `decoder="free"`, it gets the mean norm of living rows
instead. The encoder bias cancels the centre, thresholds and gates get their initial values, and Adam's moments become
0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.leaves import PyTree
from jax_interp.core.optimizers import unit_rows
from jax_interp.dictionaries.activations import Activation
from jax_interp.dictionaries.forms.dictionary import Dictionary, site_norms
from jax_interp.dictionaries.training.apply_gradient import StepResult
from jax_interp.dictionaries.training.config import (
    MOST_TOKENS,
    Decoder,
    DictionaryConfig,
    EndToEndSAEConfig,
    Resampling,
)
from jax_interp.dictionaries.training.learner import Learner


@dataclasses.dataclass(frozen=True)
class Resampler:
    """The resampling of one run, as a function of a learner.

    Attributes:
      rule: the config of resampling.
      steps: the number of steps of the run.
      activation: the activation of the config. A resampled latent gets its initial parameters.
      decoder: "unit" or "free".
      key: the random key of this step.
      writes_input: whether the dictionary writes the value that it reads.
    """

    rule: Resampling
    steps: int
    activation: Activation
    decoder: Decoder
    key: Key[Array, ""]
    writes_input: bool = True

    def __call__(self, learner: Learner[Dictionary], result: StepResult) -> Learner[Dictionary]:
        """Resample the dead latents of `learner` if resampling is due after this step."""
        every, until = self.rule.period(self.steps), round(self.rule.until * self.steps)
        dead = learner.since_fired > _half(every, result.tokens)
        due = (learner.step % every == 0) & (learner.step <= until)
        x, error = result.x, result.error
        assert x is not None
        assert error is not None
        resampled = lambda dictionary, opt: self.resample(dictionary, opt, dead, x, error)
        dictionary, opt = jax.lax.cond(
            due, resampled, lambda dictionary, opt: (dictionary, opt), learner.dictionary, learner.opt
        )
        since_fired = jnp.where(due & dead, 0, learner.since_fired)
        return dataclasses.replace(learner, dictionary=dictionary, opt=opt, since_fired=since_fired)

    def resample(
        self,
        dictionary: Dictionary,
        opt: PyTree,
        dead: Bool[Array, " feature"],
        x: Float[Array, "row d_in"],
        error: Float[Array, "row d_out"],
    ) -> tuple[Dictionary, PyTree]:
        """(dictionary, optimizer state) with the `dead` latents re-initialised. Shapes do not depend on their
        number."""
        losses = jnp.sum(error * error, axis=1)
        drawn = jax.random.categorical(self.key, 2 * jnp.log(losses + 1e-30), shape=dead.shape)
        centre = dictionary.b_dec if dictionary.centred else jnp.mean(x, axis=0)
        direction = unit_rows(x[drawn] - centre[None, :])
        # Mean norms are over living latents, or over all latents if none is alive.
        measured = jnp.where(jnp.all(dead), jnp.ones_like(dead), ~dead)
        mean = lambda norms: jnp.sum(jnp.where(measured, norms, 0.0)) / jnp.sum(measured).astype(norms.dtype)
        length = self.rule.encoder_scale * mean(jnp.sqrt(jnp.sum(dictionary.W_enc**2, axis=0)))
        sites = dictionary.write_sites
        parts = (direction if self.writes_input else error[drawn]).reshape(len(dead), sites, -1)
        norms = jnp.ones((sites,), x.dtype) if self.decoder == "unit" else jax.vmap(mean)(site_norms(dictionary).T)
        W_enc = (length * direction).T
        offset = jnp.zeros_like(dictionary.b_enc) if dictionary.centred else -(centre @ W_enc)
        activation = self.activation.init(len(dead), x.dtype).shifted(-offset)
        W_dec = (unit_rows(parts) * norms[None, :, None]).reshape(dictionary.W_dec.shape)
        fresh = dataclasses.replace(dictionary, W_enc=W_enc, b_enc=offset, W_dec=W_dec, activation=activation)
        is_adam = lambda state: isinstance(state, optax.ScaleByAdamState)
        forget = lambda state: state._replace(mu=_replaced(dead, state.mu, None), nu=_replaced(dead, state.nu, None))
        opt = jax.tree.map(lambda state: forget(state) if is_adam(state) else state, opt, is_leaf=is_adam)
        return _replaced(dead, dictionary, fresh), opt


def _half(steps: int, tokens: Int[Array, ""] | int) -> Int[Array, ""] | int:
    """The number of tokens in half of `steps`, at most `MOST_TOKENS`. The product can be more than an int32 holds."""
    if isinstance(tokens, int):
        return min(steps * tokens // 2, MOST_TOKENS)
    return jnp.minimum(tokens.astype(jnp.float32) * steps / 2, MOST_TOKENS).astype(jnp.int32)


def resampler(
    config: DictionaryConfig | EndToEndSAEConfig, steps: int, key: Key[Array, ""], writes_input: bool = True
) -> Resampler | None:
    """The resampling of a run of `steps`. None if the config has no resampling."""
    if config.resampling is None:
        return None
    return Resampler(config.resampling, steps, config.activation, config.decoder, key, writes_input)


def _replaced(dead: Bool[Array, " feature"], tree: Dictionary, fresh: Dictionary | None) -> Dictionary:
    """Replace the entries of `dead` latents in `tree` by those of `fresh`, or by 0 if `fresh` is None.

    `tree` is a dictionary, or Adam's moments of a dictionary.
    """

    def replaced(old: PyTree, new: PyTree, names: Iterable[str]) -> PyTree:
        changed = {}
        for name in names:
            a = getattr(old, name)
            where = dead[None, :] if name == "W_enc" else dead.reshape(-1, *[1] * (a.ndim - 1))
            b = jnp.zeros_like(a) if new is None else getattr(new, name)
            changed[name] = jnp.where(jnp.broadcast_to(where, a.shape), b, a)
        return dataclasses.replace(old, **changed)

    names = tree.activation.per_feature
    activation = replaced(tree.activation, None if fresh is None else fresh.activation, names)
    return dataclasses.replace(replaced(tree, fresh, ("W_enc", "b_enc", "W_dec")), activation=activation)
