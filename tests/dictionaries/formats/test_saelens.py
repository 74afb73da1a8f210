"""What the SAELens format refuses, what it says about the model, and what it writes."""

from __future__ import annotations

import dataclasses
import json
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.dictionaries import load_dictionary, save_dictionary
from jax_interp.dictionaries.activations import BatchTopK, GroupMax, MatchingPursuit, ReLU, TopK
from jax_interp.dictionaries.formats import Files
from jax_interp.dictionaries.formats.saelens import SAELens
from jax_interp.dictionaries.forms import Dictionary, Normalised, init_sae, init_transcoder
from jax_interp.dictionaries.forms.cross_layer import from_transcoders
from jax_interp.surgery import Splice, at, edit
from jax_interp.training.sharding import make_mesh
from tests.dictionaries.formats.published import Layout
from tests.dictionaries.formats.saelens_layouts import LAYOUTS, D, M

pytestmark = pytest.mark.filterwarnings("ignore:.*(orientation|thresholds|bias):")
OF_SAELENS = [name for name in LAYOUTS if name.startswith("saelens")]


def written(name: str, directory) -> Layout:
    return LAYOUTS[name](directory, np.random.default_rng(zlib.crc32(name.encode())))


def change(layout: Layout, metadata: dict | None = None, /, **cfg) -> None:
    path = layout.path / "cfg.json"
    before = read_json(path)
    if metadata is not None:
        before["metadata"] |= metadata
    path.write_text(json.dumps({name: a for name, a in (before | cfg).items() if a != "absent"}))


@pytest.mark.parametrize(
    ("name", "cfg", "says"),
    [
        ("standard", {"architecture": "crosscoder"}, "architecture 'crosscoder'; known are standard, gated"),
        ("standard", {"architecture": "topk"}, "lacks k, which topk needs"),
        ("standard", {"use_magic": True}, "'use_magic', which is not known for standard"),
        ("standard", {"k": 3}, "'k', which is not known for standard"),
        ("standard", {"normalize_activations": "batch"}, "normalize_activations 'batch'; known are none"),
        ("standard", {"normalize_activations": "constant_scalar_rescale"}, "only temporal dictionaries"),
        ("standard", {"normalize_activations": "expected_average_only_in"}, "by which number inputs were multiplied"),
        ("standard", {"normalize_activations": "covariance_whitening"}, "there is no activation_whitening.safetensors"),
        ("standard", {"reshape_activations": "hook_q"}, "reshape_activations 'hook_q'"),
        ("standard", {"apply_b_dec_to_input": 1}, "apply_b_dec_to_input 1, which is not bool"),
        ("standard", {"d_in": D + 1}, "'W_enc' has shape"),
        ("standard", {"d_in": None}, "d_in None, which is not int"),
        ("standard", {"d_sae": 0}, "which are not both above 0"),
        ("standard", {"metadata": 3}, "metadata 3, which is not an object"),
        ("abstopk", {"k": 0}, f"k 0; with {M} latents it is from 1 to {M}"),
        ("abstopk", {"k": 2.5}, "k 2.5, which is not int"),
        ("abstopk", {"rescale_acts_by_decoder_norm": None}, "rescale_acts_by_decoder_norm None"),
        ("gated", {"architecture": "standard"}, "has no 'b_enc'"),
        ("matching_pursuit", {"max_iterations": 99}, "max_iterations 99"),
        ("matching_pursuit", {"normalize_activations": "covariance_whitening"}, "folded into matching pursuit"),
        ("matching_pursuit", {"normalize_activations": "expected_average_only_in"}, "folded into matching pursuit"),
        ("jumprelu_skip_transcoder", {"apply_b_dec_to_input": True}, "a transcoder subtracts no bias"),
        ("jumprelu_skip_transcoder", {"d_out": "absent"}, "lacks d_out"),
        ("jumprelu_skip_transcoder", {"architecture": "jumprelu_transcoder"}, "'W_skip', which is not part"),
        ("batchtopk checkpoint, scaled inputs", {"normalize_activations": "none"}, "has a scaling_factor, but"),
        ("before version 6", {"activation_fn": "tanh-relu"}, "activation_fn 'tanh-relu'; known are 'relu'"),
        ("before version 6", {"activation_fn": "topk"}, "activation_fn 'topk'; known are 'relu', and 'topk' with a k"),
        ("before version 6", {"normalize_activations": 3}, "normalize_activations 3"),
        ("before version 6", {"finetuning_scaling_factor": False}, "finetuning_scaling_factor is not true"),
        ("before version 6", {"sae_lens_version": "new"}, "'new', which is not a version"),
        ("before version 6", {"is_transcoder": True}, "is_transcoder true"),
        ("temporal", {"n_heads": 3}, "n_heads is 3"),
        ("temporal", {"bottleneck_factor": 7}, "cannot be divided by bottleneck_factor 7"),
        ("temporal", {"sae_diff_type": "jump"}, "sae_diff_type is 'jump'"),
        ("temporal", {"kval_topk": 0}, "kval_topk is 0"),
        ("temporal", {"normalize_activations": "layer_norm"}, "'layer_norm' cannot be read"),
    ],
)
def test_what_is_not_known_is_refused_by_name(name, cfg, says, tmp_path):
    layout = written(f"saelens {name}", tmp_path)
    change(layout, **cfg)
    with pytest.raises(UserError, match=says):
        load_dictionary(layout.path)


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.inf])
def test_a_threshold_that_was_never_set_is_refused(threshold, tmp_path):
    layout = written("saelens batchtopk checkpoint, scaled inputs", tmp_path)
    path = layout.path / "sae_weights.safetensors"
    save_file(load_file(path) | {"topk_threshold": np.asarray(threshold)}, path)
    with pytest.raises(UserError, match="topk_threshold"):
        load_dictionary(layout.path)


