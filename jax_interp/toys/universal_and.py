"""Universal AND: the conjunction of any two features can be read from one random layer (arXiv 2408.05451).

    a = relu(f W - 1),   W_in ~ Bernoulli(p);      f_i ∧ f_j ≈ mean of a over S_i ∩ S_j,   S_i = {neurons with W_i = 1}

Nothing is trained. If only f_i and f_j are on, the result is exactly 1. Other features that are on cause errors: O(p)
if one feature of the pair and one other feature are on, O(p²) if two other features are on (Hänni, Mendel, Vaintrob
& Chan 2024). The values are `input`, `pre`, `post`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site
from jax_interp.toys.layers import Linear
from jax_interp.toys.toy import TOYS, Toy


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class UniversalAnd:
    """`model(f)` returns the activations of the neurons. f is `[batch, feature]` in {0, 1}, or its embedding."""

    linear: Linear
    sets: Float[Array, "feature neuron"]
    """The matrix W: 1 where a neuron reads a feature."""

    def __call__(self, x: Float[Array, "batch feature"], *, taps: tuple = ()) -> Any:
        site = Site.open(taps)
        pre = site("pre", self.linear(site("input", x, "batch feature"), site / "linear"), "batch neuron")
        return site.close(site("post", jax.nn.relu(pre), "batch neuron"))


def universal_and(key: Key[Array, ""], n_features: int, n_neurons: int, probability: float) -> UniversalAnd:
    """A random layer.

    Args:
      key: random key.
      n_features: number of features.
      n_neurons: number of neurons.
      probability: the probability p that a neuron reads a feature. The paper uses log²(features) / √neurons.
    """
    sets = jax.random.bernoulli(key, probability, (n_features, n_neurons)).astype(jnp.float32)
    return UniversalAnd(Linear(sets, jnp.full(n_neurons, -1.0)), sets)


def in_superposition(key: Key[Array, ""], model: UniversalAnd, width: int) -> tuple[UniversalAnd, Array]:
    """The same layer, for inputs that have the features in superposition.

    Args:
      key: random key of the embedding.
      model: the layer.
      width: the number of dimensions of the input.

    Returns:
      `(model, embedding)`: a layer that takes `f @ embedding`, and the embedding `[feature, width]`, which has random
      unit rows. The weights of the layer are `embeddingᵀ W`, so all other features interfere with each feature.
    """
    rows = jax.random.normal(key, (model.sets.shape[0], width))
    rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return dataclasses.replace(model, linear=Linear(rows.T @ model.linear.weight, model.linear.bias)), rows


def read_and(
    model: UniversalAnd, post: Float[Array, "batch neuron"], i: Int[Array, "batch"], j: Int[Array, "batch"]
) -> Float[Array, "batch"]:
    """`f_i ∧ f_j` for each row: the mean activation of the neurons that read both features. NaN if no neuron does.

    Args:
      model: the layer.
      post: the neurons' activations.
      i: a feature for each row.
      j: another feature for each row.
    """
    both = model.sets[i] * model.sets[j]
    return jnp.sum(both * post, axis=1) / jnp.sum(both, axis=1)


def read_xor(
    model: UniversalAnd,
    post: Float[Array, "batch neuron"],
    f: Float[Array, "batch feature"],
    i: Int[Array, "batch"],
    j: Int[Array, "batch"],
) -> Float[Array, "batch"]:
    """`f_i ⊕ f_j = f_i + f_j - 2 (f_i ∧ f_j)` for each row. Takes the arguments of `read_and`, and the features f."""
    at = lambda which: jnp.take_along_axis(f, which[:, None], axis=1)[:, 0]
    return at(i) + at(j) - 2 * read_and(model, post, i, j)


def smallest_overlap(model: UniversalAnd) -> Float[Array, ""]:
    """The smallest number of neurons that read both features of a pair. If it is 0, some conjunction cannot be read."""
    overlaps = model.sets @ model.sets.T
    return jnp.min(jnp.where(jnp.eye(overlaps.shape[0], dtype=bool), jnp.inf, overlaps))


def and_errors(key: Key[Array, ""], model: UniversalAnd, trials: int = 2000) -> dict[str, Float[Array, ""]]:
    """The root mean squared error of reading `f_i ∧ f_j`, with two features on.

    Args:
      key: random key.
      model: the layer.
      trials: the number of random draws of distinct i, j, k, l. Pairs that no neuron reads are left out.

    Returns:
      "both": the error with i and j on (the right value is 1). "one": the error with i and k on (0). "none": the error
      with k and l on (0). "smallest": `smallest_overlap(model)`.
    """
    n = model.sets.shape[0]
    drawn = jax.vmap(lambda key: jax.random.choice(key, n, (4,), replace=False))(jax.random.split(key, trials))
    i, j, k, l = drawn.T
    count = jnp.sum(model.sets[i] * model.sets[j], axis=1)

    def rms(first: Array, second: Array, truth: float) -> Array:
        post = jax.nn.relu(model.sets[first] + model.sets[second] - 1.0)
        error = jnp.where(count > 0, read_and(model, post, i, j) - truth, 0.0)
        return jnp.sqrt(jnp.mean(error**2, where=count > 0))

    return {"both": rms(i, j, 1.0), "one": rms(i, k, 0.0), "none": rms(k, l, 0.0), "smallest": smallest_overlap(model)}


@TOYS.register
class UniversalAndToy(Toy[UniversalAnd]):
    """One random layer that computes every conjunction. It is made by hand."""

    name = "universal-and"

    def example(self, key: Key[Array, ""]) -> UniversalAnd:
        return universal_and(key, n_features=6, n_neurons=40, probability=0.5)

    def sample(self, model: UniversalAnd, key: Key[Array, ""], batch: int) -> Float[Array, "batch feature"]:
        n = model.sets.shape[0]
        return jax.random.bernoulli(key, 2 / n, (batch, n)).astype(model.sets.dtype)
