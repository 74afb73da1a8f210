"""The measures of toys: right in every layout and dtype and under surgery, or refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generated import drawn
from small_models import peaky

from jax_interp.core.errors import UserError
from jax_interp.surgery import Scale, at, edit, read, replan
from jax_interp.toys import find_toy
from jax_interp.toys.boolean_circuit import boolean_model, hop_kept
from jax_interp.toys.gated_pwl import GatedPWLConfig, gated_pwl
from jax_interp.toys.induction import attention_scores, induction_loss
from jax_interp.toys.layers import Linear
from jax_interp.toys.modular_addition import (
    ModularConfig,
    all_pairs,
    answer_logits,
    evaluate_modular,
    mlp_activations,
    mlp_to_logits,
    pair_tokens,
)
from jax_interp.toys.progress_measures import (
    fourier_basis,
    frequency_shares,
    gini,
    key_frequencies,
    neuron_frequencies,
    progress,
)
from jax_interp.toys.resid_mlp import ResidMLPConfig, collapse, in_features, init_resid_mlp
from jax_interp.toys.rotations import rotation_errors, rotations

P = 7
LAYOUTS = ("", "*", "0")


def drawn_modular(rng: np.random.Generator) -> tuple[Any, str]:
    """A config of a transformer for pairs, near the one that the fast formula is for or far from it."""
    base = ModularConfig(P, d_model=12, n_heads=4, d_mlp=10).model
    changes: dict[str, Any] = {
        "none": {}, "one key head": {"n_kv_heads": 1}, "grouped": {"n_kv_heads": 2}, "tied": {"tied_embedding": True},
        "norm": {"norm": "rmsnorm"}, "gated": {"gated_mlp": True}, "two layers": {"n_layers": 2},
        "softcap": {"logit_softcap": 2.0}, "heads": {"d_head": 5}, "no bias": {"mlp_bias": False},
        "unembedding bias": {"unembed_bias": True}, "scaled": {"embed_scale": 2.0, "attn_scale": 0.3},
    }  # fmt: skip
    name = str(rng.choice(["none", "none", *changes]))
    return dataclasses.replace(base, **changes[name]), name


PAIRS = tuple(np.asarray(one, np.int32) for one in all_pairs(P))
MASK, KEYS = np.arange(P * P) % 3 == 0, np.array([True, False, True])


@jax.jit
def measured(model: Any) -> Any:
    a, b = map(jnp.asarray, PAIRS)
    return answer_logits(model, a, b), mlp_activations(model, a, b), evaluate_modular(model, jnp.asarray(MASK), P)


def called_in_float64(narrow: Any, wrap: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the numbers and neurons of the last layer, from the unrolled model, called as it is."""
    address = "blocks.-1.mlp.post"
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = wrap(jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), replan(narrow, "*")))
        logits, acts = read(wide, address)(pair_tokens(*map(jnp.asarray, PAIRS), P))
    return np.asarray(logits)[:, -1, :P], np.asarray(acts[address])[:, -1]


def wrong_measures(case: int) -> list[str]:
    """The measures that are wrong in one drawn case."""
    rng = np.random.default_rng([40, case])
    config, change = drawn_modular(rng)
    dtype, layout = (jnp.float32, jnp.bfloat16, jnp.float16)[case % 3], LAYOUTS[int(rng.integers(3))]
    edited = bool(rng.integers(2))
    narrow = peaky(config, seed=case, dtype=dtype)
    halved = at("blocks.0.attn_out", Scale(np.float32(0.5)))
    wrap = lambda model: edit(model, halved) if edited else model
    model, wrong = wrap(replan(narrow, layout or ())), []
    logits, post, losses = measured(model)
    right, right_post = called_in_float64(narrow, wrap)
    tolerance = 1e-4
    for name, one, other in (("logits", logits, right), ("neurons", post, right_post)):
        if not np.abs(np.asarray(one) - other).max() < tolerance * np.abs(other).max():
            wrong.append(name)
    nats = np.log(np.exp(right).sum(axis=1)) - right[np.arange(P * P), (PAIRS[0] + PAIRS[1]) % P]
    if not np.isclose(losses["train_loss"], nats[MASK].mean(), rtol=tolerance):
        wrong.append(f"train_loss {losses['train_loss']}, not {nats[MASK].mean()}")
    shares = np.asarray(frequency_shares(model))
    if not (np.isfinite(shares).all() and shares.sum() < 1.001):
        wrong.append(f"shares {shares}")
    try:
        found = progress(model, jnp.asarray(MASK), jnp.asarray(KEYS))
        unembed = narrow.embed.weight[...].T if config.tied_embedding else narrow.unembed.weight[...]
        down = np.asarray(replan(narrow, "*").blocks[0].mlp.down.weight[...], np.float64)
        right_map = down @ np.asarray(unembed, np.float64)[:, :P]
        ok = np.allclose(mlp_to_logits(model), right_map, rtol=1e-3, atol=1e-5)
        ok = ok and all(np.isfinite(value) for value in found.values())
    except UserError:
        ok = config.norm != "none" or config.n_layers > 1
    wrong += [] if ok else ["progress"]
    return [f"case {case}: {change}, {dtype.__name__}, layout {layout!r}, edited {edited}: {name}" for name in wrong]


