"""What is done with components: attention logits as sums of pairs, edges, clusters, weight edits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tms import TIED, sparse, tiny

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.rotary import rotate
from jax_interp.decomposition import Trained, decompose, masked_output
from jax_interp.decomposition.attributions import edge_attributions, local_attributions
from jax_interp.decomposition.clustering import cluster, description_length, merge_cost
from jax_interp.decomposition.components import Components, Decomposed
from jax_interp.decomposition.edit_weights import add_rank_one, redirect_component, scale_component
from jax_interp.decomposition.interactions import pair_interactions, static_interactions, with_delta
from jax_interp.decomposition.losses.adversaries import init_sources, pgd
from jax_interp.decomposition.masks import masks_from_sources
from jax_interp.decomposition.matrices import weight_of
from jax_interp.decomposition.prune import PruneConfig, _pruned, prune
from jax_interp.models import Config, Rope, init
from jax_interp.models.attention_context import attention_context, default_positions
from jax_interp.surgery import Zero, at, edit, read, replan
from jax_interp.toys.tms import TMSConfig, init_tms, untie

CONFIG = Config(
    n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, d_mlp=12, vocab_size=17, n_ctx=8, rope=Rope(base=100.0)
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 17, (2, 6)), jnp.int32)


@pytest.mark.slow
def test_interactions_sum_to_the_attention_logit():
    model = init(CONFIG, jax.random.key(0))
    model = jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 1 else leaf, model)  # logits of some size
    parts = decompose(model, "blocks.*.attn.[qk]", C=5, key=jax.random.key(1))
    layer = lambda name: Components(parts.of(name).V[1], parts.of(name).U[1])
    names = ("blocks.*.attn.q", "blocks.*.attn.k")
    context = attention_context(CONFIG, TOKENS, default_positions(TOKENS, None, None), None).by_kind[0]

    @jax.jit
    def both(parts, tokens):
        x, scores = (
            read(parts, a, output=False)(tokens)[a] for a in ("blocks.1.attn.q.input", "blocks.1.attn.attn_scores")
        )
        q, k = (with_delta(layer(name), parts.weight(name)[1]) for name in names)
        pairs = pair_interactions(q, k, x, n_heads=4, kv_heads=2, scale=4**-0.5,
                                  rotate=lambda v: rotate(v, context.rotation, adjacent=False))  # fmt: skip
        return scores[:, :, -1], pairs

    scores, pairs = both(parts, TOKENS)
    assert pairs.shape == (2, 4, 21, 6, 21)
    assert float(jnp.std(scores)) > 0.1
    np.testing.assert_allclose(pairs.sum((2, 4)), scores, rtol=1e-4, atol=1e-4)
    found = static_interactions(layer(names[0]), layer(names[1]), jnp.ones(5), -jnp.ones(5), n_heads=4, kv_heads=2,
                                rotate_by=lambda u, t: jnp.roll(u, t, -1), offsets=3)  # fmt: skip
    assert found.shape == (4, 5, 5, 3)
    np.testing.assert_allclose(found.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(found.std((1, 2, 3)), 1, rtol=1e-4)


def test_static_interactions_of_two_components():
    """One head of two dimensions, turned by 90 degrees an offset, by hand: the query components ‖V‖ U are (2, 0) and
    (0, 3), the key's -(1, 1)."""
    queries = Components(jnp.asarray([[2.0, 0.0], [0.0, 0.6], [0.0, 0.8]]), jnp.asarray([[1.0, 0.0], [0.0, 3.0]]))
    keys = Components(jnp.asarray([[0.0], [1.0], [0.0]]), jnp.ones((1, 2)))
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])  # (1, 0) to (0, 1), (0, 1) to (-1, 0)
    turn = lambda u, offset: u @ jnp.asarray(np.linalg.matrix_power(quarter, offset), jnp.float32)
    found = static_interactions(
        queries, keys, jnp.ones(2), -jnp.ones(1), n_heads=1, rotate_by=turn, offsets=3
    )  # C_q, then offsets: (2, 0), (0, 2), (-2, 0); (0, 3), (-3, 0), (0, -3)
    want = np.array([[[-2.0, -2.0, 2.0]], [[-3.0, 3.0, 3.0]]])
    np.testing.assert_allclose(found[0], (want - want.mean()) / want.std(), rtol=1e-5)


def test_interactions_are_of_one_layer():
    both = Components(jnp.ones((2, 3, 1)), jnp.ones((2, 1, 4)))
    one = Components(both.V[0], both.U[0])
    for pair in ((both, one), (one, both)):
        with pytest.raises(UserError, match=r"of one layer's components, got V of shape \(2, 3, 1\): index the layer"):
            static_interactions(*pair, jnp.ones(1), jnp.ones(1), n_heads=1, rotate_by=lambda u, t: u, offsets=1)
        with pytest.raises(UserError, match=r"of one layer's components, got V of shape \(2, 3, 1\): index the layer"):
            pair_interactions(*pair, jnp.ones((1, 2, 3)), n_heads=1, scale=1.0)


