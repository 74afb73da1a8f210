"""Side effects, capabilities, continuations, transfer, and the report that holds them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jax_interp.core.errors import UserError
from jax_interp.models import Config, init
from jax_interp.models.generation.generate import generate
from jax_interp.steering import Questions, SteeringVector
from jax_interp.steering.measuring import (
    UNSTEERED,
    Batching,
    Continuing,
    SideMeasures,
    SteeringReport,
    capability,
    coherence,
    measure,
    propensities,
    repetition,
    side_effects,
    transfer,
)
from jax_interp.surgery import Add, at, call, edit, values_at

STRENGTHS = (-1.0, 0.0, 2.0)
CONFIG = Config(n_layers=2, d_model=16, n_heads=2, d_mlp=32, vocab_size=40, n_ctx=24)
RNG = np.random.default_rng(0)
TEXTS = [tuple(RNG.integers(1, 40, length).tolist()) for length in (6, 9)]
PROMPTS = [tuple(RNG.integers(1, 40, length).tolist()) for length in (3, 5)]


@pytest.fixture(scope="module")
def model():
    return init(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def vector():
    return SteeringVector({f"blocks.{i}.resid_post": jax.random.normal(jax.random.key(i), (16,)) for i in range(2)})


@pytest.fixture(scope="module")
def effects(model, vector):
    return side_effects(model, TEXTS, vector, STRENGTHS)


def questions(name: str = "set", n: int = 8, seed: int = 0) -> Questions:
    rng = np.random.default_rng(seed)
    prompts = tuple(tuple(rng.integers(1, 40, 5).tolist()) for _ in range(n))
    one = lambda low: tuple((int(i),) for i in rng.integers(low, low + 19, n))
    return Questions(name, prompts, one(2), one(21), groups=tuple(str(i // 2) for i in range(n)))


def test_divergence_and_loss_are_those_of_each_text_alone(model, vector, effects):
    kl, increase, own = [], [], []
    for ids in TEXTS:
        tokens = jnp.asarray([ids], jnp.int32)
        steered = edit(model, *(at(a, Add(v, 2.0)) for a, v in vector.vectors.items()))
        p, q = (jax.nn.log_softmax(call(m, tokens)[0].astype(jnp.float32))[:-1] for m in (model, steered))
        kl.append(float((jnp.exp(p) * (p - q)).sum(axis=-1).mean()))
        loss = [-float(x[jnp.arange(len(ids) - 1), tokens[0, 1:]].mean()) for x in (p, q)]
        increase.append(loss[1] - loss[0])
        own.append(loss[0])
    assert effects.kl[2].mean.value == pytest.approx(np.mean(kl), abs=1e-4)
    assert effects.kl[2].sd == pytest.approx(np.std(kl), abs=1e-4)
    assert effects.loss_increase[2].mean.value == pytest.approx(np.mean(increase), abs=1e-4)
    assert effects.loss.mean.value == pytest.approx(np.mean(own), abs=1e-4)
    assert effects.kl[1].mean.value == pytest.approx(0.0, abs=1e-6)
    assert all(one.n == 2 for one in (*effects.kl, *effects.loss_increase))


def test_the_size_of_a_change_is_that_of_the_vector_relative_to_the_value(model, vector, effects):
    # At the first site nothing acts before: the size is λ ‖v‖ / ‖x‖ of the unsteered model.
    site = "blocks.0.resid_post"
    norm = vector.norms()[site]
    sizes = []
    for ids in TEXTS:
        x = values_at(model, site)(jnp.asarray([ids], jnp.int32))[site]
        sizes.append(2 * norm / np.linalg.norm(np.asarray(x)[0, 1:], axis=-1))
    found = effects.sizes[site][2]
    assert found.mean.mean.value == pytest.approx(np.mean([one.mean() for one in sizes]), rel=1e-4)
    assert found.largest == pytest.approx(max(one.max() for one in sizes), rel=1e-4)
    assert found.changed == 1.0
    assert effects.sizes[site][1].mean.mean.value == effects.sizes[site][1].changed == 0.0


@pytest.mark.slow
def test_the_size_at_a_later_site_is_relative_to_the_steered_value(model, vector):
    site, second = "blocks.0.resid_post", "blocks.1.resid_post"
    ids = jnp.asarray([TEXTS[0]], jnp.int32)
    x = values_at(edit(model, at(site, Add(vector.vectors[site], 2.0))), second)(ids)[second]
    size = 2 * vector.norms()[second] / np.linalg.norm(np.asarray(x)[0, 1:], axis=-1)
    alone = side_effects(model, TEXTS[:1], vector, (2.0,)).sizes[second][0]
    assert alone.mean.mean.value == pytest.approx(size.mean(), rel=1e-4)


def test_only_changed_tokens_count_for_a_size(model, vector):
    later = vector.only(["blocks.0.resid_post"]).using(pos=slice(3, None))
    found = side_effects(model, [TEXTS[1]], later, (1.0,)).sizes["blocks.0.resid_post"][0]
    assert found.changed == pytest.approx(6 / 8)


@pytest.mark.slow
def test_a_model_without_a_mask_is_measured_too():
    model = toy.toy()
    v = SteeringVector({"blocks.2.resid_post": jnp.ones((16,), jnp.float32)})
    together = side_effects(model, TEXTS, v, (1.0,)).kl[0]
    alone = [side_effects(model, [ids], v, (1.0,)).kl[0].mean.value for ids in TEXTS]
    assert together.mean.value == pytest.approx(np.mean(alone), abs=1e-5)


def test_accuracy_is_compared_on_the_same_questions(model, vector):
    asked = questions()
    found = capability(model, asked, vector, STRENGTHS)
    own = propensities(model, asked, UNSTEERED, (0.0,)).values[:, 0] > 0
    steered = propensities(model, asked, vector, STRENGTHS).values > 0
    assert found.unsteered.value == pytest.approx(own.mean())
    assert [one.value for one in found.accuracy] == pytest.approx(steered.mean(axis=0).tolist())
    assert found.change[1].mean.value == found.change[1].sd == 0.0
    assert found.change[2].mean.value == pytest.approx(steered[:, 2].mean() - own.mean())
    assert (found.change[2].n, found.change[2].groups) == (8, 4)


def test_continuations_are_those_of_each_strength_alone(model, vector):
    found = coherence(model, PROMPTS, vector, (0.0, 2.0), Continuing(n_new=4, ngram=2))
    new = found.tokens[0][1]
    alone = generate(edit(model, *vector.edits(2.0)), jnp.asarray([PROMPTS[0]], jnp.int32), 4)
    assert new == tuple(np.asarray(alone)[0].tolist())
    assert [of[0] for of in found.tokens] == list(found.unsteered_tokens)
    log_p = jax.nn.log_softmax(call(model, jnp.asarray([(*PROMPTS[0], *new)], jnp.int32))[0], axis=-1)
    loss = -np.mean([float(log_p[len(PROMPTS[0]) + k - 1, t]) for k, t in enumerate(new)])
    ends = np.quantile([loss, 2 * found.loss[1].mean.value - loss], [0.05, 0.25, 0.5, 0.75, 0.95])  # of two texts
    assert found.loss[1].quantiles == pytest.approx(ends.tolist(), abs=1e-4)
    assert found.loss[0] == found.unsteered_loss


@pytest.mark.slow
def test_a_continuation_ends_with_its_stop_token(model, vector):
    found = coherence(model, PROMPTS, vector, (2.0,), Continuing(n_new=6, ngram=2), batching=Batching(rows=1))
    for row, of in enumerate(found.tokens):
        stop = of[0][2]
        again = coherence(model, PROMPTS, vector, (2.0,), Continuing(n_new=6, ngram=2, stop=(stop,)))
        assert again.tokens[row][0] == of[0][: of[0].index(stop) + 1]


def test_repetition_counts_ngrams_that_stood_before():
    assert repetition([1, 2, 1, 2, 1], 2) == 0.5  # 12 21 12 21
    assert repetition([1, 2, 3], 2) == 0.0
    assert repetition([1], 2) == 0.0


def test_transfer_is_relative_to_the_vector_found_there():
    model, vector = toy.toy(), SteeringVector({"blocks.2.resid_post": jax.random.normal(jax.random.key(5), (16,))})
    asked = {"a": questions("a"), "b": questions("b", seed=1), "c": questions("c", seed=2)}
    vectors = {"a": vector, "b": vector.scaled(2.0)}
    # The logits are linear in this value: twice the vector has twice the slope.
    found = transfer(model, vectors, asked, (-1.0, 1.0))
    assert found.table("relative").values[0, 0] == found.table("relative").values[1, 1] == 1.0
    assert found.cells["a"]["b"].relative.value == pytest.approx(0.5, abs=1e-5)
    assert found.cells["b"]["a"].relative.value == pytest.approx(2.0, abs=1e-5)
    assert found.cells["b"]["a"].agreement.value == pytest.approx(1.0, abs=1e-5)
    assert np.isnan(found.cells["a"]["c"].relative.value)
    assert found.table("slope").axes == {"found on": ("a", "b"), "measured on": ("a", "b", "c")}
    with pytest.raises(UserError, match="no figure 'mean'"):
        found.table("mean")


def test_a_report_is_read_back_as_it_was_written(model, vector, tmp_path):
    side = SideMeasures(TEXTS, {"facts": questions("facts", seed=3)}, PROMPTS, Continuing(4))
    report = measure(model, questions(), vector, STRENGTHS, placement="answer", side=side)
    again = SteeringReport.load(report.save(tmp_path / "measurement.json"))
    assert again.to_json() == report.to_json()
    assert again.steerability == report.steerability
    headings, rows = again.dose_response()
    assert [row[0] for row in rows] == ["-1", "0", "2"]
    assert {len(row) for row in rows} == {len(headings)}
    assert all(" sd " in cell for row in rows for name, cell in zip(headings, row, strict=True) if name == "KL")
    with pytest.raises(UserError, match="no report of a steering"):
        SteeringReport.from_json({"steering": "v"})


def test_what_cannot_be_measured_is_refused(model, vector):
    with pytest.raises(UserError, match="not finite at strength 1"):
        side_effects(model, TEXTS, SteeringVector({"blocks.0.resid_post": jnp.full((16,), jnp.nan)}), (1.0,))
    with pytest.raises(UserError, match="text 0 has 1 tokens"):
        side_effects(model, [(1,)], vector, (1.0,))
    with pytest.raises(UserError, match="at least one text"):
        side_effects(model, [], vector, (1.0,))
    with pytest.raises(UserError, match="ngram"):
        coherence(model, PROMPTS, vector, (1.0,), Continuing(2, ngram=3))
    with pytest.raises(UserError, match="at least one vector"):
        transfer(model, {}, {"a": questions()})
