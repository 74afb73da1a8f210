"""Interventions: their equations, what they change at the start, and what their constraints keep."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_steering

from jax_interp.core import config_json
from jax_interp.core.errors import UserError
from jax_interp.models import generate, pad_left
from jax_interp.steering.trained import (
    INTERVENTIONS,
    OBJECTIVES,
    ChangedTokens,
    Intervened,
    Intervention,
    LoReFT,
    LoReFTConfig,
    ReFTr1,
    ReFTr1Config,
    RePS,
    ScaledVectorConfig,
    SoftPrompt,
    TrainedSteering,
    TrainedSteeringConfig,
    Vector,
    VectorConfig,
    load_steering,
    reserved,
    save_steering,
)
from jax_interp.steering.trained.orthonormal import orthonormal
from jax_interp.surgery import at, call, edit
from jax_interp.surgery.value_tokens import WHOLE_TEXT

D = 16
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((3, 5, D)), jnp.float32)
IDENTITIES = ("VectorConfig", "LoReFTConfig", "DiReFTConfig", "NoReFTConfig", "RankKConfig")
CONFIGS = [kind for kind in INTERVENTIONS if kind.__name__ != "SoftPromptConfig"]


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.standard_normal(shape), dtype)


def started(kind) -> Intervention:
    return kind().init(jax.random.key(0), D)


@pytest.mark.parametrize("kind", [INTERVENTIONS[name] for name in IDENTITIES])
def test_the_start_changes_nothing(kind):
    np.testing.assert_allclose(Intervened(started(kind))(X, WHOLE_TEXT), X, atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_strength_scales_the_change_of_each_row(kind):
    """x + s change(x), in the dtype of at least float32 that the value has."""
    one = jax.tree.map(lambda leaf: leaf + 0.3 * normal(*leaf.shape), started(kind))
    strengths = jnp.asarray([[0.0], [1.0], [-2.0]])
    change = Intervened(one)(X, WHOLE_TEXT) - X
    np.testing.assert_allclose(
        Intervened(one, strengths)(X, WHOLE_TEXT), X + strengths[..., None] * change, rtol=1e-5, atol=1e-5
    )
    assert Intervened(one)(X.astype(jnp.bfloat16), WHOLE_TEXT).dtype == jnp.float32
    with jax.enable_x64(True):
        assert Intervened(one)(X.astype(jnp.float64), WHOLE_TEXT).dtype == jnp.float64


@pytest.mark.parametrize("kind", CONFIGS)
def test_constraints_are_kept_and_their_gradient_does_not_leave_them(kind):
    """A constrained intervention stays, and its gradient is orthogonal to what the constraint undoes."""
    one = jax.tree.map(lambda leaf: leaf + 0.3 * normal(*leaf.shape), started(kind)).constrained()
    for mine, again in zip(jax.tree.leaves(one), jax.tree.leaves(one.constrained()), strict=True):
        np.testing.assert_allclose(mine, again, atol=2e-6)
    target = normal(*X.shape)
    loss = lambda i: jnp.sum((Intervened(i.constrained())(X, WHOLE_TEXT) - target) ** 2)
    grads = jax.grad(loss)(one)
    rows = (
        getattr(one, "rows", None) if kind.__name__ in ("LoReFTConfig", "DiReFTConfig") else getattr(one, "unit", None)
    )
    if rows is None:
        return
    g = grads.rows if hasattr(grads, "rows") else grads.unit
    rows, g = np.atleast_2d(rows), np.atleast_2d(g)
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=2e-6)
    np.testing.assert_allclose(np.tril(g @ rows.T), 0, atol=1e-4 * np.abs(g).max())


def test_rows_become_orthonormal_in_their_span_also_when_they_are_nearly_dependent():
    rows = normal(4, D)
    rows = rows.at[1].set(rows[0] + 3e-3 * rows[1])
    found = np.asarray(orthonormal(rows))
    np.testing.assert_allclose(found @ found.T, np.eye(4), atol=2e-6)
    q, r = np.linalg.qr(np.asarray(rows, np.float64).T)
    np.testing.assert_allclose(found, (q * np.sign(np.diag(r))).T, atol=2e-3)


def test_loreft_is_its_equation():
    """h + Rᵀ(Wh + b - Rh): inside the span of R the value is Wh + b, outside it stays."""
    R, W, b = orthonormal(normal(3, D)), normal(3, D), normal(3)
    y = np.asarray(Intervened(LoReFT(R, W, b))(X, WHOLE_TEXT))
    np.testing.assert_allclose(y @ np.asarray(R).T, np.asarray(X) @ np.asarray(W).T + np.asarray(b), atol=1e-5)
    outside = np.eye(D) - np.asarray(R).T @ np.asarray(R)
    np.testing.assert_allclose(y @ outside, np.asarray(X) @ outside, atol=1e-5)


def test_removal_takes_the_positive_component_only():
    v = normal(D)
    y = Intervened(Vector(v), 1.0, jnp.ones((3, 1), bool))(X, WHOLE_TEXT)
    np.testing.assert_allclose(y @ v, jnp.minimum(X @ v, 0.0), atol=1e-5)
    across = lambda x: x - (x @ v)[..., None] * (v / (v @ v))[None, None, :]
    np.testing.assert_allclose(across(y), across(X), atol=1e-5)
    still = Intervened(Vector(jnp.zeros(D)), 1.0, jnp.ones((3, 1), bool))(X, WHOLE_TEXT)
    np.testing.assert_array_equal(still, X)
    with pytest.raises(UserError, match="no direction that could be removed"):
        Intervened(started(LoReFTConfig), 1.0, jnp.ones((3, 1), bool))(X, WHOLE_TEXT)


def test_reft_r1_is_its_equation():
    """In training it adds the mean of the top k latents; the penalty is the mean of the others."""
    w = np.array(normal(D))
    w /= np.linalg.norm(w)
    read = np.array([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 1, 0, 0, 0]], bool)
    latents = np.maximum(np.asarray(X) @ w, 0) * read
    ordered = -np.sort(-latents, axis=1)
    one = ReFTr1(jnp.asarray(w), top=2, sparsity=0.1)
    y = Intervened(one, read=jnp.asarray(read))(X, WHOLE_TEXT)
    np.testing.assert_allclose(y - X, np.broadcast_to(ordered[:, :2].mean(1)[:, None, None] * w, X.shape), atol=1e-5)
    penalty = 0.1 * np.mean(ordered[:, 2:].sum(1) / read.sum(1))
    np.testing.assert_allclose(one.penalty(X, jnp.asarray(read)), penalty, rtol=1e-5)
    used = one.calibrated(jnp.float32(3.0))
    np.testing.assert_allclose(Intervened(used, 0.5)(X, WHOLE_TEXT) - X, np.broadcast_to(1.5 * w, X.shape), atol=1e-5)


@pytest.mark.slow
def test_a_detector_without_its_largest_latent_is_not_used_in_generation():
    steering = TrainedSteering({"blocks.0.resid_post": started(ReFTr1Config)})
    with pytest.raises(UserError, match="calibrated"):
        generate(edit(tiny_steering.model(), *steering.edits()), jnp.ones((1, 3), jnp.int32), 2)


@pytest.mark.slow
def test_vectors_as_steering_vectors_and_what_has_none():
    for config in (VectorConfig(norm=2.0), ScaledVectorConfig(scale=2.0)):
        steering = TrainedSteering({"blocks.1.resid_post": config.init(jax.random.key(1), D)})
        (address, norm), *_ = steering.vector().norms().items()
        assert address == "blocks.1.resid_post"
        assert norm == pytest.approx(2.0, rel=1e-6)
        tokens = jnp.asarray([[1, 2, 3]], jnp.int32)
        np.testing.assert_allclose(
            call(edit(tiny_steering.model(), *steering.edits(3.0)), tokens),
            call(edit(tiny_steering.model(), *steering.vector().edits(3.0)), tokens),
            atol=1e-5,
        )
    with pytest.raises(UserError, match="adds no constant vector"):
        TrainedSteering({"blocks.1.resid_post": started(LoReFTConfig)}).vector()


def test_token_scores_are_the_latents_and_only_a_detector_has_them():
    model, tokens = tiny_steering.model(), jnp.asarray([[1, 2, 3], [4, 5, 0]], jnp.int32)
    mask = jnp.asarray([[True] * 3, [True, True, False]])
    one = ReFTr1(normal(D))
    scores = TrainedSteering({"embed": one}).token_scores(model, tokens, mask)
    latents = jnp.maximum(model.embed.weight[...][tokens] @ one.unit, 0.0)
    np.testing.assert_allclose(scores, jnp.where(mask, latents, 0.0), atol=1e-6)
    with pytest.raises(UserError, match="is no detector"):
        TrainedSteering({"embed": started(VectorConfig)}).token_scores(model, tokens)


@pytest.mark.parametrize("kind", list(INTERVENTIONS), ids=lambda kind: kind.__name__)
def test_saved_and_loaded(kind, tmp_path):
    one = started(kind).calibrated(jnp.float32(2.0))
    steering = TrainedSteering({"blocks.0.resid_post": one, "blocks.1.mlp_out": one}, jnp.asarray([0, -1], jnp.int32))
    again = load_steering(save_steering(tmp_path / "s.safetensors", steering))
    assert jax.tree.structure(again) == jax.tree.structure(steering)
    jax.tree.map(np.testing.assert_array_equal, again, steering)


@pytest.mark.parametrize("objective", list(OBJECTIVES), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("kind", list(INTERVENTIONS), ids=lambda kind: kind.__name__)
def test_every_config_survives_json(kind, objective):
    address = "embed" if kind.__name__ == "SoftPromptConfig" else "blocks.0.resid_post"
    intervention = kind(norm=1.0) if kind is VectorConfig else kind()
    config = TrainedSteeringConfig((address,), intervention, objective(), ChangedTokens(1, 5, 5), seeds=(3, 4))
    assert config_json.from_json(TrainedSteeringConfig, config_json.to_json(config)) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"addresses": ("blocks.resid_post",)}, "give layers="),
        ({"layers": (1,)}, "leaves the layer open"),
        ({"addresses": ("blocks.*.resid_post",)}, "names several layers"),
        ({"seeds": (1, 1)}, "names one of them twice"),
        ({"objective": RePS()}, "norm="),
        ({"intervention": INTERVENTIONS["SoftPromptConfig"]()}, "acts at 'embed'"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TrainedSteeringConfig(("blocks.0.resid_post",)), **fields)


@pytest.fixture(scope="module")
def soft():
    """A soft prompt, and a model whose last tokens have its embeddings."""
    model, n = tiny_steering.model(), 3
    table = model.embed.weight[...]
    prompt = normal(n, D)
    longer = jax.tree.map(lambda leaf: leaf, model)
    rows = jnp.concatenate([prompt, table])  # ids 0 to n-1 are the prompt
    longer.embed.weight = type(model.embed.weight)(rows)
    longer.config = dataclasses.replace(model.config, vocab_size=len(rows))
    return model, longer, TrainedSteering({"embed": SoftPrompt(prompt)}, jnp.arange(n, dtype=jnp.int32)), n


@pytest.mark.slow
def test_a_soft_prompt_is_a_prompt_of_tokens_with_its_embeddings(soft):
    """With padding on either side, in a whole text and in generation with a cache."""
    model, longer, steering, n = soft
    prompts = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    left, mask = pad_left(prompts)
    steered = edit(model, *steering.edits())
    for flip in (False, True):
        tokens, real = (np.flip(left, 1), np.flip(mask, 1)) if flip else (left, mask)
        ours, kept = reserved(tokens, real, n)
        theirs = ours + n
        np.put_along_axis(theirs, np.argmax(kept, axis=1)[:, None] + np.arange(n)[None, :], np.arange(n)[None, :], 1)
        mine = call(steered, jnp.asarray(ours), mask=jnp.asarray(kept))
        want = call(longer, jnp.asarray(theirs), mask=jnp.asarray(kept))[..., n:]
        np.testing.assert_allclose(mine[kept], want[kept], atol=1e-4)
        if not flip:
            new = generate(steered, jnp.asarray(ours), 3, mask=jnp.asarray(kept))
            for row, prompt in enumerate(prompts):
                text = [*range(n), *(i + n for i in prompt)]
                for column in range(3):
                    chosen = int(jnp.argmax(call(longer, jnp.asarray([text]))[0, -1, n:]))
                    assert int(new[row, column]) == chosen
                    text.append(chosen + n)
    assert np.abs(mine - call(model, jnp.asarray(ours), mask=jnp.asarray(kept)))[kept].max() > 0.01


@pytest.mark.slow
def test_steering_at_the_end_of_the_prompt_acts_there_in_whole_texts_too():
    model, v = tiny_steering.model(), normal(D)
    steering = TrainedSteering({"blocks.0.resid_post": Vector(v)}, jnp.asarray([0, -1], jnp.int32))
    tokens, lengths = jnp.asarray([[1, 2, 3, 4, 5], [6, 7, 8, 9, 1]], jnp.int32), np.array([2, 4])
    ours = call(edit(model, *steering.for_prompts(lengths).edits(2.0)), tokens)
    where = np.array([[1, 1, 0, 0, 0], [1, 0, 0, 1, 0]], bool)
    want = call(edit(model, at("blocks.0.resid_post", Intervened(Vector(v), 2.0), where=where)), tokens)
    np.testing.assert_allclose(ours, want, atol=1e-6)
    assert np.abs(ours - call(edit(model, *steering.edits(2.0)), tokens)).max() > 1e-3
