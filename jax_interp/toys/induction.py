"""A small attention-only transformer with induction heads (Olsson et al. 2022).

It is trained on sequences that repeat a random stretch of tokens. The period differs from sequence to sequence, so no
fixed offset predicts the next token. Heads of the second layer learn to attend to the token after the previous
occurrence of the current token. `attention_scores` measures this.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.layer import upcast
from jax_interp.core.objectives import log_probabilities, negative_log_likelihood
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder, init
from jax_interp.surgery import read
from jax_interp.toys.cache import cached
from jax_interp.toys.toy import TOYS, Toy
from jax_interp.toys.toy_training import ToyTraining, train


@reads_older_files(renamed={"recipe": "training"})
@dataclasses.dataclass(frozen=True)
class InductionConfig:
    """The task, the model and the training."""

    vocab: int = 32
    n_ctx: int = 32
    shortest: int = 4
    """The shortest period. The longest period is half of the context."""
    d_model: int = 64
    n_heads: int = 2
    training: ToyTraining = dataclasses.field(default_factory=lambda: ToyTraining(1000, 64, 3e-3, "cosine", warm_up=50))

    @property
    def model(self) -> Config:
        """The config of the transformer."""
        return Config(
            n_layers=2, d_model=self.d_model, n_heads=self.n_heads, d_mlp=0, vocab_size=self.vocab, n_ctx=self.n_ctx,
            norm="layernorm", positions="learned", tied_embedding=False,
        )  # fmt: skip


def repeated_sequences(
    key: Key[Array, ""], batch: int, config: InductionConfig
) -> tuple[Int[Array, "batch pos"], Int[Array, "batch"]]:
    """Sequences that repeat.

    Args:
      key: random key.
      batch: number of sequences.
      config: the task.

    Returns:
      `(tokens, period)`: token t equals token t - period. The tokens of the first period are random and distinct, so
      the next token is certain from the second period on.
    """
    first, length = jax.random.split(key)
    stretch = jnp.argsort(jax.random.uniform(first, (batch, config.vocab)), axis=1)
    period = jax.random.randint(length, (batch,), config.shortest, config.n_ctx // 2 + 1)
    at = jnp.arange(config.n_ctx)[None] % period[:, None]
    return jnp.take_along_axis(stretch, at, axis=1), period


def induction_loss(model: Decoder, tokens: Int[Array, "batch pos"], period: Int[Array, "batch"]) -> Float[Array, ""]:
    """The mean cross-entropy of the tokens from the second period on, in nats.

    Args:
      model: the transformer.
      tokens: sequences from `repeated_sequences`.
      period: the periods of the sequences.
    """
    each = negative_log_likelihood(log_probabilities(model(tokens)[:, :-1]), tokens[:, 1:])
    return jnp.mean(each, where=jnp.arange(1, tokens.shape[1])[None] >= period[:, None])


def train_induction(key: Key[Array, ""], config: InductionConfig = InductionConfig()) -> Decoder:
    """Train a transformer (Olsson et al. 2022).

    Args:
      key: random key of the initial weights and the data.
      config: the task and the training.
    """
    start, data = jax.random.split(key)
    loss = lambda model, key: induction_loss(model, *repeated_sequences(key, config.training.batch, config))
    model = init(config.model, start, stacked=False)
    return jax.jit(lambda model, key: train(model, loss, config.training, key)[0])(model, data)


def induction_target(config: InductionConfig = InductionConfig(), seed: int = 0) -> Decoder:
    """A trained transformer, read from the cache on disk if it was trained before.

    Args:
      config: the task and the training.
      seed: random key of the initial weights and the data.
    """
    template = jax.eval_shape(lambda key: init(config.model, key, stacked=False), jax.random.key(seed))
    return cached("induction", config, seed, template, lambda: train_induction(jax.random.key(seed), config))


def attention_scores(
    model: Decoder, tokens: Int[Array, "batch pos"], period: Int[Array, "batch"]
) -> dict[str, Float[Array, "layer head"]]:
    """How much each head acts like a previous-token head, and like an induction head.

    Args:
      model: the transformer.
      tokens: sequences from `repeated_sequences`.
      period: the periods of the sequences.

    Returns:
      "previous": the mean attention to the previous token. "induction": the mean attention to the tokens after earlier
      occurrences of the current token, from the second period on.
    """
    pattern = upcast(read(model, "blocks.*.attn.pattern", output=False)(tokens)["blocks.*.attn.pattern"])
    pos = jnp.arange(tokens.shape[1])
    back = (pos[:, None] - pos[None, :])[None]
    after = ((back + 1) % period[:, None, None] == 0) & (back >= 0) & (pos >= 1)[None, None]

    def mean_over(hit: Array, counts: Array) -> Array:
        seen = jnp.sum(jnp.where(hit[None, :, None], pattern, 0.0), axis=-1)
        return jnp.mean(seen, axis=(1, 3), where=jnp.broadcast_to(counts[None, :, None], seen.shape))

    return {
        "previous": mean_over(back == 1, pos[None] >= 1),
        "induction": mean_over(after, pos[None] >= period[:, None]),
    }


@TOYS.register
class InductionToy(Toy[Decoder]):
    """An attention-only transformer of two layers, on repeated sequences."""

    name = "induction"

    def example(self, key: Key[Array, ""]) -> Decoder:
        return init(InductionConfig(vocab=12, n_ctx=12, d_model=16).model, key, stacked=False)

    def sample(self, model: Decoder, key: Key[Array, ""], batch: int) -> Int[Array, "batch pos"]:
        config = InductionConfig(model.config.vocab_size, model.config.n_ctx)
        return repeated_sequences(key, batch, config)[0]
