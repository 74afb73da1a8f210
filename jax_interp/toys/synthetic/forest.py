"""SynthSAEBench: Zipf firing, a hierarchy, correlations and superposition at once (2602.14687).

    world = synth_sae_bench(key)               16,384 features in 768 dimensions
    world = small_bench(key)                   512 in 64: the same in a second

Published at full size, dictionaries of 4096 latents trained on 200 million samples: BatchTopK with L0 15 has MCC .676;
the truth has 1, a random dictionary about .15.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.unit_rows import unit_rows
from jax_interp.toys.synthetic.firing import Codes, Normal, low_rank
from jax_interp.toys.synthetic.world import World, orthogonalised_directions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Forest:
    """A constraint on codes: complete trees, of which a feature is on only where its parent is, and at most one of a
    parent's children is (of those that would fire, one at random). A child's strength is multiplied by its parent's,
    relative to the parent's mean.

    The first features are the roots, then come all children of the first root, of the second, …, then their children in
    the same order; features beyond are in no tree.
    """

    mean: Float[Array, " feature"]
    roots: int = dataclasses.field(metadata={"static": True})
    branching: int = dataclasses.field(metadata={"static": True})
    depth: int = dataclasses.field(metadata={"static": True})

    def levels(self) -> list[tuple[int, int]]:
        """(first feature, number of features) of each level, the roots' first."""
        sizes = [self.roots * self.branching**i for i in range(self.depth + 1)]
        return list(zip(np.cumsum([0, *sizes[:-1]]).tolist(), sizes, strict=True))

    def __call__(self, key: Key[Array, ""], z: Float[Array, "n feature"]) -> Float[Array, "n feature"]:
        n, (start, size) = z.shape[0], self.levels()[0]
        parents = z[:, :size]
        parts = [parents]
        in_trees = sum(size for _, size in self.levels())
        lots = jax.random.uniform(key, (n, in_trees))
        for child_start, child_size in self.levels()[1:]:
            relative = parents / self.mean[None, start : start + size]
            children = z[:, child_start : child_start + child_size].reshape(n, size, self.branching)
            children = children * relative[:, :, None]
            lot = lots[:, child_start : child_start + child_size].reshape(children.shape)
            winner = jnp.argmax(jnp.where(children > 0, lot, jnp.full_like(lot, -1)), axis=2, keepdims=True)
            chosen = winner == jnp.arange(self.branching)[None, None, :]
            parents = jnp.where(chosen, children, jnp.zeros_like(children)).reshape(n, child_size)
            parts.append(parents)
            start, size = child_start, child_size
        return jnp.concatenate([*parts, z[:, start + size :]], axis=1)


def zipf(n_features: int, exponent: float, high: float, low: float) -> Float[np.ndarray, " feature"]:
    """rank^-exponent, stretched to run from `high` to `low`."""
    p = np.arange(1, n_features + 1) ** -float(exponent)
    return low + (high - low) * (p - p[-1]) / (p[0] - p[-1])


def compensated(p: Float[np.ndarray, " feature"], forest: Forest) -> Float[np.ndarray, " feature"]:
    """Probabilities to draw with, so that after `forest` features fire with about `p`: p_i / p_parent for the parent,
    times 1 + Σ_siblings p / p_parent for the exclusion (an approximation, as published), and at most 1. Where children
    are together more frequent than their parent, that cap leaves them rarer than asked for."""
    q, levels = p.copy(), forest.levels()
    for (start, size), (child_start, child_size) in itertools.pairwise(levels):
        parent = p[start : start + size, None]
        children = p[child_start : child_start + child_size].reshape(size, forest.branching)
        siblings = children.sum(axis=1, keepdims=True) - children
        drawn = children / parent * (1 + siblings / parent)
        q[child_start : child_start + child_size] = np.minimum(drawn, 1).reshape(-1)
    return q


def synth_sae_bench(
    key: Key[Array, ""],
    *,
    n_features: int = 16_384,
    d: int = 768,
    roots: int = 128,
    branching: int = 4,
    depth: int = 3,
    exponent: float = 0.5,
    highest: float = 0.4,
    lowest: float = 5e-4,
    rank: int = 25,
    correlation: float = 0.1,
    steps: int = 100,
) -> World:
    """The world of the published configuration (its random draws are others).

    Strengths have means from 5 falling to 4 and standard deviations |N(.5, .5²)|; the bias has norm .5. UserError where
    the trees need more features than there are.
    """
    keys = jax.random.split(key, 4)
    mean = jnp.linspace(5.0, 4.0, n_features)
    forest = Forest(mean, roots, branching, depth)
    start, size = forest.levels()[-1]
    if start + size > n_features:
        raise UserError(f"{roots} trees of depth {depth} need {start + size} features; there are {n_features}")
    q = compensated(zipf(n_features, exponent, highest, lowest), forest)
    std = jnp.abs(0.5 + 0.5 * jax.random.normal(keys[0], (n_features,)))
    on = low_rank(keys[1], jnp.asarray(q), rank, correlation)
    bias = 0.5 * unit_rows(jax.random.normal(keys[2], (1, d)))[0]
    directions = orthogonalised_directions(keys[3], n_features, d, steps)
    return World(directions, bias, Codes(on, Normal(mean, std), forest))


def small_bench(key: Key[Array, ""]) -> World:
    """512 features in 64 dimensions, 340 of them in four trees; true L0 about 6."""
    return synth_sae_bench(key, n_features=512, d=64, roots=4, highest=0.5, lowest=1e-3)
