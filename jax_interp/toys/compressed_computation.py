"""Compressed computation: 100 ReLUs by 50 neurons, and the noise that makes it look possible.

    y = relu(x W_in) W_out;   label relu(x) + x M          x sparse, uniform in [-1, 1)

"Compressed Computation is (probably) not Computation in Superposition" (2025, arXiv 2606.14673): without M, a trained
network is no better than computing half of the features and dropping the rest. With M it is, and the better the larger
M: it fits M. In the residual MLP of `resid_mlp`, M is hidden in the embedding, `I - W_E W_Eᵀ`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.surgery import Site
from jax_interp.toys.layers import Linear, ReluMLP, init_weight
from jax_interp.toys.toy import TOYS, Toy
from jax_interp.toys.toy_training import ToyTraining, one_active, sparse_features, train

Noise = Literal["symmetric", "asymmetric", "embedding"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class CompressedMLP:
    """`relu(x up) down`. Values `input`, `mlp.pre`, `mlp.post`, `output`."""

    mlp: Any

    def __call__(self, x: Float[Array, "batch feature"], *, taps: tuple = ()) -> Any:
        site = Site.open(taps)
        y = self.mlp(site("input", x, "batch feature"), site / "mlp")
        return site.close(site("output", y, "batch feature"))


@reads_older_files(renamed={"recipe": "training"})
@dataclasses.dataclass(frozen=True)
class CompressedConfig:
    """The task and its training; the noise matrix is given apart, so that one compiled program serves all of them."""

    n_features: int = 100
    n_neurons: int = 50
    probability: float = 0.01
    exactly_one: bool = False
    """Whether exactly one feature is on in every row, the limit of greatest sparsity."""
    training: ToyTraining = dataclasses.field(
        default_factory=lambda: ToyTraining(10_000, 2048, 3e-3, "cosine", weight_decay=0.0)
    )

    def batch(self, key: Key[Array, ""], size: int) -> Float[Array, "batch feature"]:
        if self.exactly_one:
            return one_active(key, size, self.n_features, -1.0, 1.0)
        return sparse_features(key, size, self.n_features, self.probability, -1.0, 1.0)

    @property
    def per_feature(self) -> float:
        """The probability that a feature is on."""
        return 1 / self.n_features if self.exactly_one else self.probability


def noise_matrix(key: Key[Array, ""], n: int, sigma: float, kind: Noise = "symmetric") -> Float[Array, "n n"]:
    """M. "symmetric": (A + Aᵀ)/√2 with A ~ N(0, σ²). "asymmetric": A. "embedding": I - W_E W_Eᵀ for random unit rows
    W_E with 1 / σ² columns, whose entries have the standard deviation σ off the diagonal."""
    if kind == "embedding":
        rows = jax.random.normal(key, (n, round(1 / sigma**2)))
        rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
        return jnp.eye(n) - rows @ rows.T
    A = sigma * jax.random.normal(key, (n, n))
    return (A + A.T) / 2**0.5 if kind == "symmetric" else A


def compressed_loss(
    model: CompressedMLP, x: Float[Array, "batch feature"], M: Float[Array, "feature feature"]
) -> Array:
    """Mean squared error against `relu(x) + x M`, over rows and features."""
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
    """A network trained on the noise M, from `start` where one is given (to move a solution to other noise).

    A function of arrays: `jax.vmap` it over keys and noise matrices.
    """
    first, data = jax.random.split(key)
    initial = init_compressed(first, config) if initial is None else initial
    loss = lambda model, key: compressed_loss(model, config.batch(key, config.training.batch), M)
    return train(initial, loss, config.training, data)[0]


def naive_per_probability(config: CompressedConfig) -> float:
    """Loss / p of one neuron for each of d features and nothing for the others: `(n - d) / n / 6`, here 1/12."""
    return (config.n_features - config.n_neurons) / config.n_features / 6


def evaluate_compressed(
    model: CompressedMLP,
    M: Float[Array, "feature feature"],
    key: Key[Array, ""],
    config: CompressedConfig = CompressedConfig(),
    rows: int = 200_000,
) -> dict[str, Float[Array, ""]]:
    """Loss over p on fresh rows, the gain `1 - L / L_naive`, and where the neurons lie.

    `diagonal_*`: of each feature's response to itself at +1, the mean and how many are above .9 and below .1.
    `*_in_top`: share of the squared weights within the span of M's d eigenvectors of largest eigenvalue; 0/0 without M.
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
    """`X ≈ G F` with G not negative: F by least squares, then the columns of G one after the other, each at its best
    (the semi-nonnegative factorisation of Ding, Li & Jordan 2010, solved by coordinate descent)."""
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


def factored(M: Float[Array, "feature feature"], n_neurons: int, key: Key[Array, ""]) -> CompressedMLP:
    """A network without training, the semi-NMF of I + M: a feature at +1 gives nearly its row, at -1 nothing.

    With one feature on, the best there is for what is positive, so about as good as training; with several, their
    neurons meet, and its loss is the naive one at p = .01.
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