@pytest.mark.slow
@pytest.mark.hardening
def test_measures_of_modular_addition_are_right_or_refused(tally):
    """Against the unrolled model in float64."""
    tried = drawn(4, 12)
    broken = [line for case in range(tried) for line in wrong_measures(case)]
    tally("measures of modular addition", tried=5 * tried, broken=len(broken))
    assert not broken, "\n".join(broken)


def test_the_layout_of_loaded_models():
    config = ModularConfig(P, d_model=12, n_heads=4, d_mlp=10)
    stacked = peaky(config.model)
    assert key_frequencies(stacked) == key_frequencies(replan(stacked, "*"))


def test_what_progress_measures_refuse():
    model = peaky(ModularConfig(P, d_model=12, n_heads=4, d_mlp=10).model)
    for wrong in (
        lambda: fourier_basis(8),
        lambda: fourier_basis(1),
        lambda: neuron_frequencies(jnp.ones((48, 3)), P),
        lambda: progress(model, jnp.ones(48, bool), jnp.ones(3, bool)),
        lambda: progress(model, jnp.ones(49, bool), jnp.ones(4, bool)),
        lambda: key_frequencies(peaky(ModularConfig(6, d_model=12, n_heads=4, d_mlp=10).model)),
    ):
        with pytest.raises(UserError):
            wrong()
    assert float(gini(jnp.zeros(5))) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_measures_of_other_toys_do_not_depend_on_the_layout(layout, dtype):
    key = jax.random.key(0)
    cast = lambda model: jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, model)
    same = lambda one, other: jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, float), np.asarray(b, float), rtol=1e-5 if dtype == jnp.float32 else 3e-2, atol=1e-3
        ),
        one,
        other,
    )
    to = lambda model: replan(model, layout or ())

    resid = cast(init_resid_mlp(key, ResidMLPConfig(n_features=6, d_embed=20, n_layers=2, d_mlp=3)))
    x = jax.random.normal(key, (4, 6)).astype(dtype)
    same(in_features(to(resid), x), resid(x))
    same(collapse(to(resid))(x.astype(jnp.float32)), resid(x))
    one = init_resid_mlp(key, ResidMLPConfig(n_features=6, d_embed=9, n_layers=1, d_mlp=3))
    same(to(one).known_features().parts, one.known_features().parts)

    turning = cast(rotations(key, T=6, D=40, S=3, layers=2))
    same(rotation_errors(to(turning), key, 2, batch=4, chunks=1), rotation_errors(turning, key, 2, batch=4, chunks=1))
    gated, truth = gated_pwl(key, GatedPWLConfig(n_functions=2, n_neurons=4))
    same(truth.mechanisms(to(gated)), truth.mechanisms(gated))
    toy = find_toy("gated-pwl")
    same(toy.sample(to(gated), key, 3), toy.sample(gated, key, 3))
    circuit = boolean_model(key)
    same(hop_kept(to(circuit), circuit), jnp.ones(()))
    induction = cast(find_toy("induction").example(key))
    tokens, period = jnp.asarray([[1, 2, 3, 4] * 3], jnp.int32), jnp.asarray([4])
    measured = lambda model: (attention_scores(model, tokens, period), induction_loss(model, tokens, period))
    same(measured(to(induction)), measured(induction))


def test_shortcuts_through_the_weights_refuse_what_they_do_not_compute():
    """`in_features` and `collapse` multiply matrices. They would leave out an edit, a bias, a replaced layer."""
    model = init_resid_mlp(jax.random.key(0), ResidMLPConfig(n_features=6, d_embed=20, n_layers=2, d_mlp=3))
    first = model.blocks[0]
    biased = dataclasses.replace(
        first, mlp=dataclasses.replace(first.mlp, down=Linear(first.mlp.down.weight, jnp.ones(20)))
    )
    for wrong in (
        edit(model, at("blocks.0.mlp_out", Scale(jnp.asarray(0.5)))),
        dataclasses.replace(model, blocks=[biased, model.blocks[1]]),
    ):
        for shortcut in (lambda m: in_features(m, jnp.ones((2, 6))), collapse):
            with pytest.raises(UserError, match="without surgery, biases and replaced layers"):
                shortcut(wrong)
