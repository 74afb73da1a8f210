"""Propensity: log probabilities of two answers at several strengths, against closed forms and one row at a time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.data.tokenizer import load_tokenizer
from jax_interp.models import Config, init
from jax_interp.steering import Questions, Steer, SteeringVector, asked, read_questions
from jax_interp.steering.measuring import Batching, propensities, slopes, steerability
from jax_interp.steering.measuring.propensity import _log_probabilities
from jax_interp.surgery import Add, at, call, edit

STRENGTHS = (-1.0, 0.0, 2.0)
ROWS = Batching(rows=16)
CONFIG = Config(n_layers=2, d_model=16, n_heads=2, d_mlp=32, vocab_size=40, n_ctx=24)


@pytest.fixture(scope="module")
def model():
    return init(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def vector():
    return SteeringVector({"blocks.1.resid_post": jax.random.normal(jax.random.key(1), (16,))})


def questions(answers: int | None, n: int = 6) -> Questions:
    """Questions of different lengths; with answers of this many tokens, or of one to three."""
    rng = np.random.default_rng(0)
    draw = lambda low, high, first=2: tuple(rng.integers(first, first + 19, rng.integers(low, high + 1)).tolist())
    a, b = (answers, answers) if answers else (1, 3)
    prompts = tuple(draw(3, 9) for _ in range(n))
    matching, other = (tuple(draw(a, b, first) for _ in range(n)) for first in (2, 21))
    return Questions("set", prompts, matching, other, instructions=tuple(max(1, len(p) - 2) for p in prompts))


def one_at_a_time(model, vector, some: Questions, strength: float, placement: str, number: int) -> list[float]:
    """log P of both answers, without padding and without batches."""
    found = []
    for answer in (some.matching[number], some.other[number]):
        prompt = some.prompts[number]
        tokens = jnp.asarray([(*prompt, *answer)], jnp.int32)
        start = {"all": 0, "after_instruction": some.instructions[number] - 1, "answer": len(prompt) - 1}[placement]
        steered = model
        for address, v in vector.vectors.items():
            steered = edit(steered, at(address, Add(v, strength), pos=slice(start, None)))
        log_p = jax.nn.log_softmax(call(steered, tokens)[0], axis=-1)
        found.append(sum(float(log_p[len(prompt) + i - 1, token]) for i, token in enumerate(answer)))
    return found


@pytest.mark.parametrize(
    ("answers", "placement"),
    [
        (1, "answer"),
        (None, "after_instruction"),
        pytest.param(1, "all", marks=pytest.mark.slow),
        pytest.param(1, "after_instruction", marks=pytest.mark.slow),
        pytest.param(None, "all", marks=pytest.mark.slow),
        pytest.param(None, "answer", marks=pytest.mark.slow),
    ],
)
def test_batches_give_what_each_question_gives_alone(model, vector, answers, placement):
    some = questions(answers)
    found = propensities(model, some, vector, STRENGTHS, placement=placement, batching=ROWS)
    for number in (4,):
        for i, strength in ((0, -1.0), (2, 2.0)):
            wanted = one_at_a_time(model, vector, some, strength, placement, number)
            assert [found.matching[number, i], found.other[number, i]] == pytest.approx(wanted, abs=2e-4)


def test_a_vector_before_the_unembedding_has_a_known_slope():
    # The logits are linear in the last residual stream, so m changes by λ v·(u_matching - u_other). The toy takes no
    # mask: its rows are batched by their exact lengths.
    model = toy.toy(d=16, vocab=40)
    v = jax.random.normal(jax.random.key(2), (16,))
    some = questions(1)
    found = propensities(model, some, SteeringVector({"blocks.2.resid_post": v}), STRENGTHS, placement="answer")
    difference = model.U[:, jnp.asarray(some.matching)[:, 0]] - model.U[:, jnp.asarray(some.other)[:, 0]]
    assert slopes(found.strengths, found.values) == pytest.approx(np.asarray(v @ difference), abs=1e-4)


@pytest.mark.slow
def test_strength_zero_and_a_zero_vector_are_the_model_itself(model, vector):
    some = questions(None)
    found = propensities(model, some, vector, STRENGTHS, placement="after_instruction", batching=ROWS)
    zero = propensities(model, some, vector.scaled(0.0), STRENGTHS, placement="after_instruction", batching=ROWS)
    assert np.ptp(zero.values, axis=1).max() < 1e-5
    assert found.values[:, 1] == pytest.approx(zero.values[:, 1], abs=1e-4)


def test_the_probabilities_are_those_of_the_two_answers(model, vector):
    found = propensities(model, questions(1), vector, STRENGTHS, placement="answer", batching=ROWS)
    a, b = np.exp(found.matching), np.exp(found.other)
    assert found.p_matching == pytest.approx(a / (a + b))
    assert found.p_answers == pytest.approx(a + b)


def test_other_vectors_and_strengths_run_the_same_program(model, vector):
    some = questions(1)
    propensities(model, some, vector, STRENGTHS, placement="answer", batching=ROWS)
    before = _log_probabilities._cache_size()  # type: ignore[attr-defined]
    propensities(model, some, vector.scaled(3.0), (-2.0, 0.5, 7.0), placement="answer", batching=ROWS)
    assert _log_probabilities._cache_size() == before  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_changes_little(model, vector, dtype):
    half = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, model)
    some = questions(None)
    full = propensities(model, some, vector, STRENGTHS).values
    assert propensities(half, some, vector, STRENGTHS).values == pytest.approx(full, abs=0.15)


@pytest.mark.parametrize(
    "axis", ["data", pytest.param("fsdp", marks=pytest.mark.slow), pytest.param("tensor", marks=pytest.mark.slow)]
)
def test_a_mesh_gives_the_same_figures(model, vector, axis):
    from jax_interp.training.meshes import make_mesh

    some = questions(1)
    alone = propensities(model, some, vector, STRENGTHS, placement="answer", batching=ROWS).values
    batching = Batching(place=make_mesh(**{axis: 2}))  # type: ignore[arg-type]
    shared = propensities(model, some, vector, STRENGTHS, placement="answer", batching=batching).values
    assert shared == pytest.approx(alone, abs=1e-4)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Padded:
    """The toy, which looks back only, so that padding on the right changes nothing."""

    model: toy.Toy

    @property
    def blocks(self):
        return self.model.blocks

    def __call__(self, tokens, *, mask=None, taps=()):
        return self.model(tokens, taps=taps)


@pytest.mark.slow
def test_a_vector_of_letters_moves_letters_and_no_behaviour(test_data):
    # Published questions, and a model whose logits are linear in the vector: v = u_A - u_B adds ‖v‖² to log P(A)/P(B).
    tokenizer = load_tokenizer(test_data / "tokenizers" / "gpt2" / "tokenizer.json")
    path = test_data / "prompts" / "model_written_evals" / "lm_power-seeking-inclination.jsonl"
    asked_twice = asked(tokenizer, read_questions(path).take(range(30)).both_orders())
    model = toy.toy(d=16, vocab=tokenizer.vocab_size)
    v = model.U[:, tokenizer.id_of("A")] - model.U[:, tokenizer.id_of("B")]
    found = propensities(Padded(model), asked_twice, SteeringVector({"blocks.2.resid_post": v}), STRENGTHS)
    report = steerability(found)
    letter = report.factors["letter"]
    assert report.slope.mean.value == pytest.approx(0.0, abs=1e-4)
    assert report.anti_steerable.value == pytest.approx(0.5)
    assert letter.eta_squared.value == pytest.approx(1.0, abs=1e-6)
    assert letter.levels["A"].slope.mean.value == pytest.approx(float(v @ v), abs=1e-3)
    assert (report.slope.n, report.slope.groups) == (60, 30)


def test_what_cannot_be_measured_is_refused(model, vector):
    some = questions(1)
    nan = SteeringVector({"blocks.1.resid_post": jnp.full((16,), jnp.nan)})
    with pytest.raises(UserError, match="log probability"):
        propensities(model, some, nan, STRENGTHS, placement="answer", batching=ROWS)
    with pytest.raises(UserError, match="different finite strengths"):
        propensities(model, some, vector, (1.0, 1.0))
    with pytest.raises(UserError, match="give placement="):
        propensities(model, some, vector.using(where=jnp.ones((6, 9), bool)), STRENGTHS)
    with pytest.raises(UserError, match="first steered position of each of the 6"):
        propensities(model, some, vector, STRENGTHS, placement=[1, 2])
    with pytest.raises(UserError, match="no placement 'start'"):
        propensities(model, some, vector, STRENGTHS, placement="start")
    wrong = Questions("set", ((1, 99),), ((3,),), ((4,),))
    with pytest.raises(UserError, match="40"):
        propensities(model, wrong, vector, STRENGTHS)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class OfRows:
    """A steering with a vector for each row of a batch."""

    vectors: jax.Array

    def edits(self, strength=1.0):
        return (at("blocks.1.resid_post", Steer(self.vectors, strength)),)


def test_a_vector_for_each_row_of_a_batch_is_refused(model):
    """Rows are put into batches by their length, so a row would get the vector of another question."""
    with pytest.raises(UserError, match="one for each row of a batch"):
        propensities(model, questions(4), OfRows(jnp.ones((4, 1, 16))), STRENGTHS)
