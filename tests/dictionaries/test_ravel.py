"""RAVEL: attributes in subspaces of their own are disentangled, entangled ones are not; tables of text are read."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import train_bpe
from jax_interp.dictionaries.evaluation import controls
from jax_interp.dictionaries.evaluation.benchmarks.baselines import compare
from jax_interp.dictionaries.evaluation.ravel import (
    EntityPrompt,
    EntityTable,
    MaskConfig,
    RavelConfig,
    entity_prompts,
    interchange,
    known_prompts,
    make_pairs,
    ravel,
    separation,
    train_mask,
)
from jax_interp.dictionaries.evaluation.ravel.masks import entity_values
from jax_interp.toys.entity_attributes import EntityAttributes, entity_attributes

VALUES = (3, 4)
CONFIG = RavelConfig(pairs=120, mask=MaskConfig(learning_rate=0.1, epochs=3, batch=28), ks=(1, 3, 4, 7))


def prompts_of(model: EntityAttributes) -> list[EntityPrompt]:
    found = []
    for a, count in enumerate(VALUES):
        answers = {f"{a}.{v}": (model.value(a, v),) for v in range(count)}
        for e, row in enumerate(np.asarray(model.table)):
            values = {f"attribute {b}": f"{b}.{v}" for b, v in enumerate(row)}
            tokens = (model.entity(e), model.question(a))
            found.append(EntityPrompt(f"entity {e}", f"attribute {a}", values, tokens, 0, answers))
    return found


@functools.cache
def result(entangled: bool):
    model = entity_attributes(jax.random.key(0), 24, VALUES, entangled=entangled)
    oracle = controls.oracle(model.directions, jnp.zeros(model.directions.shape[1]), 0.5)
    return ravel(model, "x", compare(jax.random.key(1), oracle, [model.vectors], reseeds=1), prompts_of(model), CONFIG)


def values(entangled: bool, method: str, figure: str = "disentangle") -> dict[str, float]:
    (found,) = [one for one in result(entangled).measures() if one.name == f"{figure} ({method})"]
    return {name: one.value for name, one in found.estimates.items()}


@pytest.mark.parametrize("method", ["mask", "separation"])
def test_attributes_in_subspaces_of_their_own_are_disentangled(method):
    found = values(False, method)
    assert found["dictionary"] == 1
    assert values(False, method, "cause")["full vector"] == 1
    assert values(False, method, "isolation")["full vector"] < 0.5
    assert found["full vector"] < 0.75
    assert max(found["random"], found["raw values"], found["random rotation"]) < 0.97
    latents = {s.attribute: s.latents for s in result(False).scores if (s.coder, s.method) == ("dictionary", method)}
    assert latents == {"attribute 0": 3, "attribute 1": 4}  # the latents of the attribute, and no other


@pytest.mark.parametrize("method", ["mask", "separation"])
def test_entangled_attributes_are_not(method):
    """An entity's vector is its own direction: to exchange it moves every attribute. Even the true directions fail."""
    found = values(True, method)
    assert found["dictionary"] < 0.75
    assert values(True, method, "cause")["full vector"] == 1
    assert found["dictionary"] < values(False, method)["dictionary"] - 0.25


def test_scores_have_intervals_and_the_means_of_the_attributes():
    scores = [s for s in result(False).scores if (s.coder, s.method) == ("random rotation", "mask")]
    mean = np.mean([s.disentangle.value for s in scores])
    assert values(False, "mask")["random rotation"] == pytest.approx(mean)
    for s in scores:
        assert s.disentangle.value == pytest.approx((s.cause.value + s.isolation.value) / 2)
        assert s.disentangle.low <= s.disentangle.value <= s.disentangle.high
        assert s.disentangle.low < s.disentangle.high


def test_pairs_ask_what_they_say():
    model = entity_attributes(jax.random.key(0), 24, VALUES)
    prompts, table = prompts_of(model), np.asarray(model.table)
    train, test = (make_pairs(prompts, "attribute 1", 60, split=split) for split in ("train", "test"))
    assert not set(np.asarray(train.base)[:, 0]) & set(np.asarray(test.base)[:, 0])
    for pairs in (train, test):
        base, source = np.asarray(pairs.base), np.asarray(pairs.source)
        asked = base[:, 1] - 24
        np.testing.assert_array_equal(pairs.cause, asked == 1)
        assert np.asarray(pairs.cause).mean() == 0.5
        rows = np.arange(60)
        b, s = table[base[:, 0]], table[source[:, 0]]
        assert (b[rows, asked] != s[rows, asked]).all()
        right = np.where(asked == 1, s[rows, asked], b[rows, asked])
        np.testing.assert_array_equal(base[:, 2], [model.value(a, v) for a, v in zip(asked, right)])
        np.testing.assert_array_equal(np.asarray(pairs.base_value), b[:, 1])
    with pytest.raises(UserError, match="another attribute"):
        make_pairs(prompts[:24], "attribute 0", 4, split="train")
    alike = [one for one in prompts if one.values["attribute 0"] == "0.0"]
    with pytest.raises(UserError, match="no two that differ"):
        make_pairs(alike, "attribute 0", 4, split="train")


