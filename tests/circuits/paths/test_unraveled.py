"""The unraveled view: patching all copies of a component is patching it, and one path is what its definition says."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.circuits import LogitDifference, baseline, make_contrast
from jax_interp.circuits.paths import expand, patch_paths, shape_of
from jax_interp.core.errors import UserError
from jax_interp.surgery import Freeze, Replace, at, edit, read, restore

MODELS = {
    "gpt2-like": dataclasses.replace(GPT2_LIKE, n_layers=2, n_heads=2, d_head=8),
    "grouped heads": dataclasses.replace(LLAMA_LIKE, n_layers=2, n_heads=2, d_head=8, n_kv_heads=1),
    "parallel": dataclasses.replace(GPT2_LIKE, n_layers=2, n_heads=2, d_head=8, parallel="one norm"),
}
LINEAR = dataclasses.replace(GPT2_LIKE, d_mlp=0, norm="none")


def slow(family):
    return pytest.param(family, marks=pytest.mark.slow)


def prompts(mask=None):
    rng = np.random.default_rng(0)
    clean, corrupted = (rng.integers(0, 60, (2, 5), np.int32) for _ in range(2))
    return make_contrast(clean, corrupted, LogitDifference(jnp.asarray([3, 5]), 7), mask=mask)


def all_paths(shape, sender):
    """Every path from a sender to the logits."""
    steps = []
    for i in range(shape.layers):
        heads = [f"a{i}.h{h}<{part}>" for h in range(shape.heads) for part in "qkv"]
        steps += [heads + [f"m{i}"]] if shape.parallel else [heads, [f"m{i}"] if shape.mlps else []]
    name = lambda step: {each.split("<")[0] for each in step}
    later = next((i + 1 for i, step in enumerate(steps) if sender in name(step)), 0)
    choices = [[None, *step] for step in steps[later:]]
    return [(sender, *(name for name in chosen if name), "logits") for chosen in itertools.product(*choices)]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def metric_of(contrast, model, *edits):
    return np.asarray(contrast.metric(jax.jit(edit(model, *edits))(contrast.clean)))


def values(model, tokens, *names):
    return jax.jit(read(model, *names))(tokens)[1]


@pytest.mark.parametrize("family", ["gpt2-like", slow("grouped heads"), slow("parallel")])
def test_patching_every_copy_of_a_component_is_patching_the_component(family):
    """For a sender of the first layer, all of its copies below the logits: tens of paths, one run each."""
    model, contrast = peaky(MODELS[family], dtype=jnp.float64), prompts()
    shape = shape_of(model, contrast)
    z, mlp = "blocks.0.attn.z", "blocks.0.mlp_out"
    sent = values(model, contrast.corrupted, z, mlp)
    senders = {"a0.h1": at(z, Replace(sent[z]), head=1), "m0": at(mlp, Replace(sent[mlp]))}
    got = patch_paths(model, contrast, [all_paths(shape, sender) for sender in senders])
    expected = [metric_of(contrast, model, each) for each in senders.values()]
    np.testing.assert_allclose(got.values, expected, rtol=0, atol=1e-11)
    assert np.abs(got.values - np.asarray(baseline(model, contrast)[0])).min() > 1e-4


def test_the_input_reaches_the_logits_through_every_path():
    """All writers of the stream from the other run, in all copies: the other run."""
    model, contrast = peaky(dataclasses.replace(MODELS["gpt2-like"], n_layers=1), dtype=jnp.float64), prompts()
    every = all_paths(shape_of(model, contrast), "input")
    assert len(every) == 2 * (1 + 3 * 2)
    got = patch_paths(model, contrast, [every])
    np.testing.assert_allclose(got.values[0], baseline(model, contrast)[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("family", [slow("gpt2-like"), "grouped heads"])
def test_one_path_is_computed_part_by_part(family):
    """By hand: the change of each part's input is what the part before it writes now, minus what it wrote."""
    model, contrast = peaky(MODELS[family], dtype=jnp.float64), prompts()
    outs = ["blocks.0.attn_out", "blocks.1.attn_out", "blocks.0.mlp_out", "blocks.1.mlp_out"]
    own, sent = (values(model, tokens, *outs, "blocks.0.attn.z", "blocks.1.attn.z", "blocks.1.k_input")
                 for tokens in (contrast.clean, contrast.corrupted))  # fmt: skip
    change = lambda name, *edits: values(edit(model, *edits), contrast.clean, name)[name] - own[name]
    plus = lambda address, d, **region: at(address, jax.tree_util.Partial(lambda d, x: x + d, d), **region)
    first = change(outs[0], at("blocks.0.attn.z", Replace(sent["blocks.0.attn.z"]), head=1))
    second = change(outs[2], plus("blocks.0.mlp_in", first))
    others = at("blocks.1.attn.z", Freeze(own["blocks.1.attn.z"]), head=1)
    for part in "qkv":
        head = 0 if part == "q" or family == "gpt2-like" else None  # a shared key is seen by head 0 alone
        third = change(outs[1], plus(f"blocks.1.{part}_input", second[:, :, None], head=head), others)
        fourth = change(outs[3], plus("blocks.1.mlp_in", third))
        got = patch_paths(model, contrast, [("a0.h1", "m0", f"a1.h0<{part}>", "m1", "logits")])
        expected = metric_of(contrast, model, plus("blocks.1.resid_post", fourth))
        np.testing.assert_allclose(got.values[0], expected, rtol=0, atol=1e-12)


