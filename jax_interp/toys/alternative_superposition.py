"""Superposition without a nonlinearity, under another loss (Roe & Goldstein 2025, Alternative models of superposition).

A linear autoencoder `y = x W Wᵀ + b` (a `TMS` without ReLU) is trained on the error at one target feature only:

    (y_t - x_t)² + c · max_{j≠t} y_j        t uniform, x_t uniform in [0, 1), other features 0 or sometimes small

Any W with rows of norm one has y_t = x_t, so the first term only requires equal norms. The target's output is then the
largest, because every other output is this output times a cosine below 1. `evaluate` compares this loss with the error
over all outputs.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.objectives import mean_squared_error
from jax_interp.toys.layers import Linear, Transposed
from jax_interp.toys.tms import TMS
from jax_interp.toys.toy import TOYS, Toy
from jax_interp.toys.toy_training import ToyTraining, sparse_features, train


@reads_older_files(renamed={"recipe": "training"})
@dataclasses.dataclass(frozen=True)
class AlternativeConfig:
    """The autoencoder, its loss and its training."""

    n_features: int = 100
    n_hidden: int = 2
    penalty: float = 1e-4
    """The weight c of the largest other output."""
    bias: bool = True
    others: float = 0.0
    """The probability that a feature other than the target is on."""
    amplitude: float = 0.1
    """Values of the other features are uniform from 0 to this."""
    training: ToyTraining = dataclasses.field(
        default_factory=lambda: ToyTraining(5000, 128, 2.5e-3, "constant", weight_decay=0.0)
    )


def target_data(
    key: Key[Array, ""], batch: int, config: AlternativeConfig
) -> tuple[Float[Array, "batch feature"], Int[Array, "batch"]]:
    """A batch of the task.

    Args:
      key: random key.
      batch: number of rows.
      config: the task.

    Returns:
      `(x, t)`: the features of each row, and the target feature of each row.
    """
    which, value, others = jax.random.split(key, 3)
    n = config.n_features
    t = jax.random.randint(which, (batch,), 0, n)
    x = (
        sparse_features(others, batch, n, config.others, 0.0, config.amplitude)
        if config.others
        else jnp.zeros((batch, n))
    )
    own = jax.nn.one_hot(t, n, dtype=bool)
    return jnp.where(own, jax.random.uniform(value, (batch, 1)), x), t


def target_loss(
    model: TMS, x: Float[Array, "batch feature"], t: Int[Array, "batch"], penalty: float
) -> Float[Array, ""]:
    """The loss, as a mean over rows. (The published code sums over the batch; this makes no difference to Adam.)

    Args:
      model: the autoencoder.
      x: features.
      t: the target feature of each row.
      penalty: the weight c.
    """
    y = model(x)
    own = jax.nn.one_hot(t, x.shape[1], dtype=bool)
    error = jnp.sum(jnp.where(own, y - x, 0.0) ** 2, axis=1)
    return jnp.mean(error + penalty * jnp.max(jnp.where(own, -jnp.inf, y), axis=1))


def init_alternative(key: Key[Array, ""], config: AlternativeConfig = AlternativeConfig()) -> TMS:
    """An untrained autoencoder; W and b are standard normal."""
    w, b, _ = jax.random.split(key, 3)
    n, m = config.n_features, config.n_hidden
    bias = jax.random.normal(b, (n,)) if config.bias else None
    return TMS(Linear(jax.random.normal(w, (n, m))), nnx.List([]), Transposed(bias), relu=False)


def train_alternative(key: Key[Array, ""], config: AlternativeConfig = AlternativeConfig()) -> TMS:
    """Train an autoencoder on one target feature at a time. `jax.vmap` it over keys.

    Args:
      key: random key of the initial weights and the data.
      config: the autoencoder, its loss and its training.
    """
    data = jax.random.split(key, 3)[2]

    def loss(model: TMS, key: Array) -> Array:
        x, t = target_data(key, config.training.batch, config)
        return target_loss(model, x, t, config.penalty)

    return train(init_alternative(key, config), loss, config.training, data)[0]


def evaluate(model: TMS) -> dict[str, Float[Array, ""]]:
    """Metrics on one-hot inputs.

    Returns:
      `accuracy`: how often the output of the feature that is on is the largest. `target_error`: the mean |y_t - 1|.
      `mse`: the mean squared error over all outputs. `mse_of_zero`: this error if all outputs were 0. `norm`,
      `norm_spread`: the mean and the standard deviation of ‖W_i‖.
    """
    n = model.linear1.weight.shape[0]
    eye = jnp.eye(n)
    y = model(eye)
    norms = jnp.linalg.norm(model.linear1.weight, axis=1)
    return {
        "accuracy": jnp.mean(jnp.argmax(y, axis=1) == jnp.arange(n)),
        "target_error": jnp.mean(jnp.abs(jnp.diag(y) - 1)),
        "mse": mean_squared_error(eye, y, None),
        "mse_of_zero": jnp.asarray(1 / n),
        "norm": jnp.mean(norms),
        "norm_spread": jnp.std(norms),
    }


@TOYS.register
class AlternativeSuperpositionToy(Toy[TMS]):
    """A linear TMS whose loss counts only one target feature."""

    name = "alternative-superposition"

    def example(self, key: Key[Array, ""]) -> TMS:
        return init_alternative(key, AlternativeConfig(n_features=6))

    def sample(self, model: TMS, key: Key[Array, ""], batch: int) -> Float[Array, "batch feature"]:
        return target_data(key, batch, AlternativeConfig(n_features=model.linear1.weight.shape[0]))[0]
