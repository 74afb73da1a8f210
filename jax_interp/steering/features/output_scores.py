"""The output score of a latent: whether steering with it makes the model write the tokens that its decoder promotes.

    promoted     the tokens whose logits grow most if the decoder direction goes straight to the unembedding
    score        (1 - r / V) p:  p is the highest probability of a promoted token at the last token of a neutral prompt,
                 under steering, r the number of more likely tokens, and V the size of the vocabulary
    rise         the mean over the promoted tokens of  log p(steered) - log p(unsteered)

Source: Arad, Mueller and Belinkov 2025 (arXiv:2505.20063), where `score` is called the output score. They steer the
prompt "From my experience," with 20 promoted tokens. Latents with a low score are poor choices for steering. How well a
latent fires on a concept (`input_scores`) says little about it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from jax_interp.analysis.readout import unembedding
from jax_interp.core.errors import UserError
from jax_interp.core.objectives import log_probabilities
from jax_interp.steering.features.feature_edits import directions_of
from jax_interp.steering.features.feature_steering import FeatureSteering, one_feature, some_features
from jax_interp.steering.features.resumed_run import ResumedRun, begin, resumable_layer
from jax_interp.surgery import Dictionary, Model
from jax_interp.surgery.sparse_coder import as_sparse_coder
from jax_interp.training.placement import automatic
from jax_interp.training.row_pieces import in_pieces


@dataclasses.dataclass(frozen=True, eq=False)
class OutputScores:
    """What steering with each latent alone does to some tokens, for each prompt.

    Args:
      features: the latents.
      tokens: the tokens of each latent.
      score: the output score.
      before: the same number without steering.
      rise: the mean rise of the log-probabilities of the tokens, in nats.
    """

    features: Int[np.ndarray, " feature"]
    tokens: Int[np.ndarray, "feature n"]
    score: Float[np.ndarray, "prompt feature"]
    before: Float[np.ndarray, "prompt feature"]
    rise: Float[np.ndarray, "prompt feature"]

    def best(self, n: int, by: str = "score") -> list[int]:
        """The `n` latents with the highest mean of "score" or "rise" over the prompts, the best first."""
        mean = getattr(self, by).mean(axis=0)
        return self.features[np.argsort(-mean, kind="stable")[:n]].tolist()


def output_scores(
    model: Model,
    steering: FeatureSteering,
    prompts: Sequence[Sequence[int]],
    strength: float = 1.0,
    *,
    tokens: Sequence[int] | None = None,
    n_promoted: int = 20,
    unembed: Callable[[Array], Array] | None = None,
    at_once: int = 32,
) -> OutputScores:
    """The output score of each latent of `steering`, each steered alone at all tokens of the prompt.

    Args:
      model: any causal model that keeps the contract of `jax_interp.surgery`; its output is logits.
      steering: the latents to compare, usually all.
      prompts: the token ids of neutral prompts.
      strength: the strength of each latent.
      tokens: the ids of the tokens of a concept, the same for all latents. None: the promoted tokens of each latent.
      n_promoted: the number of promoted tokens.
      unembed: from directions [n, d] to their effects on the logits [n, vocab]. None: straight through the final norm
        and the unembedding, for a dictionary of the residual stream of a `Decoder`.
      at_once: the number of latents in one forward pass.

    Raises:
      UserError: a prompt is empty, a token does not exist, the dictionary writes several values, the steering does
        not act at all tokens, or a score is not finite.
    """
    if not steering.everywhere:
        raise UserError("output scores are those of steering all tokens: give a steering without pos=, where=, tokens=")
    if len(steering.writes) > 1:
        raise UserError("a crosscoder promotes other tokens from each of its values: score one value at a time")
    if not prompts or not all(map(len, prompts)):
        raise UserError("give at least one prompt, each of at least one token")
    features, activation = np.asarray(steering.features), np.asarray(steering.activation)
    each = some_features(steering, [0]).edits(strength)
    found = []
    for prompt in prompts:
        run, clean = _begin(model, np.asarray([prompt], np.int32), resumable_layer(model, each, np.asarray([prompt])))
        if tokens is None and not found:
            chosen = in_pieces(
                functools.partial(_promoted, steering.dictionary, _lens(model, unembed), n_promoted), (features,), 512
            )
        elif not found:
            chosen = _checked_tokens(tokens or (), clean.shape[-1], len(features))
        program = functools.partial(_scores, model, steering, run, clean, jnp.float32(strength))
        found.append(in_pieces(program, (features, activation, chosen), at_once))
    score, before, rise = (np.stack(column) for column in zip(*found, strict=True))
    if not np.isfinite(score + before + rise).all():
        raise UserError("some output scores are not finite: try float32, or a smaller strength")
    return OutputScores(features, chosen, score, before, rise)


def promoted_tokens(
    dictionary: Dictionary, features: Sequence[int], unembed: Callable[[Array], Array], n: int = 20
) -> Int[np.ndarray, "feature n"]:
    """The tokens whose logits grow most if the decoder direction of each latent goes straight to the unembedding.

    Args:
      dictionary: the dictionary.
      features: the latents.
      unembed: from directions [n, d] to their effects on the logits, such as `jax_interp.analysis.unembedding(model)`.
      n: the number of tokens.
    """
    program = functools.partial(_promoted, dictionary, _lens(None, unembed), n)
    return in_pieces(program, (np.asarray(features, np.int32),), 512)


def _lens(model: Any, unembed: Callable[[Array], Array] | None) -> Callable[[Array], Array]:
    unembed = unembedding(model) if unembed is None else unembed
    return jax.tree_util.Partial(unembed) if jax.tree_util.all_leaves([unembed]) else unembed


def _checked_tokens(tokens: Sequence[int], vocabulary: int, features: int) -> Int[np.ndarray, "feature n"]:
    ids = np.asarray(tokens)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu" or (ids < 0).any() or (ids >= vocabulary).any():
        raise UserError(f"tokens={list(tokens)!r}: give ids from 0 to {vocabulary - 1}")
    return np.tile(ids.astype(np.int32), (features, 1))


@functools.partial(jax.jit, static_argnums=2)
@automatic
def _promoted(
    dictionary: Dictionary, unembed: Any, n: int, features: Int32[Array, " chosen"]
) -> Int32[Array, "chosen n"]:
    effects = unembed(directions_of(as_sparse_coder(dictionary))[features]).astype(jnp.float32)
    return jax.lax.top_k(effects, min(n, effects.shape[-1]))[1].astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=2)
@automatic
def _begin(model: Model, tokens: Array, layer: int | None) -> tuple[ResumedRun, Float[Array, " vocab"]]:
    run = begin(model, jnp.asarray(tokens), layer)
    return run, log_probabilities(run.output(model, ())[0, -1])


@jax.jit
@automatic
def _scores(
    model: Model,
    steering: FeatureSteering,
    run: ResumedRun,
    clean: Float[Array, " vocab"],
    strength: Float[Array, ""],
    features: Int32[Array, " chosen"],
    activation: Float[Array, " chosen"],
    tokens: Int32[Array, "chosen n"],
) -> tuple[Array, Array, Array]:
    def of_one(feature: Array, activation: Array, tokens: Int32[Array, " n"]) -> tuple[Array, Array, Array]:
        edits = one_feature(steering, feature, activation).edits(strength)
        log_p = log_probabilities(run.output(model, edits)[0, -1])
        return _score(log_p, tokens), _score(clean, tokens), jnp.mean(log_p[tokens] - clean[tokens])

    return jax.vmap(of_one)(features, activation, tokens)


def _score(log_p: Float[Array, " vocab"], tokens: Int32[Array, " n"]) -> Float[Array, ""]:
    best = jnp.max(log_p[tokens])
    rank = jnp.sum(log_p > best, dtype=jnp.int32).astype(log_p.dtype)
    return (1 - rank / log_p.shape[-1]) * jnp.exp(best)
