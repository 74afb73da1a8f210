"""Unlearning: how far an ability can be taken away by clamping latents, without harm to others (SAEBench, C6e).

Latents that are frequent on texts of the ability (`forget`) and rare on other texts (`retain`) are set to a negative
number where they fire. The error of the reconstruction stays. Of several settings, the one counts that takes most of
the ability away while the other abilities keep 99 % of their scores:

    score = 1 - min { ability(setting) : mean over others of other(setting) / other(unchanged) >= 0.99 }

The unchanged model is one of the settings. An ability is a function model -> score between 0 and 1, such as the
accuracy on multiple-choice questions. `token_accuracy` and `choice_accuracy` make such functions.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.data.harvest import TokenBatch, harvest
from jax_interp.dictionaries.evaluation.batch_sums import add_batch
from jax_interp.dictionaries.sparse_coder import EncoderDecoder
from jax_interp.surgery import Model, Splice, at, canonical, edit

Ability = Callable[[Model], float]
"""model -> a score between 0 and 1, higher where the model is more able."""


@dataclasses.dataclass(frozen=True)
class UnlearningConfig:
    """The settings that are tried: all combinations."""

    retain_frequencies: tuple[float, ...] = (0.001, 0.01)
    """Latents that fire on at least this fraction of the retained tokens are never clamped."""
    latents: tuple[int, ...] = (10, 20)
    """The number of latents that are clamped."""
    multipliers: tuple[float, ...] = (25.0, 50.0, 100.0, 200.0)
    """An active latent is set to minus this number."""
    least_kept: float = 0.99
    """The share of the other abilities that must be kept."""
    first: int = 1
    """The positions at the start of each sequence (BOS) that are never changed."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting and what it does."""

    latents: tuple[int, ...]
    multiplier: float
    retain_frequency: float
    forgotten: float
    """The score of the ability to forget."""
    kept: float
    """The mean over other abilities of their score divided by that of the unchanged model."""


