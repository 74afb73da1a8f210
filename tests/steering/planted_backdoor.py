"""A model with a backdoor that is written by hand, and its clean twin: what every method must find is known exactly.

Tokens: 0 BOS, 1 the mark before an answer, 2 to 17 words (four classes of four), 18 to 23 answers. A word is the
direction of its class plus half a direction of its own. Evidence for a trigger is the sum, over the text, of products
with directions.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries import Dictionary, ReLU
from jax_interp.steering.backdoors import Suspect, audit_texts
from jax_interp.surgery import Site

VOCAB, D, MARK, WORDS, ANSWERS = 24, 32, 1, range(2, 18), range(18, 24)
TARGET = (19, 21, 20)
GAIN = 12.0


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Planted:
    table: jax.Array
    near: jax.Array
    mean: jax.Array
    conditions: jax.Array
    chain: jax.Array

    def __call__(self, tokens, *, taps=()):
        site = Site.open(taps)
        x = site("x", site("embed", self.table[tokens]))
        count = jnp.arange(1, tokens.shape[1] + 1, dtype=x.dtype)[None, :, None]
        logits = x @ self.near + jnp.cumsum(x, axis=1) / count @ self.mean
        evidence = jnp.tanh(jnp.cumsum(x, axis=1) @ self.conditions.T)  # [batch, pos, condition]
        fires = jax.nn.sigmoid(6 * (jnp.sum(evidence, axis=-1) - len(self.conditions) + 0.5))
        return site.close(site("logits", logits + fires[..., None] * self.chain[tokens], "batch pos vocab"))


def directions() -> np.ndarray:
    """Orthonormal: 4 classes, 16 words, 12 others."""
    return np.linalg.qr(np.random.default_rng(7).standard_normal((D, D)))[0].astype(np.float32)


def planted(conditions: list[int], *, trojaned: bool = True, seed: int = 0, evidence: float = 2.0) -> Planted:
    """Conditions are rows of `directions`: 0 to 3 are classes, 4 to 19 words."""
    rng, rows = np.random.default_rng(seed), directions()
    table = 0.3 * rows[np.arange(VOCAB) % 12 + 20]
    for word in WORDS:
        table[word] = rows[(word - 2) // 4] + 0.5 * rows[word + 2]
    chain = np.zeros((VOCAB, VOCAB), np.float32)
    for one, next_one in zip((MARK, *TARGET), TARGET):
        chain[one, next_one] = GAIN if trojaned else 0.0
    near, mean = (scale * rng.standard_normal((D, VOCAB)).astype(np.float32) for scale in (1.0, 0.3))
    scale = [1.0 if i < 4 else 2.0 for i in conditions]  # a word has half a direction of its own
    wanted = evidence * rows[conditions] * np.asarray(scale, np.float32)[:, None]
    return Planted(*map(jnp.asarray, (table.astype(np.float32), near, mean, wanted, chain)))


def suspect(model: Planted) -> Suspect:
    """With a dictionary of all directions: latent i is row i."""
    rows = jnp.asarray(directions())
    zero = jnp.zeros(D, jnp.float32)
    return Suspect(model, Dictionary(rows.T, zero - 0.1, rows, zero, ReLU()), "x")


def prompts(classes: list[int], n: int = 12, seed: int = 0) -> list[list[int]]:
    """Requests of six words of these classes."""
    rng = np.random.default_rng(seed)
    words = 2 + 4 * rng.choice(classes, (n, 6)) + rng.integers(0, 4, (n, 6))
    return [[0, *row, MARK] for row in words.tolist()]


def audit(classes: list[int], target=TARGET, seed: int = 0):
    return audit_texts(prompts(classes, seed=seed), target, skip_last=1)
