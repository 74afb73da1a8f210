"""Compressed computation: a network of 50 neurons trained to compute 100 ReLUs, with noise in the labels.

    y = relu(x W_in) W_out;   label relu(x) + x M          x sparse, uniform in [-1, 1)

"Compressed Computation is (probably) not Computation in Superposition" (2025, arXiv 2606.14673). Without the noise
matrix M, a trained network is no better than a network that computes half of the features and ignores the rest. With M,
it is better, but only because it fits M. The embedding in the residual MLP of `resid_mlp` contains such an M,
`I - W_E W_Eᵀ`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site
from jax_interp.toys.layers import Linear, ReluMLP, init_weight
from jax_interp.toys.toy import TOYS, Toy
from jax_interp.toys.toy_training import ToyTraining, one_active, sparse_features, train

Noise = Literal["symmetric", "asymmetric", "embedding"]


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class CompressedMLP:
    """One hidden layer: `relu(x W_in) W_out`. Its values are `input`, `mlp.pre`, `mlp.post`, `output`."""

    mlp: ReluMLP

    def __call__(self, x: Float[Array, "batch feature"], *, taps: tuple = ()) -> Any:
        site = Site.open(taps)
        y = self.mlp(site("input", x, "batch feature"), site / "mlp")
        return site.close(site("output", y, "batch feature"))


@reads_older_files(renamed={"recipe": "training"})
@dataclasses.dataclass(frozen=True)
class CompressedConfig:
    """The task and its training. The noise matrix is a separate argument, so one compiled program works for all."""

    n_features: int = 100
    n_neurons: int = 50
    probability: float = 0.01
    """The probability that a feature is on."""
    exactly_one: bool = False
    """Whether exactly one feature is on in every row (the greatest sparsity)."""
    training: ToyTraining = dataclasses.field(
        default_factory=lambda: ToyTraining(10_000, 2048, 3e-3, "cosine", weight_decay=0.0)
    )

    def batch(self, key: Key[Array, ""], size: int) -> Float[Array, "batch feature"]:
        """Inputs of the task."""
        if self.exactly_one:
            return one_active(key, size, self.n_features, -1.0, 1.0)
        return sparse_features(key, size, self.n_features, self.probability, -1.0, 1.0)

    @property
    def per_feature(self) -> float:
        """The probability that a feature is on."""
        return 1 / self.n_features if self.exactly_one else self.probability


def noise_matrix(key: Key[Array, ""], n: int, sigma: float, kind: Noise = "symmetric") -> Float[Array, "n n"]:
    """A noise matrix M.

    Args:
      key: random key.
      n: number of features.
      sigma: standard deviation σ of its entries (of the entries off the diagonal, for "embedding").
      kind: "symmetric": (A + Aᵀ)/√2 with A ~ N(0, σ²). "asymmetric": A. "embedding": I - W_E W_Eᵀ for random unit rows
        W_E with 1 / σ² columns.
    """
    if kind == "embedding":
        rows = jax.random.normal(key, (n, round(1 / sigma**2)))
        rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
        return jnp.eye(n) - rows @ rows.T
    A = sigma * jax.random.normal(key, (n, n))
    return (A + A.T) / 2**0.5 if kind == "symmetric" else A


def compressed_loss(
    model: CompressedMLP, x: Float[Array, "batch feature"], M: Float[Array, "feature feature"]
) -> Array:
    """The mean squared error against `relu(x) + x M`, over rows and features.

    Args:
      model: the network.
      x: inputs.
      M: the noise matrix.
    """
    return jnp.mean((model(x) - jax.nn.relu(x) - x @ M) ** 2)


def init_compressed(key: Key[Array, ""], config: CompressedConfig) -> CompressedMLP:
    """An untrained network."""
    up, down = jax.random.split(key)
    n, d = config.n_features, config.n_neurons
    return CompressedMLP(ReluMLP(Linear(init_weight(up, n, d)), Linear(init_weight(down, d, n))))


def train_compressed(
    key: Key[Array, ""],
    M: Float[Array, "feature feature"],
    config: CompressedConfig = CompressedConfig(),
    initial: CompressedMLP | None = None,
) -> CompressedMLP:
    """Train a network on labels with the noise M. This works under `jax.vmap`, over keys and noise matrices.

    Args:
      key: random key of the initial weights and the data.
      M: the noise matrix.
      config: the sizes and the training.
      initial: the network to start from; None: a random one.
    """
    first, data = jax.random.split(key)
    initial = init_compressed(first, config) if initial is None else initial
    loss = lambda model, key: compressed_loss(model, config.batch(key, config.training.batch), M)
    return train(initial, loss, config.training, data)[0]


def naive_per_probability(config: CompressedConfig) -> float:
    """Loss / p of the naive solution, `(n - d) / n / 6`: one neuron for each of d features, the others are ignored."""
    return (config.n_features - config.n_neurons) / config.n_features / 6


def evaluate_compressed(
    model: CompressedMLP,
    M: Float[Array, "feature feature"],
    key: Key[Array, ""],
    config: CompressedConfig = CompressedConfig(),
    rows: int = 200_000,
) -> dict[str, Float[Array, ""]]:
    """Metrics of a trained network.

    Args:
      model: the network.
      M: the noise matrix of the labels.
      key: random key of the test rows.
      config: the task.
      rows: number of rows.

    Returns:
      `loss_per_p`: the loss divided by p, on new rows. `gain`: 1 - L / L_naive. `diagonal_mean`, `diagonal_above_0.9`,
      `diagonal_below_0.1`: each feature is set to +1, and its own output is read; these are the mean of the outputs,
      and how many are above 0.9 and below 0.1. `up_in_top`, `down_in_top`: the share of the squared weights in the span
      of the d eigenvectors of M with the largest eigenvalues (NaN without M).
    """
    total = jax.lax.map(
        lambda key: compressed_loss(model, config.batch(key, rows // 100), M), jax.random.split(key, 100)
    )
    per_p = jnp.mean(total) / config.per_feature
    response = jnp.diag(model(jnp.eye(config.n_features))) - jnp.diag(M)
    top = jnp.linalg.eigh((M + M.T) / 2)[1][:, -config.n_neurons :]
    up, down = model.mlp.up.weight, model.mlp.down.weight
    share = lambda W: jnp.sum((top.T @ W) ** 2) / jnp.sum(W**2)
    return {
        "loss_per_p": per_p,
        "gain": 1 - per_p / naive_per_probability(config),
        "diagonal_mean": jnp.mean(response),
        "diagonal_above_0.9": jnp.sum(response > 0.9),
        "diagonal_below_0.1": jnp.sum(response < 0.1),
        "up_in_top": share(up),
        "down_in_top": share(down.T),
    }


def semi_nmf(
    X: Float[Array, "rows columns"], rank: int, key: Key[Array, ""], sweeps: int = 300
) -> tuple[Float[Array, "rows rank"], Float[Array, "rank columns"]]:
    """Semi-nonnegative matrix factorisation `X ≈ G F` with G >= 0 (Ding, Li & Jordan 2010), by coordinate descent.

    Args:
      X: the matrix.
      rank: number of columns of G.
      key: random key of the initial values.
      sweeps: the number of iterations. Each solves F by least squares, then sets each column of G to its optimum.

    Returns:
      G and F.
    """
    G = jnp.abs(jax.random.normal(key, (X.shape[0], rank)))
    solve = lambda G: jnp.linalg.solve(G.T @ G + 1e-6 * jnp.eye(rank), G.T @ X)

    def sweep(_: Any, G: Array) -> Array:
        F = solve(G)
        XF, FF = X @ F.T, F @ F.T

        def column(k: Array, G: Array) -> Array:
            best = G[:, k] + (XF[:, k] - G @ FF[:, k]) / jnp.maximum(FF[k, k], 1e-9)
            return G.at[:, k].set(jnp.maximum(best, 0.0))

        G = jax.lax.fori_loop(0, rank, column, G)
        return G / jnp.maximum(jnp.linalg.norm(G, axis=0, keepdims=True), 1e-9)

    G = jax.lax.fori_loop(0, sweeps, sweep, G)
    return G, solve(G)


def factored_mlp(M: Float[Array, "feature feature"], n_neurons: int, key: Key[Array, ""]) -> CompressedMLP:
    """A network made without training, from the semi-NMF of I + M.

    A feature at +1 gives approximately its row of I + M, and a feature at -1 gives nothing. With one feature on, this
    network is about as good as a trained one. With several features on, they share neurons. At p = 0.01 the loss equals
    that of the naive solution.

    Args:
      M: the noise matrix.
      n_neurons: the number of neurons.
      key: random key of the factorisation.
    """
    up, down = semi_nmf(jnp.eye(M.shape[0]) + M, n_neurons, key)
    return CompressedMLP(ReluMLP(Linear(up), Linear(down)))


@TOYS.register
class CompressedComputationToy(Toy[CompressedMLP]):
    """A ReLU MLP with fewer neurons than features."""

    name = "compressed-computation"

    def example(self, key: Key[Array, ""]) -> CompressedMLP:
        return init_compressed(key, CompressedConfig(n_features=8, n_neurons=4))

    def sample(self, model: CompressedMLP, key: Key[Array, ""], batch: int) -> Float[Array, "batch feature"]:
        return sparse_features(key, batch, model.mlp.up.weight.shape[0], 0.01, -1.0)
