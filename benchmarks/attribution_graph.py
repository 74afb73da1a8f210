"""The attribution graph of a prompt, compared with circuit-tracer: GPT-2-small shape, transcoders of every MLP.

Random weights, with biases that leave about eight of 4,096 features on at each token. Both compute the rows of as many
features, chosen by influence, in batches of as many targets, and prune the graph. `note` is the number of active
features and of nodes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpt2_shape import FULL as SHAPE
from gpt2_shape import TINY as TINY_SHAPE
from gpt2_shape import our_model
from timing import Rounds, Work, Worker, main

FULL = {**SHAPE, "batch": 1, "pos": 64, "features": 4096, "nodes": 256, "targets": 64, "bias": -2.9}
TINY = {**TINY_SHAPE, "batch": 1, "pos": 16, "features": 64, "nodes": 32, "targets": 16, "bias": -1.5}


def ours(sizes):
    import jax
    import jax.numpy as jnp

    from jax_interp.circuits.attribution_graphs import Limits, attribution_graph, prune
    from jax_interp.dictionaries.activations import ReLU
    from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
    from jax_interp.dictionaries.replacement import replacement

    model, tokens = our_model(sizes, stacked=True)
    d, m, layers = sizes["d_model"], sizes["features"], range(sizes["layers"])

    def source(key):
        W_enc, W_dec = jax.random.normal(key, (2, d, m)) / d**0.5
        return Source(W_enc, jnp.full(m, sizes["bias"]), 0.1 * W_dec.T[:, None], ReLU())

    sources = tuple(source(jax.random.key(i)) for i in layers)
    clt = CrossLayer(sources, jnp.zeros((len(sources), d)))
    local = replacement(
        model, [f"blocks.{i}.ln2.normalized" for i in layers], [f"blocks.{i}.mlp_out" for i in layers], clt
    )
    limits = Limits(max_features=sizes["nodes"], batch=sizes["targets"], without_nodes=(0,))
    found = {}

    def step():
        found["graph"] = attribution_graph(local, tokens[0], limits)
        prune(found["graph"])

    step()
    graph = found["graph"]
    return [Work("graph", step, note=f"{len(graph.active)} active, {graph.n_features} nodes")]


def circuit_tracer(sizes):
    import torch
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.graph import prune_graph
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformer_lens import HookedTransformerConfig
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    d, m, n = sizes["d_model"], sizes["features"], sizes["layers"]
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(sizes["vocab"])}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "t0")
    folder = tempfile.mkdtemp()
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    one = {}
    for i in range(n):
        made = SingleLayerTranscoder(d, m, torch.nn.functional.relu, i, dtype=torch.float32)
        made.W_enc.data, made.W_dec.data = torch.randn(m, d) / d**0.5, 0.1 * torch.randn(m, d) / d**0.5
        made.b_enc.data.fill_(sizes["bias"])
        one[i] = made
    transcoders = TranscoderSet(one, "ln2.hook_normalized", "hook_mlp_out", scan="random")
    config = HookedTransformerConfig(
        n_layers=n, d_model=d, n_ctx=sizes["n_ctx"], d_head=d // sizes["heads"], n_heads=sizes["heads"],
        d_mlp=sizes["d_mlp"], d_vocab=sizes["vocab"], act_fn="gelu_new", normalization_type="LN", device="cpu",
        tokenizer_name=folder, model_name="gpt2-shape", seed=0,
    )  # fmt: skip
    model = TransformerLensReplacementModel.from_config(config, transcoders, tokenizer=tokenizer)
    tokens = torch.cat([torch.zeros(1, dtype=torch.long), torch.randint(1, sizes["vocab"], (sizes["pos"] - 1,))])
    found = {}

    def step():
        found["graph"] = attribute(tokens, model, max_feature_nodes=sizes["nodes"], batch_size=sizes["targets"])
        prune_graph(found["graph"])

    step()
    graph = found["graph"]
    return [Work("graph", step, note=f"{len(graph.active_features)} active, {len(graph.selected_features)} nodes")]


WORKERS = {
    "ours": Worker(ours),
    "circuit-tracer": Worker(circuit_tracer, home="v_ct", packages=("torch", "circuit-tracer", "transformer-lens")),
}


def conclude(rounds: Rounds) -> list[str]:
    ratio = rounds.ratio("circuit-tracer: graph", "ours: graph")
    return [] if ratio is None else [f"circuit-tracer takes {ratio:.2f} times as long as ours"]


if __name__ == "__main__":
    main("Attribution graphs", __file__, WORKERS, FULL, TINY, conclude)
