"""A grid is what its members are alone, and resumes to the bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.dictionaries import train_dictionary, variants
from jax_interp.dictionaries.activations.select import batch_top_k
from jax_interp.dictionaries.training.config import Adam
from jax_interp.dictionaries.training.sweep import Member, Sweep, member_config, members, train_sweep
from jax_interp.training import QUIET, Log, NonFinite, SaveTo
from jax_interp.training.metrics import read_log

ADDRESS = "blocks.1.resid_post"
FIELDS = {"n_features": 64, "steps": 6, "buffer": 400, "dead_after": 300, "optimizer": Adam(warmup=2)}
RELU = variants.relu(ADDRESS, **FIELDS)


def alone(config, member, model):
    """The same dictionary from a config of its own."""
    return train_dictionary(member_config(config, member), model, batch_at, log=QUIET)


CASES = {
    "strengths and rates": (RELU, Sweep(coefficients={"l1": (0.001, 0.1)}, learning_rates=(1e-3, 1e-2)), False),
    "strengths by vmap": (RELU, Sweep(coefficients={"l1": (0.001, 0.1)}), True),
    "k": (variants.topk(ADDRESS, k=6, **FIELDS), Sweep(k=(2, 6)), False),
    "k of a batch": (variants.batch_topk(ADDRESS, k=6, **FIELDS), Sweep(k=(2, 6)), False),
}


FAST = "strengths by vmap"


@pytest.mark.parametrize("name", [n if n == FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_every_member_is_what_it_would_be_alone(name):
    config, sweep, batched = CASES[name]
    model = toy()
    for member, dictionary in train_sweep(config, sweep, model, batch_at, batched=batched, log=QUIET):
        own = alone(config, member, model)
        assert jax.tree.structure(own) == jax.tree.structure(dictionary)
        for a, b in zip(jax.tree.leaves(dictionary), jax.tree.leaves(own), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-4)


@pytest.mark.slow
def test_seeds_and_layers_share_the_stream_and_a_killed_grid_resumes(tmp_path):
    class Killed(Exception):
        pass

    def die(record):
        if record["step"] == 5:
            raise Killed

    sweep, model = Sweep(seeds=(0, 3), addresses=("blocks.0.resid_post", ADDRESS)), toy()
    with pytest.raises(Killed):
        train_sweep(
            RELU,
            sweep,
            model,
            batch_at,
            run=SaveTo(tmp_path / "killed", every=2),
            log=Log(every=1, on_record=die, quiet=True),
        )
    resumed = train_sweep(
        RELU, sweep, model, batch_at, run=SaveTo(tmp_path / "killed", every=2), log=Log(every=1, quiet=True)
    )
    whole = train_sweep(
        RELU, sweep, model, batch_at, run=SaveTo(tmp_path / "whole", every=2), log=Log(every=1, quiet=True)
    )
    assert [(m.address, m.seed) for m, _ in whole] == [(a, s) for a in ("blocks.0.resid_post", ADDRESS) for s in (0, 3)]
    for (_, a), (_, b) in zip(resumed, whole, strict=True):
        for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(one, other)
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="seeds"):
        train_sweep(
            RELU,
            Sweep(seeds=(0, 1)),
            model,
            batch_at,
            run=SaveTo(tmp_path / "whole", every=2),
            log=Log(every=1, quiet=True),
        )
    a, b = whole[2][1], whole[3][1]
    assert not np.allclose(a.W_dec, b.W_dec)


@pytest.mark.parametrize("batched", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_member_that_diverges_leaves_the_others_as_they_are(batched, tmp_path):
    class Killed(Exception):
        pass

    def die(record):
        if record["step"] == 5:
            raise Killed

    sweep, model, log = Sweep(learning_rates=(1e30, 1e-3)), toy(), []
    with pytest.raises(Killed):
        train_sweep(
            RELU,
            sweep,
            model,
            batch_at,
            batched=batched,
            run=SaveTo(tmp_path, every=2),
            log=Log(every=1, on_record=die, quiet=True),
        )
    (lost, left), (member, dictionary) = train_sweep(
        RELU, sweep, model, batch_at, batched=batched, run=SaveTo(tmp_path, every=2), log=Log(every=1, quiet=True)
    )
    log = read_log(tmp_path / "metrics.jsonl")
    assert (lost.diverged, member.diverged) == (1, None)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(left))
    for a, b in zip(jax.tree.leaves(dictionary), jax.tree.leaves(alone(RELU, member, model)), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5, rtol=1e-4)
    assert [record["ended"] for record in log] == [0, 1, 1, 1, 1, 1]
    assert [record["tokens"] for record in log] == [128 * i for i in range(1, 7)]
    for record in log[1:]:  # in no mean, and without figures
        assert record["member.0.fvu"] is record["member.0.dead"] is None
        assert record["fvu"] == record["member.1.fvu"]
    with pytest.raises(NonFinite, match="step 2"):
        train_sweep(RELU, Sweep(learning_rates=(1e30,)), model, batch_at, batched=batched, log=QUIET)


def test_what_a_config_does_not_have_is_not_swept():
    for sweep, says in (
        (Sweep(coefficients={"l0": (1.0,)}), "'l0'; the loss has reconstruction, l1"),
        (Sweep(k=(3,)), "this is ReLU"),
        (Sweep(coefficients={"l1": ()}), "no values for the coefficient of 'l1'"),
    ):
        with pytest.raises(UserError, match=says):
            members(RELU, sweep)
    with pytest.raises(UserError, match="from 1 to its own k"):
        members(variants.topk(ADDRESS, k=4), Sweep(k=(5,)))
    with pytest.raises(UserError, match="only for SAEs"):
        members(variants.transcoder("a", "b"), Sweep(addresses=("c", "d")))
    assert len(members(RELU, Sweep(seeds=(0, 1), learning_rates=(1e-3, 1e-2), coefficients={"l1": (1, 2, 3)}))) == 12


def test_a_member_by_itself_has_all_that_is_varied():
    member = Member("blocks.0.resid_post", 7, 0.02, 3, {"reconstruction": 2.0})
    own = member_config(variants.topk(ADDRESS, k=6, **FIELDS), member)
    assert (own.address, own.seed, own.optimizer.learning_rate) == (member.address, 7, 0.02)
    assert (own.activation.k, own.loss[0].coefficient) == (3, 2.0)
    assert own.optimizer.warmup == FIELDS["optimizer"].warmup


def test_a_limited_batch_choice_is_that_of_a_smaller_k():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((20, 96)), jnp.float32)
    limited = jax.jit(batch_top_k, static_argnums=1)(x, 5, jnp.float32(2))
    values, rows, features = map(np.asarray, batch_top_k(x, 2))
    for got, want in zip(limited, (values, rows, features), strict=True):
        np.testing.assert_array_equal(got[:40], want)
    np.testing.assert_array_equal(limited[0][40:], np.zeros(60))
    assert (np.diff(limited[1]) >= 0).all()
