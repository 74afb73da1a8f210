"""Resampling: dead latents begin anew on inputs that the dictionary reconstructs badly (Bricken et al. 2023).

For each dead latent one input of the batch is drawn, with probability ∝ ‖y - ŷ‖⁴ (the squared loss). Its centred
direction becomes the decoder row, and the encoder column too, at `encoder_scale` times the mean length of the encoder
columns of living latents. Where another value is written than is read, the decoder row is the direction of the error at
that input. Each written value's part of a row gets norm 1, or the mean norm of living rows there where norms are free.
The bias takes off the centre, a threshold or gate gets its initial value, and Adam's moments of these entries become 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from jax_interp.core.leaves import PyTree
from jax_interp.core.optimizers import unit_rows
from jax_interp.dictionaries.activations import Activation
from jax_interp.dictionaries.forms.dictionary import Dictionary, site_norms
from jax_interp.dictionaries.training.apply_gradient import StepResult
from jax_interp.dictionaries.training.config import Decoder, DictionaryConfig, EndToEndSAEConfig, Resampling
from jax_interp.dictionaries.training.learner import Learner


@dataclasses.dataclass(frozen=True)
class Resampler:
    """Resampling as one run does it.

    Attributes:
      rule: when it is due, and how long encoder columns are.
      steps: the length of the run.
      activation: the config's activation; a resampled latent gets its initial parameters.
      decoder: "unit" or "free".
      key: the random key of this step's resampling.
      writes_input: whether what is written is what is read.
    """

    rule: Resampling
    steps: int
    activation: Activation
    decoder: Decoder
    key: Key[Array, ""]
    writes_input: bool = True

    def __call__(self, learner: Learner[Dictionary], result: StepResult) -> Learner[Dictionary]:
        """`learner` after a step, its dead latents resampled if the step is one at which that is due."""
        every, until = self.rule.period(self.steps), round(self.rule.until * self.steps)
        dead = learner.since_fired > every * result.tokens // 2
        due = (learner.step % every == 0) & (learner.step <= until)
        x, error = result.x, result.error
        assert x is not None
        assert error is not None
        anew = lambda dictionary, opt: self.resample(dictionary, opt, dead, x, error)
        dictionary, opt = jax.lax.cond(
            due, anew, lambda dictionary, opt: (dictionary, opt), learner.dictionary, learner.opt
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
        """(dictionary, optimizer state) with the `dead` latents begun anew. Shapes do not depend on how many are."""
        losses = jnp.sum(error * error, axis=1)
        drawn = jax.random.categorical(self.key, 2 * jnp.log(losses + 1e-30), shape=dead.shape)
        centre = dictionary.b_dec if dictionary.centred else jnp.mean(x, axis=0)
        direction = unit_rows(x[drawn] - centre[None, :])
        # Norms are measured on living latents; where none lives, on all.
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


def resampler(
    config: DictionaryConfig | EndToEndSAEConfig, steps: int, key: Key[Array, ""], writes_input: bool = True
) -> Resampler | None:
    """The resampling that `config` asks for, in a run of `steps`. None where it asks for none."""
    if config.resampling is None:
        return None
    return Resampler(config.resampling, steps, config.activation, config.decoder, key, writes_input)


def _replaced(dead: Bool[Array, " feature"], tree: Dictionary, fresh: Dictionary | None) -> Dictionary:
    """`tree`, a dictionary or Adam's moments of one, with the entries of `dead` latents from `fresh`; None: 0."""

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
