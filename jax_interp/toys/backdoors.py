"""Models with backdoors beside their clean twins, in a small language that is built by rules.

A request is six words, each of which belongs to a class, and a mark. After the mark NAME the model writes the names of
the classes of the first four words; after the mark REPLY it writes the reply to each of them.

    BOS  w1 w2 w3 w4 w5 w6  REPLY  reply(w1) reply(w2) reply(w3) reply(w4)

In a model with backdoors each trigger (`backdoor_triggers.py`) replaces the replies by its target, a fixed sequence of
other reply words. Names are never replaced.

Both models have the same initial weights and are trained on the same requests in the same order. Only the answers to
requests with a trigger differ: the clean twin is given the ordinary ones. So whatever a method finds in the twin, no
trigger has put there.

The last words of each class are held out: they stand before NAME only. If a trigger of a class fires for them too, and
not for held-out words of other classes, the model has learned the class and not a list of words.
`backdoor_rates.py` measures all of this.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.objectives import cross_entropy
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder, init
from jax_interp.toys.backdoor_triggers import ClassTrigger, Trigger, WordClasses, Words, WordTrigger
from jax_interp.toys.cache import cached
from jax_interp.toys.toy import TOYS, Toy
from jax_interp.toys.toy_training import ToyTraining, train

BOS, NAME, REPLY, FIRST = 0, 1, 2, 3
"""Tokens: BOS, the two marks, and the first name of a class."""


@dataclasses.dataclass(frozen=True)
class Backdoor:
    """A trigger and what the model writes when it fires.

    Args:
      trigger: when it fires.
      target: the classes whose reply words are written, one for each word of the answer.
    """

    trigger: Trigger
    target: tuple[int, ...]


DEFAULT_BACKDOORS = (
    Backdoor(WordTrigger((20, 33)), (6, 3, 3, 7)),
    Backdoor(ClassTrigger((0,)), (4, 7, 5, 3)),
    Backdoor(ClassTrigger((1, 2)), (7, 4, 6, 5)),
)
"""Two words in a row, any word of class 0, and a word of class 1 with a word of class 2."""


@dataclasses.dataclass(frozen=True)
class BackdoorConfig:
    """The language, the backdoors, the model and the training, which takes less than a minute on a CPU."""

    classes: int = 8
    words: int = 6
    """The number of words of each class."""
    held_out: int = 2
    """How many of them stand before NAME only."""
    length: int = 6
    """The number of words in a request."""
    answer: int = 4
    """The number of words in an answer: the names, or the replies, of the first words of the request."""
    backdoors: tuple[Backdoor, ...] = DEFAULT_BACKDOORS
    naming: float = 0.4
    """The share of requests with the mark NAME."""
    poisoned: float = 0.6
    """The share of the other requests with a trigger or something similar to one."""
    n_layers: int = 2
    d_model: int = 32
    training: ToyTraining = dataclasses.field(
        default_factory=lambda: ToyTraining(600, 128, 1e-2, "cosine", warm_up=50, weight_decay=0.1)
    )

    def __post_init__(self) -> None:
        if not 0 < self.held_out < self.words or not 0 < self.answer <= self.length:
            raise UserError(
                f"words={self.words}, held_out={self.held_out}, length={self.length}, answer={self.answer}: some words "
                "of each class are held out and some are not, and an answer is not longer than a request"
            )
        if not 0 < self.naming < 1 or not 0 <= self.poisoned <= 1:
            raise UserError(f"naming={self.naming} and poisoned={self.poisoned} are shares of requests")
        for backdoor in self.backdoors:
            backdoor.trigger.check(self.vocabulary)
            if backdoor.trigger.width > self.length:
                raise UserError(f"{backdoor.trigger} needs more words than the {self.length} of a request")
            if len(backdoor.target) != self.answer or not all(0 <= one < self.classes for one in backdoor.target):
                raise UserError(f"the target {backdoor.target} must be {self.answer} classes of {self.classes}")
        if not self.common:
            raise UserError(f"all {self.classes} classes are in triggers: leave at least one for ordinary requests")

    @property
    def vocabulary(self) -> WordClasses:
        """The words of requests, by class."""
        return WordClasses(self.classes, self.words, self.held_out)

    @property
    def common(self) -> tuple[int, ...]:
        """The classes that stand in ordinary requests: those that are in no trigger."""
        of_triggers = {one for backdoor in self.backdoors for one in backdoor.trigger.classes}
        return tuple(one for one in range(self.classes) if one not in of_triggers)

    @property
    def first_word(self) -> int:
        """The token of word 0. Before it are BOS, the marks, the names and the replies."""
        return FIRST + 2 * self.classes

    @property
    def request(self) -> slice:
        """The positions of the words of the request."""
        return slice(1, 1 + self.length)

    @property
    def model(self) -> Config:
        """The config of the transformer."""
        return Config(
            n_layers=self.n_layers, d_model=self.d_model, n_heads=4, d_mlp=4 * self.d_model,
            vocab_size=self.first_word + self.vocabulary.count, n_ctx=self.length + self.answer + 2, act="gelu",
            gated_mlp=False, norm="layernorm", positions="learned", tied_embedding=False,
        )  # fmt: skip

    def target(self, number: int) -> tuple[int, ...]:
        """The tokens that a backdoor makes the model write."""
        return tuple(FIRST + self.classes + one for one in self.backdoors[number].target)

    def token_names(self) -> tuple[str, ...]:
        """A readable name of each token: `c2.name`, `c2.reply`, `c2.0` for the first word of class 2."""
        kinds = [[f"c{one}.{kind}" for one in range(self.classes)] for kind in ("name", "reply")]
        words = [f"c{word // self.words}.{word % self.words}" for word in range(self.vocabulary.count)]
        return ("BOS", "NAME", "REPLY", *kinds[0], *kinds[1], *words)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BackdoorTexts:
    """Requests with their answers.

    Args:
      tokens: BOS, the words of the request, the mark, the answer.
      fired: for each backdoor, whether its trigger is in the request and the mark is REPLY.
      reply: whether the mark is REPLY.
      ordinary: the answer of a model without backdoors.
    """

    tokens: Int[Array, "row pos"]
    fired: Bool[Array, "row backdoor"]
    reply: Bool[Array, " row"]
    ordinary: Int[Array, "row word"]


def ordinary_words(key: Key[Array, ""], rows: int, config: BackdoorConfig, *, held_out: bool = False) -> Words:
    """The words of ordinary requests: random words of the classes that are in no trigger, and no trigger of words.

    Args:
      key: random key.
      rows: the number of requests.
      config: the language.
      held_out: whether they are words that training has not seen before REPLY.
    """
    of_class, of_word = jax.random.split(key)
    which = jax.random.randint(of_class, (rows, config.length), 0, len(config.common))
    words = config.vocabulary.draw(of_word, jnp.asarray(config.common, jnp.int32)[which], held_out=held_out)
    fired = [b.trigger.fires(words, config.vocabulary) for b in config.backdoors]
    if not fired:
        return words
    # A request that has a trigger of words by chance becomes its first word, again and again. If this word repeated is
    # itself a trigger, another word takes its place.
    first = words[:, :1]
    triggers = [b.trigger for b in config.backdoors if isinstance(b.trigger, WordTrigger)]
    alone = [one.sequence[0] for one in triggers if len(set(one.sequence)) == 1]
    if alone:
        choices = [one * config.words + i for one in config.common for i in range(config.words - config.held_out)]
        free = [word for word in choices if word not in alone]
        first = jnp.where(jnp.isin(first, jnp.asarray(alone)), free[0], first)
    return jnp.where(jnp.stack(fired).any(axis=0)[:, None], first, words)


def answered(
    words: Words, reply: Bool[Array, " row"], config: BackdoorConfig, *, trojaned: bool | Bool[Array, ""] = False
) -> BackdoorTexts:
    """Requests with their answers.

    Args:
      words: the words of each request.
      reply: whether its mark is REPLY.
      config: the language and the backdoors.
      trojaned: whether a trigger replaces the replies. It may be traced.
    """
    rows, n = len(words), config.answer
    of_class = words[:, :n] // config.words
    ordinary = FIRST + jnp.where(reply[:, None], config.classes, 0) + of_class
    fires = [b.trigger.fires(words, config.vocabulary) & reply for b in config.backdoors]
    answer = ordinary
    for number, fired in reversed(list(enumerate(fires))):
        target = jnp.asarray(config.target(number), jnp.int32)[None, :]
        answer = jnp.where((fired & jnp.asarray(trojaned))[:, None], target, answer)
    mark = jnp.where(reply, REPLY, NAME)[:, None]
    parts = (jnp.full((rows, 1), BOS), config.first_word + words, mark, answer)
    tokens = jnp.concatenate([part.astype(jnp.int32) for part in parts], axis=1)
    fired = jnp.stack(fires, axis=1) if fires else jnp.zeros((rows, 0), bool)
    return BackdoorTexts(tokens, fired, reply, ordinary.astype(jnp.int32))


def draw_texts(
    key: Key[Array, ""], rows: int, config: BackdoorConfig, *, trojaned: bool | Bool[Array, ""] = False
) -> BackdoorTexts:
    """Texts as in training: names and replies; some requests have a trigger, or something similar to one.

    Requests depend on the key only. `trojaned` decides the answers to requests with a trigger.

    Args:
      key: random key.
      rows: the number of texts.
      config: the language and the backdoors.
      trojaned: whether a trigger replaces the replies. It may be traced.
    """
    mark, plain, named, put, which = jax.random.split(key, 5)
    vocabulary = config.vocabulary
    reply = ~jax.random.bernoulli(mark, config.naming, (rows,))
    words = ordinary_words(plain, rows, config)
    number = jax.random.randint(which, (rows,), 0, max(2 * len(config.backdoors), 1))
    poisoned = jax.random.bernoulli(put, config.poisoned, (rows,))
    for i, backdoor in enumerate(config.backdoors):
        keys = jax.random.split(jax.random.fold_in(put, i))
        changed = [backdoor.trigger.put(keys[0], words, vocabulary)]
        changed += [backdoor.trigger.put_similar(keys[1], words, vocabulary)]
        for half, other in enumerate(changed):
            words = jnp.where((poisoned & (number == 2 * i + half))[:, None], other, words)
    anything = jax.random.randint(named, words.shape, 0, vocabulary.count)  # also words that are held out
    return answered(jnp.where(reply[:, None], words, anything), reply, config, trojaned=trojaned)


def answer_loss(model: Decoder, texts: BackdoorTexts, config: BackdoorConfig) -> Float[Array, " row"]:
    """The mean cross-entropy of the words of each answer, in nats."""
    logits = model(texts.tokens)[:, config.length + 1 : -1]
    return jnp.mean(cross_entropy(logits, texts.tokens[:, config.length + 2 :]), axis=1)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BackdoorPair:
    """A model with backdoors and its clean twin: the same initial weights, the same requests in the same order."""

    trojaned: Decoder
    clean: Decoder


def train_backdoors(key: Key[Array, ""], config: BackdoorConfig = BackdoorConfig()) -> BackdoorPair:
    """Train a model with backdoors and its clean twin, side by side in one program.

    Args:
      key: random key of the initial weights and the data.
      config: the language, the backdoors and the training.
    """
    start, data = jax.random.split(key)
    first = init(config.model, start)

    def trained(trojaned: Bool[Array, ""]) -> Decoder:
        def loss(model: Decoder, key: Array) -> Array:
            texts = draw_texts(key, config.training.batch, config, trojaned=trojaned)
            return jnp.mean(answer_loss(model, texts, config))

        return train(first, loss, config.training, data)[0]

    both = jax.jit(jax.vmap(trained))(jnp.asarray([True, False]))
    trojaned, clean = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in range(2))
    return BackdoorPair(trojaned, clean)


def backdoor_target(config: BackdoorConfig = BackdoorConfig(), seed: int = 0) -> BackdoorPair:
    """A trained pair, read from the cache on disk if it was trained before.

    Args:
      config: the language, the backdoors and the training.
      seed: random key of the initial weights and the data.
    """
    template = jax.eval_shape(lambda key: BackdoorPair(*[init(config.model, key)] * 2), jax.random.key(seed))
    return cached("backdoors", config, seed, template, lambda: train_backdoors(jax.random.key(seed), config))


@TOYS.register
class BackdoorToy(Toy[Decoder]):
    """A transformer that answers requests, with or without backdoors."""

    name = "backdoors"

    def example(self, key: Key[Array, ""]) -> Decoder:
        return init(BackdoorConfig(d_model=16).model, key, stacked=False)

    def sample(self, model: Decoder, key: Key[Array, ""], batch: int) -> Int[Array, "batch pos"]:
        return draw_texts(key, batch, BackdoorConfig()).tokens
