"""Groups of latents with similar decoder directions, by the two published methods (Engels et al. 2025).

    labels = spectral_clusters(sae.W_dec, n=1000, seed=0)       a label for every latent
    labels = neighbour_clusters(sae.W_dec)                      components of the graph of near neighbours

Labels are numbered by descending size of the cluster, ties by the smallest latent. A row of norm 0 (a dead latent) has
no direction and gets the label -1.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation.similarity import cosines, unit_directions

Directions = Float[Array, "feature *axes"]
Labels = Int[np.ndarray, " feature"]


def spectral_clusters(directions: Directions, n: int, *, seed: int = 0, restarts: int = 10) -> Labels:
    """Spectral clustering with the similarity 1 - arccos(cos) / π (Engels et al. 2025; GPT-2 with n = 1000).

    The steps are those of scikit-learn's `SpectralClustering(affinity="precomputed")`: the `n` smallest eigenvectors of
    the normalised Laplacian, divided by the root of the degrees, then k-means. All similarities are in memory, as
    float64: m² · 8 bytes for m latents.

    Args:
      directions: the decoder rows. Further axes are flattened.
      n: the number of clusters.
      seed: the seed of k-means and of the eigensolver's first vector. The same seed gives the same labels on the same
        machine. The paper does not state its seed; try several.
      restarts: the number of runs of k-means, of which the best is kept.

    Raises:
      UserError: there are fewer directions than clusters, or `n` is below 2.
    """
    unit, alive = _alive(directions)
    if not 2 <= n <= len(alive):
        raise UserError(f"{n} clusters of {len(alive)} directions: give n from 2 to {len(alive)}")
    similarity = 1 - np.arccos(np.clip(np.asarray(cosines(unit, unit), np.float64), -1, 1)) / np.pi
    np.fill_diagonal(similarity, 0)  # the Laplacian ignores loops
    root = np.sqrt(similarity.sum(1))
    similarity /= root[:, None]
    similarity /= root[None, :]
    embedding = _largest_eigenvectors(similarity, n, seed) / root[:, None]
    embedding = embedding / np.abs(embedding).max()  # float32 in k-means: keep away from its small numbers
    keys = jax.random.split(jax.random.key(seed), restarts)
    labels, inertia = jax.lax.map(lambda key: k_means(key, jnp.asarray(embedding, jnp.float32), n), keys)
    return _labelled(np.asarray(labels[jnp.argmin(inertia)]), alive, len(directions))


def neighbour_clusters(
    directions: Directions, *, neighbours: int = 2, threshold: float = 0.5, rows: int = 1024
) -> Labels:
    """Connected components of the graph of near neighbours (Engels et al. 2025; Mistral-7B).

    Each latent is joined with those of its `neighbours` nearest latents whose cosine is above `threshold`. An edge
    counts in both directions. A latent without an edge is a cluster of its own.

    Args:
      directions: the decoder rows. Further axes are flattened.
      neighbours: the number of nearest latents of each latent.
      threshold: the smallest cosine of an edge (exclusive).
      rows: the number of rows whose cosines are in memory at a time.

    Raises:
      UserError: there are not more directions than `neighbours`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unit, alive = _alive(directions)
    if not 1 <= neighbours < len(alive):
        raise UserError(f"{neighbours} neighbours of each of {len(alive)} directions: give from 1 to {len(alive) - 1}")
    near = [_nearest(unit[i : i + rows], unit, i, neighbours) for i in range(0, len(alive), rows)]
    values, columns = (np.concatenate([np.asarray(part[i]) for part in near]) for i in range(2))
    joined = values > threshold
    edges = (np.ones(joined.sum(), bool), (np.nonzero(joined)[0], columns[joined]))
    graph = coo_array(edges, shape=(len(alive), len(alive)))
    labels = connected_components(graph, directed=False)[1]
    return _labelled(labels, alive, len(directions))


