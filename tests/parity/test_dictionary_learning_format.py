"""What dictionary_learning writes computes the same here, and what is written here computes the same there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries import load_dictionary, save_dictionary
from jax_interp.dictionaries.activations import BatchTopK, Gate, Jump, ReLU, TopK
from jax_interp.dictionaries.forms import Dictionary
from tests.parity.measured import record
from tests.parity.oracle import run_oracle

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.*(orientation|thresholds):")]
CLASSES = (
    *("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE"),
    *("MatryoshkaBatchTopKSAE", "AutoEncoderTopK compiled", "MatryoshkaBatchTopKSAE compiled"),
)
SCRIPT = "dictionary_learning_files.py"


def close(found, expected) -> float:
    """The largest difference, relative to the largest number. It is at most 1e-5."""
    worst = float(np.abs(np.asarray(found) - expected).max() / max(1, np.abs(expected).max()))
    assert worst < 1e-5
    return worst


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    run_oracle("dictionary_learning", SCRIPT, "write", folder)
    return folder


@pytest.mark.parametrize("kind", CLASSES)
def test_what_it_writes_computes_the_same_here(kind, written):
    saved = load_dictionary(written / kind)
    expected = np.load(written / kind / "expected.npz")
    x = jnp.asarray(expected["x"])
    assert 0.02 < np.mean(expected["z"] != 0) < 0.7
    record("dictionary_learning", kind, "read", close(saved.dictionary.encode(x), expected["z"]))
    record("dictionary_learning", kind, "read", close(saved.dictionary(x), expected["y"]))
    assert (saved.format, saved.address) == ("dictionary_learning", "blocks.3.resid_post")


D, M = 12, 30


def random_dictionary(activation, centred: bool) -> Dictionary:
    keys = iter(jax.random.split(jax.random.key(3), 4))
    normal = lambda *shape: jax.random.normal(next(keys), shape)
    return Dictionary(normal(D, M), normal(M), normal(M, D), normal(D), activation, centred=centred)


ACTIVATIONS = {
    "AutoEncoderNew": ReLU(),
    "GatedAutoEncoder": Gate(jnp.linspace(-0.5, 0.5, M), jnp.linspace(1, -1, M)),
    "JumpReluAutoEncoder": Jump.of(jnp.linspace(0, 2, M)),
    "AutoEncoderTopK": TopK(4),
    "BatchTopKSAE": BatchTopK(4, threshold=jnp.asarray(0.9)),
}


def test_what_is_written_here_computes_the_same_there(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, D)).astype(np.float32)
    given = {}
    for kind, activation in ACTIVATIONS.items():
        for centred in (True, False):
            folder = tmp_path / f"{kind} {centred}"
            given[folder] = kind, random_dictionary(activation, centred)
            save_dictionary(
                folder, given[folder][1], address="blocks.2.mlp_out", model="gpt2", format="dictionary_learning"
            )
            np.save(folder / "x.npy", x)
    run_oracle("dictionary_learning", SCRIPT, "load", tmp_path)
    for folder, (kind, dictionary) in given.items():
        found = np.load(folder / "found.npz")
        assert str(found["kind"]) == kind
        difference = close(found["z"], np.asarray(dictionary.encode(jnp.asarray(x))))
        record("dictionary_learning", folder.name, "write", difference)
        difference = close(found["y"], np.asarray(dictionary(jnp.asarray(x))))
        record("dictionary_learning", folder.name, "write", difference)
        again = load_dictionary(folder)
        assert (again.address, again.model) == ("blocks.2.mlp_out", "gpt2")
        close(again.dictionary(jnp.asarray(x)), np.asarray(dictionary(jnp.asarray(x))))
