"""Rematerialisation by name: the same numbers, less memory, and no name that does nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import flatten
from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.models.language_modelling import next_token_loss
from jax_interp.surgery import Scale, at, edit, grad_at, read, remat, replan

CONFIG = Config(n_layers=6, d_model=32, n_heads=2, d_mlp=128, vocab_size=64, n_ctx=64)
LAYOUTS = {"stacked": (), "unrolled": "*", "mixed": "1:3"}
SAVED = {"block inputs": {}, "two values": {"save": ("attn.z", "mlp.post")}, "on the host": {"offload": ("mlp.post",)}}


@pytest.fixture(scope="module")
def model():
    return init(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (4, 33), 0, 64)


def gradient_of(kept: dict | None):
    return jax.jit(jax.grad(lambda m, t: next_token_loss(m if kept is None else remat(m, **kept), t)))


CASES = [
    pytest.param(layout, kept, marks=() if layout == "stacked" else pytest.mark.slow)
    for layout in LAYOUTS
    for kept in SAVED
]


@pytest.mark.parametrize(("layout", "kept"), CASES)
def test_gradients_are_those_of_the_model(model, tokens, layout, kept):
    model = replan(model, LAYOUTS[layout])
    ours, plain = (flatten(gradient_of(k)(model, tokens)) for k in (SAVED[kept], None))
    assert ours.keys() == plain.keys()
    for name in plain:
        np.testing.assert_allclose(ours[name], plain[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_what_is_kept_is_what_the_names_say(model, tokens):
    """By the compiler's own account: each name that is saved costs its bytes, for every layer."""

    def temporary(kept: dict | None) -> int:
        analysis: Any = gradient_of(kept).lower(model, tokens).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    none, plain = temporary({}), temporary(None)
    post = 6 * 4 * 32 * 128 * 4  # layers, rows, positions, d_mlp, bytes
    assert none < plain - 2 * post
    assert none < temporary({"save": ("mlp.post",)}) < plain
    assert 0.5 * post < temporary({"save": ("mlp.post",)}) - none < 2 * post


def test_it_composes_with_reads_edits_and_gradients_at_values(model, tokens):
    small, half = remat(model, save=("attn.z",)), at("blocks.2.resid_post", Scale(0.5))
    ours, acts = read(edit(small, half), "blocks.*.mlp_out")(tokens)
    plain, expected = read(edit(model, half), "blocks.*.mlp_out")(tokens)
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    np.testing.assert_allclose(acts["blocks.*.mlp_out"], expected["blocks.*.mlp_out"], atol=1e-5)
    np.testing.assert_allclose(remat(edit(model, half))(tokens), edit(small, half)(tokens), atol=1e-5)
    at_values = lambda m: grad_at(m, "blocks.3.resid_post")(lambda y: jnp.mean(jax.nn.logsumexp(y, axis=-1)))(tokens)
    for one, other in zip(jax.tree.leaves(at_values(small)), jax.tree.leaves(at_values(model)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_wrong_name_is_refused_with_all_names(model, tokens):
    with pytest.raises(
        UserError, match=r"no value in the blocks is named 'mlp.pots'; did you mean mlp.post.*resid_mid"
    ):
        gradient_of({"save": ("mlp.pots",)})(model, tokens)
    with pytest.raises(UserError, match="no value in the blocks is named 'embed'"):
        remat(model, save=("embed",))(tokens)


@pytest.mark.parametrize(
    ("kept", "message"),
    [({"save": "attn.z"}, "as a tuple"), ({"save": ("attn.z",), "offload": ("attn.z",)}, "in save and in offload")],
)
def test_other_mistakes(model, kept, message):
    with pytest.raises(UserError, match=message):
        remat(model, **kept)


def test_a_model_without_the_argument_is_refused():
    class Plain:
        def __call__(self, x, *, taps=(), **kwargs):
            return x

    with pytest.raises(UserError, match="Plain does not take remat="):
        remat(Plain())
