"""Conditions are their published formula; gates act on their rows alone, in whole texts, generation and one pass."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.models import generate, pad_left
from jax_interp.models.sharding import rules
from jax_interp.probes import AggregatedProbe, LinearProbe, Max
from jax_interp.probes.dense import Dense
from jax_interp.steering import SteeringVector
from jax_interp.steering.applying import (
    ProbeCondition,
    Similarity,
    at_positions,
    conditional,
    conditional_in_one_pass,
    exponential_decay,
    from_position,
    generated,
    linear_decay,
    schedule,
    similarities,
    until_chosen,
    with_ids,
)
from jax_interp.steering.placement import placed
from jax_interp.surgery import CarryError, Zero, at, call, edit, read, replan
from jax_interp.training.sharding import make_mesh, shard, shard_batch

PROMPTS = [[5, 9, 9, 3, 7], [4, 9, 2], [8, 1, 6, 9, 5, 2, 3], [1, 2]]
TOKENS, MASK = pad_left(PROMPTS)
RIGHT = np.array([[*p, *[0] * (7 - len(p))] for p in PROMPTS], np.int32)
RIGHT_MASK = np.array([[True] * len(p) + [False] * (7 - len(p)) for p in PROMPTS])
EARLY, LATE = "blocks.0.resid_post", "blocks.1.resid_post"
C = jnp.asarray(np.random.default_rng(0).standard_normal(32), jnp.float32)
PROBE = LinearProbe(C, jnp.float32(0.1), jnp.float32(0.0))
N_NEW = 4


@pytest.fixture(scope="module")
def model():
    return peaky(GPT2_LIKE)


@pytest.fixture(scope="module")
def stream(model):
    """The value at the tokens of each prompt, in float64. No mask is used: a token does not see later ones."""
    found = call(read(model, EARLY), RIGHT)[1][EARLY]
    return [np.asarray(x[: len(p)], np.float64) for x, p in zip(found, PROMPTS, strict=True)]


def published(h: np.ndarray) -> float:
    c = np.asarray(C, np.float64)
    seen = np.tanh(np.outer(c, c) / (c @ c) @ h)
    return h @ seen / np.linalg.norm(h) / np.linalg.norm(seen)


CONDITIONS = {
    "mean": (Similarity(EARLY, C), lambda x: published(x.mean(axis=0))),
    "last": (Similarity(EARLY, C, read="last"), lambda x: published(x[-1])),
    "probe": (ProbeCondition(EARLY, PROBE), lambda x: (x @ np.asarray(C, np.float64)).mean() + 0.1),
    "probe, last": (ProbeCondition(EARLY, PROBE, read="last"), lambda x: x[-1] @ np.asarray(C, np.float64) + 0.1),
    "probe, max": (ProbeCondition(EARLY, PROBE, read="max"), lambda x: (x @ np.asarray(C, np.float64)).max() + 0.1),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_scores_are_those_of_each_prompt_alone(model, stream, name):
    condition, formula = CONDITIONS[name]
    expected = [formula(x) for x in stream]
    for tokens, mask in ((TOKENS, MASK), (RIGHT, RIGHT_MASK)):
        np.testing.assert_allclose(condition.scores(model, tokens, mask), expected, rtol=2e-5, atol=2e-5)
    middle = float(np.median(expected))
    for above in (True, False):
        fixed = dataclasses.replace(condition, threshold=middle, above=above)
        assert (np.asarray(fixed.measure(model, TOKENS, MASK)) == ((np.array(expected) > middle) == above)).all()


def test_a_probe_of_sequences_reads_the_whole_prompt(model, stream):
    probe = AggregatedProbe((Dense(C[:, None], jnp.zeros(1)),), jnp.float32(0.5), jnp.float32(0.0), Max())
    expected = [(x @ np.asarray(C, np.float64)).max() + 0.5 for x in stream]
    np.testing.assert_allclose(ProbeCondition(EARLY, probe).scores(model, RIGHT, RIGHT_MASK), expected, atol=1e-4)


GATES = np.array([True, False, False, True])


def test_a_batch_of_mixed_gates_is_each_row_alone(model):
    vector = SteeringVector({LATE: C})
    steering = vector.using("ablate_then_add")  # it acts at strength 0 too
    mixed = generate(edit(model, conditional(steering, GATES).edits(2.0)), TOKENS, N_NEW, mask=MASK)
    on = generate(edit(model, steering.edits(2.0)), TOKENS, N_NEW, mask=MASK)
    off = generate(model, TOKENS, N_NEW, mask=MASK)
    np.testing.assert_array_equal(mixed, np.where(GATES[:, None], on, off))
    assert (on != off).any(axis=1).sum() >= 3
    half = edit(model, conditional(vector, np.full(4, 0.5)).edits(2.0))
    np.testing.assert_array_equal(call(half, TOKENS), call(edit(model, vector.edits(1.0)), TOKENS))


@pytest.mark.slow
def test_one_pass_with_a_gate_for_each_token(model):
    """A token is steered where the probe says yes, in whole texts and in generation, in both layouts."""
    probe = dataclasses.replace(PROBE, threshold=jnp.float32(0.5))
    steering = conditional_in_one_pass(SteeringVector({LATE: C}).using("rotate"), ProbeCondition(EARLY, probe))
    names = (EARLY, LATE)
    plain = call(read(model, *names), RIGHT, mask=RIGHT_MASK)[1]
    on = np.asarray(plain[EARLY]) @ np.asarray(C) + 0.1 > 0.5
    assert 0 < on[RIGHT_MASK].mean() < 1
    for layout in (model, replan(model, "*")):
        acts = call(read(edit(layout, steering.edits(1.0)), *names), RIGHT, mask=RIGHT_MASK)[1]
        changed = (np.abs(np.asarray(acts[LATE]) - np.asarray(plain[LATE])) > 1e-4).any(axis=-1)
        np.testing.assert_array_equal(changed[RIGHT_MASK], on[RIGHT_MASK])
    steered = edit(model, steering.edits(1.0))
    new, acts = generate(read(steered, LATE), TOKENS, N_NEW, mask=MASK)
    texts = [[*prompt, *row[:-1].tolist()] for prompt, row in zip(PROMPTS, np.asarray(new), strict=True)]
    padded = np.array([[*text, *[0] * (10 - len(text))] for text in texts], np.int32)
    whole = call(read(steered, LATE), padded)[1][LATE]
    for row, text in enumerate(texts):
        np.testing.assert_allclose(acts[LATE][row, -len(text) :], whole[row, : len(text)], atol=2e-4)


def test_one_pass_with_a_gate_for_each_text_is_the_measured_gate(model):
    scores = np.asarray(Similarity(EARLY, C).scores(model, RIGHT, RIGHT_MASK))
    condition = Similarity(EARLY, C, threshold=float(np.median(scores)))
    vector = SteeringVector({LATE: C})
    both = [
        conditional_in_one_pass(vector, condition, "prompt"),
        conditional(vector, condition.measure(model, RIGHT, RIGHT_MASK)),
    ]
    one, two = (call(edit(model, steering.edits(2.0)), RIGHT, mask=RIGHT_MASK) for steering in both)
    np.testing.assert_allclose(one[RIGHT_MASK], two[RIGHT_MASK], atol=1e-5)
    with pytest.raises(UserError, match="with a cache"):
        generate(edit(model, both[0].edits(2.0)), TOKENS, 2, mask=MASK)


COUNT = lambda i, n: max(i - n + 1, 0)
SCHEDULES = {
    "linear": (linear_decay(3), lambda c: max(0.0, 1 - c / 3)),
    "exponential": (exponential_decay(0.5), lambda c: 0.5**c),
    "given": (schedule([0.5, 2.0, -1.0]), lambda c: (0.5, 2.0, -1.0)[min(c, 2)]),
    "until": (until_chosen(2), lambda c: float(c < 2)),
    "product": ((generated(), exponential_decay(0.5)), lambda c: 0.5**c if c else 0.0),
    "rows": (linear_decay(jnp.array([3.0, 3.0, 3.0, 3.0])), lambda c: max(0.0, 1 - c / 3)),
}


def test_schedules_follow_the_number_of_new_tokens(model):
    """What is added to the value of an early block, at tokens of the prompt and new ones."""
    places = dict(
        zip(SCHEDULES, [f"blocks.{i}.{name}" for name in ("attn_out", "mlp_out") for i in range(3)], strict=True)
    )
    edits = []
    for name, address in places.items():
        edits += SteeringVector({address: jnp.ones(32)}).using(tokens=SCHEDULES[name][0]).edits(1e6)
    _, acts = generate(read(edit(model, edits), *places.values()), TOKENS, N_NEW, mask=MASK)
    for name, address in places.items():
        added = np.asarray(acts[address]).mean(axis=-1) / 1e6
        for row, prompt in enumerate(PROMPTS):
            n = len(prompt) + N_NEW - 1
            expected = [SCHEDULES[name][1](COUNT(i, len(prompt))) for i in range(n)]
            np.testing.assert_allclose(added[row, -n:], expected, atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_other_edits_move_a_part_of_the_way(model):
    plain, half = (
        call(read(m, LATE), TOKENS, mask=MASK)[1][LATE]
        for m in (model, edit(model, placed([at(LATE, Zero())], schedule([0.25]))))
    )
    np.testing.assert_allclose(half[MASK], 0.75 * plain[MASK], rtol=1e-5, atol=1e-6)


def test_what_is_wrong_is_said(model):
    with pytest.raises(UserError, match="no threshold yet"):
        Similarity(EARLY, C).measure(model, TOKENS, MASK)
    with pytest.raises(UserError, match="row 1 is NaN"):
        Similarity(EARLY, C).scores(model, TOKENS, MASK & (np.arange(4) != 1)[:, None])
    with pytest.raises(UserError, match="'mean' or 'last'"):
        Similarity(EARLY, C, read="max")
    with pytest.raises(UserError, match=r"\[batch\]"):
        conditional(SteeringVector({LATE: C}), np.ones((4, 1)))
    with pytest.raises(UserError, match="from 0 to 1"):
        exponential_decay(1.5)
    with pytest.raises(UserError, match="n=0"):
        linear_decay(0)
    late = conditional_in_one_pass(SteeringVector({EARLY: C}), ProbeCondition(LATE, PROBE))
    with pytest.raises(CarryError, match=r"before it is made|no edit has made"):
        call(edit(model, late.edits()), TOKENS)


def test_similarities_of_all_layers_come_from_one_pass(model):
    vectors = SteeringVector({EARLY: C, LATE: -C})
    found = similarities(model, vectors, TOKENS, MASK)
    for address, c in vectors.vectors.items():
        np.testing.assert_allclose(found[address], Similarity(address, c).scores(model, TOKENS, MASK), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "auto"])
def test_a_mesh_changes_nothing(model, explicit):
    """Placements, schedules and gates with a number for each row."""
    vector, condition = SteeringVector({LATE: C}).using("rotate"), ProbeCondition(EARLY, PROBE)
    placements = (from_position(jnp.array([0, 1, 2, 3])), with_ids([9, 2, 5]), linear_decay(jnp.array([1.0, 2, 3, 4])))
    edits = [
        *placed(conditional(vector, GATES).edits(jnp.ones((4, 1))), placements),
        *conditional_in_one_pass(vector, condition).edits(0.5),
        *SteeringVector({LATE: C}).using(tokens=at_positions([[0, 1], [1, -1], [-2, -2], [0, 0]])).edits(2.0),
    ]
    expected = call(edit(model, edits), RIGHT, mask=RIGHT_MASK)
    mesh = make_mesh(data=2, tensor=2, explicit=explicit)
    with jax.set_mesh(mesh):
        there = shard(model, rules(model.config), mesh)
        found = call(edit(there, edits), shard_batch(RIGHT, mesh), mask=shard_batch(RIGHT_MASK, mesh))
        scores = condition.scores(there, shard_batch(RIGHT, mesh), shard_batch(RIGHT_MASK, mesh))
        unmasked = call(edit(there, edits), shard_batch(RIGHT, mesh))
    np.testing.assert_allclose(jax.device_get(unmasked), call(edit(model, edits), RIGHT), atol=1e-4)
    np.testing.assert_allclose(jax.device_get(found)[RIGHT_MASK], expected[RIGHT_MASK], atol=1e-4)
    np.testing.assert_allclose(jax.device_get(scores), condition.scores(model, RIGHT, RIGHT_MASK), atol=1e-5)
