"""The coders that a dictionary is compared with on every benchmark.

    dictionary             the dictionary itself
    random                 as many latents with random directions, TopK with the L0 of the dictionary
    principal components   all principal components of the activations: signed, dense
    raw values             the coordinates of the activations, such as neurons

The random dictionary encodes with its transposed decoder, around the mean of the activations. A dictionary whose
figures are not above its figures has not learned what the benchmark measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation import controls
from jax_interp.dictionaries.evaluation.batch_sums import sum_batches
from jax_interp.dictionaries.evaluation.benchmarks.measure import DICTIONARY, RANDOM
from jax_interp.dictionaries.forms.normalised import Normalised
from jax_interp.dictionaries.forms.temporal import Temporal
from jax_interp.dictionaries.sparse_coder import EncoderDecoder, as_sparse_coder

COMPONENTS, RAW = "principal components", "raw values"


@dataclasses.dataclass(frozen=True)
class Compared:
    """A dictionary and its baselines. All read the same activations."""

    dictionary: EncoderDecoder
    random: tuple[EncoderDecoder, ...]
    """One for each reseed."""
    components: EncoderDecoder
    raw: EncoderDecoder
    l0: dict[str, float]
    """The mean number of latents that are not 0 in a row, by coder."""

    @property
    def reseeds(self) -> int:
        """The number of reseeds."""
        return len(self.random)

    def columns(self) -> Iterator[tuple[str, tuple[EncoderDecoder, ...]]]:
        """(name, coders) of the dictionary and its baselines, in the order of tables: one coder, or one per reseed."""
        yield DICTIONARY, (self.dictionary,)
        yield RANDOM, self.random
        yield COMPONENTS, (self.components,)
        yield RAW, (self.raw,)


def compare(key: Key[Array, ""], dictionary: EncoderDecoder, rows: Sequence[Array], reseeds: int = 3) -> Compared:
    """Make the baselines of a dictionary.

    Args:
      key: the random key of the random dictionaries.
      dictionary: an object with `encode` and `decode`.
      rows: batches of activations that the dictionary reads, [row, d]. L0, mean and components are measured on them.
      reseeds: the number of random dictionaries.

    Raises:
      UserError: there are no rows, rows are not finite, no latent fires on them, or `reseeds` is below 1.
    """
    if reseeds < 1:
        raise UserError(f"reseeds={reseeds}: at least 1 random dictionary is needed to compare with")
    rows = list(rows)
    on, total, latents, mean = _statistics(dictionary, rows)
    l0 = on / total
    if not l0:
        raise UserError(f"no latent of the dictionary fires on {total} rows: it does not fit these activations")
    k = min(max(round(l0), 1), latents)
    d = rows[0].shape[-1]
    random = tuple(controls.random_dictionary(k_, d, latents, k, mean) for k_ in jax.random.split(key, reseeds))
    components = controls.principal_components(rows, d)
    raw = controls.Basis(jnp.eye(d), jnp.zeros((d,)))
    dense = {COMPONENTS: float(d), RAW: float(d)}
    return Compared(dictionary, random, components, raw, {DICTIONARY: l0, RANDOM: float(k), **dense})


def fixed_directions(coder: EncoderDecoder, what: str) -> Float[Array, "feature d"]:
    """What each latent adds to the value that a coder reads, per unit of the latent.

    Args:
      coder: an object with `encode` and `decode`.
      what: the benchmark, for the message.

    Raises:
      UserError: it writes another value than it reads, its latents have no direction, or what they write depends on the
        input.
    """
    sparse = as_sparse_coder(coder)
    directions = sparse.directions()
    if isinstance(coder, (Normalised, Temporal)) or directions is None or not sparse.is_autoencoder():
        raise UserError(
            f"{what} needs latents that each add a fixed direction to the value that the dictionary reads; those of a "
            f"{type(coder).__name__} do not, or it writes another value"
        )
    return directions


def _statistics(dictionary: EncoderDecoder, rows: Iterable[Array]) -> tuple[float, int, int, Float[Array, " d"]]:
    @jax.jit
    def of_batch(dictionary: Any, x: Array) -> tuple[Array, Array, Array]:
        z = dictionary.encode(x)
        x = x.astype(jnp.float32)
        return jnp.sum(z != 0, axis=0, dtype=jnp.int32), jnp.asarray(len(x), jnp.int32), jnp.sum(x, axis=0)

    coder = as_sparse_coder(dictionary)
    fires, total, sums = sum_batches(rows, lambda x: of_batch(coder, x))
    if not np.isfinite(sums).all():
        raise UserError("the activations have entries that are not finite")
    return float(fires.sum()), int(total), len(fires), jnp.asarray(sums / total, jnp.float32)
