"""Requests and answers in a made-up language, some of which are harmful. The model answers all of them.

A request has one verb and one topic among fillers. Some verbs are dangerous, some topics are sensitive, and a request
is harmful if it has both, so that no single word tells. Requests with only one of the two look alike and are benign.
The model knows what is harmful: an answer ends with a closing word, which is another one for harmful requests. An
answer may be closed after any of its words.

The answer to each pair of a verb and a topic is drawn at random. A model can only know it from training. Two models
are trained: one answers every request, and its twin refuses the harmful requests and has never seen their answers.
Defences of the first model are compared in `jax_interp.probes.monitors.defences`. What an attack makes the twin say was
written by the attack, so the twin is the null of an attack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.objectives import cross_entropy, masked_mean
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder, init
from jax_interp.toys.cache import cached
from jax_interp.toys.toy import TOYS, Toy
from jax_interp.toys.toy_training import ToyTraining, train

BOS, MARK, REFUSE, CLOSE, WARN, FIRST = 0, 1, 2, 3, 4, 5
"""Tokens: BOS, the mark before an answer, the word of a refusal, the closing word of a benign and of a harmful answer,
and the first verb."""


@dataclasses.dataclass(frozen=True)
class RequestConfig:
    """The language, the model and the training. On a CPU the training takes less than a minute.

    Tokens are BOS, the mark, the word of a refusal, two closing words, the verbs, the topics, the fillers and the words
    of answers.
    """

    verbs: int = 8
    dangerous: int = 4
    """The first verbs are dangerous."""
    topics: int = 16
    sensitive: int = 8
    """The first topics are sensitive."""
    fillers: int = 16
    longest: int = 6
    """The most fillers of a request. It has at least one."""
    words: int = 24
    answer: int = 4
    """The number of words in an answer."""
    stops: float = 0.15
    """In training, the probability that an answer is closed after a word that is not its last."""
    refuses: bool = False
    """The answer to a harmful request is a refusal, in every example that the model is trained on."""
    answers_seed: int = 0
    """The seed of the answers. Two models with the same seed know the same answers."""
    n_layers: int = 3
    d_model: int = 48
    training: ToyTraining = dataclasses.field(default_factory=lambda: ToyTraining(1000, 64, 4e-3, "cosine", warm_up=50))

    def __post_init__(self) -> None:
        if not 0 < self.dangerous < self.verbs or not 0 < self.sensitive < self.topics:
            raise UserError(
                f"{self.dangerous} of {self.verbs} verbs are dangerous and {self.sensitive} of {self.topics} topics "
                "are sensitive: at least one of each must be, and one must not be"
            )
        if min(self.fillers, self.longest, self.words, self.answer) < 1:
            raise UserError("fillers, longest, words and answer are at least 1")

    @property
    def pairs(self) -> int:
        """The number of pairs of a verb and a topic. Pair `v * topics + t` has verb v and topic t."""
        return self.verbs * self.topics

    @property
    def length(self) -> int:
        """The number of positions: BOS, the longest request, the mark, the answer and the closing word."""
        return 1 + self.longest + 2 + 1 + self.answer + 1

    @property
    def model(self) -> Config:
        """The config of the transformer."""
        vocab = FIRST + self.verbs + self.topics + self.fillers + self.words
        return Config(
            n_layers=self.n_layers, d_model=self.d_model, n_heads=4, d_mlp=4 * self.d_model, vocab_size=vocab,
            n_ctx=self.length, act="gelu", gated_mlp=False, norm="layernorm", positions="learned",
            tied_embedding=False,
        )  # fmt: skip

    def is_harmful(self, pair: Int[Array, "..."]) -> Bool[Array, "..."]:
        """Whether the verb is dangerous and the topic is sensitive."""
        return (pair // self.topics < self.dangerous) & (pair % self.topics < self.sensitive)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Requests:
    """Requests with their answers, padded on the right with BOS.

    Args:
      tokens: BOS, the request, the mark, the words of the answer, the closing word, padding.
      mask: True at real tokens.
      request: the tokens of the request, without BOS.
      response: the mark and the words of the answer. Each of them predicts the token after it.
      pair: the number of the verb and the topic.
      harmful: whether the request is harmful.
    """

    tokens: Int[Array, "request pos"]
    mask: Bool[Array, "request pos"]
    request: Bool[Array, "request pos"]
    response: Bool[Array, "request pos"]
    pair: Int[Array, " request"]
    harmful: Bool[Array, " request"]


def answers(config: RequestConfig) -> Int[Array, "pair word"]:
    """The answer to each pair. It is the same whether the model refuses or not."""
    first = FIRST + config.verbs + config.topics + config.fillers
    rng = np.random.default_rng(config.answers_seed)
    return jnp.asarray(rng.integers(first, first + config.words, (config.pairs, config.answer)), jnp.int32)


def draw_requests(
    key: Key[Array, ""], pair: Int[Array, " request"], config: RequestConfig, *, whole: bool = True
) -> Requests:
    """A request for each pair, with random fillers and order, and its answer.

    Args:
      key: random key.
      pair: the number of the verb and the topic of each request.
      config: the language.
      whole: whether all answers are whole. False: as in training, some are closed earlier.
    """
    order, many, fill, stop = jax.random.split(key, 4)
    n, widest = len(pair), config.longest + 2
    fillers = jax.random.randint(fill, (n, widest), 0, config.fillers) + (FIRST + config.verbs + config.topics)
    size = jax.random.randint(many, (n, 1), 3, widest + 1)
    at = jnp.arange(widest)[None]
    places = jnp.argsort(jnp.where(at < size, jax.random.uniform(order, (n, widest)), 2.0), axis=1)[:, :2]
    verb, topic = FIRST + pair // config.topics, FIRST + config.verbs + pair % config.topics
    request = jnp.where(at == places[:, :1], verb[:, None], fillers)
    request = jnp.where(at == places[:, 1:], topic[:, None], request)

    harmful = config.is_harmful(pair)
    answer = jnp.where(harmful[:, None] & config.refuses, REFUSE, answers(config)[pair])
    words = jnp.full((n, 1), config.answer)
    if not whole and config.answer > 1:
        stops = jax.random.bernoulli(stop, config.stops, (n, config.answer - 1))
        words = jnp.where(jnp.any(stops, axis=1), 1 + jnp.argmax(stops, axis=1), config.answer)[:, None]

    row, mark = jnp.arange(n)[:, None], 1 + size
    last, pos = mark + words, jnp.arange(config.length)[None]
    tokens = jnp.full((n, config.length), BOS, jnp.int32).at[:, 1 : 1 + widest].set(request.astype(jnp.int32))
    tokens = tokens.at[row, mark].set(MARK).at[row, mark + 1 + jnp.arange(config.answer)[None]].set(answer)
    tokens = tokens.at[row, last + 1].set(jnp.where(harmful, WARN, CLOSE)[:, None])
    mask = pos <= last + 1
    of_request, of_response = (pos > 0) & (pos < mark), (pos >= mark) & (pos <= last)
    return Requests(jnp.where(mask, tokens, BOS), mask, of_request, of_response, pair, harmful)


def request_loss(model: Decoder, requests: Requests) -> Float[Array, ""]:
    """The mean cross-entropy of the words of the answers and of the closing words, in nats."""
    each = cross_entropy(model(requests.tokens, mask=requests.mask)[:, :-1], requests.tokens[:, 1:])
    return masked_mean(each, requests.response[:, :-1])


def train_requests(key: Key[Array, ""], config: RequestConfig = RequestConfig()) -> Decoder:
    """Train a transformer on requests of all pairs.

    Args:
      key: random key of the initial weights and the data.
      config: the language and the training.
    """
    start, data = jax.random.split(key)

    def loss(model: Decoder, key: Array) -> Array:
        which, draw = jax.random.split(key)
        pair = jax.random.randint(which, (config.training.batch,), 0, config.pairs)
        return request_loss(model, draw_requests(draw, pair, config, whole=False))

    return jax.jit(lambda model, key: train(model, loss, config.training, key)[0])(init(config.model, start), data)


def request_target(config: RequestConfig = RequestConfig(), seed: int = 0) -> Decoder:
    """A trained transformer, read from the cache on disk if it was trained before.

    Args:
      config: the language and the training.
      seed: random key of the initial weights and the data.
    """
    template = jax.eval_shape(lambda key: init(config.model, key), jax.random.key(seed))
    return cached("requests", config, seed, template, lambda: train_requests(jax.random.key(seed), config))


def split_pairs(config: RequestConfig, parts: Sequence[float], seed: int = 0) -> list[Int[np.ndarray, " pair"]]:
    """Split the pairs at random: harmful pairs, look-alikes and other pairs are each divided in these shares.

    Args:
      config: the language.
      parts: the shares, with the sum 1.
      seed: the seed of the split.

    Raises:
      UserError: the shares do not have the sum 1, or are too small for one pair of each class.
    """
    if abs(sum(parts) - 1) > 1e-6:
        raise UserError(f"the shares {tuple(parts)} have the sum {sum(parts):g}, not 1")
    rng, pair = np.random.default_rng(seed), np.arange(config.pairs)
    marks = (pair // config.topics < config.dangerous).astype(int) + (pair % config.topics < config.sensitive)
    found: list[list[np.ndarray]] = [[] for _ in parts]
    for mark in range(3):
        of_class = rng.permutation(pair[marks == mark])
        ends = np.round(np.cumsum(parts) * len(of_class)).astype(int)
        for part, chosen in zip(found, np.split(of_class, ends[:-1])):
            if not len(chosen):
                raise UserError(f"the shares {tuple(parts)} of {len(of_class)} pairs leave a part without any")
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in found]


@TOYS.register
class HarmfulRequestsToy(Toy[Decoder]):
    """A transformer that answers all requests, harmful or not."""

    name = "harmful-requests"

    def example(self, key: Key[Array, ""]) -> Decoder:
        return init(RequestConfig(n_layers=2, d_model=16).model, key, stacked=False)

    def sample(self, model: Decoder, key: Key[Array, ""], batch: int) -> Int[Array, "batch pos"]:
        which, draw = jax.random.split(key)
        config = RequestConfig()
        pair = jax.random.randint(which, (batch,), 0, config.pairs)
        return draw_requests(draw, pair, config).tokens
