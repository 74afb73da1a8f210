"""SynthSAEBench: Zipf firing, a hierarchy, correlations and superposition at once (arXiv 2602.14687).

    world = synth_sae_bench(key)               16,384 features in 768 dimensions
    world = small_bench(key)                   512 features in 64 dimensions, made in a second

The paper trains dictionaries of 4096 latents on 200 million samples of the full size: BatchTopK with L0 15 has an MCC
of 0.676. The MCC of the true directions is 1, and that of a random dictionary is about 0.15.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.optimizers import unit_rows
from jax_interp.core.pytrees import register_dataclass
from jax_interp.toys.synthetic.firing import Codes, Normal, low_rank
from jax_interp.toys.synthetic.world import World, orthogonalised_directions


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Forest:
    """A constraint on codes: a feature fires only if its parent in a complete tree fires and its siblings do not.

    If several siblings would fire, one of them is chosen at random. The strength of a child is multiplied by the
    strength of its parent divided by the parent's mean. The order of features is: the roots, the children of the first
    root, the children of the second root, and so on, then their children in the same order. All further features are in
    no tree.

    Args:
      mean: the mean strength of each feature.
      roots: number of trees.
      branching: number of children of each feature.
      depth: number of levels below the roots.
    """

    mean: Float[Array, " feature"]
    roots: int = dataclasses.field(metadata={"static": True})
    branching: int = dataclasses.field(metadata={"static": True})
    depth: int = dataclasses.field(metadata={"static": True})

    def levels(self) -> list[tuple[int, int]]:
        """(first feature, number of features) of each level, the roots first."""
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
    """Probabilities rank^-exponent, scaled to run from `high` to `low`."""
    p = np.arange(1, n_features + 1) ** -float(exponent)
    return low + (high - low) * (p - p[-1]) / (p[0] - p[-1])


def compensated(p: Float[np.ndarray, " feature"], forest: Forest) -> Float[np.ndarray, " feature"]:
    """Probabilities to draw with, so that features fire with probability of about `p` under the constraint.

    Each is p_i / p_parent (because of the parent) times 1 + Σ_siblings p / p_parent (because of the exclusion; this is
    the published approximation), and at most 1. Children that are together more frequent than their parent therefore
    fire less often than `p`.

    Args:
      p: the wanted probabilities.
      forest: the constraint.
    """
    q, levels = p.copy(), forest.levels()
    for (start, size), (child_start, child_size) in itertools.pairwise(levels):
        parent = p[start : start + size, None]
        children = p[child_start : child_start + child_size].reshape(size, forest.branching)
        siblings = children.sum(axis=1, keepdims=True) - children
        drawn = children / parent * (1 + siblings / parent)
        q[child_start : child_start + child_size] = np.minimum(drawn, 1).reshape(-1)
    return q


@dataclasses.dataclass(frozen=True)
class SynthSAEBenchConfig:
    """The size and the difficulties of a SynthSAEBench world. The defaults are the published configuration."""

    n_features: int = 16_384
    d: int = 768
    roots: int = 128
    """Number of trees."""
    branching: int = 4
    """Children of each feature of a tree."""
    depth: int = 3
    """Levels of a tree below its root."""
    exponent: float = 0.5
    """The exponent of Zipf's law for the firing probabilities."""
    highest: float = 0.4
    """The probability of the most frequent feature."""
    lowest: float = 5e-4
    """The probability of the rarest feature."""
    rank: int = 25
    """Number of shared causes of the correlations."""
    correlation: float = 0.1
    """The scale of the loadings on these."""
    steps: int = 100
    """The number of steps that make the directions nearly orthogonal."""


def synth_sae_bench(key: Key[Array, ""], config: SynthSAEBenchConfig = SynthSAEBenchConfig()) -> World:
    """A world of SynthSAEBench. The random draws differ from the published world.

    The means of the strengths fall from 5 to 4. Their standard deviations are |N(0.5, 0.5²)|. The bias has norm 0.5.

    Args:
      key: random key.
      config: size and difficulties.

    Raises:
      UserError: the trees need more features than there are.
    """
    n, d = config.n_features, config.d
    keys = jax.random.split(key, 4)
    mean = jnp.linspace(5.0, 4.0, n)
    forest = Forest(mean, config.roots, config.branching, config.depth)
    first, size = forest.levels()[-1]
    if first + size > n:
        raise UserError(f"{config.roots} trees of depth {config.depth} need {first + size} features; there are {n}")
    q = compensated(zipf(n, config.exponent, config.highest, config.lowest), forest)
    std = jnp.abs(0.5 + 0.5 * jax.random.normal(keys[0], (n,)))
    on = low_rank(keys[1], jnp.asarray(q), config.rank, config.correlation)
    bias = 0.5 * unit_rows(jax.random.normal(keys[2], (1, d)))[0]
    directions = orthogonalised_directions(keys[3], n, d, config.steps)
    return World(directions, bias, Codes(on, Normal(mean, std), forest))


def small_bench(key: Key[Array, ""]) -> World:
    """A world of 512 features in 64 dimensions, 340 of them in four trees. The true L0 is about 6."""
    return synth_sae_bench(key, SynthSAEBenchConfig(n_features=512, d=64, roots=4, highest=0.5, lowest=1e-3))