def test_an_interchange_is_its_formula():
    base, source = jax.random.normal(jax.random.key(0), (2, 5, 6))
    sae = controls.random_dictionary(jax.random.key(1), 6, 9, k=3)
    f, g = np.asarray(sae.encode(base)), np.asarray(sae.encode(source))
    mask = np.arange(9) % 2
    wanted = ((1 - mask) * f + mask * g) @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec)
    np.testing.assert_allclose(interchange(sae, jnp.asarray(mask), base, source), wanted, atol=1e-5)
    error = np.asarray(base - sae.decode(sae.encode(base)))
    np.testing.assert_allclose(interchange(sae, jnp.asarray(mask), base, source, True), wanted + error, atol=1e-5)
    np.testing.assert_allclose(interchange(sae, jnp.zeros(9), base, source, True), base, atol=1e-5)


def test_separation_is_the_f_ratio_of_an_analysis_of_variance():
    from scipy.stats import f_oneway

    rng = np.random.default_rng(0)
    z, classes = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    z[:, 1] += classes
    wanted = [f_oneway(*(z[classes == c, j] for c in range(3))).statistic for j in range(4)]
    np.testing.assert_allclose(separation(z, classes), wanted)
    z[:, 2], z[:, 3] = 7, classes
    assert separation(z, classes)[2] == 0
    assert separation(z, classes)[3] == np.inf
    with pytest.raises(UserError, match="two classes"):
        separation(z, np.zeros(30, int))


def test_what_cannot_be_measured_is_refused():
    model = entity_attributes(jax.random.key(0), 24, VALUES)
    broken = dataclasses.replace(model, answers=model.answers.at[0, 0].set(jnp.nan))
    data = make_pairs(prompts_of(model), "attribute 1", 28, split="train")
    values = entity_values(model, "x", data, 28)
    with pytest.raises(UserError, match="became NaN"):
        train_mask(broken, "x", controls.neurons(7, 7), (data, *values), CONFIG.mask)
    for wrong in ({"pairs": 1}, {"train": 1.0}, {"methods": ("guess",)}, {"ks": ()}):
        with pytest.raises(UserError):
            RavelConfig(**wrong)
    for wrong in ({"learning_rate": 0}, {"last_temperature": 0}, {"epochs": 0}):
        with pytest.raises(UserError):
            MaskConfig(**wrong)


CITIES = {
    "Paris": {"Country": "France", "Continent": "Europe"},
    "New Delhi": {"Country": "India", "Continent": "Asia", "Latitude": 28.6, "Mayor": ""},
}
ASKED = {"Country": ["%s is in", '{"city": "%s", "in": "'], "Continent": ["On which continent is %s?"]}


def test_a_table_in_the_public_layout_becomes_prompts(tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, content in zip(files, (CITIES, ASKED)):
        file.write_text(json.dumps(content))
    table = EntityTable.read(*files)
    assert table.attributes["New Delhi"] == {"Country": "India", "Continent": "Asia", "Latitude": "28.6"}
    tokenizer = train_bpe(["Paris New Delhi is in France India Europe Asia continent city On which"] * 20, 300)
    prompts = entity_prompts(table, tokenizer, answer_tokens=2)
    assert len(prompts) == 6
    for one, template in zip(prompts, [t for ts in ASKED.values() for t in ts for _ in range(2)]):
        text = template.replace("%s", one.entity)
        ids = tokenizer.encode(text, bos=tokenizer.bos_id is not None)
        assert list(one.tokens) == ids
        after = tokenizer.decode(ids[: one.position + 1], skip_special=True)
        before = tokenizer.decode(ids[: one.position], skip_special=True)
        assert len(before) < text.index(one.entity) + len(one.entity) <= len(after)
        space = "" if template.endswith('"') else " "
        assert one.answer == tuple(tokenizer.encode(space + one.values[one.attribute], bos=False)[:2])


@pytest.mark.parametrize(
    ("entities", "asked", "complaint"),
    [
        ({"Paris": "France"}, {"Country": ["%s"]}, "object"),
        ({"Paris": {"Country": ["France"]}}, {"Country": ["%s"]}, "text"),
        ({"Paris": {"Country": "France"}}, {"Country": ["Paris is in"]}, "once"),
        ({"Paris": {"Country": "France"}}, {"Country": ["%s %s"]}, "once"),
        ({"Paris": {"Country": "France"}}, {"Country": "%s"}, "list"),
        ({}, {"Country": ["%s"]}, "at least one entity"),
    ],
)
def test_other_tables_are_refused(tmp_path, entities, asked, complaint):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, content in zip(files, (entities, asked)):
        file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=complaint):
        EntityTable.read(*files)


def test_only_what_the_model_knows_is_asked():
    model = entity_attributes(jax.random.key(0), 24, VALUES)
    prompts = prompts_of(model)
    wrong = EntityPrompt("x", "attribute 0", prompts[0].values, prompts[0].tokens, 0, {
        k: (v[0] + 1,) for k, v in prompts[0].answers.items()
    })  # fmt: skip
    assert known_prompts(model, [*prompts, wrong], batch=10) == prompts
    with pytest.raises(UserError, match="none of 1"):
        known_prompts(model, [wrong])
