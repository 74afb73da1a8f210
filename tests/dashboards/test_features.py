"""Features found by looking: on a model where every answer can be counted by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards.features import features_on_token, logit_effect, top_activations

BATCHES = [batch_at(i) for i in range(3)]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ByToken:
    """Feature t is on exactly at token t, with strength t; found from the embedding, which it reads."""

    E: jax.Array

    @property
    def W_dec(self):
        return self.E

    def encode(self, x):
        score = x @ self.E.T
        own = jnp.sum(self.E * self.E, axis=1)
        hit = jnp.argmax(score - own[None] / 2, axis=-1)  # the nearest embedding
        on = (hit[:, None] == jnp.arange(len(self.E))[None]).astype(x.dtype)
        return on * jnp.arange(len(self.E), dtype=x.dtype)[None]

    def decode(self, z):
        return z @ self.E


def kept_tokens():
    return np.concatenate([np.asarray(t)[np.asarray(k)] for t, k in BATCHES])


def test_the_feature_of_a_token_is_found():
    model = toy()
    found = features_on_token(model, "embed", ByToken(model.E), BATCHES, token=23, n=3)
    count = int((kept_tokens() == 23).sum())
    assert found.features[0] == 23
    assert found.occurrences == count > 0
    assert (found.mean_on[0], found.rate_on[0], found.mean_elsewhere[0], found.rate_elsewhere[0]) == (23, 1, 0, 0)
    with pytest.raises(UserError, match="token 0 stands at no kept position"):
        features_on_token(model, "embed", ByToken(model.E), BATCHES, token=0)  # BOS is masked


def test_the_strongest_activations_come_with_their_contexts():
    model = toy()

    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Loudness(ByToken):
        def encode(self, x):
            return jnp.stack([ByToken.encode(self, x).sum(-1), -jnp.ones(len(x))], 1)  # the number of the token

    contexts = top_activations(model, "embed", Loudness(model.E), BATCHES, features=[0, 1], n=9, before=2, after=1)
    tokens, keep = (np.concatenate([np.asarray(b[i]) for b in BATCHES]) for i in range(2))
    shown = np.pad(np.where(keep, tokens, -1), ((0, 0), (2, 1)), constant_values=-1)
    flat = np.where(keep, tokens, 0).ravel()
    order = np.argsort(-flat, kind="stable")[:9]
    np.testing.assert_array_equal(contexts.peak[0], flat[order])
    for i, place in enumerate(order):
        seq, pos = divmod(place, tokens.shape[1])
        window = shown[seq, pos : pos + 4]
        np.testing.assert_array_equal(contexts.tokens[0, i], window)
        np.testing.assert_array_equal(contexts.scores[0, i], np.where(window >= 0, window, 0))
    assert (contexts.peak[1] == 0).all()  # a feature that never fires has no context
    assert (contexts.tokens[1] == -1).all()
    with pytest.raises(UserError, match=f"from 0 to {len(model.E) - 1}"):
        top_activations(model, "embed", Loudness(model.E), BATCHES, features=[len(model.E)])


def test_logit_effects_are_those_of_the_direction_alone():
    model = toy()
    for unembed in (model.U, lambda v: v @ model.U):
        promoted, suppressed = logit_effect(ByToken(model.E), 5, unembed, n=4)
        effects = np.asarray(model.E[5], np.float64) @ np.asarray(model.U, np.float64)
        effects -= effects.mean()
        np.testing.assert_array_equal(promoted.tokens, np.argsort(-effects)[:4])
        np.testing.assert_array_equal(suppressed.tokens, np.argsort(effects)[:4])
        np.testing.assert_allclose(promoted.effects, np.sort(effects)[::-1][:4], rtol=1e-5)
    with pytest.raises(UserError, match="feature 40"):
        logit_effect(ByToken(model.E), 40, model.U)