def test_a_scale_of_the_release_is_folded_like_that_of_a_checkpoint(tmp_path):
    layout = written("saelens batchtopk checkpoint, scaled inputs", tmp_path)
    folded = load_dictionary(layout.path).dictionary
    (layout.path / "activation_scaler.json").unlink()
    with pytest.raises(UserError, match=r'write \{"scaling_factor": s\} to activation_scaler\.json'):
        load_dictionary(layout.path)
    files = dataclasses.replace(Files.at(layout.path), settings={"norm_scaling_factor": 0.4})
    again = SAELens.read(files).dictionary
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, folded)
    for wrong in ("0.4", -1.0, True):
        with pytest.raises(UserError, match="which is not a number above 0"):
            SAELens.read(dataclasses.replace(files, settings={"norm_scaling_factor": wrong}))


def test_what_a_release_states_replaces_entries_of_the_file(tmp_path):
    layout = written("saelens before version 6", tmp_path)
    settings = {"normalize_activations": "constant_norm_rescale", "model_name": "mistral-7b", "prepend_bos": False}
    saved = SAELens.read(dataclasses.replace(Files.at(layout.path), settings=settings))
    assert isinstance(saved.dictionary, Normalised)
    assert (saved.dictionary.norm, saved.model) == ("fixed_norm", "mistral-7b")
    assert any("without a BOS" in note for note in saved.notes)
    layout = written("saelens standard", tmp_path)
    saved = SAELens.read(dataclasses.replace(Files.at(layout.path), settings=settings))
    assert (saved.model, saved.dictionary.norm) == ("mistral-7b", "fixed_norm")  # type: ignore[union-attr]
    with pytest.raises(UserError, match="'use_magic'"):
        SAELens.read(dataclasses.replace(Files.at(layout.path), settings={"use_magic": 1}))


LLAMA = {"model_name": "meta-llama/Llama-3.1-8B"}


