"""A plain forward pass: our jitted decoder, compared with `transformers` on CPU torch.

GPT-2-small shape, batch 4 x 128, float32, random weights.
"""

from __future__ import annotations

from gemm import jax_gemm, torch_gemm
from gpt2_shape import FULL, TINY, forward_flops, hf_model, our_model
from timing import Rounds, Work, Worker, main

TORCH = ("torch", "transformers")


def ours(stacked: bool):
    def build(sizes):
        import jax

        call = jax.jit(lambda f, *args: f(*args))
        model, tokens = our_model(sizes, stacked)
        yield Work("forward", lambda: call(model, tokens).block_until_ready(), flops=forward_flops(sizes))
        if not stacked:
            yield jax_gemm(sizes["gemm"])

    return build


def transformers(sizes):
    model, tokens = hf_model(sizes)
    yield Work("forward", lambda: model(tokens, use_cache=False).logits, flops=forward_flops(sizes))
    yield torch_gemm(sizes["gemm"])


WORKERS = {
    "ours unrolled": Worker(ours(stacked=False)),
    "ours stacked": Worker(ours(stacked=True)),
    "transformers": Worker(transformers, home="v", packages=TORCH),
}


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    for layout in ("unrolled", "stacked"):
        forward = f"ours {layout}: forward"
        if (ratio := rounds.ratio(forward, "transformers: forward")) is not None:
            lines.append(f"{layout}: {ratio:.2f} of the time of transformers")
        if forward in rounds.rows and "ours unrolled: GEMM" in rounds.rows:
            lines.append(
                f"{layout}: {rounds.gflops(forward) / rounds.gflops('ours unrolled: GEMM'):.0%} of XLA's GEMM rate"
            )
    if "transformers: forward" in rounds.rows:
        share = rounds.gflops("transformers: forward") / rounds.gflops("transformers: GEMM")
        lines.append(f"transformers: {share:.0%} of torch's GEMM rate")
    return lines


if __name__ == "__main__":
    main(__doc__, __file__, WORKERS, FULL, TINY, conclude)
