"""Damaged and unknown parts of the formats of layer_layouts.py are refused by name, or make no difference."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jax_interp.core.errors import UserError
from jax_interp.dictionaries import Dictionary, ReLU, TopK, load_dictionary, save_dictionary
from jax_interp.dictionaries.formats.cross_layers import targets_of
from jax_interp.dictionaries.forms.cross_layer import from_transcoders
from tests.dictionaries.formats.layer_layouts import LAYERS, D, M
from tests.dictionaries.formats.published import every_layout

LAYOUTS = every_layout()


def written(name, directory):
    return LAYOUTS[name](directory, np.random.default_rng(0)).path


def refused(path, match):
    with pytest.raises(UserError, match=match):
        load_dictionary(path, check=False)


def change(path, file, **changes):
    """Change entries of a JSON or YAML file; None removes one."""
    read, write = (json.loads, json.dumps) if file.endswith("json") else (yaml.safe_load, yaml.safe_dump)
    content = read((path / file).read_text()) | changes
    (path / file).write_text(write({name: value for name, value in content.items() if value is not None}))


def retensor(path, **changes):
    """Change tensors of a safetensors file; None removes one."""
    tensors = {k: v.copy() for k, v in load_file(path).items()} | changes
    path.unlink()
    save_file({name: np.ascontiguousarray(a) for name, a in tensors.items() if a is not None}, path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"W_dec": None}, "has no 'W_dec'"),
        ({"b_extra": np.zeros(M)}, "'b_extra', which is not part of this format"),
        ({"b_enc": np.zeros(M + 1, np.float32)}, "'b_enc' has shape"),
        ({"W_enc": np.zeros((M, D), np.float32)}, "has shape"),
        ({"threshold": np.zeros(M, np.int32)}, "'threshold' is int32"),
        ({"threshold": np.full(M, np.nan, np.float32)}, "NaN or infinite"),
        ({"scaling_factor": np.full(M, 2, np.float32)}, "scaling_factor"),
        ({"w_enc": np.zeros((D, M), np.float32)}, "'W_enc' twice"),
    ],
)
def test_gemma_scope(changes, match, tmp_path):
    path = written("gemma-scope res", tmp_path)
    tensors = dict(np.load(path / "params.npz")) | changes
    np.savez(path / "params.npz", **{name: array for name, array in tensors.items() if array is not None})
    refused(path, match)


def test_gemma_scope_needs_the_layer_in_its_path_and_ignores_a_scale_of_one(tmp_path):
    path = written("gemma-scope res", tmp_path)
    tensors = dict(np.load(path / "params.npz"))
    np.savez(path / "params.npz", **tensors, scaling_factor=np.ones(M, np.float32))
    assert load_dictionary(path, check=False).address == "blocks.20.resid_post"
    path.rename(tmp_path / "google" / "gemma-scope-2b-pt-res" / "downloaded")
    refused(tmp_path / "google" / "gemma-scope-2b-pt-res" / "downloaded", "does not name the layer")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architecture": "topk"}, "architecture 'topk'"),
        ({"affine_connection": True}, "affine_connection=True, but the tensors have no"),
        ({"affine_connection": "yes"}, "it is true or false"),
        ({"normalize": True}, "has 'normalize'"),
    ],
)
def test_gemma_scope_2(changes, match, tmp_path):
    path = written("gemma-scope-2 resid_post", tmp_path)
    change(path, "config.json", **changes)
    refused(path, match)


def test_gemma_scope_2_of_several_layers(tmp_path):
    path = written("gemma-scope-2 crosscoder, absolute", tmp_path)
    change(path, "config.json", hf_hook_point_in="model.layers.{7,13}.output")
    refused(path, "names 2 layers")
    change(path, "config.json", hf_hook_point_in="model.layers.7.output")
    refused(path, "names one layer")
    (path / "params_layer_1.safetensors").unlink()
    refused(path, "has no file for layer 1")


def test_the_axis_of_targets_is_decided_or_refused():
    W = [np.ones((M, 3, D), np.float32) for _ in range(3)]
    with pytest.raises(UserError, match="not zero for earlier targets"):
        targets_of(W, "clt")
    absolute = [np.where(np.arange(3)[None, :, None] >= i, w, 0) for i, w in enumerate(W)]
    assert [w.shape[1] for w in targets_of(absolute, "clt")] == [3, 2, 1]
    padded = [np.where(np.arange(3)[None, :, None] < 3 - i, w, 0) for i, w in enumerate(W)]
    assert all((w == 1).all() for w in targets_of(padded, "clt"))
    assert [w.shape[1] for w in targets_of([w[:, i:] for i, w in enumerate(W)], "clt")] == [3, 2, 1]
    with pytest.raises(UserError, match="not known"):
        targets_of([0 * w for w in W], "clt")
    with pytest.raises(UserError, match=r"write \[3, 3, 2\] targets"):
        targets_of([W[0], W[1], W[2][:, :2]], "clt")


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("ReLU", {"model_kind": "lorsa"}, "model_kind 'lorsa'"),
        ("ReLU", {"feature_input_hook": None}, "needs model_name"),
        ("ReLU", {"activation": "jumprelu"}, "has no thresholds"),
        ("JumpReLU with skip", {"activation": "relu"}, "has thresholds"),
        ("ReLU", {"activation": "gelu"}, "activation 'gelu'"),
        ("TopK", {"k": None}, "k is None"),
        ("TopK", {"k": M + 1}, f"k is {M + 1}"),
    ],
)
def test_circuit_tracer_settings(name, changes, match, tmp_path):
    path = written(f"circuit-tracer set, {name}", tmp_path)
    change(path, "config.yaml", **changes)
    refused(path, match)


def test_circuit_tracer_tensors(tmp_path):
    path = written("circuit-tracer set, JumpReLU with skip", tmp_path)
    one = path / "layer_1.safetensors"
    retensor(one, **{"activation_function.threshold": np.full(M, -0.1, np.float32)})
    refused(path, "thresholds below 0")
    retensor(one, **{"activation_function.threshold": np.ones(M, np.float32), "b_gate": np.ones(M, np.float32)})
    refused(path, "'b_gate'")
    narrow = {"W_enc": (5, D), "W_dec": (5, D), "b_enc": (5,), "activation_function.threshold": (5,)}
    retensor(one, b_gate=None, **{name: np.ones(shape, np.float32) for name, shape in narrow.items()})
    refused(path, "different shapes")
    assert load_dictionary(one, check=False).dictionary.n_features == 5
    for file in path.glob("layer_*"):
        file.unlink()
    change(path, "config.yaml", transcoders=["hf://google/gemma-scope-2b-pt-transcoders/layer_0/params.npz"])
    refused(path, "files of other repositories")


def test_a_part_of_a_set_has_the_addresses_of_its_layers(tmp_path):
    path = written("circuit-tracer set, ReLU", tmp_path)
    (path / "layer_0.safetensors").unlink()
    saved = load_dictionary(path, check=False)
    assert saved.writes == ("blocks.1.mlp_out", "blocks.2.mlp_out")
    assert load_dictionary(path / "layer_2.safetensors", check=False).writes == "blocks.2.mlp_out"


def test_a_circuit_tracer_clt_with_a_gap(tmp_path):
    path = written("circuit-tracer CLT, ReLU", tmp_path)
    for i in range(LAYERS):
        one = load_dictionary(path / f"W_enc_{i}.safetensors", check=False)
        assert one.dictionary.write_sites == LAYERS - i
        assert any("one source" in note for note in one.notes)
    (path / "W_dec_1.safetensors").unlink()
    refused(path, "has no W_dec_1")
    (path / "W_enc_1.safetensors").unlink()
    refused(path, "no file for layer 1")


def test_what_circuit_tracer_cannot_hold_is_not_written(tmp_path):
    W = jnp.ones((D, M))
    one = Dictionary(W, jnp.zeros(M), W.T, jnp.zeros(D), ReLU(), centred=False)
    addresses = {"address": "blocks.0.resid_mid", "writes": "blocks.0.mlp_out", "model": "gpt2"}
    save = lambda dictionary, **changes: save_dictionary(
        tmp_path / "set", dictionary, format="circuit-tracer", **(addresses | changes)
    )
    for dictionary, changes, match in (
        (one, {"address": "blocks.3.resid_mid"}, "one value of each layer from 0"),
        (one, {"writes": "blocks.0.attn.z"}, "one value of each layer from 0"),
        (Dictionary(W, jnp.zeros(M), W.T, jnp.zeros(D), TopK(3), centred=False), {}, "not TopK"),
        (Dictionary(W, jnp.zeros(M), W.T, jnp.zeros(D), ReLU()), {}, "not centred"),
        (from_transcoders([one, one]), {}, "one value of each layer from 0"),
    ):
        with pytest.raises(UserError, match=match):
            save(dictionary, **changes)
    save(one)
    with pytest.raises(UserError, match="already has layer_0"):
        save(one)
    assert load_dictionary(tmp_path / "set", check=False).address == "blocks.0.resid_mid"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"norm_activation": "token-wise"}, "norm_activation 'token-wise'"),
        ({"dataset_average_activation_norm": {"in": 0.0, "out": 1.0}}, "was not measured"),
        ({"dataset_average_activation_norm": None}, "norm_activation"),
        ({"jump_relu_threshold": None}, "jump_relu_threshold None"),
        ({"jump_relu_threshold": -1.0}, "jump_relu_threshold -1"),
        ({"act_fn": "topk"}, "act_fn 'topk'"),
        ({"use_glu_encoder": True}, "use_glu_encoder"),
        ({"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias_to_pre_encoder"),
        ({"d_model": D + 1}, "has shape"),
        ({"use_decoder_bias": False}, "'decoder.bias'"),
    ],
)
def test_llama_scope(changes, match, tmp_path):
    path = written("llama-scope with decoder norms", tmp_path)
    change(path, "hyperparams.json", **changes)
    refused(path, match)


def test_llama_scope_r1_needs_its_scale(tmp_path):
    path = written("llama-scope-r1 with its norm", tmp_path)
    name = "dataset_average_activation_norm.blocks.7.hook_resid_post"
    for value, match in ((np.array(np.nan, np.float32), "was not measured"), (None, "load it by the name")):
        retensor(path / "sae_weights.safetensors", **{name: value})
        refused(path, match)


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("SAE, TopK", {"sae_type": "lorsa"}, "sparse attention"),
        ("SAE, TopK", {"sae_type": "molt"}, "mixture of linear transforms"),
        ("SAE, TopK", {"sae_type": "other"}, "known are sae, clt, crosscoder"),
        ("SAE, TopK", {"act_fn": "batchtopk"}, "compete with those of other rows"),
        ("CLT, TopK", {"act_fn": "layertopk"}, "compete with those of other rows or layers"),
        ("SAE, TopK", {"act_fn": "gelu"}, "known are relu"),
        ("SAE, TopK", {"top_k": 0}, "top_k 0"),
        ("SAE, TopK", {"use_glu_encoder": True}, "use_glu_encoder"),
        ("SAE, TopK", {"norm_activation": "batch-wise"}, "only a constant scale"),
        ("SAE, TopK", {"hook_point_in": None}, "has no 'hook_point_in'"),
        ("SAE, TopK", {"hook_point_in": "blocks.9.hook_resid_post"}, "was not measured"),
        ("crosscoder, ReLU", {"act_fn": "topk"}, "compete by the norms"),
    ],
)
def test_llamascopium(name, changes, match, tmp_path):
    path = written(f"llamascopium {name}", tmp_path)
    change(path, "config.json", **changes)
    refused(path, match)


def test_llamascopium_checkpoints(tmp_path):
    path = written("llamascopium SAE, ReLU", tmp_path)
    (path / "sae_weights.safetensors").unlink()
    refused(path, "has no sae_weights")
    (path / "sae_weights.dcp").mkdir()
    refused(path, "distributed checkpoint")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"activation_fn": "topk", "topk_mode": "per_layer"}, "ranked over the batch"),
        ({"activation_fn": "batchtopk"}, "ranked over the batch"),
        ({"normalization_method": "mean_std"}, "normalization_method 'mean_std'"),
        ({"skip_connection": True}, "skip_connection"),
        ({"decoder_tying": "all"}, "decoder_tying 'all'"),
        ({"num_features": M + 1}, "has shape"),
        ({"d_model": "12"}, "d_model '12'"),
    ],
)
def test_crosslayer_coding(changes, match, tmp_path):
    path = written("crosslayer-coding none, jumprelu", tmp_path)
    change(path, "cfg.json", **changes)
    refused(path, match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"divide_cross_layer": True}, "divides what earlier layers write"),
        ({"secondary_target_tied": True}, "secondary_target_tied"),
        ({"coalesce_topk": "concat"}, "coalesce_topk 'concat'"),
        ({"activation": "batchtopk"}, "activation 'batchtopk'"),
        ({"transcode": False}, "does not set transcode"),
        ({"k": M + 1}, "k must be from 1"),
        ({"normalize_io": True}, "no 'in_norm'"),
        ({"d_in": D + 1}, "has shape"),
    ],
)
def test_clt_training(changes, match, tmp_path):
    path = written("clt-training untied, skip", tmp_path)
    change(path / "layers.1.mlp", "cfg.json", **changes)
    refused(path, match)


def test_clt_training_tensors(tmp_path):
    path = written("clt-training untied, skip", tmp_path)
    file = path / "layers.0.mlp" / "sae.safetensors"
    retensor(file, **{"post_encs.1": np.ones(M, np.float32)})
    refused(path, r"post_encs\.1 other than zero")
    retensor(file, **{"post_encs.1": None, "W_skips.1": np.ones((D, D), np.float32)})
    refused(path, r"W_skips\.1 other than zero")
    one = load_dictionary(path / "layers.1.mlp", check=False)
    assert one.dictionary.write_sites == 2
    assert one.normalized == "blocks.1.ln2.normalized"


def test_an_offset_of_active_latents_is_refused(tmp_path):
    path = written("crosslayer-coding per_source, relu, scaled", tmp_path)
    retensor(path / "model.safetensors", **{"decoder_module.feature_offset.1": np.ones(M, np.float32)})
    refused(path, "feature_offset")