def test_edges_go_forward():
    """From a later matrix to an earlier one, or to itself, there is none: refused, in blocks of either layout too."""
    x, g = jnp.ones((1, 5)), jnp.ones((1, 4))
    parts = decompose(tiny(), ["linear1", "linear2"], C=4, key=jax.random.key(1))
    for source, target in (("linear2", "linear1"), ("linear1", "linear1")):
        with pytest.raises(UserError, match=f"from {source!r} to {target!r}: the target comes no later"):
            local_attributions(parts, source, target, g, x, component=0)
        with pytest.raises(UserError, match=f"from {source!r} to {target!r}: the target comes no later"):
            edge_attributions(parts, source, target, g, x)
    with pytest.raises(UserError, match="'linear3': the decomposed matrices are linear1, linear2"):
        edge_attributions(parts, "linear1", "linear3", g, x)
    model = init(CONFIG, jax.random.key(0))
    for layout in (model, replan(model, "*")):
        blocks = decompose(layout, "blocks.*.mlp.[ud]*", C=4, key=jax.random.key(1))
        with pytest.raises(
            UserError, match=r"'blocks\.1\.mlp\.up' to 'blocks\.0\.mlp\.down': the target comes no later"
        ):
            edge_attributions(blocks, "blocks.1.mlp.up", "blocks.0.mlp.down", jnp.ones((2, 6, 4)), TOKENS)


def test_edges_of_a_linear_network():
    """∂a_c / ∂a_c' is U[c'] V2[:, c] where nothing but the residual of one product lies between."""
    model, x = tiny(), sparse(jax.random.key(0), batch=6, p=0.7)
    parts = decompose(model, ["linear1", "linear2"], C=4, key=jax.random.key(1))
    g = jnp.asarray(np.random.default_rng(0).random((6, 4)), jnp.float32)
    a = x @ parts.of("linear1").V
    slope = parts.of("linear1").U @ parts.of("linear2").V

    @jax.jit
    def found():
        ends = ("linear1", "linear2", g, x)
        local = local_attributions(parts, *ends, component=2)
        return local, edge_attributions(parts, *ends), edge_attributions(parts, *ends, absolute=True)

    got, edges, absolute = found()
    np.testing.assert_allclose(got, a * g * slope[None, :, 2], rtol=1e-4, atol=1e-6)
    reached = x @ model.linear1.weight @ parts.of("linear2").V
    want = np.einsum("bs,st->ts", a * g, slope) / (np.asarray(g.sum(0))[None] * np.sqrt((reached**2).mean(0))[:, None])
    np.testing.assert_allclose(edges, want, rtol=1e-3, atol=1e-5)
    signed = np.einsum("bt,bs,st->ts", np.sign(reached), a * g, slope)
    want = signed / (np.asarray(g.sum(0))[None] * np.sqrt((reached**2).mean(0))[:, None])
    np.testing.assert_allclose(absolute, want, rtol=1e-3, atol=1e-5)


def test_clusters():
    """The cost of a merge is the difference of description lengths; planted groups are found, the dead stay alone."""
    rng = np.random.default_rng(0)
    groups = rng.random((400, 3)) < 0.2
    on = groups[:, [0, 0, 0, 1, 1, 2]]
    owner = np.array([0, 1, 2, 3, 4, 5])
    merged = np.array([0, 0, 2, 3, 4, 5])
    counts = on.sum(0).astype(float)
    cost = merge_cost(counts[0], counts[1], (on[:, 0] | on[:, 1]).sum(), counts.sum(), 6, 1.0, 1.0, 0.3)
    np.testing.assert_allclose(cost, description_length(on, merged, 0.3) - description_length(on, owner, 0.3))
    with_dead = np.pad(on, ((0, 0), (0, 2)))
    for gamma in (None, 2.0):
        found = cluster(with_dead.astype(float), alpha=1.0, gamma=gamma)
        np.testing.assert_allclose(found.lengths[0], description_length(on, owner, 1.0))
        if gamma is None:
            same = found.owner[:, None] == found.owner[None]
            np.testing.assert_array_equal(same[:6, :6], np.array([0, 0, 0, 1, 1, 2])[:, None] == [0, 0, 0, 1, 1, 2])
            assert len(set(found.owner)) == 5


