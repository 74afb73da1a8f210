"""What decompositions refuse: indices that do not exist, targets of others, and settings that mean nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generated import drawn
from tiny_tms import TIED, sparse, tiny

from jax_interp.core.errors import UserError
from jax_interp.core.tensor_files import read_tensors, write_tensors
from jax_interp.decomposition import (
    Components,
    DecompositionConfig,
    decompose,
    decomposition_linearity,
    train_decomposition,
)
from jax_interp.decomposition.attributions import edge_attributions, local_attributions
from jax_interp.decomposition.edit_weights import scale_component
from jax_interp.decomposition.evaluate import evaluate
from jax_interp.decomposition.importance import ScalarMLP
from jax_interp.decomposition.interactions import pair_interactions, static_interactions
from jax_interp.decomposition.matrices import select_matrices
from jax_interp.decomposition.prune import PruneConfig, prune
from jax_interp.decomposition.storage import load_decomposition, save_decomposition
from jax_interp.decomposition.top_components import top_components
from jax_interp.decomposition.train import Trained
from jax_interp.models import Config, init
from jax_interp.surgery import replan
from jax_interp.training import QUIET

C, POS = 3, 4
SETTINGS = DecompositionConfig(
    ("linear1",), C=C, tied=TIED, steps=1, batch=8, warm_up=None, importance=ScalarMLP(hidden=4)
)


@pytest.fixture(scope="module")
def decoder():
    return init(Config(n_layers=2, d_model=8, n_heads=2, d_mlp=6, vocab_size=11, n_ctx=8), jax.random.key(0))


@pytest.fixture(scope="module")
def trained(decoder):
    """Untrained, with an importance function of its own."""
    parts = decompose(decoder, "blocks.*.mlp.[ud]*", C=C, key=jax.random.key(1))
    return Trained(parts, ScalarMLP(hidden=2).init(jax.random.key(2), parts))


def outside(rng: np.random.Generator, size: int) -> int:
    far = int(rng.integers(0, 100)) if rng.random() < 0.5 else 0
    return size + far if rng.random() < 0.5 else -size - 1 - far


@pytest.mark.hardening
def test_an_index_that_does_not_exist_is_refused(decoder, trained, tally):
    """JAX takes the nearest entry of a value, and drops a write outside it: zeros that look like a result."""
    tokens, model = jnp.ones((2, POS), jnp.int32), trained.model
    source, target = "blocks.0.mlp.up", "blocks.0.mlp.down"
    g, quick = jnp.ones((2, POS, C)), PruneConfig(steps=1, adversary_steps=0)
    q, k = (Components(jnp.ones((8, C)), jnp.ones((C, 8))) for _ in "qk")
    label = jnp.array([1, 2])
    attribution = lambda c, p: local_attributions(model, source, target, g, tokens, c, p)
    calls = {
        "component of an attribution": lambda i: attribution(i(C), None),
        "position of an attribution": lambda i: attribution(0, i(POS)),
        "layer of an attribution": lambda i: edge_attributions(model, f"blocks.{i(2)}.mlp.up", target, g, tokens),
        "component of an edit": lambda i: scale_component(model, "blocks.*.mlp.up", i(C), 0.0, layer=0),
        "layer of an edit": lambda i: scale_component(model, "blocks.*.mlp.up", 0, 0.0, layer=i(2)),
        "position of a label": lambda i: prune(trained, tokens, label, quick, position=i(POS)),
        "label": lambda i: prune(trained, tokens, jnp.array([0, i(11)]), quick),
        "query of interactions": lambda i: pair_interactions(
            q, k, jnp.ones((2, POS, 8)), n_heads=2, scale=1.0, query=i(POS)
        ),
    }
    tried, broken = drawn(2, 8) * len(calls), []
    for case in range(tried):
        rng, name = np.random.default_rng([50, case]), list(calls)[case % len(calls)]
        index: list[int] = []

        def draw(size: int, rng=rng, index=index) -> int:
            index.append(outside(rng, size))
            return index[-1]

        try:
            calls[name](draw)
            broken.append(f"case {case}: {name} {index} is accepted")
        except UserError:
            pass
        except Exception as error:
            broken.append(f"case {case}: {name} {index}: {type(error).__name__}: {str(error)[:100]}")
    tally("indices of decompositions that do not exist", tried=tried, broken=len(broken))
    assert not broken, "\n".join(broken)


def test_other_refusals(decoder, trained):
    tokens, model = jnp.ones((2, POS), jnp.int32), trained.model
    q = Components(jnp.ones((8, C)), jnp.ones((C, 8)))
    rotate = lambda x, offset: x
    signs = jnp.ones(C)
    for wrong, message in (
        (lambda: edge_attributions(model, "blocks.0.mlp.up", "blocks.0.mlp.down", jnp.ones(C), tokens), "has shape"),
        (
            lambda: pair_interactions(q, q, jnp.ones((2, POS, 8)), n_heads=4, kv_heads=3, scale=1.0),
            "4 query heads",
        ),
        (
            lambda: static_interactions(q, q, signs, signs, n_heads=3, rotate_by=rotate, offsets=2),
            "3 query heads and 3 key heads do not fit",
        ),
        (
            lambda: prune(trained, tokens, jnp.array([1]), PruneConfig(steps=1)),
            "one token from 0 to 10",
        ),
        (lambda: PruneConfig(steps=0), "at least 1"),
        (lambda: PruneConfig(learning_rate=float("nan")), "learning_rate=nan"),
        (lambda: decompose(tiny(), "linear1", C=2, key=jax.random.key(0), tied=TIED * 2), "a twin is named twice"),
        (lambda: select_matrices(decoder, "blocks.*.ln1"), "two axes is decomposed"),
        (lambda: select_matrices(decoder, "blocks.*.mlp.upp"), r"Did you mean 'blocks\.\*\.mlp\.up'"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()


def test_patterns_that_overlap_select_each_matrix_once(decoder):
    for patterns in (["blocks.*.mlp.up", "blocks.*.mlp"], ["*", "blocks.*", "embed"], ["embed", "embed"]):
        found = select_matrices(decoder, patterns)
        assert len(found) == len(set(found))
    assert select_matrices(decoder, ["blocks.*.mlp.up", "blocks.*.mlp"]) == select_matrices(decoder, "blocks.*.mlp")


def test_a_tied_unembedding_is_no_part_of_its_own(decoder):
    """It has no scope in which a mask could act, so it cannot share the components of the embedding."""
    with pytest.raises(UserError, match="'unembed'"):
        decompose(decoder, "embed", C=C, key=jax.random.key(0), tied=(("embed", "unembed"),))


def test_the_experts_of_a_mixture_are_refused_with_their_shape():
    config = Config(n_layers=2, d_model=8, n_heads=2, d_mlp=6, vocab_size=11, n_ctx=8, n_experts=3)
    for model in (init(config, jax.random.key(0)), replan(init(config, jax.random.key(0)), "*")):
        with pytest.raises(UserError, match=r"the weight of 'blocks\.0\.mlp\.up' has the shape \(3, 8, 6\)"):
            decompose(model, "blocks.*.mlp.up", C=2, key=jax.random.key(0))
        assert "blocks.*.mlp.router" in decompose(model, "*", C=2, key=jax.random.key(0)).names


def test_interactions_of_zero_weights_are_zero():
    zero = Components(jnp.zeros((8, C)), jnp.zeros((C, 8)))
    found = static_interactions(
        zero, zero, jnp.ones(C), jnp.ones(C), n_heads=2, rotate_by=lambda x, offset: x, offsets=2
    )
    np.testing.assert_array_equal(found, jnp.zeros_like(found))


def test_a_saved_decomposition_belongs_to_the_matrices_of_its_target(tmp_path):
    """It loads onto its target in any layout and width, and onto no other model of the same shapes."""
    model, path = tiny(), tmp_path / "d.safetensors"
    sample = lambda key: sparse(key, 8)
    trained = train_decomposition(SETTINGS, model, sample=sample, log=QUIET)
    save_decomposition(path, trained, SETTINGS)
    loaded, _ = load_decomposition(path, model)
    np.testing.assert_array_equal(loaded.model.of("linear1").V, trained.model.of("linear1").V)
    with pytest.raises(UserError, match="is of another model: its matrices have other values"):
        load_decomposition(path, tiny(seed=1))
    file = read_tensors(path)  # a file of an earlier version does not say whose it is
    header = {name: value for name, value in file.header.items() if name in ("config",)}
    write_tensors(path, file.arrays, header)
    load_decomposition(path, tiny(seed=1))


def test_the_digest_of_a_target_does_not_depend_on_its_layout(tmp_path, decoder):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), decoder)
    settings = DecompositionConfig(("blocks.*.mlp.up",), C=C, steps=1, batch=2, warm_up=None, importance=ScalarMLP(2))
    parts = decompose(narrow, settings.matrices, C=C, key=jax.random.key(1))
    path = tmp_path / "d.safetensors"
    save_decomposition(path, Trained(parts, ScalarMLP(2).init(jax.random.key(2), parts)), settings)
    for layout in (narrow, replan(narrow, "*"), jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)):
        assert load_decomposition(path, layout)[0].model.of("blocks.*.mlp.up").C == C
    with pytest.raises(UserError, match="is of another model"):
        load_decomposition(path, decoder)


def test_no_rows_are_refused(trained):
    with pytest.raises(UserError, match="is empty"):
        evaluate(SETTINGS, trained, jnp.ones((0, POS), jnp.int32))
    with pytest.raises(UserError, match="no row of these batches counts"):
        top_components(trained, [(jnp.ones((2, POS), jnp.int32), jnp.zeros((2, POS), bool))])
    nothing = {name: jnp.zeros((2, 0, POS, C)) for name in trained.model.names}
    with pytest.raises(UserError, match="at least one row"):
        decomposition_linearity(trained.model, nothing, jnp.ones((0, POS), jnp.int32))
    with pytest.raises(UserError, match="no importances of"):
        decomposition_linearity(trained.model, {}, jnp.ones((2, POS), jnp.int32))


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_is_a_share(threshold, trained):
    with pytest.raises(UserError, match="at least 0 and below 1"):
        evaluate(SETTINGS, trained, jnp.ones((2, POS), jnp.int32), threshold=threshold)
