"""The recipes of docs/surgery-recipes.md run as they stand, on the model that ships, and give what they say."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest

from jax_interp.surgery import depth_of, load_edits, save_edits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran():
    """What all the code of the page defines, run in its order and without this test-suite's strictness."""
    names = pages.run("surgery-recipes.md")
    return names


def test_an_affine_map_is_better_than_no_mlp(ran):
    assert ran["raw"] < ran["with_affine"] < ran["without"]
    assert ran["with_affine"] - ran["raw"] < 0.7 * (ran["without"] - ran["raw"])


def test_lora_learns_with_everything_else_as_it_was(ran):
    assert ran["after"] < ran["before"] - 0.5
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert count(ran["trained"]) == 4 * 4 * 4 * (256 + 256)  # layers, projections, rank
    assert count(ran["trained"]) + count(ran["model"]) == count(ran["tuned"])
    q = ran["tuned"].blocks[0].block.attn.q
    np.testing.assert_array_equal(q.linear.weight[...], ran["model"].blocks[0].block.attn.q.weight[...])
    assert jax.tree.structure(ran["merged"]) == jax.tree.structure(ran["model"])
    np.testing.assert_allclose(
        ran["call"](ran["merged"], ran["tokens"]), ran["call"](ran["tuned"], ran["tokens"]), atol=2e-3
    )


def test_frozen_norms_cost_little_and_make_the_model_linear(ran):
    assert ran["raw"] < ran["with_frozen"] < ran["raw"] + 0.2
    logits = ran["acts"]["logits"]
    np.testing.assert_allclose(ran["of_parts"], logits, atol=1e-3)


def test_blocks_skipped_swapped_and_run_twice(ran):
    for name in ("skipped", "swapped", "twice"):
        assert ran["raw"] < ran[name], name
    assert depth_of(ran["arrange"](ran["model"], [0, 1, 1, 2, 3]).blocks) == 5
    assert jnp.isfinite(ran["skipped"])


def test_an_edit_of_ones_own_does_what_it_says(ran):
    assert not np.array_equal(ran["half"], ran["less"])
    np.testing.assert_allclose(ran["the_same"], ran["less"], atol=1e-4)
    assert jnp.isfinite(ran["squashed"]).all()
    assert float(abs(ran["again"] - ran["call"](ran["model"], ran["tokens"])).max()) > 0.1
    edits = ran["at"]("blocks.2.resid_post", ran["Toward"](ran["goal"], 0.1))
    with tempfile.TemporaryDirectory() as directory:
        path = save_edits(Path(directory) / "edits.safetensors", edits)
        (loaded,) = load_edits(path, types=[ran["Toward"]])
    assert jax.tree.structure(loaded) == jax.tree.structure(edits)


def test_what_the_selections_count(ran):
    select, mlp = ran["select"], ran["MLP"]
    assert select(ran["model"]).at_instances_of(mlp).count() == 1
    assert select(ran["replan"](ran["model"], "*")).at_instances_of(mlp).count() == 4
