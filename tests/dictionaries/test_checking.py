"""The self-test of loaded dictionaries: each fault that a reader could make is found, and right dictionaries pass."""

from __future__ import annotations

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.dictionaries import ReLU, TopK, check_dictionary, evaluate, load_dictionary, save_dictionary
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.checking import check_weights
from jax_interp.dictionaries.forms import Dictionary, init_sae
from jax_interp.dictionaries.forms.cross_layer import from_transcoders
from jax_interp.dictionaries.storage import Saved
from tests.toy import batch_at, toy

D = 32
MODEL, BATCHES = toy(), [batch_at(0), batch_at(1)]


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def trained_like(m=64, d=D, **changes) -> Dictionary:
    """Unit decoder rows, and encoder columns that nearly agree with them."""
    W_dec = random(m, d)
    W_dec = W_dec / jnp.linalg.norm(W_dec, axis=1, keepdims=True)
    W_enc = (W_dec + 0.1 * random(m, d, seed=1)).T
    made = Dictionary(W_enc, -0.1 * jnp.ones(m), W_dec, 0.3 * random(d, seed=2), ReLU(), centred=False)
    return dataclasses.replace(made, **changes)


def names(dictionary, **labels) -> list[tuple[str, bool]]:
    return [(found.name, found.is_error) for found in check_weights(Saved(dictionary, "embed", "toy", **labels))]


