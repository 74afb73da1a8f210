"""What a model under surgery adds to a logit: the rows sum to the logits of the same run, whatever was edited."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.analysis import decompose_resid, direct_logit_attribution, get_full_resid_decomposition, needed
from jax_interp.core.errors import UserError
from jax_interp.surgery import Add, AddressError, Scale, at, depth_of, edit, read, survey
from jax_interp.surgery.lora import LoRA, LowRank
from jax_interp.surgery.select import join, replace_each, split
from tests.generated import drawn
from tests.laws import edit_kinds

CONFIGS = {
    "gpt2": GPT2_LIKE,
    "llama": LLAMA_LIKE,
    "gemma": dataclasses.replace(LLAMA_LIKE, norm_offset=True, norm_places="around", logit_scale=0.5),
    "parallel": dataclasses.replace(GPT2_LIKE, parallel="two norms", tied_embedding=False, unembed_bias=True),
}
VECTOR = jax.random.normal(jax.random.key(3), (32,))


def with_lora(model, *names):
    """Trained LoRAs: their second factor is no longer zero."""
    for i, name in enumerate(names):
        keys = jax.random.split(jax.random.key(i), depth_of(model))
        model = replace_each(model, f"blocks.*.{name}", LoRA, keys)
    trained, rest = split(model, LowRank)
    return join(jax.tree.map(lambda leaf: leaf + 0.05, trained), rest)


def sum_and_logit(call, model, tokens, unit: str):
    logits, acts = call(read(model, needed(model, direct_logit_attribution)), tokens)
    parts = direct_logit_attribution(model, acts, 3, 5, unit=unit)  # type: ignore[arg-type]
    return parts, np.asarray(parts.sum()), np.asarray(logits[:, -1, 3] - logits[:, -1, 5])


@pytest.mark.hardening
def test_the_rows_of_any_edited_model_sum_to_its_logits(call, tokens, tally):
    """Any edit at any value of the blocks or the embedding, with or without LoRA, in every unit."""
    seed = np.random.SeedSequence().entropy % 2**31
    broken, cases = [], range(seed, seed + drawn(4, 14))
    for case in cases:
        rng = np.random.default_rng(case)
        pick = lambda of, rng=rng: list(of)[rng.integers(len(of))]
        name = pick(CONFIGS)
        model = peaky(CONFIGS[name])
        adapted = rng.random() < 0.5
        model = with_lora(model, "attn.o", "mlp.down", "attn.v") if adapted else model
        named = survey(model)(tokens)
        address = pick([one for one in named if one.split(".")[0] in ("embed", "pos_embed", "blocks")])
        every = (np.arange(tokens.shape[1]),) * tokens.shape[0]
        value = edit_kinds.Value(address, named[address].axes, named[address].shape, every)
        kind = pick(edits := edit_kinds.edits(rng, value))
        edited = edit(model, at(address, edits[kind][0]))
        for unit in ("component", "head", "neuron"):
            _, total, logit = sum_and_logit(call, edited, tokens, unit)
            error = np.abs(total - logit).max() / (1 + np.abs(logit).max())
            if not error < 2e-4:
                broken.append(
                    f"seed {case}: {kind} at {address}, {name}, lora {adapted}, by {unit}: off by {error:.2g}"
                )
    tally("attribution of edited models", tried=3 * len(cases), broken=len(broken))
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("unit", ["component", "head", "neuron"])
def test_what_an_edit_adds_to_the_stream_is_a_row_of_its_own(call, tokens, unit):
    """A vector that is added to the stream at the end adds its own attribution, and nothing else changes."""
    model = peaky(LLAMA_LIKE)
    edited = edit(model, at("blocks.-1.resid_post", Add(VECTOR)))
    parts, total, logit = sum_and_logit(call, edited, tokens, unit)
    np.testing.assert_allclose(total, logit, atol=1e-4)
    assert parts.labels[-2:] == ("edits", "readout")
    acts = call(read(edited, "ln_final.scale"), tokens)[1]
    unembed = np.asarray(model.unembed.weight[...], np.float64)
    direction = np.asarray(model.ln_final.weight[...], np.float64) * (unembed[:, 3] - unembed[:, 5])
    wanted = np.asarray(VECTOR, np.float64) @ direction / np.asarray(acts["ln_final.scale"], np.float64)[:, -1, 0]
    np.testing.assert_allclose(parts["edits"], wanted, atol=1e-5)
    assert "edits" not in sum_and_logit(call, model, tokens, unit)[0].labels


@pytest.mark.parametrize("place", [{"layer": 1}, {"layer": 1, "mlp_input": True}, {}])
def test_the_stream_of_an_edited_model_is_decomposed_at_every_place(call, tokens, place):
    model = edit(peaky(GPT2_LIKE), at("blocks.*.resid_pre", Scale(1.5)), at("blocks.*.resid_mid", Add(VECTOR)))
    where = "blocks.1.resid_mid" if "mlp_input" in place else "blocks.1.resid_pre" if place else "blocks.-1.resid_post"
    addresses = dict.fromkeys((where, *needed(model, decompose_resid, get_full_resid_decomposition)))
    _, acts = call(read(model, addresses), tokens)
    for parts in (
        decompose_resid(model, acts, **place),
        get_full_resid_decomposition(model, acts, expand_neurons=False, **place),
    ):
        assert parts.labels[-1] == "edits"
        np.testing.assert_allclose(parts.sum(), acts[where], rtol=1e-4, atol=1e-4)
    with pytest.raises(AddressError, match="was not read"):
        decompose_resid(model, acts, 2)


def test_an_edit_after_the_stream_is_refused(call, tokens):
    model = edit(peaky(LLAMA_LIKE), at("logits", Scale(2.0)))
    with pytest.raises(UserError, match="the edit at 'logits' acts between the stream and the logits"):
        sum_and_logit(call, model, tokens, "component")


def test_the_biases_under_a_lora_stay_rows(call, tokens):
    model = with_lora(peaky(CONFIGS["gpt2"]), "attn.o", "mlp.down", "attn.v")
    for unit in ("component", "head", "neuron"):
        _, total, logit = sum_and_logit(call, model, tokens, unit)
        np.testing.assert_allclose(total, logit, atol=1e-4)
