"""The clusters of a dictionary, ranked by how irreducible their reconstructions are (Engels et al. 2025, section 4).

    codes = sparse_codes(sae, rows)
    labels = spectral_clusters(sae.W_dec, n=1000)
    ranking = rank_clusters(codes, sae.W_dec, labels)
    best = ranking.clusters[0]                             score (1 - M) S, its latents, its figures by plane
    points = cluster_reconstruction(codes, sae.W_dec, best.features).components(5)

For each cluster, every token on which one of its latents is on gives a point Σ_{i in cluster} z_i d_i. The points are
projected on their first principal components, and separability and mixture index are measured in the planes of
components (1, 2), (2, 3), (3, 4) and (4, 5). For the days of the week in GPT-2, component 1 is the intensity and the
circle is in the plane (2, 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.geometry.irreducibility import fullest_stripe, information_by_angle
from jax_interp.dictionaries.sparse_coder import EncoderDecoder

if TYPE_CHECKING:
    from scipy.sparse import csc_array

FLAT = 1e-3
"""A component whose variance is below this fraction of the first one's spans no plane. (The published code has no such
limit; the planes of a flat cluster's noise would then enter its means.)"""


@jax.jit
def _encode(dictionary: EncoderDecoder, x: Array) -> Array:
    return dictionary.encode(x).astype(jnp.float32)


def sparse_codes(dictionary: EncoderDecoder, rows: Iterable[Float[Array, "row d"]]) -> csc_array:
    """The latents of all rows as a sparse matrix [row, feature] on the host, in float32.

    The memory is about 8 bytes for each latent that is on.

    Args:
      dictionary: any dictionary.
      rows: batches of activations, read once.

    Raises:
      UserError: there are no rows, or a latent is not finite.
    """
    from scipy.sparse import csc_array, csr_array, vstack

    parts = [csr_array(np.asarray(_encode(dictionary, x))) for x in rows]
    if not parts:
        raise UserError("no rows: give an iterable of [row, d] arrays that has not been used up")
    codes = csc_array(vstack(parts))
    if not np.isfinite(codes.data).all():
        raise UserError("the dictionary gives latents that are NaN or infinite on these rows")
    return codes


@dataclasses.dataclass(frozen=True)
class ClusterReconstruction:
    """What the latents of one cluster write, on the tokens where at least one of them is on."""

    features: Int[np.ndarray, " feature"]
    """The latents of the cluster."""
    rows: Int[np.ndarray, " token"]
    """The indices of the tokens among all rows, ascending."""
    codes: Float[np.ndarray, "token feature"]
    """The latents on these tokens."""
    directions: Float[np.ndarray, "feature d"]
    """Their decoder rows."""

    def components(self, n: int) -> Float[np.ndarray, "token n"]:
        """The points' coordinates on their first `n` principal components, of mean 0. There are fewer columns if the
        points span fewer dimensions."""
        # in an orthonormal basis of the span of the directions, which has far fewer dimensions than d
        basis = np.linalg.qr(self.directions.astype(np.float64).T)[1]
        points = self.codes.astype(np.float64) @ basis.T
        u, s, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
        kept = s[:n] ** 2 > FLAT * max(s[0] ** 2, np.finfo(float).tiny)
        return (u[:, :n] * s[:n])[:, kept]


def cluster_reconstruction(
    codes: csc_array, directions: Float[Array | np.ndarray, "feature d"], features: Sequence[int], limit: int = 20_000
) -> ClusterReconstruction:
    """The reconstructions Σ_{i in features} z_i d_i, on the first `limit` tokens where one of these latents is on.

    Args:
      codes: the result of `sparse_codes`.
      directions: the decoder rows of all latents.
      features: the latents of the cluster.
      limit: the largest number of tokens.
    """
    chosen = np.asarray(features)
    some = codes[:, chosen]
    rows = np.unique(some.indices[some.data != 0])[:limit]
    return ClusterReconstruction(chosen, rows, some[rows].toarray(), np.asarray(directions)[chosen])


