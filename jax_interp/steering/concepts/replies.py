"""Replies to instructions under each method and factor: what a concept benchmark judges.

    methods = [
        Method("difference of means", {concept.name: vectors[concept.name] for concept in concepts}),
        prompt_method(concepts),
        no_steering(concepts),
    ]
    replies = write_replies(model, tokenizer, concepts, methods, instructions, n_new=64, bos=True)

A prompt is a method like any other: its text stands before the instruction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models.generation.completion import continuation
from jax_interp.models.generation.generate import GREEDY, generate, pad_left
from jax_interp.models.generation.sampling import Chooser
from jax_interp.steering.vector import Steering
from jax_interp.surgery import Model, edit

FACTORS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0)
"""The factors of AxBench (Wu et al. 2025), whose vectors have norm 1 times the highest activation of the concept on
its texts: `vector.unit().scaled(highest)`."""


@dataclasses.dataclass(frozen=True)
class Concept:
    """A concept that replies should show.

    Args:
      name: what the concept is, in words that a judge understands: "terms related to rivers".
      words: words of the concept, for the judge that counts words.
    """

    name: str
    words: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Prefix:
    """A text that is put before the instruction. The empty text is the model without steering."""

    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """A way to steer towards each concept.

    Args:
      name: the name in tables.
      by_concept: by the name of the concept, a steering or a `Prefix`.
      factors: the strengths to try. A prefix has none, so its only factor is 1.

    Raises:
      UserError: there is no concept or no factor, a factor is not finite or there twice, or a prefix has factors.
    """

    name: str
    by_concept: Mapping[str, Steering | Prefix]
    factors: tuple[float, ...] = FACTORS

    def __post_init__(self) -> None:
        if not self.by_concept:
            raise UserError(f"the method {self.name!r} has no concept")
        if not self.factors or len(set(self.factors)) < len(self.factors) or not np.isfinite(self.factors).all():
            raise UserError(f"the factors of {self.name!r} are distinct finite numbers, got {self.factors}")
        if self.is_prompt and tuple(self.factors) != (1.0,):
            raise UserError(f"{self.name!r} puts a text before the instruction, which has no strength: factors=(1.0,)")

    @property
    def is_prompt(self) -> bool:
        """Whether it steers some concept by a prefix."""
        return any(isinstance(one, Prefix) for one in self.by_concept.values())


def prompt_method(concepts: Sequence[Concept], text: str = "Write about {concept}.\n", name: str = "prompt") -> Method:
    """The prompt baseline: `text` with the name of the concept, before each instruction."""
    return Method(name, {concept.name: Prefix(text.format(concept=concept.name)) for concept in concepts}, (1.0,))


def no_steering(concepts: Sequence[Concept], name: str = "no steering") -> Method:
    """The model alone. Its scores are what the judges give for nothing."""
    return Method(name, {concept.name: Prefix("") for concept in concepts}, (1.0,))


@dataclasses.dataclass(frozen=True)
class Reply:
    """One reply.

    Args:
      concept: the concept that the method steers towards.
      instruction: the number of the instruction.
      asked: the text of the instruction, without a prefix.
      text: the text of the reply.
      prompt: the tokens of the plain prompt, without a prefix.
      tokens: the tokens of the reply, without the stop token.
    """

    concept: Concept
    instruction: int
    asked: str
    text: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Replies:
    """The replies of each method, in the order concept, factor, instruction (the last one runs fastest).

    Args:
      concepts: the concepts.
      instructions: the instructions.
      factors: the factors of each method.
      by_method: the replies of each method.
    """

    concepts: tuple[Concept, ...]
    instructions: tuple[str, ...]
    factors: Mapping[str, tuple[float, ...]]
    by_method: Mapping[str, tuple[Reply, ...]]

    def shape(self, method: str) -> tuple[int, int, int]:
        """(concepts, factors, instructions) of a method."""
        return len(self.concepts), len(self.factors[method]), len(self.instructions)


@dataclasses.dataclass(frozen=True, eq=False)
class Writing:
    """How replies are written.

    Args:
      n_new: the most new tokens of a reply. AxBench takes 128.
      bos: whether the document-start token stands before each prompt.
      stop: token ids that end a reply.
      prompt_of: from an instruction to the text of the prompt, such as a chat template. A prefix is put before the
        instruction first.
      choose: how to choose a token, as in `generate`.
      key: a PRNG key, for a chooser that samples. All methods and concepts get the same draws.
      at_once: the number of replies that are written together.
    """

    n_new: int
    bos: bool
    stop: tuple[int, ...] = ()
    prompt_of: Callable[[str], str] = str
    choose: Chooser = GREEDY
    key: Array | None = None
    at_once: int = 64


def write_replies(
    model: Model,
    tokenizer: Tokenizer,
    concepts: Sequence[Concept],
    methods: Sequence[Method],
    instructions: Sequence[str],
    writing: Writing,
    *,
    on_done: Callable[[str, str], None] = lambda method, concept: None,
) -> Replies:
    """Reply to every instruction, for each concept, with each method and factor.

    All factors and instructions of a concept are rows of one batch, each with its own strength. Concepts whose
    steerings have the same structure run the same program.

    Args:
      model: a `Decoder`, with any edits.
      tokenizer: its tokenizer.
      concepts: the concepts.
      methods: the methods. Each needs every concept.
      instructions: the instructions, the same for all concepts.
      writing: how replies are written.
      on_done: called with the method and the concept after each of them.

    Raises:
      UserError: names are there twice, a method lacks a concept, there is no instruction, or steering makes the logits
        of a reply NaN.
    """
    names = [concept.name for concept in concepts]
    _check(names, [method.name for method in methods], instructions)
    plain = tokenizer.encode_batch([writing.prompt_of(text) for text in instructions], bos=writing.bos)
    found: dict[str, tuple[Reply, ...]] = {}
    for method in methods:
        if missing := [name for name in names if name not in method.by_concept]:
            raise UserError(f"the method {method.name!r} lacks the concepts {', '.join(missing)}")
        replies = []
        for concept in concepts:
            steering = method.by_concept[concept.name]
            prompts = plain
            if isinstance(steering, Prefix):
                texts = [writing.prompt_of(steering.text + text) for text in instructions]
                prompts = tokenizer.encode_batch(texts, bos=writing.bos)
            rows = _written(model, steering, prompts, np.asarray(method.factors, np.float32), writing)
            for i, row in enumerate(rows):
                at = i % len(instructions)
                new = _until_stop(row, writing.stop)
                if min(new, default=0) < 0:
                    factor = method.factors[i // len(instructions)]
                    raise UserError(
                        f"the logits of {method.name!r} became NaN for {concept.name!r} at the factor {factor}: leave "
                        "out this factor, or run the model in float32"
                    )
                text = continuation(tokenizer, prompts[at], new)
                replies.append(Reply(concept, at, instructions[at], text, tuple(plain[at]), tuple(new)))
            on_done(method.name, concept.name)
        found[method.name] = tuple(replies)
    factors = {method.name: tuple(method.factors) for method in methods}
    return Replies(tuple(concepts), tuple(instructions), factors, found)


def _written(
    model: Model,
    steering: Steering | Prefix,
    prompts: Sequence[Sequence[int]],
    factors: np.ndarray,
    writing: Writing,
) -> list[list[int]]:
    """The new tokens of every factor and prompt, prompts fastest. All batches have one shape."""
    tokens, mask = pad_left(prompts)
    strength, row = np.repeat(factors, len(prompts)), np.tile(np.arange(len(prompts)), len(factors))
    found: list[list[int]] = []
    for number, first in enumerate(range(0, len(row), writing.at_once)):
        part = slice(first, first + writing.at_once)
        count = len(row[part])
        filled = np.resize(np.arange(count), min(writing.at_once, len(row)))  # copies fill up the last batch
        each = jnp.asarray(strength[part][filled])[:, None]
        steered = model if isinstance(steering, Prefix) else edit(model, *steering.edits(each))
        key = None if writing.key is None else jax.random.fold_in(writing.key, number)
        new = generate(
            steered, tokens[row[part][filled]], writing.n_new, mask=mask[row[part][filled]],
            choose=writing.choose, key=key, stop=writing.stop,
        )  # fmt: skip
        found += np.asarray(new)[:count].tolist()
    return found


def _until_stop(row: list[int], stop: Sequence[int]) -> list[int]:
    return row[: next((i for i, token in enumerate(row) if token in stop), len(row))]


def _check(concepts: list[str], methods: list[str], instructions: Sequence[str]) -> None:
    for what, names in (("concepts", concepts), ("methods", methods), ("instructions", list(instructions))):
        if not names:
            raise UserError(f"give at least one of the {what}")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{twice!r} is there twice among the {what}")
    if isinstance(instructions, str):
        raise UserError("instructions is a list of texts")
