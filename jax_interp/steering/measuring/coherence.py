"""Coherence of steered text: how likely it is for the unsteered model, and how much it repeats itself.

found = coherence(model, prompts, vector, (0.0, 4.0), n_new=40)
found.loss, found.repetition, found.tokens
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.objectives import cross_entropy
from jax_interp.models.generation.generate import GREEDY, generate, pad_left
from jax_interp.models.generation.sampling import Chooser
from jax_interp.steering.measuring.side_effects import check_finite, mean_of_counted, text_rows
from jax_interp.steering.measuring.spread import Spread, spread
from jax_interp.steering.measuring.steered_rows import BATCHING, Batching, at_strengths, checked_strengths
from jax_interp.steering.measuring.unsteered import UNSTEERED
from jax_interp.steering.vector import Steering
from jax_interp.surgery import Model, edit
from jax_interp.training.placement import automatic


@dataclasses.dataclass(frozen=True)
class Coherence:
    """Continuations of prompts, steered at several strengths.

    Args:
      strengths: the strengths.
      loss: the loss of the continuations for the unsteered model, in nats per token, at each strength. Their perplexity
        is its exponential.
      repetition: the share of n-grams of a continuation that stand earlier in it, at each strength.
      unsteered_loss: the loss of the unsteered continuations.
      unsteered_repetition: their repetition.
      tokens: the tokens of each continuation, of each prompt at each strength.
      unsteered_tokens: the tokens of the unsteered continuation of each prompt.
      ngram: the length of n-grams.
    """

    strengths: tuple[float, ...]
    loss: tuple[Spread, ...]
    repetition: tuple[Spread, ...]
    unsteered_loss: Spread
    unsteered_repetition: Spread
    tokens: tuple[tuple[tuple[int, ...], ...], ...]
    unsteered_tokens: tuple[tuple[int, ...], ...]
    ngram: int


@dataclasses.dataclass(frozen=True)
class Continuing:
    """How prompts are continued.

    Args:
      n_new: the number of new tokens.
      choose: how a token is chosen.
      seed: the seed of a chooser that samples.
      stop: token ids that end a continuation. They belong to it.
      ngram: the length of n-grams whose repetition is counted.
    """

    n_new: int = 40
    choose: Chooser = GREEDY
    seed: int = 0
    stop: tuple[int, ...] = ()
    ngram: int = 3


CONTINUING = Continuing()


def coherence(
    model: Model,
    prompts: Sequence[Sequence[int]],
    steering: Steering,
    strengths: Sequence[float],
    how: Continuing = CONTINUING,
    *,
    batching: Batching = BATCHING,
) -> Coherence:
    """Continue prompts under a steering, and judge the continuations by the unsteered model.

    Args:
      model: a `Decoder`.
      prompts: the token ids of each prompt, BOS included if the model has one.
      steering: the steering. It acts at the tokens of the prompt and at new tokens, where it allows it.
      strengths: the strengths.
      how: how prompts are continued.
      batching: how many rows are continued at once.

    Raises:
      UserError: logits of a row are NaN, or as in `generate`.
    """
    found = checked_strengths(strengths)
    if how.n_new < how.ngram or how.ngram < 1:
        raise UserError(f"n_new={how.n_new} must be at least ngram={how.ngram}, which is at least 1")
    of_prompt, of_strength = np.divmod(np.arange(len(prompts) * len(found)), len(found))
    steered = _continued(model, [prompts[i] for i in of_prompt], steering, found[of_strength], how, batching.rows)
    own = _continued(model, prompts, UNSTEERED, np.zeros(len(prompts)), how, batching.rows)
    before = [*(prompts[i] for i in of_prompt), *prompts]
    losses = _losses(model, before, [*steered, *own], batching)
    repeated = np.asarray([repetition(ids, how.ngram) for ids in (*steered, *own)])
    n, shape = len(steered), (len(prompts), len(found))
    each = lambda values: tuple(spread(of) for of in values[:n].reshape(shape).T)
    return Coherence(
        tuple(found.tolist()),
        each(losses),
        each(repeated),
        spread(losses[n:]),
        spread(repeated[n:]),
        tuple(tuple(steered[i * shape[1] : (i + 1) * shape[1]]) for i in range(shape[0])),
        tuple(own),
        how.ngram,
    )


def repetition(ids: Sequence[int], ngram: int) -> float:
    """The share of the n-grams of a text that stand earlier in it: 0 if all differ. 0 for a text of less than n tokens.

    Args:
      ids: the tokens.
      ngram: the length of n-grams.
    """
    grams = [tuple(ids[i : i + ngram]) for i in range(len(ids) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _continued(
    model: Model,
    prompts: Sequence[Sequence[int]],
    steering: Steering,
    strengths: Float[np.ndarray, " row"],
    how: Continuing,
    rows: int,
) -> list[tuple[int, ...]]:
    """The new tokens of each prompt, up to its stop token."""
    tokens, mask = pad_left(prompts)
    rows = min(rows, len(prompts))
    found: list[tuple[int, ...]] = []
    for number, start in enumerate(range(0, len(prompts), rows)):
        filled = np.minimum(np.arange(start, start + rows), len(prompts) - 1)
        strength = jnp.asarray(strengths[filled, None], jnp.float32)
        new = generate(
            edit(model, *steering.edits(strength)),
            tokens[filled],
            how.n_new,
            mask=mask[filled],
            choose=how.choose,
            key=jax.random.fold_in(jax.random.key(how.seed), number),
            stop=how.stop,
        )
        for row, ids in zip(filled[: len(prompts) - start], np.asarray(new).tolist(), strict=False):
            if min(ids) < 0:
                raise UserError(
                    f"the logits of a continuation are NaN at strength {strengths[row]:g}: use smaller strengths"
                )
            end = next((i + 1 for i, token in enumerate(ids) if token in how.stop), len(ids))
            found.append(tuple(ids[:end]))
    return found


def _losses(
    model: Model, prompts: Sequence[Sequence[int]], new: Sequence[Sequence[int]], batching: Batching
) -> Float[np.ndarray, " text"]:
    """The mean loss of each continuation for the unsteered model."""
    texts = [(*prompt, *ids) for prompt, ids in zip(prompts, new, strict=True)]
    rows = text_rows(texts, [len(prompt) for prompt in prompts])
    found = at_strengths(_loss, model, UNSTEERED, rows, np.zeros(1), batching)["loss"]
    check_finite(found, np.zeros(1), "continuations", "text")
    return found[:, 0]


@jax.jit
@automatic
def _loss(model: Model, steering: Steering, strength: Array, inputs: dict[str, Any]) -> dict[str, Array]:
    more: dict[str, Any] = {} if inputs["mask"] is None else {"mask": inputs["mask"]}
    losses = cross_entropy(model(inputs["tokens"], **more), inputs["following"])
    return {"loss": mean_of_counted(losses, inputs["counted"])}