@pytest.mark.parametrize(
    ("metadata", "address", "note"),
    [
        ({"hook_name": "blocks.3.attn.hook_z"}, "blocks.3.attn.z", ""),
        (
            LLAMA | {"hook_name": "model.layers.4", "model_class_name": "AutoModelForCausalLM"},
            "blocks.4.resid_post",
            "",
        ),
        (LLAMA | {"hook_name": None, "hf_hook_name": "model.layers.4.output"}, "blocks.4.resid_post", ""),
        ({"hook_name": "blocks.3.attn.hook_q", "hook_head_index": 5}, None, "reads head 5 of blocks.3.attn.q alone"),
        ({"hook_name": "blocks.3.hook_resid_pst"}, None, "hook_name is 'blocks.3.hook_resid_pst'"),
        ({"hook_name": "blocks.3.ln2.hook_out"}, None, ""),
        ({"exclude_special_tokens": True}, "blocks.2.resid_pre", "special tokens were left out"),
        ({"seqpos_slice": [1, None]}, "blocks.2.resid_pre", r"the positions \[1, None\]"),
        ({"model_from_pretrained_kwargs": {"center_unembed": True}}, "blocks.2.resid_pre", "center_unembed=True"),
        ({"hook_name": 3}, UserError, "hook_name 3, which is not a name"),
    ],
)
def test_the_value_that_it_reads_and_what_else_to_know(metadata, address, note, tmp_path):
    layout = written("saelens standard", tmp_path)
    change(layout, metadata)
    if address is UserError:
        with pytest.raises(UserError, match=note):
            load_dictionary(layout.path)
        return
    saved = load_dictionary(layout.path)
    assert saved.address == address
    assert any(re.search(note, one) for one in saved.notes)
    if address is None:
        with pytest.raises(UserError):
            saved.reads()


def test_a_transcoder_whose_target_is_not_said_has_no_address(tmp_path):
    layout = written("saelens jumprelu_skip_transcoder", tmp_path)
    change(layout, {"hook_name_out": None})
    saved = load_dictionary(layout.path)
    assert (saved.address, saved.writes) == (None, None)
    assert any("it reads blocks.1.ln2.normalized; what it writes has no address here" in one for one in saved.notes)


@pytest.mark.parametrize("name", OF_SAELENS)
def test_what_is_written_reads_back_to_the_same_function(name, tmp_path):
    layout = written(name, tmp_path / "theirs")
    saved = load_dictionary(layout.path)
    save_dictionary(tmp_path / "ours", saved, format="saelens")
    save_dictionary(tmp_path / "native", saved)
    x = jnp.asarray(layout.x, jnp.float32)
    for folder in ("ours", "native"):
        again = load_dictionary(tmp_path / folder)
        assert (again.address, again.writes, again.model) == (saved.address, saved.writes, saved.model)
        np.testing.assert_allclose(again.dictionary.encode(x), layout.latents, rtol=0, atol=1e-4)
        np.testing.assert_allclose(again.dictionary(x), layout.outputs, rtol=0, atol=1e-4)
        assert set(saved.notes) <= set(again.notes)


def test_values_with_heads_are_written_as_values_with_heads(tmp_path):
    sae = init_sae(jax.random.key(0), 8, 16, TopK(3))
    save_dictionary(tmp_path, sae, address="blocks.1.attn.z", model="gpt2", format="saelens")
    cfg = read_json(tmp_path / "cfg.json")
    assert (cfg["reshape_activations"], cfg["metadata"]["hook_name"]) == ("hook_z", "blocks.1.attn.hook_z")
    x = jax.random.normal(jax.random.key(1), (3, 2, 4))
    np.testing.assert_allclose(load_dictionary(tmp_path).dictionary(x), sae(x), rtol=1e-6)


def sae_of(activation, **fields) -> Dictionary:
    return dataclasses.replace(init_sae(jax.random.key(0), 8, 16, activation), **fields)


ZEROS = jnp.zeros(8)
TRANSCODER = init_transcoder(jax.random.key(0), 8, 8, 16, TopK(3), ZEROS, ZEROS)


