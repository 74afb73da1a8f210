"""Logistic regression on a stream: near the optimum on kept activations, bootstrap, exact resume, what is refused."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.core.logistic import fit_logistic
from jax_interp.probes import StreamedLogistic, TokenStream, fit_probes, stream_logistic, stream_of
from jax_interp.training import Log, SaveTo
from tests.probes.test_streamed_moments import SITES, Stopped, kept, setting

KIND = StreamedLogistic(C=(0.01, 1.0), learning_rate=0.05)
EPOCHS = 40


@functools.cache
def streamed():
    model, data = setting()
    return stream_logistic(KIND, model, SITES, stream_of(data, batch=10, epochs=EPOCHS))


def test_a_stream_comes_near_to_the_optimum():
    """The penalty of a stream of 40 epochs is that of 40 copies of the rows."""
    vectors = kept()
    found = streamed().scores(vectors).values[:, 0, 0, 0, :, 0]
    for site, of_site in zip(SITES, found, strict=True):
        x, y = vectors.values[site], vectors.data.labels[None] == 1
        for C, scores in zip(KIND.C, of_site, strict=True):
            optimum = fit_logistic(jnp.asarray(x), jnp.asarray(y), C=C * EPOCHS).scores(jnp.asarray(x))[0]
            loss = lambda s, y=y: np.mean(np.logaddexp(0, -np.where(y[0], 1, -1) * s))
            assert np.corrcoef(scores, optimum)[0, 1] > 0.995
            assert loss(scores) < loss(np.asarray(optimum)) + 0.01


def test_kept_activations_give_the_optimum():
    vectors = kept()
    found = fit_probes(KIND, vectors).scores(vectors).values[:, 0, 0, 0, :, 0]
    for site, of_site in zip(SITES, found, strict=True):
        x = jnp.asarray(vectors.values[site])
        for C, scores in zip(KIND.C, of_site, strict=True):
            optimum = fit_logistic(x, jnp.asarray(vectors.data.labels[None] == 1), C=C).scores(x)[0]
            np.testing.assert_allclose(scores, optimum, atol=2e-3 * float(jnp.std(optimum)))


@pytest.mark.slow
def test_seeds_of_a_bootstrap_differ_and_agree_on_average():
    model, data = setting()
    kind = StreamedLogistic(C=(1.0,), learning_rate=0.05, bootstrap=True)
    found = stream_logistic(kind, model, SITES[0], stream_of(data, batch=20, epochs=20), seeds=(0, 1, 2))
    scores = found.scores(kept()).values[0, 0, 0, 0, 0]
    correlation = np.corrcoef(scores)[np.triu_indices(3, 1)]
    assert (correlation > 0.9).all()
    assert (correlation < 0.99999).all()


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path):
    model, data = setting()
    stream = stream_of(data, batch=10, epochs=2)

    def stop(record):
        if record["step"] == 7:
            raise Stopped

    run = SaveTo(tmp_path, every=3)
    with pytest.raises(Stopped):
        stream_logistic(KIND, model, SITES, stream, run=run, log=Log(every=1, on_record=stop, quiet=True))
    resumed, alone = stream_logistic(KIND, model, SITES, stream, run=run), stream_logistic(KIND, model, SITES, stream)
    for a, b in zip(jax.tree.leaves(resumed.probes), jax.tree.leaves(alone.probes), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m, s: stream_logistic(KIND, m, SITES, s, seeds=(0, 1)), "give one seed, or several and bootstrap"),
        (lambda m, s: stream_logistic(KIND, m, (*SITES, "logits"), s), "different widths"),
        (lambda m, s: stream_logistic(KIND, m, SITES, TokenStream(s.batch_at, 1, ("a", "b", "c"))), "stream has 3"),
        (lambda m, s: stream_logistic(
            KIND, m, SITES, TokenStream(lambda i: (*s.batch_at(i)[:2], np.ones((10, 12), int)), 1, ("a", "b"))
        ), "has the class 'a'"),
        (lambda m, s: StreamedLogistic(C=(0.0,)), "must be positive"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(run, message):
    model, data = setting()
    with pytest.raises(UserError, match=message):
        run(model, stream_of(data, batch=10))
