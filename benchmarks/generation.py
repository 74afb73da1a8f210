"""Generation of 64 tokens after 8 prompts of 16 tokens, greedy: plain, steered at one layer, or with eight different
sets of edits, one for each row (other layers, vectors and operators); and compile times.

GPT-2-small shape, float32, random weights, no stop token. A compile time is the time of the first call of the jitted
forward pass minus the time of the second call, with 12 and 48 layers (d_model 256).
"""

from __future__ import annotations

import time

from gpt2_shape import FULL, TINY, hf_model, lens_model, our_model
from timing import Rounds, Work, Worker, main

SHAPE = {"batch": 8, "pos": 16, "n_new": 64}
DEEP = {"d_model": 256, "heads": 4, "d_mlp": 1024, "vocab": 1000, "n_ctx": 64, "batch": 1, "pos": 16}
TORCH = ("torch", "transformers")


def ours(stacked: bool):
    def build(sizes):
        import jax

        from jax_interp.models import generate
        from jax_interp.steering import OPERATORS
        from jax_interp.steering.serving import Request, RequestEdit, edit_rows
        from jax_interp.surgery import Add, at, edit

        model, tokens = our_model(sizes, stacked)
        vector = jax.random.normal(jax.random.key(2), (sizes["d_model"],))
        steered = edit(model, at(f"blocks.{sizes['layers'] // 2}.resid_post", Add(vector)))
        requests = [
            Request(row, sizes["n_new"], (RequestEdit(f"blocks.{i % sizes['layers']}.resid_post", vector, name, 0.5),))
            for i, (row, name) in enumerate(zip(tokens.tolist(), [*OPERATORS, "add"], strict=False))
        ]
        eight = edit_rows(model, requests, ["blocks.*.resid_post"])
        for name, program in (("plain", model), ("steered", steered), ("eight edits", eight)):
            yield Work(name, lambda program=program: jax.block_until_ready(generate(program, tokens, sizes["n_new"])))

    return build


def compiling(sizes):
    import jax

    for depth in sizes["depths"]:
        for layout in ("unrolled", "stacked"):
            model, tokens = our_model({**DEEP, "layers": depth}, stacked=layout == "stacked")

            def seconds(model=model, tokens=tokens):
                jax.clear_caches()
                call = jax.jit(lambda f, *args: f(*args))
                taken = []
                for _ in range(2):
                    start = time.perf_counter()
                    call(model, tokens).block_until_ready()
                    taken.append(time.perf_counter() - start)
                return taken[0] - taken[1]

            yield Work(f"{layout}, {depth} layers", lambda: None, seconds=seconds)


def transformers(sizes):
    model, tokens = hf_model(sizes)
    import torch

    vector = torch.randn(sizes["d_model"])
    layer = model.transformer.h[sizes["layers"] // 2]
    settings = {"max_new_tokens": sizes["n_new"], "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = lambda: model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)

    def hook(module, inputs, output):
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    def steered():
        handle = layer.register_forward_hook(hook)
        try:
            plain()
        finally:
            handle.remove()

    yield Work("plain", plain)
    yield Work("steered", steered)


def transformer_lens(sizes):
    model, tokens = lens_model(sizes)
    settings = {"max_new_tokens": sizes["n_new"], "do_sample": False, "stop_at_eos": False, "verbose": False}
    yield Work("plain", lambda: model.generate(tokens, return_type="tokens", **settings))


WORKERS = {
    "ours unrolled": Worker(ours(stacked=False)),
    "ours stacked": Worker(ours(stacked=True)),
    "transformers": Worker(transformers, home="v", packages=TORCH),
    "TransformerLens": Worker(transformer_lens, home="v", packages=(*TORCH, "transformer-lens")),
    "compile": Worker(compiling),
}


def conclude(rounds: Rounds) -> list[str]:
    n, lines = SHAPE["batch"] * SHAPE["n_new"], []
    for name in rounds.rows:
        if not name.startswith("compile"):
            lines.append(f"{name}: {n / rounds.seconds(name):.0f} new tokens/s")
    for layout in ("unrolled", "stacked"):
        for peer in ("transformers", "TransformerLens"):
            if (ratio := rounds.ratio(f"ours {layout}: plain", f"{peer}: plain")) is not None:
                lines.append(f"{layout}: {ratio:.2f} of the time of {peer}")
        for work, other in (("steered", "plain"), ("eight edits", "steered")):
            if (ratio := rounds.ratio(f"ours {layout}: {work}", f"ours {layout}: {other}")) is not None:
                lines.append(f"{layout}: {work} take {ratio:.2f} of {other}")
        for peer in ("transformers: steered", "TransformerLens: plain"):
            if (ratio := rounds.ratio(peer, f"ours {layout}: steered")) is not None:
                lines.append(f"{layout}: steered, {ratio:.2f} times as fast as {peer}")
    return lines


if __name__ == "__main__":
    full, tiny = {**FULL, **SHAPE, "depths": [12, 48]}, {**TINY, **SHAPE, "n_ctx": 128, "depths": [2, 4]}
    main(__doc__, __file__, WORKERS, full, tiny, conclude)
