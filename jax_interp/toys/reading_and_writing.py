"""A toy in which the best direction for reading a feature is not the one for writing it.

    x = ±½ θ + Σᵢ εᵢ fᵢ + noise        εᵢ normal and independent of the sign

The confounders fᵢ have a large variance and an angle below 90° with the truth θ. Logistic regression and LDA find
Σ⁻¹θ, which is nearly orthogonal to the confounders, so that they cancel. It reads the sign nearly without errors. The
mean difference is θ itself: it reads with the noise of the confounders, and moving along it changes the truth and
nothing else. All directions and accuracies of the limit of many rows have closed forms, which are methods here.

After a toy by StefanHex (LessWrong) on the probes of Marks & Tegmark 2023 (arXiv:2310.06824).

    world = reading_and_writing(jax.random.key(0))
    x, y = world.rows(jax.random.key(1), 4000)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site
from jax_interp.toys.toy import TOYS, Toy

HIGH = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class ReadingAndWritingConfig:
    """The sizes of the toy.

    Args:
      d: the number of columns.
      confounders: the number of confounders.
      degrees: the angle between each confounder and the truth.
      spread: the standard deviation of each confounder.
      noise: the standard deviation of the noise in each column.
    """

    d: int = 2
    confounders: int = 1
    degrees: float = 60.0
    spread: float = 2.0
    noise: float = 0.2

    def __post_init__(self) -> None:
        if not 1 <= self.confounders < self.d:
            raise UserError(f"confounders={self.confounders} must be between 1 and d - 1 = {self.d - 1}")
        if not (0 < self.degrees < 180 and self.spread > 0 and self.noise > 0):
            raise UserError("degrees must be between 0 and 180, spread and noise above 0")


FLAT = ReadingAndWritingConfig()
"""Two columns, for pictures."""
WIDE = ReadingAndWritingConfig(d=64, confounders=8, spread=1.0, noise=0.1)
"""64 columns and 8 confounders."""


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ReadingAndWriting:
    """The world, and a model that uses it: `model(x)` returns x · θ for each row. Its value is `x`.

    Args:
      truth: θ, of length 1.
      confounders: the directions fᵢ, of length 1.
      spread: the standard deviation of each confounder.
      noise: the standard deviation of the noise in each column.
    """

    truth: Float[Array, " d"]
    confounders: Float[Array, "confounder d"]
    spread: Float[Array, ""]
    noise: Float[Array, ""]

    def __call__(self, x: Float[Array, "row d"], *, taps: tuple = ()) -> Any:
        site = Site.open(taps)
        x = site("x", x, "batch d_model")
        return site.close(site("answer", jnp.matmul(x, self.truth, precision=HIGH), "batch"))

    def rows(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "row d"], Int[Array, " row"]]:
        """(x, y): n rows, of which the first half has the label 0 and the rest the label 1."""
        one, other = jax.random.split(key)
        y = (jnp.arange(n) >= n // 2).astype(jnp.int32)
        confounding = self.spread * jax.random.normal(one, (n, len(self.confounders)))
        noise = self.noise * jax.random.normal(other, (n, len(self.truth)))
        signal = (y.astype(jnp.float32) - 0.5)[:, None] * self.truth[None, :]
        return signal + jnp.matmul(confounding, self.confounders, precision=HIGH) + noise, y

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """Σ, the covariance of the rows of one class."""
        F = self.confounders
        return self.spread**2 * jnp.matmul(F.T, F, precision=HIGH) + self.noise**2 * jnp.eye(len(self.truth))

    def reading_direction(self) -> Float[Array, " d"]:
        """Σ⁻¹θ, the limit of LDA and of logistic regression with many rows."""
        return jax.scipy.linalg.solve(self.covariance, self.truth, assume_a="pos")

    def shuffled_direction(self) -> Float[Array, " d"]:
        """D⁻¹θ, the limit of LDA after a within-class shuffle of the columns. D is the diagonal of Σ."""
        return self.truth / jnp.diagonal(self.covariance)

    def accuracy(self, direction: Float[Array, " d"]) -> Float[Array, ""]:
        """The accuracy of the sign of x · w: Φ(½ θ·w / √(wᵀΣw))."""
        variance = jnp.einsum("d,de,e->", direction, self.covariance, direction, precision=HIGH)
        return jax.scipy.stats.norm.cdf(jnp.dot(self.truth, direction, precision=HIGH) / 2 / jnp.sqrt(variance))


def reading_and_writing(key: Key[Array, ""], config: ReadingAndWritingConfig = FLAT) -> ReadingAndWriting:
    """A random world. In two columns, θ is the first axis.

    Args:
      key: the key of the directions: θ, and the part of each confounder that is orthogonal to θ.
      config: the sizes.
    """
    drawn = jax.random.normal(key, (config.d, config.confounders + 1))
    if config.d == 2:
        drawn = jnp.eye(2)
    theta = drawn[:, 0] / jnp.linalg.norm(drawn[:, 0])
    others = drawn[:, 1:] - theta[:, None] * jnp.matmul(theta, drawn[:, 1:], precision=HIGH)[None, :]
    others = others / jnp.linalg.norm(others, axis=0)[None, :]
    angle = jnp.deg2rad(config.degrees)
    confounders = jnp.cos(angle) * theta[:, None] + jnp.sin(angle) * others
    return ReadingAndWriting(theta, confounders.T, jnp.float32(config.spread), jnp.float32(config.noise))


@TOYS.register
class ReadingAndWritingToy(Toy[ReadingAndWriting]):
    """One feature among confounders; the model reads the feature without errors of its own."""

    name = "reading-and-writing"

    def example(self, key: Key[Array, ""]) -> ReadingAndWriting:
        return reading_and_writing(key, WIDE)

    def sample(self, model: ReadingAndWriting, key: Key[Array, ""], batch: int) -> Float[Array, "row d"]:
        return model.rows(key, batch)[0]
