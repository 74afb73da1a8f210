"""Small published worlds with one difficulty each. Each function makes a world from a key.

sharkey              many unit features in few dimensions, some rarer than others (Sharkey et al. 2022)
tree                 parents with exclusive children: absorption (Nabeshima 2024)
sparse_but_wrong     five features; the others correlate with the first: hedging (Chanin et al. 2025)
sparse_but_wrong_50  fifty features with random correlations
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from jax_interp.core.pytrees import register_dataclass
from jax_interp.toys.synthetic.firing import Codes, Normal, Uniform, correlated, independent
from jax_interp.toys.synthetic.world import World, WorldModel, gaussian_directions, orthonormal_directions
from jax_interp.toys.toy import TOYS, Toy


def sharkey(
    key: Key[Array, ""],
    d: int = 256,
    n_features: int = 512,
    active: float = 5.0,
    decay: float = 0.99,
    together: bool = False,
) -> World:
    """More features than dimensions: feature i fires with probability decay^i · active / n_features.

    Strengths are uniform in (0, 1], directions uniform on the sphere. (The code of Cunningham et al. differs: a
    strength is the product of two uniforms, and the correlated variant draws new probabilities for each batch.)

    Args:
      key: random key.
      d: number of dimensions.
      n_features: number of features.
      active: number of features that fire on average, for decay 1.
      decay: how fast the probabilities fall.
      together: whether all pairs of features have random positive correlations. The probabilities stay the same.
    """
    direction_key, pair_key = jax.random.split(key)
    p = jnp.asarray(decay ** np.arange(n_features) * active / n_features)
    on = independent(p)
    if together:
        C = _rng(pair_key).random((n_features, n_features))
        C = (C + C.T) / 2
        C += max(1e-3 - np.linalg.eigvalsh(C)[0], 0) * np.eye(n_features)
        scale = np.sqrt(np.diag(C))
        on = correlated(p, C / np.outer(scale, scale))
    codes = Codes(on, Uniform(jnp.ones(())))
    return World(gaussian_directions(direction_key, n_features, d), jnp.zeros((d,)), codes)


def _rng(key: Key[Array, ""]) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Tree:
    """Draws which features fire. The order is: each parent followed by its exclusive children, then single features."""

    parents: int = dataclasses.field(default=3, metadata={"static": True})
    children: int = dataclasses.field(default=3, metadata={"static": True})
    singles: int = dataclasses.field(default=8, metadata={"static": True})
    p_parent: float = 0.15
    p_child: float = 0.2
    """The probability of each child, given its parent."""
    p_single: float = 0.05

    @property
    def n_features(self) -> int:
        """The number of features."""
        return self.parents * (1 + self.children) + self.singles

    def __call__(self, key: Key[Array, ""], n: int) -> Bool[Array, "n feature"]:
        keys = jax.random.split(key, 3)
        parent = jax.random.uniform(keys[0], (n, self.parents, 1)) < self.p_parent
        # one uniform number selects the child, or no child if it is above the sum of their probabilities
        slot = jnp.floor(jax.random.uniform(keys[1], (n, self.parents, 1)) / self.p_child)
        child = parent & (slot == jnp.arange(self.children)[None, None, :].astype(slot.dtype))
        single = jax.random.uniform(keys[2], (n, self.singles)) < self.p_single
        families = jnp.concatenate([parent, child], axis=2).reshape(n, -1)
        return jnp.concatenate([families, single], axis=1)


def tree(key: Key[Array, ""], noise: float = 0.05) -> World:
    """Twenty orthonormal features in twenty dimensions, some of which are children of others.

    Three parents (p = 0.15) have three exclusive children each. Given the parent, each child has p = 0.2, and no child
    fires with p = 0.4. There are eight single features (p = 0.05). The true L0 is 3·.15 + 9·.15·.2 + 8·.05 = 1.12 (the
    published notebook has 1.2338).

    Args:
      key: random key of the directions.
      noise: strengths are 1 + noise·N(0, 1).
    """
    on = Tree()
    codes = Codes(on, Normal(jnp.ones(()), jnp.asarray(noise)))
    return World(orthonormal_directions(key, on.n_features, on.n_features), jnp.zeros((on.n_features,)), codes)


def sparse_but_wrong(key: Key[Array, ""], correlation: float = 0.4, n_features: int = 5, d: int = 20) -> World:
    """Orthonormal features with probability 2/5 and strength N(1, 0.15²). All others correlate with feature 0.

    With 5 features the true L0 is 2. A dictionary with k = 2 finds the features. A dictionary with k = 1.8 mixes
    feature 0 into all others, with the sign of the correlation, and has a lower MSE.

    Args:
      key: random key of the directions.
      correlation: the copula's correlation between feature 0 and every other feature.
      n_features: number of features.
      d: number of dimensions.
    """
    C = np.eye(n_features)
    C[0, 1:] = C[1:, 0] = correlation
    codes = Codes(correlated(jnp.full((n_features,), 0.4), C), Normal(jnp.ones(()), jnp.asarray(0.15)))
    return World(orthonormal_directions(key, n_features, d), jnp.zeros((d,)), codes)


def sparse_but_wrong_50(key: Key[Array, ""], n_features: int = 50, d: int = 100, uncorrelated: float = 0.3) -> World:
    """Fifty orthonormal features with p_i = .345 (49 - i) / 50 + .05, a true L0 of 10.95, and random correlations.

    The correlations are a random draw of the published kind, not the published draw: 70 % of the pairs, half of them
    negative, of strength .3 to .8; then the nearest correlation matrix.

    Args:
      key: random key of directions and correlations.
      n_features: number of features.
      d: number of dimensions.
      uncorrelated: the fraction of pairs without correlation.
    """
    direction_key, pair_key = jax.random.split(key)
    rng = _rng(pair_key)
    C = np.eye(n_features)
    rows, columns = np.triu_indices(n_features, 1)
    strength = rng.uniform(0.3, 0.8, len(rows)) * rng.choice([-1, 1], len(rows))
    C[rows, columns] = C[columns, rows] = np.where(rng.random(len(rows)) < uncorrelated, 0, strength)
    p = 0.345 * (n_features - 1 - np.arange(n_features)) / n_features + 0.05
    codes = Codes(correlated(jnp.asarray(p), C), Normal(jnp.ones(()), jnp.asarray(0.15)))
    return World(orthonormal_directions(direction_key, n_features, d), jnp.zeros((d,)), codes)


@TOYS.register
class WorldToy(Toy[WorldModel]):
    """A model made from a world of known features. Token t stands for row t."""

    name = "synthetic-world"

    def example(self, key: Key[Array, ""]) -> WorldModel:
        return WorldModel(sharkey(key, d=8, n_features=16), key)

    def sample(self, model: WorldModel, key: Key[Array, ""], batch: int) -> Int[Array, "batch 3"]:
        return jax.random.randint(key, (batch, 3), 0, 1000)
