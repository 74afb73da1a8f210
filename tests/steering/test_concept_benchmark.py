"""The concept benchmark: closed forms of its arithmetic, judges against counting by hand, and the pipeline."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.models import load
from jax_interp.models.generation import generate as generation
from jax_interp.models.generation.sampling import Sample
from jax_interp.steering import SteeringVector
from jax_interp.steering.concepts import (
    Concept,
    ConceptWords,
    Fluency,
    InstructionMatch,
    Judges,
    Method,
    Prefix,
    Ratings,
    Reply,
    Writing,
    by_function,
    choose_and_report,
    harmonic_mean,
    no_steering,
    prompt_method,
    rate,
    reply_losses,
    winrate,
    write_replies,
)
from jax_interp.surgery import call, edit

RIVER, LISTS = Concept("rivers", ("river", "River bank")), Concept("lists", ("append", "list"))
INSTRUCTIONS = ["def mean(values):", "class Queue:\n    def", "import os", "def read(path, mode):"]

WRITING = Writing(n_new=5, bos=True, at_once=8)


def test_the_harmonic_mean_is_zero_if_one_score_is_and_2_if_all_are_2():
    scores = np.array([[2.0, 2.0, 0.0, 1.0], [2.0, 1.0, 2.0, 1.0], [2.0, 0.5, 2.0, 2.0]])
    np.testing.assert_allclose(harmonic_mean(scores), [2, 3 / (0.5 + 1 + 2), 0, 3 / 2.5])


def ratings(overall: dict[str, np.ndarray]) -> Ratings:
    """Ratings in which the three scores of a reply are equal, so that they are also the harmonic mean."""
    made = {}
    for method, values in overall.items():
        axes = {
            "score": ("concept", "instruct", "fluency"),
            "concept": [f"c{i}" for i in range(values.shape[0])],
            "factor": [0.5 * (i + 1) for i in range(values.shape[1])],
            "instruction": [f"i{i}" for i in range(values.shape[2])],
        }
        made[method] = Labelled(np.stack([values] * 3), axes)
    return Ratings(made)


def test_the_factor_is_chosen_on_one_half_and_the_other_half_is_reported():
    #          factor 0.5: the first half      the second       factor 1.0: better in the second half
    values = np.array([[[2.0, 1.0, 0.5, 0.5], [1.0, 1.0, 2.0, 2.0]], [[0, 0, 0, 0], [0.5, 0.0, 1.0, 0.0]]])
    found = choose_and_report(ratings({"a": values, "prompt": np.ones((2, 1, 4))}))
    first, second = found.by_method["a"].concepts
    assert (first.factor, first.overall.value, first.on_choosing) == (0.5, 0.5, 1.5)
    assert (second.factor, second.overall.value, second.on_choosing) == (1.0, 0.5, 0.25)
    assert second.scores["fluency"].value == pytest.approx(0.5)
    assert found.by_method["a"].overall.value == pytest.approx(0.5)
    assert found.by_method["a"].optimism == pytest.approx((1.0 - 0.25) / 2)
    wins = found.wins("prompt")["a"]  # reported: 0.5, 0.5 and 1.0, 0.0 against 1
    assert (wins.win.value, wins.tie.value, wins.loss.value, wins.rate) == (0, 0.25, 0.75, 0.125)
    assert "quartiles" in found.table()
    assert len(found.table().splitlines()) == 3
    other = choose_and_report(ratings({"a": values}), seed=3)
    assert sorted([*other.choosing, *other.reported]) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="no method 'b': there are a, prompt"):
        found.wins("b")
    with pytest.raises(UserError, match="1 to report"):
        choose_and_report(ratings({"a": values[..., :2]}))


def test_a_winrate_counts_wins_ties_and_losses_and_the_interval_is_that_of_concepts():
    scores = np.array([[2.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    reference = np.array([[1.0, 1.0, 1.0, 1.0 + 1e-9], [0.0, 0.0, 0.0, 2.0]])
    wins = winrate(scores, reference)
    assert (wins.win.value, wins.tie.value, wins.loss.value) == (0.5, 0.25, 0.25)
    assert (wins.win.low, wins.win.high) == (0.25, 0.75)
    assert wins.rate == pytest.approx(1 - winrate(reference, scores).rate)


def reply(text: str, tokens=(1, 2, 3), concept=RIVER, instruction=0, prompt=(5, 6)) -> Reply:
    return Reply(concept, instruction, "asked", text, tuple(prompt), tuple(tokens))


def test_words_of_a_concept_are_counted_whole_and_in_any_case():
    judge = ConceptWords(enough=3)
    texts = ["a lake", "The RIVER.", "river, river", "river bank river rivers", "river " * 9]
    np.testing.assert_allclose(judge([reply(text) for text in texts]), [0, 1, 1.5, 1.5, 2])
    with pytest.raises(UserError, match="no words"):
        judge([reply("x", concept=Concept("nameless"))])


@pytest.fixture(scope="module")
def small():
    return load("stdlib-small")


def test_fluency_is_the_likelihood_under_the_unsteered_model_and_repetition_counts(small):
    model, tokenizer = small
    prompt = tokenizer.encode("import os\nimport", bos=True)
    usual, odd = tokenizer.encode(" sys\nimport re\n", bos=False), [401, 77, 902, 655, 333]
    given = [reply("", usual, prompt=prompt), reply("", odd, prompt=prompt), reply("", (), prompt=prompt)]
    given += [reply("", usual[:2] * 20, prompt=prompt)]
    losses = reply_losses(model, given, at_once=3)
    for one, loss in zip(given[:2], losses, strict=False):
        logits = np.asarray(call(model, np.asarray([[*one.prompt, *one.tokens]], np.int32)), np.float64)[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        at = np.arange(len(one.prompt) - 1, len(logits) - 1)
        assert loss == pytest.approx(-log_p[at, list(one.tokens)].mean(), rel=1e-4)
    assert losses[2] == np.inf
    found = Fluency(model, usual=float(losses[0]), span=2.0)(given)
    assert found[0] == pytest.approx(2)
    assert list(found[1:3]) == [0, 0]
    assert found[3] <= 2 * (2 / 38) / 0.5  # two distinct triples of 38
    assert Fluency.beside(model, given[:2]).usual == pytest.approx(losses[:2].mean())


def test_a_reply_matches_the_instruction_after_which_it_is_likeliest(small):
    model, tokenizer = small
    texts = ["import os\nimport sys\nimport", "class Point:\n    def __init__(self, x, y):\n", "x = [1, 2, 3"]
    prompts = tuple(tuple(tokenizer.encode(text, bos=True)) for text in texts)
    fitting = [" re\n", "        self.x = x\n", ", 4, 5]"]
    judge = InstructionMatch(model, prompts, others=2)
    given = [
        reply("", tokenizer.encode(fitting[text], bos=False), instruction=i, prompt=prompts[i])
        for i, text in ((0, 0), (1, 1), (2, 2), (0, 2))
    ]
    assert judge(given).tolist() == [2, 2, 2, 0]


def methods(model) -> list[Method]:
    d = model.config.d_model
    vector = lambda seed: SteeringVector({"blocks.1.resid_post": jax.random.normal(jax.random.key(seed), (d,))})
    concepts = [RIVER, LISTS]
    vectors = Method("vectors", {one.name: vector(i) for i, one in enumerate(concepts)}, (0.0, 0.3, 3.0))
    return [vectors, prompt_method(concepts, "# about {concept}\n"), no_steering(concepts)]


def test_all_factors_and_concepts_run_one_program_and_each_row_is_that_of_its_own_factor(small):
    model, tokenizer = small
    concepts = [RIVER, LISTS]
    (first, *others) = methods(model)
    before = generation._generate._cache_size()
    replies = write_replies(model, tokenizer, concepts, [first], INSTRUCTIONS, WRITING)
    assert generation._generate._cache_size() == before + 1
    assert replies.shape("vectors") == (2, 3, 4)
    found = {(r.concept.name, i // 4 % 3, r.instruction): r for i, r in enumerate(replies.by_method["vectors"])}
    for (concept, factor, instruction), one in list(found.items())[::5]:
        steered = edit(model, *first.by_concept[concept].edits(first.factors[factor]))  # type: ignore[union-attr]
        prompt = tokenizer.encode(INSTRUCTIONS[instruction], bos=True)
        whole = np.zeros((1, 24), np.int32)
        whole[0, : len(prompt) + 5] = [*prompt, *one.tokens]
        best = np.asarray(call(steered, whole))[0].argmax(-1)  # without a cache
        assert best[len(prompt) - 1 : len(prompt) + 4].tolist() == list(one.tokens)
        assert one.prompt == tuple(prompt)
    alone = write_replies(model, tokenizer, concepts, [others[1]], INSTRUCTIONS, WRITING).by_method["no steering"]
    assert [r.tokens for r in alone[:4]] == [found["rivers", 0, i].tokens for i in range(4)]  # factor 0


@pytest.mark.slow
def test_the_benchmark_from_replies_to_wins(small):
    model, tokenizer = small
    replies = write_replies(model, tokenizer, [RIVER, LISTS], methods(model), INSTRUCTIONS, WRITING)
    mean = by_function(lambda asked, text, concept: 2.0 * ("e" in text))
    judges = Judges(mean, by_function(lambda asked, text, concept: 1.0 + (asked[:3] == "def")), mean)
    found = rate(replies, judges)
    texts = [r.text for r in replies.by_method["prompt"]]
    want = np.asarray([2.0 * ("e" in text) for text in texts]).reshape(2, 1, 4)
    np.testing.assert_array_equal(found.by_method["prompt"].values[0], want)
    results = choose_and_report(found)
    assert set(results.by_method) == {"vectors", "prompt", "no steering"}
    assert set(results.wins("prompt")) == {"vectors", "no steering"}


@pytest.mark.slow
def test_all_methods_get_the_same_draws(small):
    model, tokenizer = small
    writing = Writing(n_new=6, bos=True, at_once=8, choose=Sample(), key=jax.random.key(0))
    replies = write_replies(model, tokenizer, [RIVER], [methods(model)[0], no_steering([RIVER])], INSTRUCTIONS, writing)
    unsteered = zip(replies.by_method["vectors"][:4], replies.by_method["no steering"], strict=True)
    assert [a.tokens == b.tokens for a, b in unsteered] == [True] * 4  # factor 0


def test_what_cannot_be_benchmarked_is_refused(small):
    model, tokenizer = small
    prompt = Prefix("")
    vector = SteeringVector({"blocks.1.resid_post": jnp.full((model.config.d_model,), jnp.nan)})
    write = lambda method: write_replies(model, tokenizer, [RIVER], [method], INSTRUCTIONS, WRITING)
    one = lambda given: rate(write(Method("a", {"rivers": prompt}, (1.0,))), Judges(given, given, given))
    for wrong, message in (
        (lambda: Method("a", {"rivers": prompt}), "no strength"),
        (lambda: Method("a", {"rivers": vector}, (1.0, 1.0)), "distinct finite"),
        (lambda: Method("a", {}), "no concept"),
        (lambda: write(Method("a", {"lists": prompt}, (1.0,))), "lacks the concepts rivers"),
        (lambda: write(Method("a", {"rivers": vector}, (0.5, 1.0))), "NaN for 'rivers' at the factor 0.5"),
        (lambda: write_replies(model, tokenizer, [RIVER] * 2, [], INSTRUCTIONS, WRITING), "twice among the concepts"),
        (lambda: one(lambda replies: np.full(len(replies), 3.0)), "a rating is from 0 to 2"),
        (lambda: one(lambda replies: [1.0]), "got 4 replies"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()
