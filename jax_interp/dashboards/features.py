"""Which latents of a dictionary fire on a token, what a latent fires on, and what it writes.

    found = features_on_token(model, address, sae, batches, token=tokenizer.id_of("self"))
    windows = top_activations(model, address, sae, batches, features=found.features[:5], n=8)
    promoted, suppressed = logit_effect(sae, feature=17, unembed=W_U(fold_layernorm(model)), n=10)

`W_U` is in `jax_interp.analysis`. `fold_layernorm` is in `jax_interp.models.processing`; it multiplies the weight of
the final norm into the unembedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards.collector import Batches, collect
from jax_interp.dashboards.decoder_directions import Unembedding, logit_lens
from jax_interp.dashboards.statistics import OnToken, TokenContrast, TopWindows
from jax_interp.dashboards.windows import Windows
from jax_interp.data.harvest import Addresses, harvest
from jax_interp.surgery.contract import Model


class Encoder(Protocol):
    """The part of a dictionary that dashboards need."""

    @property
    def W_dec(self) -> Float[Array, "feature d"]: ...

    def encode(self, x: Float[Array, "row d"]) -> Float[Array, "row feature"]: ...


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Latents:
    """The score function of a dictionary. The scores are its latents.

    Args:
      dictionary: the dictionary.
      features: the features to score. None: all.
      address: the address that the dictionary reads.
    """

    dictionary: Encoder
    features: Int[Array, " feature"] | None
    address: Addresses = dataclasses.field(metadata={"static": True})

    def __call__(self, model: Model, tokens: Int[Array, "seq pos"]) -> Float[Array, "row feature"]:
        latents = self.dictionary.encode(harvest(model, self.address, tokens))
        return latents if self.features is None else latents[:, self.features]


@dataclasses.dataclass(frozen=True)
class TokenFeatures:
    """Features that fire on one token, or on any of several, more than elsewhere.

    Args:
      token: the id of the token, or the ids.
      occurrences: the number of kept positions with this token.
      features: the features, in descending order of `mean_on - mean_elsewhere`.
      mean_on: mean activation at the token.
      mean_elsewhere: mean activation at the other kept positions.
      rate_on: the fraction of positions with the token at which the feature fires.
      rate_elsewhere: the fraction of the other kept positions at which the feature fires.
    """

    token: int | tuple[int, ...]
    occurrences: int
    features: Int[np.ndarray, " n"]
    mean_on: Float[np.ndarray, " n"]
    mean_elsewhere: Float[np.ndarray, " n"]
    rate_on: Float[np.ndarray, " n"]
    rate_elsewhere: Float[np.ndarray, " n"]


def features_on_token(
    model: Model,
    address: Addresses,
    dictionary: Encoder,
    batches: Batches,
    token: int | Sequence[int],
    n: int = 20,
) -> TokenFeatures:
    """Find the features that fire most on a token, compared with their mean activation elsewhere.

    Args:
      model: the model that the dictionary was trained on.
      address: the address that the dictionary reads.
      dictionary: any dictionary that works on raw activations.
      batches: pairs `(tokens, keep)`.
      token: the id of the token. Several ids: the positions that hold any of them, such as a word with and without a
        space before it.
      n: the number of features to return.

    Returns:
      The features, with their mean activations and rates.

    Raises:
      UserError: no kept position holds the token, or `token` is not an id.
    """
    ids = np.asarray(token)
    if ids.dtype.kind not in "iu" or ids.ndim > 1 or not ids.size:
        raise UserError(f"token={token!r}: give the id of a token, or a list of ids, as `tokenizer.id_of` returns it")
    token = int(ids) if not ids.ndim else tuple(map(int, ids))
    scores = Latents(dictionary, None, _static(address))
    found: TokenContrast = collect(scores, model, batches, {"": OnToken(jnp.asarray(ids, jnp.int32))})[""]
    if not found.count[0]:
        raise UserError(
            f"token {token} stands at no kept position of these batches: choose another token, or more text"
        )
    (mean_on, mean_elsewhere), (rate_on, rate_elsewhere) = found.mean, found.rate
    best = np.argsort(mean_elsewhere - mean_on, kind="stable")[:n]
    figures = (values[best] for values in (mean_on, mean_elsewhere, rate_on, rate_elsewhere))
    return TokenFeatures(token, found.count[0], best, *figures)


def top_activations(
    model: Model,
    address: Addresses,
    dictionary: Encoder,
    batches: Batches,
    features: Sequence[int],
    n: int = 10,
    before: int = 12,
    after: int = 4,
) -> Windows:
    """Find the strongest activations of some features, with the tokens around them.

    Args:
      model: the model that the dictionary was trained on.
      address: what the dictionary reads.
      dictionary: any dictionary, for raw activations.
      batches: pairs `(tokens, keep)`.
      features: which features.
      n: windows for each feature.
      before: tokens before the position that fires.
      after: tokens after it.

    Returns:
      The windows, in the order of `features`. Of equal activations the earlier one comes first.

    Raises:
      UserError: the dictionary has no such feature, or there is no batch.
    """
    chosen, count = np.asarray(features, np.int32), dictionary.W_dec.shape[0]
    if (chosen < 0).any() or (chosen >= count).any():
        raise UserError(f"features {chosen.tolist()} of a dictionary of {count}: give features from 0 to {count - 1}")
    scores = Latents(dictionary, jnp.asarray(chosen), _static(address))
    return collect(scores, model, batches, {"": TopWindows(n, before, after)})[""]


def _static(address: Addresses) -> Addresses:
    return address if isinstance(address, str) else tuple(address)


@dataclasses.dataclass(frozen=True)
class LogitEffect:
    """Tokens sorted by the change of their logits, and these changes."""

    tokens: Int[np.ndarray, " n"]
    effects: Float[np.ndarray, " n"]


def logit_effect(
    dictionary: Encoder,
    feature: int,
    unembed: Unembedding,
    n: int = 10,
) -> tuple[LogitEffect, LogitEffect]:
    """Find the tokens whose logits change most if a feature's decoder direction goes directly to the unembedding.

    Args:
      dictionary: any dictionary.
      feature: the index of the feature.
      unembed: a matrix, or a function of directions, [1, d] to [1, vocab], such as `unembedding(model)`. If the model
        has a final norm, its weight should be multiplied into it. The denominator of the norm depends on the rest of
        the residual stream, and only scales the effects.
      n: the number of tokens in each direction.

    Returns:
      `(promoted, suppressed)`. Effects are differences from their mean over the vocabulary, since a constant added to
      every logit changes nothing.

    Raises:
      UserError: the dictionary has no such feature.
    """
    if not 0 <= feature < dictionary.W_dec.shape[0]:
        raise UserError(f"feature {feature} of a dictionary of {dictionary.W_dec.shape[0]}")
    promoted, suppressed, _ = logit_lens(dictionary.W_dec, np.asarray([feature]), unembed, n, bins=1)
    return tuple(LogitEffect(one.tokens[0], one.effects[0]) for one in (promoted, suppressed))  # type: ignore[return-value]