@dataclasses.dataclass(frozen=True)
class ClusterFigures:
    """How irreducible the reconstructions of one cluster are."""

    label: int
    """The label of the cluster."""
    features: tuple[int, ...]
    """Its latents."""
    tokens: int
    """The number of points."""
    separability: float
    """Mean over the planes of the separability S, in bits."""
    mixture_index: float
    """Mean over the planes of the mixture index M."""
    by_plane: tuple[tuple[float, float], ...]
    """(S, M) of the planes of components (1, 2), (2, 3), (3, 4), (4, 5), as far as the points span them."""

    @property
    def score(self) -> float:
        """(1 - M) S. High for irreducible features."""
        return (1 - self.mixture_index) * self.separability


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The result of `rank_clusters`."""

    clusters: tuple[ClusterFigures, ...]
    """The clusters in descending order of the score (1 - M) S."""
    skipped: dict[int, str]
    """For each label without figures, the reason."""
    chance: tuple[float, ...]
    """The largest score of each shuffle: the latents are dealt at random to clusters of the same sizes. A cluster whose
    score is within these is no finding."""


@dataclasses.dataclass(frozen=True)
class PlaneMeasure:
    """How planes are measured (`separability` and `mixture_index` state what the numbers mean)."""

    angles: int = 100
    bins: int = 10
    epsilon: float = 0.1
    directions: int = 180
    components: int = 5
    """The number of principal components; planes are of neighbouring components."""
    min_tokens: int = 500
    """Clusters with fewer points are skipped: the bias of S is about 58 / points bits with 10 bins."""
    limit: int = 20_000
    """The largest number of points of a cluster."""

    def __post_init__(self) -> None:
        if self.angles < 1 or self.bins < 2 or self.directions < 1 or not 0 < self.epsilon < 1:
            raise UserError("a measure needs an angle, two bins, a direction, and 0 < epsilon < 1 at least")
        if self.components < 2 or not 2 <= self.min_tokens <= self.limit:
            raise UserError("a plane needs two components, and 2 <= min_tokens <= limit")


def rank_clusters(
    codes: csc_array,
    directions: Float[Array | np.ndarray, "feature d"],
    labels: Int[np.ndarray, " feature"],
    *,
    measure: PlaneMeasure = PlaneMeasure(),
    shuffles: int = 5,
    seed: int = 0,
) -> Ranking:
    """Rank clusters of latents by (1 - M) S of their reconstructions.

    Args:
      codes: the result of `sparse_codes`.
      directions: the decoder rows of all latents.
      labels: the cluster of each latent, as of `spectral_clusters`. -1: in no cluster.
      measure: how planes are measured. The default is as published.
      shuffles: the number of random dealings of the latents, for `Ranking.chance`.
      seed: the seed of the dealings.

    Raises:
      UserError: the shapes do not agree.
    """
    labels = np.asarray(labels)
    latents, rows = len(codes.indptr) - 1, len(np.asarray(directions))
    if not latents == rows == len(labels):
        raise UserError(
            f"codes of {latents} latents, {rows} directions and {len(labels)} labels: "
            "give the codes, the decoder rows and the labels of the same latents"
        )
    clusters, skipped = _figures(codes, directions, labels, measure)
    rng, member, chance = np.random.default_rng(seed), np.flatnonzero(labels >= 0), []
    for _ in range(shuffles):
        dealt = labels.copy()
        dealt[member] = rng.permutation(labels[member])
        chance.append(max((one.score for one in _figures(codes, directions, dealt, measure)[0]), default=0.0))
    return Ranking(tuple(sorted(clusters, key=lambda one: -one.score)), skipped, tuple(chance))


def _figures(
    codes: csc_array, directions: Array | np.ndarray, labels: np.ndarray, measure: PlaneMeasure
) -> tuple[list[ClusterFigures], dict[int, str]]:
    """(the figures of all clusters, why the others have none)."""
    directions = np.asarray(directions, np.float32)
    found, skipped = [], {}
    for label in np.unique(labels[labels >= 0]).tolist():
        features = np.flatnonzero(labels == label)
        if len(features) < 2:
            skipped[label] = "one latent spans no plane"
            continue
        points = cluster_reconstruction(codes, directions, features.tolist(), measure.limit)
        if len(points.rows) < measure.min_tokens:
            skipped[label] = f"its latents are on for {len(points.rows)} tokens only, fewer than {measure.min_tokens}"
            continue
        x = points.components(measure.components)
        if x.shape[1] < 2:
            skipped[label] = "its reconstructions lie on a line"
            continue
        planes = tuple(_plane(x[:, i : i + 2], measure) for i in range(x.shape[1] - 1))
        S, M = np.mean(planes, axis=0).tolist()
        found.append(ClusterFigures(label, tuple(features.tolist()), len(x), S, M, planes))
    return found, skipped


def _plane(points: np.ndarray, measure: PlaneMeasure) -> tuple[float, float]:
    """(S, M) of the points of one plane. The points are padded, so that few programs are compiled."""
    size = 1 << max(len(points) - 1, 1).bit_length()
    keep = np.arange(size) < len(points)
    x = np.zeros((size, 2), np.float32)
    x[: len(points)] = points / max(np.sqrt(np.mean(np.sum(points**2, axis=1))), np.finfo(float).tiny)
    x, keep = jnp.asarray(x), jnp.asarray(keep)
    information = information_by_angle(x, keep, measure.angles, measure.bins)
    return float(jnp.min(information)), float(fullest_stripe(x, keep, measure.epsilon, measure.directions)[0])