def by_trying_all(on, alpha, ranks):
    """Greedy merges, the description written out anew for every pair: lengths, and what is together at the shortest."""
    owner = np.arange(on.shape[1])
    stages, lengths = [owner], [description_length(on, owner, alpha, ranks)]
    while len(set(owner)) > 1:
        tried = [np.where(owner == a, b, owner) for a in set(owner) for b in set(owner) if a > b]
        owner = min(tried, key=lambda one: description_length(on, one, alpha, ranks))
        stages.append(owner)
        lengths.append(description_length(on, owner, alpha, ranks))
    best = stages[int(np.argmin(lengths))]
    return lengths, best[:, None] == best[None]


def test_clusters_are_those_of_trying_all_merges():
    """Components that share causes to different degrees; ranks of no common measure, so that no two costs are equal."""
    rng = np.random.default_rng(1)
    on = (rng.random((80, 3)) < 0.3)[:, rng.integers(0, 3, 9)] & (rng.random((80, 9)) < rng.uniform(0.5, 1, 9)[None])
    ranks = rng.uniform(0.5, 2, 9)
    lengths, same = by_trying_all(on, 0.5, ranks)
    found = cluster(on.astype(float), alpha=0.5, ranks=ranks)
    np.testing.assert_allclose(found.lengths, lengths)
    np.testing.assert_array_equal(found.owner[:, None] == found.owner[None], same)
    assert 9 < same.sum() < 81


def test_many_components_are_clustered():
    """Five hundred, five to a planted cause: all down to one and cut where there were a hundred."""
    causes = np.random.default_rng(0).random((300, 100)) < 0.1
    found = cluster(np.repeat(causes, 5, axis=1).astype(float))
    assert len(found.lengths) == 500
    same = np.arange(500) // 5
    np.testing.assert_array_equal(found.owner[:, None] == found.owner[None], same[:, None] == same[None])


def test_weight_edits():
    """Taking a mechanism out of the weights is ablating it among the components."""
    model, x = tiny(), sparse(jax.random.key(0), batch=6, p=0.7)
    parts = decompose(model, "linear1", C=4, key=jax.random.key(1))
    want = edit(parts, at("linear1.components", Zero(), feature=2))(x)
    np.testing.assert_allclose(scale_component(parts, "linear1", 2, 0.0)(x), want, rtol=1e-4, atol=1e-6)
    write = jnp.asarray([1.0, 2.0])
    moved = redirect_component(parts, "linear1", 2, write, 3.0)
    V, U = parts.of("linear1").V[:, 2], parts.of("linear1").U[2]
    want = model.linear1.weight - jnp.outer(V, U + 3 * write / 5**0.5)
    np.testing.assert_allclose(moved.linear1.weight, want, rtol=1e-5, atol=1e-6)

    decoder = init(CONFIG, jax.random.key(0))
    parts = decompose(decoder, "blocks.*.mlp.up", C=3, key=jax.random.key(1))

    @jax.jit
    def both(parts):
        ablated = edit(parts, at("blocks.1.mlp.up.components", Zero(), feature=0))
        return scale_component(parts, "blocks.*.mlp.up", 0, 0.0, layer=1)(TOKENS), ablated(TOKENS)

    got, want = both(parts)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_weight_edits_of_a_layer():
    """A layer counted from the end is that layer, its weights changed by what the equation says; one that there is not
    is refused, as is a missing one."""
    decoder = init(CONFIG, jax.random.key(0))
    parts, name = decompose(decoder, "blocks.*.mlp.up", C=3, key=jax.random.key(1)), "blocks.*.mlp.up"
    pair, weights = parts.of(name), parts.weight(name)
    scaled = weight_of(scale_component(parts, name, 0, 3.0, layer=-1), name)
    want = np.array(weights)
    want[1] += 2 * np.outer(pair.V[1, :, 0], pair.U[1, 0])
    np.testing.assert_allclose(scaled, want, rtol=1e-5, atol=1e-6)
    write = jnp.arange(1.0, 13.0)
    turned = weight_of(redirect_component(parts, name, 0, write, 2.0, layer=-2), name)
    want = np.array(weights)
    want[0] -= np.outer(pair.V[0, :, 0], pair.U[0, 0] + 2 * np.asarray(write) / np.linalg.norm(write))
    np.testing.assert_allclose(turned, want, rtol=1e-5, atol=1e-6)
    for layer in (2, -3):
        with pytest.raises(UserError, match=f"layer {layer} .* it has 2"):
            scale_component(parts, name, 0, 0.0, layer=layer)
    with pytest.raises(UserError, match="give layer="):
        add_rank_one(decoder, name, pair.V[0, :, 0], pair.U[0, 0])
    with pytest.raises(UserError, match="and for no other entry"):
        add_rank_one(tiny(), "linear1", jnp.ones(5), jnp.ones(2), layer=0)