@pytest.mark.parametrize(
    ("dictionary", "writes", "says"),
    [
        (sae_of(GroupMax(4)), None, "no architecture for GroupMax"),
        (sae_of(MatchingPursuit(4)), None, "retakes=False"),
        (sae_of(TopK(4, weighted=True)), None, "fold them first"),
        (sae_of(TopK(4, limit=jnp.asarray(2.0))), None, "with a limit"),
        (sae_of(ReLU(), write_sites=2), None, "a dictionary of 2 values"),
        (sae_of(ReLU()), "blocks.1.mlp_out", "fold its centre first"),
        (TRANSCODER, "blocks.1.mlp_out", "transcoders of ReLU and JumpReLU, not of TopK"),
        (from_transcoders([TRANSCODER]), "blocks.1.mlp_out", "no architecture for a CrossLayer"),
    ],
)
def test_what_saelens_cannot_hold_is_refused(dictionary, writes, says, tmp_path):
    with pytest.raises(UserError, match=says):
        save_dictionary(
            tmp_path / "x", dictionary, address="blocks.1.resid_mid", writes=writes, model="m", format="saelens"
        )
    assert not (tmp_path / "x").exists()


def test_batch_topk_is_written_with_its_threshold(tmp_path):
    trained = sae_of(BatchTopK(3, threshold=jnp.asarray(0.7)))
    save_dictionary(tmp_path, trained, address="embed", model="m", format="saelens")
    assert read_json(tmp_path / "cfg.json")["architecture"] == "jumprelu"
    np.testing.assert_allclose(load_file(tmp_path / "sae_weights.safetensors")["threshold"], 0.7, rtol=1e-6)
    x = jax.random.normal(jax.random.key(1), (9, 8))
    np.testing.assert_allclose(load_dictionary(tmp_path).dictionary.encode(x), trained.encode(x), rtol=1e-6)


def test_a_loaded_dictionary_is_spliced_where_its_config_says(tmp_path):
    from toy import batch_at, toy

    sae = Normalised(init_sae(jax.random.key(0), 16, 32, TopK(4)), "layer_norm")
    save_dictionary(tmp_path, sae, address="blocks.1.resid_post", model="toy", format="saelens")
    saved, tokens = load_dictionary(tmp_path), batch_at(0)[0]
    found = edit(toy(), at(saved.reads(), Splice(saved.dictionary)))(tokens)
    np.testing.assert_allclose(found, edit(toy(), at("blocks.1.resid_post", Splice(sae)))(tokens), rtol=1e-5, atol=1e-5)


def test_attention_files_side_by_side_are_named(tmp_path):
    layout = written("attention SAE", tmp_path)
    with pytest.raises(UserError, match="holds no dictionary of a known format"):
        load_dictionary(layout.path.parent)
    assert load_dictionary(layout.path.parent / "L6_v9_cfg.json").address == "blocks.6.attn.z"
    with pytest.raises(UserError, match="or several: name the file"):
        load_dictionary(layout.path.parent, format="connor_rob_hook_z")


MESHED = ("topk by decoder norms", "abstopk", "gated", "matching_pursuit", "standard checkpoint, whitened inputs")
MESHED += ("jumprelu_skip_transcoder", "jumprelu, constant norm", "temporal")


@pytest.mark.parametrize("name", MESHED)
def test_it_loads_onto_a_mesh(name, tmp_path):
    """Rows of TopK are then chosen by comparison with the k-th largest, AbsTopK's by absolute value."""
    layout, mesh = written(f"saelens {name}", tmp_path), make_mesh(fsdp=2, tensor=2, explicit=False)
    saved = load_dictionary(layout.path, place=mesh)
    assert len(jax.tree.leaves(saved.dictionary)[0].sharding.device_set) == 4
    x = jnp.asarray(layout.x, jnp.float32)
    with jax.set_mesh(mesh):
        z = jax.jit(lambda one, x: one.encode(x))(saved.dictionary, x)
        y = jax.jit(lambda one, x: one(x))(saved.dictionary, x)
    np.testing.assert_allclose(z, layout.latents, rtol=0, atol=1e-4)
    np.testing.assert_allclose(y, layout.outputs, rtol=0, atol=1e-4)
