"""Gathered activations: every model and layout of batches gives what one text by itself gives; what is refused."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.dictionaries import TopK
from jax_interp.dictionaries.forms import init_sae
from jax_interp.probes import All, Last, Nth, Span, from_tokens, gather, gather_tokens, host_memory
from jax_interp.probes.length_batches import PROGRAMS, length_batches
from jax_interp.surgery import Add, Splice, at, edit, values_at
from tests.small_models import GPT2_LIKE, LLAMA_LIKE, peaky
from tests.toy import toy

LENGTHS = (3, 7, 7, 16, 7, 3, 3, 7, 16)
RULES = (Last(), Nth(1), All(), Span("x"))


def examples(left: bool = False):
    """Texts of many lengths. BOS is 0; padding is 3 but a text may have the token 3 too."""
    rng, size = np.random.default_rng(0), max(LENGTHS)
    tokens, mask = np.full((len(LENGTHS), size), 3, np.int32), np.zeros((len(LENGTHS), size), bool)
    for row, length in enumerate(LENGTHS):
        where = slice(size - length, None) if left else slice(length)
        tokens[row, where] = rng.integers(1, 40, length)
        tokens[row, where.start or 0] = 0
        mask[row, where] = True
    data = from_tokens(tokens, mask, label=np.arange(len(LENGTHS)) % 2, special_ids=[0])
    second = data.readable & (np.cumsum(data.readable, axis=1) == 2)
    return dataclasses.replace(data, spans={"x": second | np.roll(second, -1, axis=1) & data.readable})


def spliced():
    model = peaky(GPT2_LIKE)
    sae = init_sae(jax.random.key(0), 32, 24, TopK(4), jnp.zeros(32))
    return edit(model, at("blocks.1.resid_post", Splice(sae)))


MODELS = {
    "gpt2-like": (lambda: peaky(GPT2_LIKE), "blocks.*.resid_post"),
    "llama-like": (lambda: peaky(LLAMA_LIKE), ["blocks.1.attn.z", "blocks.0.mlp.post", "embed"]),
    "half precision": (lambda: peaky(LLAMA_LIKE, dtype=jnp.bfloat16), "blocks.1:3.resid_mid"),
    "edited": (lambda: edit(peaky(GPT2_LIKE), at("blocks.0.resid_post", Add(jnp.ones(32)))), "blocks.2.resid_post"),
    "with a dictionary": (spliced, ["blocks.1.resid_post.latents", "blocks.2.resid_post"]),
    "without a mask": (toy, "blocks.*.resid_post"),
}


@functools.cache
def setting(name):
    make, sites = MODELS[name]
    return make(), sites


@functools.partial(jax.jit, static_argnums=0)
def whole(names, model, tokens):
    values = values_at(model, *names)(tokens)
    return [values[name].astype(jnp.float32).reshape(*tokens.shape, -1) for name in names]


def one_by_one(model, data, names):
    """The values of each text without padding, together with the texts of its length, at its real tokens."""
    lengths = data.mask.sum(axis=1)
    found: dict[str, np.ndarray] = {}
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for name, x in zip(names, whole(names, model, data.tokens[rows, :length]), strict=True):
            found.setdefault(name, np.zeros((*data.tokens.shape, x.shape[-1]), np.float32))[rows, :length] = x
    return found


SLOW = ("half precision", "edited", "llama-like")  # each compiles its own programs


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS]
)
def test_a_batch_gives_what_each_text_gives_by_itself(name):
    (model, sites), data = setting(name), examples()
    vectors = gather(model, data, sites, RULES, batch=4)
    sequences = gather_tokens(model, data, sites, batch=2)
    expected = one_by_one(model, data, vectors.sites)
    tolerance = 0.05 if name == "half precision" else 1e-4
    assert sequences.sites == vectors.sites
    for site, x in expected.items():
        np.testing.assert_allclose(
            sequences.values[site], np.where(data.readable[..., None], x, 0), rtol=tolerance, atol=tolerance
        )
        for rule, found in zip(RULES, vectors.values[site], strict=True):
            read = rule.chosen(data) & data.readable
            means = [x[row, read[row]].mean(axis=0) for row in range(len(data))]
            np.testing.assert_allclose(found, np.stack(means), rtol=tolerance, atol=tolerance)


def test_padding_on_the_left_changes_nothing():
    model, sites = setting("llama-like")
    right, left = (gather(model, examples(left=side), sites, RULES[:3], batch=4) for side in (False, True))
    for site in right.sites:
        np.testing.assert_allclose(left.values[site], right.values[site], rtol=1e-4, atol=1e-4)


def test_few_lengths_that_save_padding():
    rng = np.random.default_rng(1)
    lengths = np.concatenate([rng.integers(5, 30, 400), rng.integers(200, 256, 40)])
    mask = np.arange(256)[None, :] < lengths[:, None]
    found = length_batches(mask, 16)
    assert len({some.length for some in found}) <= PROGRAMS
    assert sorted(np.concatenate([some.rows for some in found]).tolist()) == list(range(440))
    assert all(lengths[some.rows].max() <= some.length for some in found)
    computed = sum(len(some.filled) * some.length for some in found)
    assert computed < 1.5 * lengths.sum()
    assert 5 * computed < mask.size  # padded to the longest
    assert len({(len(some.filled), some.length) for some in found}) <= PROGRAMS + 1
    alone = length_batches(mask[:16], 16)
    assert [some.rows.tolist() for some in alone] == [list(range(16))]


def test_progress_counts_examples():
    calls: list[tuple[int, int]] = []
    model, _ = setting("gpt2-like")
    gather(model, examples(), "embed", batch=4, on_batch=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (len(LENGTHS), len(LENGTHS))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_what_cannot_fit_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 1000)
    model, sites = setting("gpt2-like")
    with pytest.raises(UserError, match=r"3 sites × 1 rules × 9 examples need .* GiB of memory.*fewer sites"):
        gather(model, examples(), sites)
    with pytest.raises(UserError, match=r"9 examples × 16 tokens"):
        gather_tokens(model, examples(), sites)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m, d: gather(m, d, "blocks.1.attn.pattern"), "one vector of a fixed width"),
        (lambda m, d: gather(m, d, "blocks.7.resid_post"), "blocks.7"),
        (lambda m, d: gather(m, d, []), "at least one address"),
        (lambda m, d: gather(m, d, "embed", (Last(), Last())), "rules with different names"),
        (lambda m, d: gather(m, d, "embed", batch=0), "batch=0"),
        (lambda m, d: gather(m, d.take(np.zeros(0, int)), "embed"), "has no example"),
        (lambda m, d: gather(m, dataclasses.replace(d, tokens=d.tokens + 60), "embed"), "vocab"),
        (lambda m, d: gather(edit(m, at("blocks.0.resid_post", Add(jnp.full(32, jnp.nan)))), d, "blocks.1.resid_post"),
         "not finite at a token of example 0"),
        (lambda m, d: gather(toy(), examples(left=True), "blocks.0.resid_post"), "padded on the left"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name(run, message):
    with pytest.raises(UserError, match=message):
        run(setting("gpt2-like")[0], examples())
