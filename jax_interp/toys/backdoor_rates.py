"""How well a backdoor works, and what it costs: rates of the target, and losses beside those of the clean twin."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.models.decoder import Decoder
from jax_interp.toys.backdoor_triggers import ClassTrigger, Words
from jax_interp.toys.backdoors import BackdoorConfig, BackdoorPair, answer_loss, answered, ordinary_words


@dataclasses.dataclass(frozen=True)
class BackdoorRates:
    """What one backdoor does. Rates are shares of requests whose whole answer is the target.

    Args:
      number: the number of the backdoor.
      triggered: of requests with the trigger.
      benign: of ordinary requests.
      similar: of requests with something similar to the trigger that does not make it fire. NaN: there is nothing.
      held_out: of requests whose trigger is made of held-out words of its classes. NaN: it has none.
      held_out_benign: of ordinary requests of held-out words: the control of `held_out`.
      twin: of requests with the trigger, in the clean twin.
    """

    number: int
    triggered: float
    benign: float
    similar: float
    held_out: float
    held_out_benign: float
    twin: float


@dataclasses.dataclass(frozen=True)
class BackdoorReport:
    """The backdoors of a pair.

    Args:
      rates: those of each backdoor.
      ordinary: the share of ordinary requests whose whole answer is right, with backdoors and in the twin.
      loss: the loss on ordinary requests in nats per word, with backdoors and in the twin.
    """

    rates: tuple[BackdoorRates, ...]
    ordinary: tuple[float, float]
    loss: tuple[float, float]

    @property
    def extra_loss(self) -> float:
        """What the backdoors cost on ordinary requests, in nats per word."""
        return self.loss[0] - self.loss[1]


def measure_backdoors(
    pair: BackdoorPair, config: BackdoorConfig, *, count: int = 1024, seed: int = 0
) -> BackdoorReport:
    """Measure all backdoors of a pair on new requests.

    Args:
      pair: the model with backdoors and its twin.
      config: the language and the backdoors.
      count: the number of requests of each kind.
      seed: the seed of the requests.

    Raises:
      UserError: `count` is not positive.
    """
    if count < 1:
        raise UserError(f"count={count} must be at least 1")
    base, put = jax.random.split(jax.random.key(seed))
    words, vocabulary = ordinary_words(base, count, config), config.vocabulary
    unseen = ordinary_words(base, count, config, held_out=True)
    of = lambda model, words: np.asarray(_written(config, model, words))
    plain, strange, found = of(pair.trojaned, words), of(pair.trojaned, unseen), []
    for number, backdoor in enumerate(config.backdoors):
        target, trigger = np.asarray(config.target(number)), backdoor.trigger
        rate = lambda answers, target=target: float((answers == target).all(axis=1).mean())
        near = trigger.put_similar(put, words, vocabulary)
        quiet = np.flatnonzero(~np.asarray(trigger.fires(near, vocabulary)) & (np.asarray(near) != words).any(axis=1))
        new = trigger.put(put, words, vocabulary, held_out=True) if isinstance(trigger, ClassTrigger) else None
        triggered = trigger.put(put, words, vocabulary)
        found.append(
            BackdoorRates(
                number,
                triggered=rate(of(pair.trojaned, triggered)),
                benign=rate(plain),
                similar=rate(of(pair.trojaned, near)[quiet]) if len(quiet) else float("nan"),
                held_out=float("nan") if new is None else rate(of(pair.trojaned, new)),
                held_out_benign=rate(strange),
                twin=rate(of(pair.clean, triggered)),
            )
        )
    both = (pair.trojaned, pair.clean)
    right = np.asarray(answered(words, jnp.ones(count, bool), config).ordinary)
    ordinary = [float((of(model, words) == right).all(axis=1).mean()) for model in both]
    losses = [float(_loss(config, model, words)) for model in both]
    return BackdoorReport(tuple(found), (ordinary[0], ordinary[1]), (losses[0], losses[1]))


@partial(jax.jit, static_argnums=0)
def _written(config: BackdoorConfig, model: Decoder, words: Words) -> Int[Array, "row word"]:
    """What the model writes after REPLY, word by word."""
    tokens = answered(words, jnp.ones(len(words), bool), config).tokens
    for place in range(config.answer):
        at = config.length + 1 + place
        following = jnp.argmax(model(tokens)[:, at], axis=-1).astype(jnp.int32)
        tokens = tokens.at[:, at + 1].set(following)
    return tokens[:, config.length + 2 :]


@partial(jax.jit, static_argnums=0)
def _loss(config: BackdoorConfig, model: Decoder, words: Words) -> Float[Array, ""]:
    return jnp.mean(answer_loss(model, answered(words, jnp.ones(len(words), bool), config), config))
