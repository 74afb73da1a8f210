"""Units whose metric is known in closed form: the sum of the kept weights, plus an offset of each prompt.

The model is a pytree {"weights": [unit], "offset": [prompt]}; tokens choose the prompt: prompt i is the token i.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from jax_interp.circuits import Contrast, Metric, make_contrast
from jax_interp.circuits.discovery.units import Units
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Additive:
    """logits[prompt, 0, 0] = offset + sum of weights for clean prompts (even tokens), offset for corrupted ones."""

    weights: jnp.ndarray
    offset: jnp.ndarray

    def __call__(self, tokens, *, taps=(), mask=None):
        site = Site.open(taps, [])
        clean = (tokens[:, 0] % 2 == 0).astype(jnp.float32)
        value = self.offset[tokens[:, 0] // 2] + clean * jnp.sum(self.weights)
        return site.close(site("logits", value[:, None, None], "batch pos vocab"))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class First(Metric):
    """The only logit."""

    def __call__(self, logits):
        return logits[:, 0, 0]


@dataclasses.dataclass(frozen=True)
class AdditiveUnits(Units):
    n: int

    @property
    def names(self):
        return tuple(f"blocks.{i % 2}.u{i}" for i in range(self.n))

    def ablated(self, model, contrast):
        return None

    def metric(self, model, contrast, keep, ablated):
        return model.offset[contrast.clean[:, 0] // 2] + jnp.sum(keep * model.weights)


def additive(weights, offset) -> tuple[Additive, Contrast, AdditiveUnits]:
    offset = jnp.asarray(offset, jnp.float32)
    clean = 2 * np.arange(len(offset))[:, None]
    model = Additive(jnp.asarray(weights, jnp.float32), offset)
    return model, make_contrast(clean, clean + 1, First()), AdditiveUnits(len(weights))
