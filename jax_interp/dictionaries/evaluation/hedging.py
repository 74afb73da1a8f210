"""Whether a dictionary is too sparse for its data: the decoder projections of Chanin et al. 2025 (arXiv:2508.16560).

A dictionary with fewer latents on than there are features mixes correlated features into each other, for a lower MSE.
Its decoder rows then point a little at everything, so that the (n·rows)-th largest of all projections (x - b_dec)·d_i
is larger than it need be. Of dictionaries trained at several L0, the one where it is smallest is near the right L0:

    for k, sae in trained.items(): print(k, nth_projection(sae, rows, n=20))

`n` is the same for all, about the largest L0 in question; a world where the truth is known is `sparse_but_wrong`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError


def nth_projection(dictionary: Any, rows: Iterable[Float[Array, "row d"]], n: float) -> float:
    """The n·rows-th largest entry (counted from 0) of (x - b_dec) W_decᵀ of each batch of rows, its mean over batches.
    UserError where n is not between 0 and the number of features."""
    features = dictionary.W_dec.shape[0]
    if not 0 <= n < features:
        raise UserError(f"n={n}: from 0 to below the number of features, {features}")
    each = [np.asarray(_projections(dictionary, x)).reshape(-1) for x in rows]
    if not each:
        raise UserError("no rows: give an iterable of [row, d] arrays that has not been used up")
    place = [round(n * len(p) / features) for p in each]
    return float(np.mean([np.partition(p, len(p) - 1 - i)[len(p) - 1 - i] for p, i in zip(each, place)]))


@jax.jit
def _projections(dictionary: Any, x: Float[Array, "row d"]) -> Float[Array, "row feature"]:
    x = x.astype(jnp.float32) - dictionary.b_dec.astype(jnp.float32)[None, :]
    return x @ dictionary.W_dec.astype(jnp.float32).T
