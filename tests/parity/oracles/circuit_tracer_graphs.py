"""Attribution graphs of circuit-tracer: random models and transcoders, and all that it computes from them.

python circuit_tracer_graphs.py FOLDER      FOLDER/<case>/{model/, data.npz, scores.json, viewer/graph.json}
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.graph import compute_graph_scores, prune_graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from circuit_tracer.utils.create_graph_files import create_graph_files
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

VOCAB, LAYERS, WIDTH, FEATURES = 50, 3, 16, 24
TOKENS = [0, 7, 21, 7, 33, 4, 12]
GPT2 = {"normalization_type": "LN", "positional_embedding_type": "standard", "act_fn": "gelu_new"}
LLAMA = {"normalization_type": "RMSPre", "positional_embedding_type": "rotary", "act_fn": "silu", "rotary_dim": 4}
KEPT = ("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_mlp", "d_vocab", "act_fn", "normalization_type", "eps",
        "positional_embedding_type", "rotary_dim", "rotary_base", "rotary_adjacent_pairs", "attn_only", "attn_scale",
        "parallel_attn_mlp", "use_attn_scale")  # fmt: skip
CASES = {
    "relu": (GPT2, "hook_resid_mid", {}, {}),
    "jumprelu_skip": (LLAMA, "ln2.hook_normalized", {"skip": True, "jump": True}, {}),
    "cross_layer": (GPT2, "hook_resid_mid", {"cross": True}, {}),
    "limited": (GPT2, "hook_resid_mid", {}, {"max_feature_nodes": 30, "batch_size": 5, "update_interval": 2}),
}


def tokenizer(folder):
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "t0")
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def transcoders(hook, skip=False, jump=False, cross=False):
    hooks = {"feature_input_hook": hook, "feature_output_hook": "hook_mlp_out", "scan": "test"}
    kind = {"dtype": torch.float32, "device": torch.device("cpu")}
    if cross:
        made = CrossLayerTranscoder(LAYERS, FEATURES, WIDTH, lazy_decoder=False, **hooks, **kind)
    else:
        act = (lambda: JumpReLU(torch.zeros(FEATURES))) if jump else (lambda: torch.nn.functional.relu)
        one = {i: SingleLayerTranscoder(WIDTH, FEATURES, act(), i, skip_connection=skip, **kind) for i in range(LAYERS)}
        made = TranscoderSet(one, **hooks)
    for name, parameter in made.named_parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
        if name.endswith("threshold"):
            parameter.data = parameter.data.abs()
    return made


def weights_of(made):
    """Encoders, decoders, biases, thresholds and skips of each layer, by name."""
    arrays = {}
    if isinstance(made, CrossLayerTranscoder):
        for i in range(LAYERS):
            arrays |= {f"W_enc.{i}": made.W_enc[i], f"b_enc.{i}": made.b_enc[i], f"b_dec.{i}": made.b_dec[i]}
            arrays[f"W_dec.{i}"] = made.W_dec[i]
    else:
        for i, one in enumerate(made.transcoders):
            arrays |= {f"{name}.{i}": getattr(one, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
            if one.W_skip is not None:
                arrays[f"W_skip.{i}"] = one.W_skip
            if isinstance(one.activation_function, JumpReLU):
                arrays[f"threshold.{i}"] = one.activation_function.threshold
    return {name: value.detach().numpy() for name, value in arrays.items()}


def save_model(model, folder):
    """The state dict and the config, as jax_interp reads models of TransformerLens."""
    folder.mkdir(parents=True)
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    config = {"model_type": "hooked_transformer"} | {name: getattr(model.cfg, name) for name in KEPT}
    (folder / "config.json").write_text(json.dumps(config))


def run(folder, more, hook, kind, limits):
    torch.manual_seed(0)
    words = tokenizer(folder / "tokenizer")
    config = HookedTransformerConfig(
        n_layers=LAYERS, d_model=WIDTH, n_ctx=32, d_head=4, n_heads=4, d_mlp=24, d_vocab=VOCAB, seed=1, device="cpu",
        tokenizer_name=str(folder / "tokenizer"), default_prepend_bos=False, model_name="tiny", **more,
    )  # fmt: skip
    plain = HookedTransformer(config, tokenizer=words)
    with torch.no_grad():
        for name, p in plain.named_parameters():
            p.copy_(1 + 0.3 * torch.randn_like(p) if name.endswith(".w") else 0.4 * torch.randn_like(p))
    save_model(plain, folder / "model")
    made = transcoders(hook, **kind)
    model = TransformerLensReplacementModel.from_config(config, made, tokenizer=words)
    renamed = {
        k.replace(".mlp.", ".mlp.old_mlp.").replace("unembed.", "unembed.old_unembed."): v
        for k, v in plain.state_dict().items()
    }
    missing = [k for k in model.load_state_dict(renamed, strict=False).missing_keys if "transcoders" not in k]
    assert not [k for k in missing if "mask" not in k and "IGNORE" not in k and "rotary" not in k], missing
    assert torch.allclose(model(torch.tensor([TOKENS])), plain(torch.tensor([TOKENS])), atol=1e-5)
    graph = attribute(torch.tensor(TOKENS), model, **{"batch_size": 64, **limits})
    nodes, edges, cumulative = prune_graph(graph)
    create_graph_files(graph, "graph", folder / "viewer", scan="test")
    np.savez(
        folder / "data.npz",
        tokens=np.asarray(TOKENS), adjacency=graph.adjacency_matrix.numpy(), active=graph.active_features.numpy(),
        activations=graph.activation_values.detach().numpy(), selected=graph.selected_features.numpy(),
        logits=graph.logit_token_ids.numpy(), probabilities=graph.logit_probabilities.detach().numpy(),
        node_mask=nodes.numpy(), edge_mask=edges.numpy(), cumulative=cumulative.numpy(), **weights_of(made),
    )  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(compute_graph_scores(graph)))


for case, arguments in CASES.items():
    (Path(sys.argv[1]) / case).mkdir(parents=True)
    run(Path(sys.argv[1]) / case, *arguments)