@partial(jax.jit, static_argnames="k")
def _nearest(some: Array, unit: Array, first: int | Array, k: int) -> tuple[Array, Array]:
    """The k nearest other rows of rows `first`, `first + 1`, …: (cosines, indices)."""
    c = jnp.matmul(some, unit.T, precision=jax.lax.Precision.HIGHEST)
    own = (jnp.arange(len(some)) + first)[:, None] == jnp.arange(len(unit))[None, :]
    return jax.lax.top_k(jnp.where(own, -jnp.inf, c), k)


def _alive(directions: Directions) -> tuple[Array, np.ndarray]:
    """(unit rows, their indices), of the rows that have a direction."""
    unit = np.asarray(unit_directions(directions))
    if not np.isfinite(unit).all():
        raise UserError("some directions are NaN or infinite: they belong to no cluster")
    alive = np.flatnonzero((unit != 0).any(1))
    return jnp.asarray(unit[alive]), alive


def _largest_eigenvectors(matrix: np.ndarray, n: int, seed: int) -> np.ndarray:
    """The eigenvectors of the `n` largest eigenvalues of a symmetric matrix, [row, n]."""
    from scipy.linalg import eigh
    from scipy.sparse.linalg import eigsh

    size = len(matrix)
    if size <= 2048 or n > size // 8:  # Lanczos is no faster there
        return eigh(matrix, subset_by_index=(size - n, size - 1))[1]
    return eigsh(matrix, k=n, which="LA", v0=np.random.default_rng(seed).uniform(-1, 1, size))[1]


@partial(jax.jit, static_argnames=("k", "steps"))
def k_means(
    key: jax.Array, x: Float[Array, "point d"], k: int, steps: int = 100
) -> tuple[Int[Array, " point"], Float[Array, ""]]:
    """Lloyd's algorithm from k-means++ centres.

    Args:
      key: the random key of the first centres.
      x: the points.
      k: the number of centres. A centre that loses all its points stays where it was.
      steps: the largest number of steps. It stops when no label changes.

    Returns:
      `(labels, inertia)`: the nearest centre of each point, and the sum of squared distances to it.
    """
    square = jnp.sum(x * x, axis=1)
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def distances(centres: Array) -> Float[Array, "point centre"]:
        length = jnp.sum(centres * centres, axis=1)
        return jnp.maximum(square[:, None] - 2 * product(x, centres.T) + length[None, :], 0.0)

    def add_centre(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, nearest = state
        # where all points lie on centres, any point will do
        weight = jnp.where(jnp.max(nearest) > 0, nearest, jnp.ones_like(nearest))
        chosen = x[jax.random.categorical(jax.random.fold_in(key, i), jnp.log(weight))]
        centres = centres.at[i].set(chosen)
        return centres, jnp.minimum(nearest, distances(chosen[None])[:, 0])

    start = (jnp.zeros((k, x.shape[1]), x.dtype), jnp.full((len(x),), jnp.inf, x.dtype))
    first = x[jax.random.randint(jax.random.fold_in(key, k), (), 0, len(x))]
    start = (start[0].at[0].set(first), distances(first[None])[:, 0])
    centres, _ = jax.lax.fori_loop(1, k, add_centre, start)

    def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        centres, labels, _, i = state
        one_hot = jax.nn.one_hot(labels, k, dtype=x.dtype)
        size = jnp.sum(one_hot, axis=0)
        mean = product(one_hot.T, x) / jnp.maximum(size, 1.0)[:, None]
        centres = jnp.where((size > 0)[:, None], mean, centres)
        after = jnp.argmin(distances(centres), axis=1)
        return centres, after, jnp.any(after != labels), i + 1

    labels = jnp.argmin(distances(centres), axis=1)
    going = lambda state: state[2] & (state[3] < steps)
    state = (centres, labels, jnp.asarray(True), jnp.zeros((), jnp.int32))
    centres, labels, _, _ = jax.lax.while_loop(going, step, state)
    return labels, jnp.sum(jnp.min(distances(centres), axis=1))


def _labelled(labels: np.ndarray, alive: np.ndarray, count: int) -> Labels:
    """Labels of all `count` rows, numbered by size; -1 for rows that are not alive."""
    _, first, inverse, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    number = np.empty(len(sizes), np.int64)
    number[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    result = np.full(count, -1, np.int64)
    result[alive] = number[inverse]
    return result
