"""Edge attribution patching of all edges, and exact patching of edges, compared with EAP-IG (hannamw/EAP-IG).

GPT-2-small shape with random weights: 32,491 edges. EAP: 8 pairs of prompts of 16 tokens. Exact patching: one pair, the
edges to the MLP of layer 8 (about as many layers run after it as on average over all edges) and to the logits. The time
of one forward and backward pass of the bare model is that of the gradient with respect to all parameters.
"""

from __future__ import annotations

from gpt2_shape import FULL, TINY, our_model
from timing import Rounds, Work, Worker, main

PAIRS, TOKENS = 8, 16


def ours(stacked: bool):
    def build(sizes):
        import jax
        import jax.numpy as jnp

        from jax_interp.circuits import LogitDifference, make_contrast, measure, residual_graph
        from jax_interp.circuits.edges import EAP, ExactEdges, edge_scores
        from jax_interp.circuits.graph import Graph

        model, _ = our_model(sizes, stacked)
        tokens = jax.random.randint(jax.random.key(1), (2, sizes["batch"], sizes["pos"]), 0, sizes["vocab"])
        pairs = make_contrast(tokens[0].astype(jnp.int32), tokens[1].astype(jnp.int32), LogitDifference(3, 4))
        graph = residual_graph(model)
        late = f"blocks.{2 * sizes['layers'] // 3}.mlp_in"
        some = Graph(graph.sources, (*(p for p in graph.targets if p.address == late), graph.targets[-1]))

        @jax.jit
        def backward(model, pairs):
            return jax.grad(lambda model: jnp.sum(measure(model, pairs.clean, pairs)), allow_int=True)(model)

        yield Work("forward and backward", lambda: jax.block_until_ready(backward(model, pairs)))
        yield Work("EAP", lambda: jax.block_until_ready(edge_scores(model, pairs, EAP(), graph=graph).mean))
        if stacked:
            exact = lambda: edge_scores(model, pairs.rows(slice(0, 1)), ExactEdges(64), graph=some).mean
            yield Work("exact", lambda: exact().block_until_ready(), note=f"{some.n_edges} edges")

    return build


def eap_ig(sizes):
    import torch
    from eap import attribute as attribution
    from eap import evaluate as evaluation
    from eap.graph import Graph
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    zeros = torch.zeros  # it makes some buffers on "cuda"
    torch.zeros = lambda *a, **kw: zeros(*a, **{**kw, **({"device": "cpu"} if "device" in kw else {})})
    lengths = lambda tokens: torch.full((len(tokens),), tokens.shape[1])
    as_they_are = lambda model, tokens, max_length=None: (
        tokens, torch.ones_like(tokens), lengths(tokens), tokens.shape[1],
    )  # fmt: skip
    attribution.tokenize_plus = evaluation.tokenize_plus = as_they_are
    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=sizes["layers"], n_heads=sizes["heads"], d_model=sizes["d_model"], d_mlp=sizes["d_mlp"],
        d_head=sizes["d_model"] // sizes["heads"], d_vocab=sizes["vocab"], n_ctx=sizes["n_ctx"], act_fn="gelu_new",
        normalization_type="LN", device="cpu", default_prepend_bos=False,
    )  # fmt: skip
    model = HookedTransformer(config).eval()
    clean, corrupted = torch.randint(0, sizes["vocab"], (2, sizes["batch"], sizes["pos"]))
    each = lambda logits, *_: logits[:, -1, 3] - logits[:, -1, 4]
    total = lambda logits, *_: each(logits).sum()

    def separate(on):
        for name in ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in"):
            getattr(model, f"set_{name}")(on)

    def backward():
        separate(False)
        model.zero_grad()
        total(model(clean)).backward()

    def eap():
        separate(True)
        attribution.attribute(model, Graph.from_model(model), [(clean, corrupted, None)], total, "EAP", quiet=True)

    graph = Graph.from_model(model)
    graph.in_graph |= graph.real_edge_mask
    graph.nodes_in_graph[:] = True

    def one_edge():
        separate(True)
        edge = graph.edges[f"input->m{2 * sizes['layers'] // 3}"]
        edge.in_graph = False
        evaluation.evaluate_graph(model, graph, [(clean[:1], corrupted[:1], None)], each, quiet=True)
        edge.in_graph = True

    yield Work("forward and backward", backward)
    yield Work("EAP", eap)
    yield Work("exact", one_edge, note="1 edge")


WORKERS = {
    "ours unrolled": Worker(ours(stacked=False)),
    "ours stacked": Worker(ours(stacked=True)),
    "eap-ig": Worker(eap_ig, home="v_eap_ig", packages=("eap", "torch", "transformer-lens")),
}


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    for who in ("ours unrolled", "ours stacked", "eap-ig"):
        if (ratio := rounds.ratio(f"{who}: EAP", f"{who}: forward and backward")) is not None:
            lines.append(
                f"{who}: EAP of all edges takes {ratio:.2f} times a forward and backward pass of the bare model"
            )
    for who in ("ours unrolled", "ours stacked"):
        if (ratio := rounds.ratio("eap-ig: EAP", f"{who}: EAP")) is not None:
            lines.append(f"{who}: EAP is {ratio:.1f} times as fast as EAP-IG")
    for who in ("ours stacked", "eap-ig"):
        if (name := f"{who}: exact") in rounds.rows:
            rate = int(rounds.info[name]["note"].split()[0]) / rounds.seconds(name)
            lines.append(f"{who}: {rate:.1f} edges/s exactly for one pair of prompts")
    return lines


if __name__ == "__main__":
    main(__doc__, __file__, WORKERS, {**FULL, "batch": PAIRS, "pos": TOKENS}, {**TINY, "pos": TOKENS}, conclude)
