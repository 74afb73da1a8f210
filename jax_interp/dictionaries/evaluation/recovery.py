"""Compare a dictionary with known features. The figures are defined as in SynthSAEBench (arXiv:2602.14687).

Each latent is judged as a detector of one true feature: the one whose direction is nearest to its decoder row.
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
    """The figures of `score`. `precision`, `recall` and `f1` are means over latents."""

    samples: int
    """Number of rows that were drawn."""
    mcc: float
    """Mean |cosine| of the best one-to-one assignment of latents to true features."""
    uniqueness: float
    """Number of distinct nearest true features divided by the number of latents."""
    ground_truth_recall: float
    """Mean over true features of the largest cosine with a latent."""
    found: float
    """Fraction of true features that have a cosine of at least 0.9 with a latent."""
    precision: float
    """The fraction of rows on which the feature is on, among the rows on which the latent fires."""
    recall: float
    """The fraction of rows on which the latent fires, among the rows on which the feature is on."""
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
      dictionary: an object with `encode`, `decode` and `W_dec` [feature, ...].
      world: the synthetic world, with the true features.
      key: the random key for the samples.
      n: the number of samples, rounded down to whole batches (at least one batch).
      batch: the number of samples per batch.

    Returns:
      The figures.
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
    z = dictionary.encode(x)  # XLA computes it only once, although batch_sums computes it too
    counts = detection_counts(z, codes, nearest)
    return sums, {"detection": counts, "true_l0": jnp.sum(codes != 0, dtype=jnp.int32)}


@jax.jit
def detection_counts(
    z: Float[Array, "row latent"], codes: Float[Array, "row feature"], nearest: Int[Array, " latent"]
) -> dict[str, Int[Array, " latent"]]:
    """Count rows for each latent: "both" (latent and feature are on), "latent_only" and "feature_only".

    Args:
      z: the latents.
      codes: the true features of the same rows.
      nearest: the true feature of each latent.
    """
    fires, on = z != 0, (codes != 0)[:, nearest]
    count = lambda where: jnp.sum(where, axis=0, dtype=jnp.int32)
    return {"both": count(fires & on), "latent_only": count(fires & ~on), "feature_only": count(~fires & on)}


@dataclasses.dataclass(frozen=True)
class Detection:
    """Each latent as a detector of its feature. An undefined figure is 0, as in SynthSAEBench: for example the
    precision of a latent that never fires."""

    precision: Float[np.ndarray, " latent"]
    recall: Float[np.ndarray, " latent"]
    f1: Float[np.ndarray, " latent"]

    @classmethod
    def from_counts(cls, counts: Counts) -> Self:
        """Compute the figures from the sums of `detection_counts` over batches."""

        def ratio(a, b):
            return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)

        both, false, missed = (counts[name].astype(np.float64) for name in ("both", "latent_only", "feature_only"))
        precision, recall = ratio(both, both + false), ratio(both, both + missed)
        return cls(precision, recall, ratio(2 * precision * recall, precision + recall))
