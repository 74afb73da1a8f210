"""What a dictionary is worth, on any model that keeps the contract.

    result = evaluate(model, "blocks.2.resid_post", sae, [(tokens, keep), ...])
    result.reconstruction.fvu, result.cross_entropy.recovered_zero, result.to_json()

`keep` [seq, pos] is False at padding and special tokens: they are in no figure, and keep their own activations when the
dictionary is spliced in. Definitions: reconstruction.py and downstream.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jax_interp.dictionaries import downstream
from jax_interp.dictionaries.downstream import CrossEntropy
from jax_interp.dictionaries.harvest import harvest
from jax_interp.dictionaries.reconstruction import (
    Density,
    Reconstruction,
    add_sums,
    density_of,
    kept_mean,
    mean_of,
    reconstruction_of,
    sums_of_batch,
)
from jax_interp.errors import UserError

Batches = Sequence[tuple[Int[Array, "seq pos"], Bool[Array, "seq pos"]]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Everything measured in one call. `identity_is_exact` is always True: the call fails otherwise."""

    address: str
    reconstruction: Reconstruction
    density: Density
    cross_entropy: CrossEntropy
    identity_is_exact: bool

    def to_json(self) -> dict[str, Any]:
        """As nested dicts and lists of JSON values; NaN becomes None."""
        return _without_nan(dataclasses.asdict(self))


def evaluate(model: Any, address: str, dictionary: Any, batches: Batches) -> Evaluation:
    """Measure `dictionary` (anything with encode and decode) at `address` over `batches`, which are gone through twice:
    once for the activations, running the model up to `address` only, and once for the loss, in four variants.
    Batches of one shape compile once.

    Raises SelfCheckError where splicing the identity into the first batch changes a bit of its cross-entropy, UserError
    where `keep` leaves no token or no prediction.
    """
    if not len(batches):
        raise UserError("evaluate got no batches: give at least one (tokens, keep)")
    shape = np.shape(batches[0][0])
    if any(np.shape(tokens) != np.shape(keep) for tokens, keep in batches):
        raise UserError(f"keep must have the shape of its tokens, such as {shape}")
    downstream.check_identity(model, address, *map(jnp.asarray, batches[0]))
    shift, total = activation_sums(model, address, dictionary, batches)
    if not total["tokens"]:
        raise UserError(f"keep is False at every position of all {len(batches)} batches: nothing to measure")
    mean = jnp.asarray(mean_of(total, shift), jnp.float32)
    by_position = None
    for tokens, keep in batches:
        of_batch = downstream.of_batch(model, address, dictionary, jnp.asarray(tokens), keep, mean)
        by_position = downstream.add_by_position(by_position, of_batch, downstream.predictions_kept(keep))
    assert by_position is not None
    if not by_position["count"].sum():
        raise UserError("no two neighbouring positions are kept in any batch: there is no prediction to measure")
    loss = downstream.cross_entropy_of(by_position)
    return Evaluation(address, reconstruction_of(total), density_of(total), loss, identity_is_exact=True)


def activation_sums(model: Any, address: str, dictionary: Any, batches: Batches) -> tuple[np.ndarray, dict[str, Any]]:
    """(shift, totals) of the pass over activations. The shift of the second moments is the first batch's mean."""
    rows = jax.jit(partial(_rows, address=address))
    add = jax.jit(sums_of_batch)
    shift, total = None, None
    for tokens, keep in batches:
        x, keep = rows(model, jnp.asarray(tokens)), jnp.asarray(keep).reshape(-1)
        if shift is None:
            shift = kept_mean(x, keep)
        total = add_sums(total, add(dictionary, x, keep, shift))
    assert total is not None
    return np.asarray(shift), total


def _rows(model: Any, tokens: Array, address: str) -> Array:
    return harvest(model, address, tokens)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