@dataclasses.dataclass(frozen=True)
class Unlearning:
    """The result of `unlearning`."""

    unchanged: float
    """The ability of the unchanged model."""
    score: float
    """1 minus the smallest ability that is left at an allowed setting."""
    best: Setting | None
    """The setting with this score. None: no allowed setting is better than the unchanged model."""
    settings: tuple[Setting, ...]
    """All settings, as in the figures of SAEBench."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ClampWhereActive:
    """An edit of latents: those of `indices` that are positive become `value`."""

    indices: Int[Array, " latent"]
    """Latents; a number outside the dictionary stands for none."""
    value: Float[Array, ""]

    def __call__(self, z: Float[Array, "*batch feature"]) -> Float[Array, "*batch feature"]:
        chosen = jnp.zeros((z.shape[-1],), bool).at[self.indices].set(True, mode="drop")
        return jnp.where(jnp.broadcast_to(chosen, z.shape) & (z > 0), self.value.astype(z.dtype), z)


def unlearning(
    model: Model,
    address: str,
    dictionary: EncoderDecoder,
    texts: tuple[Iterable[TokenBatch], Iterable[TokenBatch]],
    ability: Ability,
    others: Mapping[str, Ability],
    config: UnlearningConfig = UnlearningConfig(),
    progress: Callable[[str], None] = lambda line: None,
) -> Unlearning:
    """Measure how far an ability can be taken away.

    Args:
      model: any model that names its values.
      address: the value that the dictionary reads and reconstructs.
      dictionary: an object with `encode` and `decode`.
      texts: (forget, retain): batches of tokens and masks that show the ability, and that do not. They decide which
        latents are clamped, and should not be the texts that the abilities are measured on.
      ability: the ability to take away.
      others: the abilities to keep, by name.
      config: the settings that are tried.
      progress: called with a line after each setting.

    Raises:
      UserError: a score is not between 0 and 1, another ability has the score 0 already, or texts have no kept token.
    """
    address = canonical(address)
    forget, retain = (frequencies(model, address, dictionary, part, config.first) for part in texts)
    start = {name: _score(name, other, model) for name, other in others.items()}
    if not start:
        raise UserError(
            "unlearning needs at least one other ability: without one, breaking the model is the best score"
        )
    if broken := [name for name, score in start.items() if not score]:
        raise UserError(f"the ability {broken[0]!r} has the score 0 in the unchanged model: nothing of it can be kept")
    unchanged = _score("the ability", ability, model)
    spliced = edit(model, at(address, Splice(dictionary, error=True)))
    settings: list[Setting] = []
    measured: dict[tuple[float, ...], tuple[float, float]] = {
        (): (unchanged, 1.0)
    }  # what clamping some latents to some value does; nothing: the unchanged model
    for frequency, n in itertools.product(config.retain_frequencies, config.latents):
        chosen = choose_latents(forget, retain, frequency, n)
        indices = np.full(n, len(forget))  # of one length, so that the model compiles once for each number of latents
        indices[: len(chosen)] = chosen
        for multiplier in config.multipliers:
            clamp = ClampWhereActive(jnp.asarray(indices), jnp.asarray(-multiplier, jnp.float32))
            later = slice(config.first, None) if config.first else None
            key = (*map(int, chosen), multiplier) if len(chosen) else ()
            if key not in measured:
                changed = edit(spliced, at(f"{address}.latents", clamp, pos=later))
                ratios = [_score(name, other, changed) / start[name] for name, other in others.items()]
                measured[key] = _score("the ability", ability, changed), float(np.mean(ratios))
            left, kept = measured[key]
            settings.append(Setting(tuple(map(int, chosen)), multiplier, frequency, left, kept))
            progress(f"unlearning: {len(chosen)} latents to -{multiplier:g}: {left:.3f} left, {kept:.3f} kept")
    allowed = [s for s in settings if s.kept >= config.least_kept and s.forgotten < unchanged]
    best = min(allowed, key=lambda s: s.forgotten, default=None)
    return Unlearning(unchanged, 1 - (unchanged if best is None else best.forgotten), best, tuple(settings))


def choose_latents(
    forget: Float[np.ndarray, " latent"], retain: Float[np.ndarray, " latent"], least: float, n: int
) -> Int[np.ndarray, " chosen"]:
    """The n latents that fire most often on the texts to forget, among those that fire on less than `least` of the
    retained tokens. Fewer if fewer fire at all."""
    candidates = np.flatnonzero((retain < least) & (forget > 0))
    return candidates[np.argsort(-forget[candidates], kind="stable")][:n]


def frequencies(
    model: Model, address: str, dictionary: EncoderDecoder, batches: Iterable[TokenBatch], first: int = 0
) -> Float[np.ndarray, " latent"]:
    """The fraction of kept tokens on which each latent is positive.

    Args:
      model: the model.
      address: the value that the dictionary reads.
      dictionary: the dictionary.
      batches: tokens [seq, pos] and masks.
      first: positions at the start of each sequence that do not count.

    Raises:
      UserError: no token is kept.
    """
    total = None
    for tokens, keep in batches:
        counted = np.asarray(keep) & (np.arange(np.shape(keep)[1]) >= first)[None, :]
        total = add_batch(total, _fires(model, address, dictionary, jnp.asarray(tokens), jnp.asarray(counted)))
    if total is None or not total["tokens"]:
        raise UserError("the texts have no kept token: give batches of (tokens, keep) that have not been used up")
    return total["fires"] / total["tokens"]


def token_accuracy(batches: Sequence[TokenBatch]) -> Ability:
    """An ability: the fraction of tokens that the model predicts as the most likely one.

    Args:
      batches: tokens [seq, pos] and masks. A prediction counts if its token and the next one are kept.

    Raises:
      UserError: (when it is called) no prediction counts.
    """

    def of(model: Model) -> float:
        total = None
        for tokens, keep in batches:
            total = add_batch(total, _right_tokens(model, jnp.asarray(tokens), jnp.asarray(keep)))
        if total is None or not total["n"]:
            raise UserError("token_accuracy: no two neighbouring tokens are kept in any batch")
        return float(total["right"] / total["n"])

    return of


def choice_accuracy(
    prompts: Int[np.ndarray, "question pos"],
    last: Int[np.ndarray, " question"],
    choices: Int[np.ndarray, "question choice"],
    answers: Int[np.ndarray, " question"],
) -> Ability:
    """An ability: the fraction of multiple-choice questions whose answer has the largest logit of all choices.

    Args:
      prompts: tokens, padded at the end.
      last: the position of the last token of each prompt, whose logits are compared.
      choices: the token of each choice, such as those of " A", " B", " C" and " D".
      answers: the number of the right choice.

    Raises:
      UserError: shapes do not fit, or an answer is none of the choices.
    """
    n = len(prompts)
    if not n or last.shape != (n,) or answers.shape != (n,) or choices.ndim != 2 or len(choices) != n:
        raise UserError(
            f"{n} prompts, last {last.shape}, choices {choices.shape}, answers {answers.shape}: one row per question"
        )
    if answers.min() < 0 or answers.max() >= choices.shape[1]:
        raise UserError(f"answers go from {answers.min()} to {answers.max()}; there are {choices.shape[1]} choices")
    arrays = tuple(jnp.asarray(a) for a in (prompts, last, choices, answers))
    return lambda model: float(_right_choices(model, *arrays))


def _score(name: str, ability: Ability, model: Model) -> float:
    score = float(ability(model))
    if not 0 <= score <= 1:
        raise UserError(f"{name} has the score {score}: an ability is a number between 0 and 1, higher for more able")
    return score


@partial(jax.jit, static_argnames="address")
def _fires(model: Any, address: str, dictionary: Any, tokens: Array, keep: Array) -> dict[str, Array]:
    on = (dictionary.encode(harvest(model, address, tokens)) > 0) & keep.reshape(-1)[:, None]
    return {"fires": jnp.sum(on, axis=0, dtype=jnp.int32), "tokens": jnp.sum(keep, dtype=jnp.int32)}


@jax.jit
def _right_tokens(model: Any, tokens: Array, keep: Array) -> dict[str, Array]:
    counted = keep[:, :-1] & keep[:, 1:]
    right = (jnp.argmax(model(tokens)[:, :-1], axis=-1) == tokens[:, 1:]) & counted
    return {"right": jnp.sum(right, dtype=jnp.int32), "n": jnp.sum(counted, dtype=jnp.int32)}


@jax.jit
def _right_choices(model: Any, prompts: Array, last: Array, choices: Array, answers: Array) -> Array:
    logits = model(prompts)[jnp.arange(len(prompts)), last].astype(jnp.float32)
    chosen = jnp.argmax(jnp.take_along_axis(logits, choices, axis=1), axis=1)
    return jnp.mean((chosen == answers).astype(jnp.float32))
