"""The code of docs/trained-steering.md runs as it stands, and what it says about a run holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest

from jax_interp.steering.trained.completions import ChangedTokens, texts_of
from jax_interp.steering.trained.likelihood import likelihood
from jax_interp.surgery import edit


@pytest.mark.slow
def test_the_page_runs_and_steering_makes_the_wanted_answers_likelier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = pages.run("trained-steering.md")
    assert len(names["run"]) == 4
    saved = names["run"].member(layer=1, seed=0)
    jax.tree.map(np.testing.assert_array_equal, names["steering"], saved)
    model, questions = names["model"], names["questions"]
    odds = {}
    for strength in (0.0, 1.0):
        steered = edit(model, *saved.edits(strength))
        sides = [texts_of(questions.prompts, side, ChangedTokens()) for side in (questions.matching, questions.other)]
        wanted, other = (likelihood(steered, jax.tree.map(jnp.asarray, side)).log_p for side in sides)
        odds[strength] = np.asarray(wanted - other)
    assert (odds[1.0] > odds[0.0]).all()
    assert (np.asarray(names["scores"]) >= 0).all()
