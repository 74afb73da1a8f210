"""DAS and MDAS on RAVEL: attributes in subspaces of their own are disentangled, entangled ones are not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.circuits.causal_variables import (
    DAS,
    AlignmentConfig,
    Location,
    RavelAlignment,
    Whole,
    align_ravel,
    interchange_accuracy,
    ravel_data,
)
from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation.downstream import Identity
from jax_interp.dictionaries.evaluation.ravel import EntityPrompt, make_pairs
from jax_interp.dictionaries.evaluation.ravel.masks import entity_values, right_answers
from jax_interp.toys.entity_attributes import entity_attributes

CONFIG = AlignmentConfig(DAS(3), steps=200, batch=32)


def prompts_of(model):
    prompts = []
    for attribute, count in enumerate(model.values):
        answers = {f"{attribute}.{v}": (model.value(attribute, v),) for v in range(count)}
        for entity, row in enumerate(model.table.tolist()):
            known = {f"attribute {a}": f"{a}.{v}" for a, v in enumerate(row)}
            tokens = (model.entity(entity), model.question(attribute))
            prompts.append(EntityPrompt(f"entity {entity}", f"attribute {attribute}", known, tokens, 0, answers))
    return prompts


@pytest.fixture(scope="module")
def found():
    make = lambda entangled: entity_attributes(jax.random.key(0), 24, values=(3, 4), entangled=entangled)
    settings = RavelAlignment(CONFIG, pairs=240)
    return {
        entangled: align_ravel(make(entangled), "x", prompts_of(make(entangled)), settings)
        for entangled in (False, True)
    }


@pytest.mark.slow
def test_attributes_with_subspaces_of_their_own_are_disentangled(found):
    table = found[False].table
    assert table.axes["intervention"] == ("MDAS", "DAS", "random subspace", "whole vector")
    disentangle = table.sel(figure=2).mean("attribute").values
    assert disentangle[0] > 0.95  # MDAS
    assert max(disentangle[2:]) < 0.75
    cause, isolation = table.sel(intervention=3, figure=[0, 1]).values.T
    np.testing.assert_array_equal(cause, 1.0)  # the whole vector is the other entity
    assert isolation.max() < 0.7
    assert found[False].cause["attribute 0", "MDAS"].low > 0.9


@pytest.mark.slow
def test_entangled_attributes_of_new_entities_are_not(found):
    assert found[True].table.sel(intervention=0, figure=2).values.max() < 0.8


def test_the_whole_vector_answers_as_in_the_evaluation_of_dictionaries():
    model = entity_attributes(jax.random.key(0), 24, values=(3, 4))
    pairs = make_pairs(prompts_of(model), "attribute 1", 40, split="test")
    ours = interchange_accuracy(model, ravel_data(pairs), Location("x", "entity"), Whole()).correct
    part = (pairs, *entity_values(model, "x", pairs, 40))
    theirs = right_answers(model, "x", Identity(), jnp.ones(model.vectors.shape[1]), part, False)
    np.testing.assert_array_equal(ours, theirs)


def test_settings_that_are_refused():
    for wrong in ({"pairs": 2}, {"train": 1.0}, {"methods": ("SAS",)}):
        with pytest.raises(UserError):
            RavelAlignment(CONFIG, **wrong)