SQUARE = trained_like(m=D)
FAULTS = {
    "decoder transposed": (dataclasses.replace(SQUARE, W_dec=SQUARE.W_dec.T), ("orientation", True)),
    "encoder transposed": (dataclasses.replace(SQUARE, W_enc=SQUARE.W_enc.T), ("orientation", True)),
    "both transposed": (
        dataclasses.replace(SQUARE, W_enc=SQUARE.W_enc.T, W_dec=SQUARE.W_dec.T), ("orientation", True)
    ),
    "rows shuffled": (trained_like(W_enc=jnp.roll(trained_like().W_enc, 1, axis=1)), ("orientation", False)),
    "decoder far too small": (trained_like(W_dec=trained_like().W_dec * 1e-5), ("decoder norms", False)),
    "decoder far too large": (trained_like(W_dec=trained_like().W_dec * 1e5), ("decoder norms", False)),
    "decoder mostly zero": (trained_like(W_dec=trained_like().W_dec.at[:40].set(0)), ("decoder norms", False)),
    "thresholds never set": (trained_like(activation=Jump.of(-jnp.ones(64))), ("thresholds", False)),
    "one logarithm": (trained_like(activation=Jump.of(jnp.ones(64).at[3].set(-2.0))), ("thresholds", False)),
    "pre-bias twice": (
        trained_like(centred=True, b_enc=-(trained_like().b_dec @ trained_like().W_enc)), ("bias", False)
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_its_name(fault):
    dictionary, wanted = FAULTS[fault]
    assert wanted in names(dictionary)


@pytest.mark.parametrize(
    "right",
    [
        trained_like(),
        SQUARE,
        trained_like(activation=Jump.of(jnp.full(64, 0.2))),
        trained_like(activation=TopK(4), centred=True),
        init_sae(jax.random.key(0), D, 64, ReLU(), jnp.ones(D), centred=False),  # b_enc is -b_dec W_enc on purpose
        init_sae(jax.random.key(0), D, D, ReLU()),
    ],
)
def test_right_dictionaries_pass(right):
    assert names(right) == []


def test_a_transcoder_has_no_orientation_of_its_own():
    """It reads one value and writes another of the same width: its directions need not agree."""
    shuffled = dataclasses.replace(SQUARE, W_enc=random(D, D, seed=5))
    assert ("orientation", False) in names(shuffled)
    assert names(shuffled, writes="blocks.0.mlp_out") == []


def test_sources_of_a_cross_layer_dictionary_are_named():
    small = trained_like(W_dec=1e-5 * trained_like().W_dec)
    both = from_transcoders([trained_like(), small])
    (found,) = check_weights(Saved(both, ("a", "b"), "toy", writes=("c", "d")))
    assert found.message.startswith("source 1: the median norm of decoder rows")


def test_loading_warns_and_refuses(tmp_path):
    save_dictionary(tmp_path / "warns", FAULTS["rows shuffled"][0], address="embed", model="toy")
    with pytest.warns(UserWarning, match="warns, orientation: the mean cosine"):
        load_dictionary(tmp_path / "warns")
    wrong = FAULTS["decoder transposed"][0]
    save_dictionary(tmp_path / "wrong", wrong, address="embed", model="toy")
    with pytest.raises(UserError, match=r"fails the self-test \(orientation\).*check=False loads it anyway"):
        load_dictionary(tmp_path / "wrong")
    np.testing.assert_array_equal(load_dictionary(tmp_path / "wrong", check=False).dictionary.W_dec, wrong.W_dec)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_dictionary(tmp_path / "right", trained_like(), address="embed", model="toy")
        load_dictionary(tmp_path / "right")


ADDRESS, WIDTH = "blocks.0.resid_post", 16


def exact(d: int) -> Dictionary:
    """It reconstructs any value that is not long, with as many features as dimensions: all latents stay on."""
    W_dec = random(d, d)
    W_enc = jnp.asarray(np.linalg.inv(np.asarray(W_dec, np.float64)), jnp.float32)
    return Dictionary(W_enc, jnp.full(d, 1000.0), W_dec, -1000 * W_dec.sum(0), ReLU(), centred=False)


def test_figures_beside_what_is_stated():
    sae = trained_like(d=WIDTH)
    check = check_dictionary(
        Saved(sae, ADDRESS, "toy", stated={"l0": 1000.0, "variance_explained": 0.9}), MODEL, BATCHES
    )
    wanted = evaluate(MODEL, ADDRESS, sae, BATCHES, skip_first=1).reconstruction
    np.testing.assert_allclose([check.l0, check.fvu], [wanted.l0, wanted.fvu], rtol=1e-5)
    assert check.tokens == wanted.tokens
    assert [found.name for found in check.findings] == ["L0", "FVU"]
    fits = Saved(exact(WIDTH), ADDRESS, "toy", stated={"l0": 0.9 * WIDTH, "variance_explained": 0.99})
    found = check_dictionary(fits, MODEL, BATCHES).findings
    assert [one.name for one in found if one.name in ("L0", "FVU")] == []


def test_a_square_dictionary_is_measured_transposed_too():
    sae = exact(WIDTH)
    check = check_dictionary(Saved(sae, ADDRESS, "toy"), MODEL, BATCHES)
    assert check.fvu < 1e-3 < 0.1 < min(check.fvu_transposed.values())
    turned = dataclasses.replace(sae, W_dec=sae.W_dec.T)
    found = check_dictionary(Saved(turned, ADDRESS, "toy"), MODEL, BATCHES).findings
    (error,) = [one for one in found if one.is_error and "FVU" in one.message]
    assert "with W_dec transposed: it is read the wrong way" in error.message


def test_another_model_or_value_is_refused():
    with pytest.raises(UserError, match=r"reads 7 and writes 7 numbers; blocks.0.resid_post of this model has"):
        check_dictionary(Saved(trained_like(d=7), ADDRESS, "toy"), MODEL, BATCHES)
    with pytest.raises(UserError, match="do not say which value it reads"):
        check_dictionary(Saved(trained_like(), None, "toy"), MODEL, BATCHES)
    none = [(tokens, np.zeros(np.shape(keep), bool)) for tokens, keep in BATCHES]
    with pytest.raises(UserError, match="no token is kept"):
        check_dictionary(Saved(trained_like(d=WIDTH), ADDRESS, "toy"), MODEL, none)
