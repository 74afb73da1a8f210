"""Price tagging: is a price between two bounds? (Wu et al. 2023, arXiv:2305.08809, in small.)

A prompt has four tokens: the lower bound, the upper bound, the price and a question mark. The answer, yes or no, is
predicted at the last position. There are several ways to compute it: from two comparisons (is the price at least the
lower bound, is it at most the upper bound), or from the distance to the middle of the bounds. Which variables a trained
transformer has is an open question.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.objectives import cross_entropy
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder, init
from jax_interp.toys.cache import cached
from jax_interp.toys.toy import TOYS, Toy
from jax_interp.toys.toy_training import ToyTraining, train


@dataclasses.dataclass(frozen=True)
class PriceConfig:
    """The task, the model and the training. On a CPU the training takes about fifteen seconds."""

    prices: int = 20
    """Bounds and prices are 0 to prices - 1. The tokens after them are no, yes and the question mark."""
    n_layers: int = 3
    d_model: int = 32
    n_heads: int = 2
    d_mlp: int = 64
    training: ToyTraining = dataclasses.field(
        default_factory=lambda: ToyTraining(1500, 128, 3e-3, "cosine", warm_up=50)
    )

    @property
    def no(self) -> int:
        """The token of the answer no."""
        return self.prices

    @property
    def yes(self) -> int:
        """The token of the answer yes."""
        return self.prices + 1

    @property
    def question(self) -> int:
        """The token of the question mark."""
        return self.prices + 2

    @property
    def model(self) -> Config:
        """The config of the transformer."""
        return Config(
            n_layers=self.n_layers, d_model=self.d_model, n_heads=self.n_heads, d_mlp=self.d_mlp,
            vocab_size=self.prices + 3, n_ctx=4, norm="layernorm", positions="learned", tied_embedding=False,
        )  # fmt: skip


def price_prompts(
    key: Key[Array, ""], batch: int, config: PriceConfig = PriceConfig()
) -> tuple[Int[Array, "batch 4"], Bool[Array, "batch"]]:
    """Prompts and whether the price is between the bounds, which are inclusive. About half of the answers are yes.

    Args:
      key: random key.
      batch: number of prompts.
      config: the task.
    """
    bounds, inside, which = jax.random.split(key, 3)
    low, high = jnp.sort(jax.random.randint(bounds, (2, batch), 0, config.prices), axis=0)
    anywhere = jax.random.randint(inside, (batch,), 0, config.prices)
    between = low + anywhere % (high - low + 1)
    price = jnp.where(jax.random.bernoulli(which, 0.4, (batch,)), between, anywhere)
    question = jnp.full((batch,), config.question)
    return jnp.stack([low, high, price, question], axis=1), (low <= price) & (price <= high)


def price_loss(model: Decoder, tokens: Int[Array, "batch 4"], answer: Bool[Array, "batch"]) -> Float[Array, ""]:
    """The mean cross-entropy of the answer, in nats."""
    no = model.config.vocab_size - 3
    return jnp.mean(cross_entropy(model(tokens, last_only=True)[:, 0], jnp.where(answer, no + 1, no)))


def train_price_tagging(key: Key[Array, ""], config: PriceConfig = PriceConfig()) -> Decoder:
    """Train a transformer.

    Args:
      key: random key of the initial weights and the data.
      config: the task and the training.
    """
    start, data = jax.random.split(key)
    loss = lambda model, key: price_loss(model, *price_prompts(key, config.training.batch, config))
    return jax.jit(lambda model, key: train(model, loss, config.training, key)[0])(init(config.model, start), data)


def price_target(config: PriceConfig = PriceConfig(), seed: int = 0) -> Decoder:
    """A trained transformer, read from the cache on disk if it was trained before.

    Args:
      config: the task and the training.
      seed: random key of the initial weights and the data.
    """
    template = jax.eval_shape(lambda key: init(config.model, key), jax.random.key(seed))
    return cached("price-tagging", config, seed, template, lambda: train_price_tagging(jax.random.key(seed), config))


@TOYS.register
class PriceTaggingToy(Toy[Decoder]):
    """A transformer that says whether a price is between two bounds."""

    name = "price-tagging"

    def example(self, key: Key[Array, ""]) -> Decoder:
        return init(PriceConfig(prices=8, n_layers=2, d_model=16, d_mlp=16).model, key, stacked=False)

    def sample(self, model: Decoder, key: Key[Array, ""], batch: int) -> Int[Array, "batch 4"]:
        return price_prompts(key, batch, PriceConfig(prices=model.config.vocab_size - 3))[0]
