"""Small models with dictionaries for the tests of feature circuits: prompts, metrics and random dictionaries."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from small_models import CONFIGS, peaky

from jax_interp.circuits import LogitDifference, make_contrast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries import ReLU, init_sae
from jax_interp.surgery import Site, run_blocks

NAMES = ("attn_out", "mlp_out", "resid_post")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearBlock:
    """A block without any nonlinearity: it mixes the token before it, and then the token itself."""

    A: jax.Array
    M: jax.Array

    def __call__(self, x, site):
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        x = x + site("attn_out", before @ self.A)
        return site("resid_post", x + site("mlp_out", x @ self.M))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearModel:
    E: jax.Array
    blocks: list
    U: jax.Array

    def __call__(self, tokens, *, mask=None, taps=()):
        site = Site.open(taps, self.blocks)
        x = run_blocks(self.blocks, site("embed", self.E[tokens]), site)
        return site.close(site("logits", x @ self.U, "batch pos vocab"))


def linear_model(seed=0, d=6, vocab=9, layers=2):
    keys = iter(jax.random.split(jax.random.key(seed), 2 + 2 * layers))
    blocks = [
        LinearBlock(jax.random.normal(next(keys), (d, d)) / 3, jax.random.normal(next(keys), (d, d)) / 3)
        for _ in range(layers)
    ]
    return LinearModel(jax.random.normal(next(keys), (vocab, d)), blocks, jax.random.normal(next(keys), (d, vocab)))


def contrast_of(vocab, prompts=3, length=5, seed=0, padded=False):
    rng = np.random.default_rng(seed)
    clean, corrupted = rng.integers(0, vocab, (2, prompts, length))
    mask = None
    if padded:
        mask = np.arange(length)[None] >= np.asarray([0, 2, 1])[:prompts, None]
    answers, others = rng.integers(0, vocab, (2, prompts))
    return make_contrast(clean, corrupted, LogitDifference(jnp.asarray(answers), jnp.asarray(others)), mask=mask)


def dictionaries_for(d, addresses, features=8, seed=0):
    """Random dictionaries with a bias each, so that about half of the latents fire and errors are large."""
    made = {}
    for i, address in enumerate(addresses):
        key = jax.random.fold_in(jax.random.key(seed), i)
        sae = init_sae(key, d, features, ReLU())
        made[address] = dataclasses.replace(
            sae, b_enc=0.1 * jax.random.normal(key, (features,)), b_dec=0.1 * jax.random.normal(key, (d,))
        )
    return made


def transformer(config="llama-like"):
    return peaky(CONFIGS[config])


def addresses_of(layers, names=NAMES):
    return [f"blocks.{i}.{name}" for i in range(layers) for name in names]


def as_float64(tree):
    return jax.tree.map(
        lambda a: jnp.asarray(np.asarray(a), jnp.float64) if jnp.issubdtype(jnp.asarray(a).dtype, jnp.floating) else a,
        tree,
    )
