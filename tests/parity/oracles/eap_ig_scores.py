"""What EAP-IG (hannamw/EAP-IG) computes for a transformer and prompts of others.

python eap_ig_scores.py FOLDER    FOLDER/model.npz and data.npz -> FOLDER/scores.npz

Prompts are token ids instead of texts, so its tokenizer is replaced. It makes some buffers on "cuda"; here they are
made on the CPU.
"""

import sys
from pathlib import Path

import eap.attribute
import eap.evaluate
import numpy as np
import torch
from eap.attribute import attribute
from eap.evaluate import evaluate_graph
from eap.graph import Graph
from transformer_lens import HookedTransformer, HookedTransformerConfig

made = torch.zeros
torch.zeros = lambda *size, **kwargs: made(*size, **{**kwargs, **({"device": "cpu"} if "device" in kwargs else {})})


def tokens_as_they_are(model, tokens, max_length=None):
    lengths = torch.full((len(tokens),), tokens.shape[1])
    return tokens, torch.ones_like(tokens), lengths, tokens.shape[1]


eap.attribute.tokenize_plus = eap.evaluate.tokenize_plus = tokens_as_they_are


def model_of(**sizes):
    config = HookedTransformerConfig(
        act_fn="gelu_new", normalization_type="LN", use_attn_result=True, use_split_qkv_input=True,
        use_hook_mlp_in=True, device="cpu", seed=0, default_prepend_bos=False, **sizes,
    )  # fmt: skip
    return HookedTransformer(config).eval()


def each(logits, *_):
    return logits[:, -1, 3] - logits[:, -1, 4]


def total(logits, *_):
    return each(logits).sum()


def pairs(data, size):
    clean, corrupted = (torch.as_tensor(data[name], dtype=torch.long) for name in ("clean", "corrupted"))
    return [(clean[i : i + size], corrupted[i : i + size], None) for i in range(0, len(clean), size)]


def write_scores(folder):
    data = np.load(folder / "data.npz")
    weights = {name: torch.as_tensor(value) for name, value in np.load(folder / "model.npz").items()}
    layers, heads, width, per_head = data["sizes"].tolist()
    model = model_of(
        n_layers=layers, n_heads=heads, d_model=width, d_head=per_head, d_mlp=weights["blocks.0.mlp.W_in"].shape[1],
        d_vocab=weights["embed.W_E"].shape[0], n_ctx=weights["pos_embed.W_pos"].shape[0],
    )  # fmt: skip
    unset = model.load_state_dict(weights, strict=False)
    assert not unset.unexpected_keys, unset
    assert all("mask" in name or "IGNORE" in name for name in unset.missing_keys), unset
    found, loader = {}, pairs(data, 5)
    methods = {
        "EAP": {}, "EAP-IG-inputs": {"ig_steps": 4}, "clean-corrupted": {}, "EAP-IG-activations": {"ig_steps": 2},
        "information-flow-routes": {}, "exact": {},
    }  # fmt: skip
    for method, extra in methods.items():
        graph = Graph.from_model(model)
        attribute(model, graph, loader, each if method == "exact" else total, method, quiet=True, **extra)
        found[method] = graph.scores.detach().numpy()
    found["real"] = graph.real_edge_mask.numpy()
    found["circuits"] = []
    for edges in data["circuits"]:
        graph = Graph.from_model(model)
        graph.in_graph[:] = torch.as_tensor(edges)
        graph.nodes_in_graph[:] = True
        found["circuits"].append(evaluate_graph(model, graph, loader, each, quiet=True).numpy())
    found["edges"] = np.asarray(list(graph.edges))
    np.savez(folder / "scores.npz", **found)


if __name__ == "__main__":
    write_scores(Path(sys.argv[1]))
