"""Laws of every analysis of activations: it runs, compiled, on what it declares and nothing else, in any layout."""

from __future__ import annotations

import inspect

import jax
import numpy as np
import pytest
from small_models import GPT2_LIKE, peaky

from jax_interp import analysis
from jax_interp.surgery import read, replan

BUILT_IN = [function for function in analysis.NEEDED if function.__module__.startswith("jax_interp.")]


def arguments(function, model, acts, tokens):
    """What the function is given for its arguments without a default, by name."""
    known = {
        "model": model,
        "acts": acts,
        "tokens": tokens if function is analysis.detect_head else 7,
        "detection_pattern": "induction_head",
        "offset": -1,
        "lens": analysis.init_tuned_lens(model),
        "stack": model.embed.weight[...][tokens][None],
    }
    return {
        name: known[name]
        for name, one in inspect.signature(function).parameters.items()
        if one.default is inspect.Parameter.empty
    }


@pytest.mark.parametrize("function", BUILT_IN, ids=lambda function: function.__name__)
def test_an_analysis_runs_on_what_it_declares_in_every_layout(function, tokens):
    found = []
    for model in (peaky(GPT2_LIKE), replan(peaky(GPT2_LIKE), "*")):
        addresses = analysis.needed(model, function)
        assert addresses

        @jax.jit
        def run(model, tokens, addresses=addresses):
            acts = read(model, addresses, output=False)(tokens)
            return function(**arguments(function, model, acts, tokens))

        found.append(run(model, tokens))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        assert np.isfinite(np.asarray(one, np.float64)).all()
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)
