"""A dictionary against known features: the figures of SynthSAEBench (arXiv:2602.14687), with their definitions.

Each latent is judged as a detector of the true feature that is nearest to its decoder row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jax_interp.dictionaries.evaluation import similarity
from jax_interp.dictionaries.evaluation.batch_sums import add_batch
from jax_interp.dictionaries.evaluation.reconstruction import Reconstruction, add_batch_sums, batch_sums
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.toys.synthetic.world import World

Counts = Mapping[str, Int[np.ndarray, " latent"]]


@dataclasses.dataclass(frozen=True)
class Score:
    """The figures of `score`. Those of detection are means over latents."""

    samples: int
    """Number of rows that were drawn."""
    mcc: float
    """Mean |cosine| of the best one-to-one assignment of latents to true features."""
    uniqueness: float
    """Number of different nearest true features over the number of latents."""
    ground_truth_recall: float
    """Mean over true features of the largest cosine with a latent."""
    found: float
    """Fraction of true features that have a cosine of at least 0.9 with a latent."""
    precision: float
    """Of the rows on which a latent fires, the fraction on which its feature is on."""
    recall: float
    """Of the rows on which its feature is on, the fraction on which a latent fires."""
    f1: float
    """Harmonic mean of precision and recall."""
    explained_variance: float
    """1 - FVU."""
    shrinkage: float
    """Mean of ‖x̂‖ / ‖x‖ over the rows with ‖x‖ > 1e-6."""
    dead: int
    """Latents that fired on no row."""
    l0: float
    """Mean number of latents on, per row."""
    true_l0: float
    """Mean number of true features on, per row."""


def score(dictionary: Dictionary, world: World, key: Key[Array, ""], n: int = 100_000, batch: int = 4096) -> Score:
    """Compare a dictionary with the true features of a synthetic world.

    Args:
      dictionary: has `encode`, `decode` and `W_dec` [feature, ...].
      world: the features, and how often they are on.
      key: for the samples.
      n: number of samples, rounded down to whole batches (at least one batch).
      batch: samples at a time.
    """
    nearest = similarity.max_cosine(dictionary.W_dec, world.directions, absolute=True)[1]
    sums, counts = None, None
    for i in range(max(n // batch, 1)):
        of_batch = _of_batch(dictionary, world, jax.random.fold_in(key, i), nearest, n=batch)
        sums, counts = add_batch_sums(sums, of_batch[0]), add_batch(counts, of_batch[1])
    assert sums is not None
    assert counts is not None
    figures, detection = Reconstruction.from_sums(sums), Detection.from_counts(counts["detection"])
    return Score(
        samples=figures.tokens,
        mcc=similarity.mcc(dictionary.W_dec, world.directions),
        uniqueness=similarity.uniqueness(dictionary.W_dec, world.directions),
        ground_truth_recall=similarity.mmcs(world.directions, dictionary.W_dec),
        found=similarity.fraction_found(dictionary.W_dec, world.directions),
        precision=float(np.mean(detection.precision)),
        recall=float(np.mean(detection.recall)),
        f1=float(np.mean(detection.f1)),
        explained_variance=1 - figures.fvu,
        shrinkage=figures.l2_ratio,
        dead=int((sums["fires"] == 0).sum()),
        l0=figures.l0,
        true_l0=float(counts["true_l0"] / figures.tokens),
    )


@partial(jax.jit, static_argnames="n")
def _of_batch(
    dictionary: Dictionary, world: World, key: Key[Array, ""], nearest: Int[Array, " latent"], n: int
) -> tuple[dict[str, Array], dict[str, Array | dict[str, Array]]]:
    x, codes = world.sample(key, n)
    sums = batch_sums(dictionary, x, jnp.ones((n,), bool), world.bias)
    z = dictionary.encode(x)  # XLA finds that it is the one of batch_sums
    counts = detection_counts(z, codes, nearest)
    return sums, {"detection": counts, "true_l0": jnp.sum(codes != 0, dtype=jnp.int32)}


@jax.jit
def detection_counts(
    z: Float[Array, "row latent"], codes: Float[Array, "row feature"], nearest: Int[Array, " latent"]
) -> dict[str, Int[Array, " latent"]]:
    """On how many rows each latent fires with its feature on, fires without it, and does not fire with it on.

    Args:
      z: latents.
      codes: the true features of the same rows.
      nearest: the true feature that each latent is judged by.
    """
    fires, on = z != 0, (codes != 0)[:, nearest]
    count = lambda where: jnp.sum(where, axis=0, dtype=jnp.int32)
    return {"both": count(fires & on), "latent_only": count(fires & ~on), "feature_only": count(~fires & on)}


@dataclasses.dataclass(frozen=True)
class Detection:
    """Each latent as a detector of its feature: 0 where a figure is undefined (a latent that never fires, a feature
    that is never on), as in SynthSAEBench."""

    precision: Float[np.ndarray, " latent"]
    recall: Float[np.ndarray, " latent"]
    f1: Float[np.ndarray, " latent"]

    @classmethod
    def from_counts(cls, counts: Counts) -> Self:
        """From the sums over batches of `detection_counts`."""

        def ratio(a, b):
            return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)

        both, false, missed = (counts[name].astype(np.float64) for name in ("both", "latent_only", "feature_only"))
        precision, recall = ratio(both, both + false), ratio(both, both + missed)
        return cls(precision, recall, ratio(2 * precision * recall, precision + recall))
