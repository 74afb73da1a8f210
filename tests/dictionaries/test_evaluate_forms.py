"""Dictionaries that write another value than they read, or several: spliced by hand in float64."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.evaluation.downstream import Identity
from jax_interp.dictionaries.evaluation.evaluate import evaluate

PRE, POST = "blocks.1.resid_pre", "blocks.1.resid_post"
TOKENS, KEEP = batch_at(0)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    """x̂ = z W + x W_skip with z = x."""

    W: jax.Array
    W_skip: jax.Array | None = None

    def encode(self, x):
        return x

    def decode(self, z):
        return z @ self.W


def by_hand(model, transform):
    """(mean loss, values before and after block 1), the latter transformed where kept."""
    E, U = np.asarray(model.E, np.float64), np.asarray(model.U, np.float64)
    tokens, keep = np.asarray(TOKENS), np.asarray(KEEP)
    x, values = E[tokens], {}
    for i, block in enumerate(model.blocks):
        before = np.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        after = x + np.tanh((x + before) @ np.asarray(block.W, np.float64))
        if i == 1:
            values = {PRE: x[keep], POST: after[keep]}
            after = np.where(keep[..., None], transform(x, after), after)
        x = after
    logits = (x @ U)[:, :-1]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(log_p, tokens[:, 1:, None], -1)[..., 0]
    return loss[keep[:, :-1] & keep[:, 1:]].mean(), values


def test_a_transcoder_with_a_skip_replaces_what_it_writes():
    model, rng = toy(), np.random.default_rng(0)
    W, skip = 0.3 * rng.standard_normal((16, 16)), 0.8 * np.eye(16)
    result = evaluate(model, PRE, Linear(*(jnp.asarray(a, jnp.float32) for a in (W, skip))), [(TOKENS, KEEP)], POST)
    loss = result.cross_entropy
    spliced, values = by_hand(model, lambda x, y: x @ (W + skip))
    mean = values[POST].mean(0)
    near = {"rel": 1e-5}
    assert loss.spliced == pytest.approx(spliced, **near)
    assert loss.clean == pytest.approx(by_hand(model, lambda x, y: y)[0], **near)
    assert loss.zero_ablated == pytest.approx(by_hand(model, lambda x, y: 0 * y)[0], **near)
    assert loss.mean_ablated == pytest.approx(by_hand(model, lambda x, y: 0 * y + mean)[0], **near)
    error = values[POST] - values[PRE] @ (W + skip)
    fvu = (error**2).sum() / ((values[POST] - mean) ** 2).sum()
    assert result.reconstruction.fvu == pytest.approx(fvu, rel=1e-4)
    assert result.fvu_by_value == {POST: pytest.approx(fvu, rel=1e-4)}


def test_a_crosscoder_is_spliced_at_all_its_values_at_once():
    model, both = toy(), (PRE, POST)
    exact = evaluate(model, both, Identity(), [(TOKENS, KEEP)])
    assert exact.cross_entropy.spliced == pytest.approx(exact.cross_entropy.clean, abs=1e-6)
    assert exact.reconstruction.fvu == 0
    # the two values swapped: read side by side, written the other way round
    swap = np.roll(np.eye(32), 16, axis=0)
    swapped = evaluate(model, both, Linear(jnp.asarray(swap, jnp.float32)), [(TOKENS, KEEP)])
    spliced, values = by_hand(model, lambda x, y: x)  # block 1's output is what it was given; its input is not used
    assert swapped.cross_entropy.spliced == pytest.approx(spliced, rel=1e-5)
    error = ((values[PRE] - values[POST]) ** 2).sum()
    for name in both:
        centred = ((values[name] - values[name].mean(0)) ** 2).sum()
        assert swapped.fvu_by_value[name] == pytest.approx(error / centred, rel=1e-4)
    assert swapped.to_json()["address"] == both


def test_a_value_with_heads_is_taken_as_one_vector():
    from jax_interp.surgery import Site

    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Heads:
        E: jax.Array
        U: jax.Array

        def __call__(self, tokens, *, taps=()):
            site = Site.open(taps)
            z = site("z", self.E[tokens].reshape(*tokens.shape, 2, 8), "batch pos head d_head")
            return site.close(site("logits", z.reshape(*tokens.shape, 16) @ self.U, "batch pos vocab"))

    model, W = Heads(toy().E, toy().U), np.roll(np.eye(16), 3, axis=0) * 0.5
    result = evaluate(model, "z", Linear(jnp.asarray(W, jnp.float32)), [(TOKENS, KEEP)])
    tokens, keep = np.asarray(TOKENS), np.asarray(KEEP)
    E = np.asarray(model.E, np.float64)
    logits = (np.where(keep[..., None], (E @ W)[tokens], E[tokens]) @ np.asarray(model.U, np.float64))[:, :-1]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(log_p, tokens[:, 1:, None], -1)[..., 0][keep[:, :-1] & keep[:, 1:]]
    assert result.cross_entropy.spliced == pytest.approx(loss.mean(), rel=1e-5)
