"""A dictionary against the truth: the figures of SynthSAEBench (2602.14687) with their definitions."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jax_interp.dictionaries.evaluation import similarity, totals
from jax_interp.dictionaries.evaluation.detection import detection_of, hits
from jax_interp.dictionaries.evaluation.reconstruction import add_sums, reconstruction_of, sums_of_batch
from jax_interp.toys.synthetic.world import World


@dataclasses.dataclass(frozen=True)
class Score:
    """`precision`, `recall`, `f1` are means over latents, each judged by the true feature nearest to its decoder row;
    `shrinkage` is the mean of ‖x̂‖ / ‖x‖ over rows with ‖x‖ > 1e-6; `dead` latents fired on none of the samples."""

    samples: int
    mcc: float
    uniqueness: float
    ground_truth_recall: float  # mean over true features of the largest cosine with a latent
    found: float  # fraction of true features with a cosine of at least .9
    precision: float
    recall: float
    f1: float
    explained_variance: float
    shrinkage: float
    dead: int
    l0: float
    true_l0: float


def score(dictionary: Any, world: World, key: Key[Array, ""], n: int = 100_000, batch: int = 4096) -> Score:
    """Over about `n` fresh samples (whole batches). `dictionary` has encode, decode and W_dec [feature, ...]."""
    nearest = similarity.max_cosine(dictionary.W_dec, world.directions, absolute=True)[1]
    sums, counts = None, None
    for i in range(max(n // batch, 1)):
        of_batch = _of_batch(dictionary, world, jax.random.fold_in(key, i), nearest, n=batch)
        sums, counts = add_sums(sums, of_batch[0]), totals.add(counts, of_batch[1])
    assert sums is not None
    assert counts is not None
    figures, detection = reconstruction_of(sums), detection_of(counts["hits"])
    return Score(
        samples=figures.tokens,
        mcc=similarity.mcc(dictionary.W_dec, world.directions),
        uniqueness=similarity.uniqueness(dictionary.W_dec, world.directions),
        ground_truth_recall=similarity.mmcs(world.directions, dictionary.W_dec),
        found=similarity.found(dictionary.W_dec, world.directions),
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
    dictionary: Any, world: World, key: Key[Array, ""], nearest: Int[Array, " latent"], n: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    x, codes = world.sample(key, n)
    sums = sums_of_batch(dictionary, x, jnp.ones((n,), bool), world.bias)
    z = dictionary.encode(x)  # XLA finds that it is the one of sums_of_batch
    return sums, {"hits": hits(z, codes, nearest), "true_l0": jnp.sum(codes != 0, dtype=jnp.int32)}