def test_in_a_linear_model_the_effects_of_paths_are_terms_and_add_up():
    """Frozen patterns, no norms, no MLPs: the change of a path's term, and the sum of them for paths together."""
    contrast = prompts()
    free = peaky(LINEAR, dtype=jnp.float64)
    pattern = "blocks.*.attn.pattern"
    model = edit(free, restore(jax.jit(read(free, pattern))(contrast.clean)[1]))
    clean, corrupted = (expand(model, tokens) for tokens in (contrast.clean, contrast.corrupted))
    paths = [("input", "a0.h3<v>", "a2.h1<v>", "logits"), ("input", "a1.h2<v>", "logits"), ("input", "logits")]
    heads = [[name[:5] for name in path if name.startswith("a")] for path in paths]
    plain = np.asarray(baseline(model, contrast)[0])
    got = patch_paths(model, contrast, [*paths, paths]).values - plain
    terms = [np.asarray(contrast.metric(corrupted.path(h) - clean.path(h))) for h in heads]
    np.testing.assert_allclose(got[:3], terms, rtol=0, atol=1e-11)
    np.testing.assert_allclose(got[3], sum(terms), rtol=0, atol=1e-11)


def test_in_a_nonlinear_model_the_effects_of_paths_do_not_add_up():
    model, contrast = peaky(MODELS["gpt2-like"], dtype=jnp.float64), prompts()
    paths = [("a0.h0", "m0", "logits"), ("a0.h1", "m0", "logits")]
    one, other, both = patch_paths(model, contrast, [*paths, paths]).values - np.asarray(baseline(model, contrast)[0])
    assert np.abs(one + other - both).max() > 0.05 * np.abs(both).max()


@pytest.mark.slow
def test_padding_and_direction_change_nothing_else():
    model, contrast = peaky(MODELS["gpt2-like"], dtype=jnp.float64), prompts()
    left = lambda tokens: jnp.concatenate([jnp.full((2, 2), -1, tokens.dtype), tokens], axis=1)
    padded = make_contrast(left(contrast.corrupted), left(contrast.clean), contrast.metric,
                           mask=np.arange(7)[None] >= np.full((2, 1), 2))  # fmt: skip
    paths = [("a0.h1", "m0", "a1.h0<k>", "logits"), ("input", "a1.h1<v>", "logits")]
    got, expected = patch_paths(model, padded, paths, direction="denoise"), patch_paths(model, contrast, paths)
    np.testing.assert_allclose(got.values, expected.values, rtol=0, atol=1e-11)
    assert got.axes["path"][0] == "a0.h1 -> m0 -> a1.h0<k> -> logits"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([("a0.h1",)], "from a sender to 'logits'"),
        ([("a0.h1", "m1")], "from a sender to 'logits'"),
        ([("a0.h1", "a1.h0", "logits")], "'a1.h0' is no reader"),
        ([("a0.h1<q>", "logits")], "is no sender"),
        ([("a0.h2", "logits")], "is no sender"),
        ([("a0.h1", "input", "logits")], "is no reader"),
        ([("m0", "a0.h1<q>", "logits")], "not later"),
        ([("a0.h0", "a0.h1<q>", "logits")], "not later"),
        ([], "give a list of paths"),
        ([[]], "give a list of paths"),
        ([("a0.h1", 3, "logits")], "is no reader"),
    ],
)
def test_what_is_no_path_is_refused(paths, message):
    with pytest.raises(UserError, match=message):
        patch_paths(peaky(MODELS["gpt2-like"], dtype=jnp.float64), prompts(), paths)


def test_in_a_parallel_block_the_mlp_does_not_read_attention():
    with pytest.raises(UserError, match="not later"):
        patch_paths(peaky(MODELS["parallel"], dtype=jnp.float64), prompts(), [("a0.h1", "m0", "logits")])
