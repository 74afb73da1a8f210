"""Inputs of heads and MLPs, path patching and direct paths give TransformerLens's numbers on the same weights."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from jax_interp.circuits import LogitDifference, make_contrast
from jax_interp.circuits.paths import direct_paths, path_patch
from jax_interp.models import load
from jax_interp.surgery import Add, at, edit, read
from tests.parity.test_transformer_lens_analysis import HEADS, LAYERS, VOCAB, WIDTH, reference, tokenizer

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity needs torch: `make parity`")
lens = pytest.importorskip("transformer_lens", reason="parity needs transformer-lens: `make parity`")

ANSWER, OTHER = 7, 9
call = jax.jit(lambda f, *args, **kwargs: f(*args, **kwargs))


class Pair:
    """One model in both libraries, and a contrast."""

    def __init__(self, family: str, folder):
        from transformer_lens.model_bridge import TransformerBridge

        hf = reference(family)
        hf.save_pretrained(folder / "model")
        self.family, (self.ours, _) = family, load(folder / "model")
        self.theirs = TransformerBridge.boot_transformers(
            family if family == "gpt2" else "meta-llama/Llama-2-7b-hf",
            hf_model=hf,
            tokenizer=tokenizer(folder / "tokenizer"),
            device="cpu",
        )
        self.theirs.enable_compatibility_mode(no_processing=True, disable_warnings=True)
        rng = np.random.default_rng(0)
        clean, corrupted = (rng.integers(1, VOCAB, (2, 7)) for _ in range(2))
        self.contrast = make_contrast(clean, corrupted, LogitDifference(ANSWER, OTHER))
        self.clean, self.corrupted = torch.tensor(clean), torch.tensor(corrupted)
        with torch.no_grad():
            _, self.clean_cache = self.theirs.run_with_cache(self.clean)
            _, self.corrupted_cache = self.theirs.run_with_cache(self.corrupted)

    def run(self, tokens, hooks=()):
        with torch.no_grad():
            return self.theirs.run_with_hooks(tokens, fwd_hooks=list(hooks))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp("pair"))


@pytest.fixture
def split(pair):
    pair.theirs.set_use_split_qkv_input(True)
    pair.theirs.set_use_hook_mlp_in(True)
    yield pair
    pair.theirs.set_use_split_qkv_input(False)
    pair.theirs.set_use_hook_mlp_in(False)


def metric(logits):
    return logits[:, -1, ANSWER] - logits[:, -1, OTHER]


def close(ours, theirs, atol=2e-5):
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else np.asarray(theirs)
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=atol * max(1.0, np.abs(theirs).max()), rtol=0)


def test_the_inputs_have_the_values_and_shapes_of_transformer_lens(split):
    names = [f"blocks.1.{part}" for part in ("q_input", "k_input", "v_input", "mlp_in")]
    _, ours = call(read(split.ours, names), split.contrast.clean)
    with torch.no_grad():
        _, theirs = split.theirs.run_with_cache(split.clean)
    for name in names:
        hook = name.replace("blocks.1.", "blocks.1.hook_")
        assert ours[name].shape == tuple(theirs[hook].shape)
        close(ours[name], theirs[hook])


@pytest.mark.parametrize("part", ["q_input", "k_input", "v_input", "mlp_in"])
def test_an_edit_of_an_input_is_that_of_a_hook(split, part):
    shift = np.random.default_rng(1).standard_normal(WIDTH).astype(np.float32)

    def hook(value, hook):
        value = value.clone()
        value[(slice(None), slice(None), 1) if part != "mlp_in" else ...] += torch.tensor(shift)
        return value

    ours = at(f"blocks.1.{part}", Add(shift), **({"head": 1} if part != "mlp_in" else {}))
    theirs = split.run(split.clean, [(f"blocks.1.hook_{part}", hook)])
    close(call(edit(split.ours, ours), split.contrast.clean), theirs)
    assert (theirs - split.run(split.clean)).abs().max() > 0.05


def test_what_attention_reads_is_all_copies_of_transformer_lens(pair):
    """TransformerLens has one copy for each head here too."""
    shift = np.random.default_rng(1).standard_normal(WIDTH).astype(np.float32)
    pair.theirs.set_use_attn_in(True)
    theirs = pair.run(pair.clean, [("blocks.1.hook_attn_in", lambda value, hook: value + torch.tensor(shift))])
    pair.theirs.set_use_attn_in(False)
    close(call(edit(pair.ours, at("blocks.1.attn_in", Add(shift))), pair.contrast.clean), theirs)


def test_direct_paths_from_one_head(pair):
    from transformer_lens.patching import get_act_patch_direct_path

    for part in "qkv" if pair.family == "gpt2" else "q":  # TransformerLens has no k and v of grouped heads
        theirs = get_act_patch_direct_path(
            pair.theirs, pair.corrupted, pair.clean_cache, pair.corrupted_cache,
            lambda logits: metric(logits).mean(), 0, 2, part, verbose=False,
        )  # fmt: skip
        receivers = [f"a{i}.h{h}<{part}>" for i in range(1, LAYERS) for h in range(HEADS)]
        ours = direct_paths(pair.ours, pair.contrast, ["a0.h2"], receivers).mean("prompt")
        close(ours.values[0], theirs[1:].flatten())


def test_direct_paths_from_all_heads(pair):
    from transformer_lens.patching import get_act_patch_direct_path_all_sources

    theirs = get_act_patch_direct_path_all_sources(
        pair.theirs, pair.corrupted, pair.clean_cache, pair.corrupted_cache,
        lambda logits: metric(logits).mean(), "q", verbose=False,
    ).numpy()  # fmt: skip
    heads = [f"a{i}.h{h}" for i in range(LAYERS) for h in range(HEADS)]
    ours = direct_paths(pair.ours, pair.contrast, heads, [f"{head}<q>" for head in heads]).mean("prompt").values
    later = np.kron(np.triu(np.ones((LAYERS, LAYERS), bool), 1), np.ones((HEADS, HEADS), bool))
    close(ours[later], theirs.reshape(ours.shape)[later])
    plain = float(metric(pair.run(pair.corrupted)).mean())
    close(ours[~later], np.full((~later).sum(), plain))


@pytest.mark.parametrize("receivers", [["a2.h1<q>", "a2.h3<q>"], "logits"])
def test_path_patching_by_hooks(split, receivers):
    """Wang et al.'s four runs with hooks: all heads frozen at the clean run, MLPs computed."""
    kept = {}

    def freeze(z, hook, layer, sender):
        z = split.clean_cache[f"blocks.{layer}.attn.hook_z"].clone()
        if sender[0] == layer:
            z[:, :, sender[1]] = split.corrupted_cache[f"blocks.{layer}.attn.hook_z"][:, :, sender[1]]
        return z

    def keep(value, hook):
        kept["q"] = value.clone()

    def receive(value, hook):
        value = value.clone()
        for head in (1, 3):
            value[:, :, head] = kept["q"][:, :, head]
        return value

    expected = []
    for sender in ((0, 2), (1, 0)):
        hooks = [
            (f"blocks.{layer}.attn.hook_z", partial(freeze, layer=layer, sender=sender)) for layer in range(LAYERS)
        ]
        logits = split.run(split.clean, [*hooks, ("blocks.2.hook_q_input", keep)])
        if receivers != "logits":
            logits = split.run(split.clean, [("blocks.2.hook_q_input", receive)])
        expected.append(metric(logits).numpy())
    ours = path_patch(split.ours, split.contrast, ["a0.h2", "a1.h0"], receivers)
    close(ours.values, np.stack(expected))
    assert np.abs(expected - np.asarray(metric(split.run(split.clean)))).max() > 1e-3
