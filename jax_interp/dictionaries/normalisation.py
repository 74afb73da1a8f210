"""Input scaling, and folding it away.

A dictionary is trained on s·x with the scalar s such that E‖s·x‖² = d, which makes one learning rate and one loss scale
serve every site of every model. What is exported works on raw x.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.dictionaries.forms.sae import SAE


def fold_scale(sae: SAE, scale: Float[Array, ""]) -> SAE:
    """The dictionary whose reconstruction of x is `sae(scale · x) / scale`: both biases divided by `scale`.

    Weights stay as they are, so decoder rows keep norm 1 and latents come out in raw units, `scale` times smaller:
    exact for an activation with activation(c·z) = c·activation(z), c > 0, as TopK and ReLU are (one with a threshold
    must divide it too). In float arithmetic equal to rounding.
    """
    factor = jnp.asarray(scale, sae.b_enc.dtype)
    return dataclasses.replace(sae, b_enc=sae.b_enc / factor, b_dec=sae.b_dec / factor)
