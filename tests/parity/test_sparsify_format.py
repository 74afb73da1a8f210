"""What sparsify writes computes the same here, and what is written here computes the same there."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries import load_dictionary, save_dictionary
from jax_interp.dictionaries.activations import GroupMax, TopK
from jax_interp.dictionaries.forms import Dictionary
from tests.parity.measured import record
from tests.parity.oracle import run_oracle
from tests.parity.test_dictionary_learning_format import close

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.*orientation:")]
KINDS = (
    *("topk", "topk bfloat16", "expansion", "groupmax", "transcoder", "skip transcoder", "skip SAE"),
    "groupmax skip transcoder",
)
SCRIPT = "sparsify_files.py"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    run_oracle("sparsify", SCRIPT, "write", folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_writes_computes_the_same_here(kind, written):
    folder = written / kind / "layers.3.mlp"
    saved, expected = load_dictionary(folder), np.load(folder / "expected.npz")
    x = jnp.asarray(expected["x"])
    assert 0.02 < np.mean(expected["z"] != 0) < 0.7
    record("sparsify", kind, "read", close(saved.dictionary.encode(x), expected["z"]))
    record("sparsify", kind, "read", close(saved.dictionary(x), expected["y"]))
    if "transcoder" in kind:
        assert (saved.normalized, saved.writes) == ("blocks.3.ln2.normalized", "blocks.3.mlp_out")
    else:
        assert (saved.address, saved.writes) == ("blocks.3.mlp_out", None)
    assert saved.model == "EleutherAI/pythia-160m"


def test_what_is_written_here_computes_the_same_there(tmp_path):
    d, m = 12, 30
    x = np.random.default_rng(0).normal(size=(20, d)).astype(np.float32)
    given = {}
    for activation, skip, centred in itertools.product((TopK(4), GroupMax(5)), (False, True), (False, True)):
        keys = iter(jax.random.split(jax.random.key(len(given)), 5))
        normal = lambda *shape: jax.random.normal(next(keys), shape)  # noqa: B023
        W_skip = normal(d, d) if skip else None
        dictionary = Dictionary(normal(d, m), normal(m), normal(m, d), normal(d), activation, W_skip, centred)
        folder = tmp_path / str(len(given))
        given[folder] = dictionary
        save_dictionary(folder, dictionary, format="sparsify")
        np.save(folder / "x.npy", x)
    run_oracle("sparsify", SCRIPT, "load", tmp_path)
    for folder, dictionary in given.items():
        found = np.load(folder / "found.npz")
        difference = close(found["z"], np.asarray(dictionary.encode(jnp.asarray(x))))
        record("sparsify", folder.name, "write", difference)
        difference = close(found["y"], np.asarray(dictionary(jnp.asarray(x))))
        record("sparsify", folder.name, "write", difference)
        close(load_dictionary(folder).dictionary(jnp.asarray(x)), np.asarray(dictionary(jnp.asarray(x))))