def test_weight_edits_of_a_shared_matrix():
    """`relu(x W Wᵀ + b)` with one W: both places change, and the part that borrows W says where to edit it."""
    config, x = TMSConfig(), sparse(jax.random.key(0), batch=6, p=0.7)
    model = init_tms(jax.random.key(1), config)
    parts = decompose(model, "linear1", C=4, key=jax.random.key(2), tied=TIED)
    pair, without = parts.of("linear1"), scale_component(parts, "linear1", 1, 0.0)
    W = np.asarray(model.linear1.weight) - np.outer(pair.V[:, 1], pair.U[1])
    np.testing.assert_allclose(without(x), np.maximum(x @ W @ W.T, 0), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match=r"'linear2' holds no matrix.*untie"):
        scale_component(parts, "linear2", 1, 0.0)
    own = decompose(untie(model), "linear1", C=4, key=jax.random.key(2), tied=TIED)
    turned = scale_component(own, "linear2", 1, 0.0)
    np.testing.assert_array_equal(turned.linear1.weight, model.linear1.weight)
    np.testing.assert_allclose(turned.linear2.weight, W.T, rtol=1e-5, atol=1e-6)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Fixed:
    """An importance function that says the same of every prompt."""

    values: dict

    def __call__(self, model, inputs):
        return self.values


def by_input(value=0.9, sigmoid="leaky_hard"):
    """A decoder, the matrices of its MLPs as sums over what they read, nothing left over; each sum's gate one value."""
    size = {1: 1, 2: 32, 3: 8}  # what makes its predictions sharp
    model = jax.tree.map(lambda leaf: leaf * size[leaf.ndim], init(CONFIG, jax.random.key(0)))
    weights = {name: weight_of(model, name) for name in ("blocks.*.mlp.up", "blocks.*.mlp.down")}
    whole = {n: Components(jnp.broadcast_to(jnp.eye(w.shape[1])[None], (2, *[w.shape[1]] * 2)), w)
             for n, w in weights.items()}  # fmt: skip
    gates = {n: jnp.full((2, 1, 6, w.shape[1]), value) for n, w in weights.items()}
    return Trained(Decomposed(model, whole), Fixed(gates), sigmoid)


@jax.jit
def attacked(parts, importance, tokens, label):
    """The cross-entropy of the last token under the worst masks that forty steps find, from four starts."""

    def cross_entropy(r):
        logits = masked_output(parts, masks_from_sources(importance, r), tokens)[:, -1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1).mean()

    start = lambda key: init_sources(key, importance, "random", "unique_per_datapoint", False)
    worst = lambda key: cross_entropy(pgd(cross_entropy, start(key), 40, 0.1))
    return jnp.max(jax.lax.map(worst, jax.random.split(jax.random.key(5), 4)))


@pytest.mark.slow
def test_pruning_keeps_what_a_prompt_needs():
    """Of components that all count as needed at first many go; the answer stays as likely under the masks tried, and
    is more likely under the worst ones than where no adversary took part."""
    trained = by_input()
    label = jnp.argmax(trained.model(TOKENS[:1])[:, -1], axis=-1)
    settings = PruneConfig(steps=100, minimality=1e-2, delta=False)
    both = [prune(trained, TOKENS[:1], label, dataclasses.replace(settings, adversary_steps=n)) for n in (8, 0)]
    for pruned in both:
        left = sum(int(on.sum()) for on in pruned.nodes(0.05).values())
        assert left < 0.5 * sum(on.size for on in pruned.nodes().values())
        assert float(pruned.stochastic_loss[-10:].mean()) < float(pruned.stochastic_loss[0])
    held, fooled = (float(attacked(trained.model, one.importance, TOKENS[:1], label)) for one in both)
    assert held < float(both[0].stochastic_loss[0]) + 1
    assert fooled > held + 2  # nats; 7.5 and 1.4


def test_pruning_another_prompt_compiles_nothing():
    """And what the importance function calls dead stays dead, by the sigmoid that it was trained with."""
    trained, config = by_input(sigmoid="hard"), PruneConfig(steps=2, adversary_steps=1)
    dead = {name: g.at[:, :, :3].set(-1.0) for name, g in trained.ci_fn.values.items()}
    trained = dataclasses.replace(trained, ci_fn=Fixed(dead))
    before = _pruned._cache_size()
    for tokens in (TOKENS[:1], TOKENS[1:]):
        found = prune(trained, tokens, tokens[:, 0], config)
        assert not any(on[:, :, :3].any() for on in found.nodes().values())
        assert all(on[:, :, 3:].all() for on in found.nodes().values())
    assert _pruned._cache_size() == before + 1
    at_once = PruneConfig(steps=1, learning_rate=0.0, adversary_steps=0)
    found = prune(dataclasses.replace(trained, sigmoid="normal"), TOKENS[:1], TOKENS[:1, 0], at_once)
    np.testing.assert_allclose(found.importance["blocks.*.mlp.up"][:, :, 3:], jax.nn.sigmoid(0.9), rtol=1e-6)
