"""Detection of concepts against AUROC of scores that are computed one by one, and a planted direction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.dictionaries import ReLU, init_sae
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.steering import SteeringVector
from jax_interp.steering.concepts import detect, detector
from jax_interp.steering.features import steer_features
from jax_interp.surgery import read
from tests.toy import toy

FIRST, SECOND = "blocks.0.resid_post", "blocks.1.resid_post"


def texts(concept_token: int, seed: int) -> LabelledTokens:
    """Texts of different lengths, padded at the end, half of which have a token."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(10, 40, (24, 7)).astype(np.int32)
    mask = np.arange(7)[None] < rng.integers(4, 8, (24, 1))
    labels = np.arange(24) % 2
    tokens[labels == 1, 2] = concept_token
    readable = mask & (np.arange(7) > 0)[None]
    return LabelledTokens(f"token {concept_token}", np.where(mask, tokens, 0), mask, readable, labels, ("other", "it"))


def test_detectors_are_judged_by_the_highest_score_of_readable_tokens():
    model, data = toy(), {"five": texts(5, 0), "six": texts(6, 1)}
    sae = init_sae(jax.random.key(0), 16, 20, ReLU())
    vectors = {c: SteeringVector({FIRST: jax.random.normal(jax.random.key(i), (16,))}) for i, c in enumerate(data)}
    latents = {c: steer_features(sae, SECOND, [3 + i]) for i, c in enumerate(data)}
    given = {
        "vectors": {c: detector(v) for c, v in vectors.items()},
        "latents": {c: detector(v) for c, v in latents.items()},
    }
    train = {c: np.arange(24) < 12 for c in data}
    found = detect(model, given, data, train=train)
    for c, one in data.items():
        _, values = read(model, FIRST, SECOND)(one.tokens)
        projected = np.asarray(values[FIRST]) @ np.asarray(vectors[c].vectors[FIRST])
        encoded = np.asarray(sae.encode(values[SECOND]))[..., int(latents[c].features[0])]
        for method, scores in (("vectors", projected), ("latents", encoded)):
            highest = np.where(one.readable, scores, -np.inf).max(1)[12:]
            has = one.labels[12:] == 1
            above = highest[has][:, None] - highest[~has][None]
            want = np.mean((above > 0) + 0.5 * (above == 0))
            assert found.by_method[method][c].value == pytest.approx(want)
    bag = found.by_method["bag of words"]
    assert all(bag[c].value > 0.8 for c in data)  # the token tells the class
    assert found.overall("vectors").value == pytest.approx(
        np.mean([e.value for e in found.by_method["vectors"].values()])
    )
    assert len(found.table().splitlines()) == 4


def test_the_embedding_of_the_planted_token_finds_its_texts():
    model, data = toy(), texts(5, 0)
    scale = jnp.linalg.norm(model.E, axis=1)
    model = type(model)(model.E / scale[:, None], model.blocks, model.U)
    other = jax.random.normal(jax.random.key(1), (16,))
    other = other - model.E[5] * (other @ model.E[5])
    right, wrong = (detector(SteeringVector({"embed": vector})) for vector in (model.E[5], other))
    found = detect(model, {"right": {"five": right}, "wrong": {"five": wrong}}, {"five": data})
    assert found.by_method["right"]["five"].value == 1.0
    assert found.by_method["wrong"]["five"].value < 0.9
    assert "bag of words" not in found.by_method
    assert np.isnan(found.overall("right").low)


def test_what_cannot_be_detected_is_refused():
    model, data = toy(), texts(5, 0)
    vector = SteeringVector({FIRST: jnp.ones(16), SECOND: jnp.ones(16)})
    one = {"a": {"five": detector(vector.only([FIRST]))}}
    for wrong, message in (
        (lambda: detector(vector), "choose one layer"),
        (lambda: detector(steer_features(init_sae(jax.random.key(0), 16, 20, ReLU()), FIRST, [1, 2])), "has one"),
        (lambda: detect(model, one, {"six": data}), "lacks the concepts six"),
        (lambda: detect(model, one, {"five": data}, train={"five": data.labels == 1}), r"one class|needs both"),
        (lambda: detect(model, {}, {"five": data}), "at least one method"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()
