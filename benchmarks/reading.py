"""The time and peak memory of reading 12 residual values, or every value; and the overhead of surgery in a call.

GPT-2-small shape, batch 4 x 128, float32, compared with TransformerLens, nnsight and transformers. "Everything" is
every named value except the inputs and results of single heads, which no library computes by default. The dispatch rows
use a 12-layer model that is so small that nearly all of a call is Python and runtime overhead.
"""

from __future__ import annotations

import time

from gpt2_shape import FULL, TINY, forward_flops, hf_model, lens_model, our_model
from timing import Rounds, Work, Worker, main

SMALL = {"layers": 12, "d_model": 8, "heads": 2, "d_mlp": 16, "vocab": 16, "n_ctx": 8, "batch": 1, "pos": 2}


def ours(stacked: bool):
    def build(sizes):
        import jax

        from jax_interp.surgery import read, sites

        call = jax.jit(lambda f, *args: f(*args))
        model, tokens = our_model(sizes, stacked)
        named = by_default(sites(model)(tokens))
        programs = {
            "bare": model,
            "12 residual sites": read(model, "blocks.*.resid_post"),
            "everything": read(model, *_merged(named)),
        }
        for name, program in programs.items():
            held = jax.eval_shape(call, program, tokens)
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(held)) / 2**20
            step = lambda program=program: jax.block_until_ready(call(program, tokens))
            yield Work(name, step, flops=forward_flops(sizes), note=f"{size:.0f} MB returned")

    return build


def by_default(addresses) -> list[str]:
    """The values that libraries compute by default: without those that have `d_model` entries for every head."""
    per_head = ("attn.result", "q_input", "k_input", "v_input")
    return [address for address in addresses if not address.endswith(per_head)]


def _merged(addresses: list[str]) -> list[str]:
    """`blocks.0.z`, `blocks.1.z`, ... as one `blocks.*.z`."""
    named = {}
    for address in addresses:
        parts = address.split(".")
        named[".".join(("blocks", "*", *parts[2:])) if parts[0] == "blocks" else address] = None
    return list(named)


def dispatch(sizes):
    """Calls of a very small model, timed from the call to its return."""
    import jax

    from jax_interp.surgery import Add, at, edit

    call = jax.jit(lambda f, *args: f(*args))
    for layout in ("unrolled", "stacked"):
        model, tokens = our_model(SMALL, stacked=layout == "stacked")
        steering = jax.numpy.ones((SMALL["d_model"],))
        edited = edit(model, at("blocks.3.resid_post", Add(steering)))
        for name, program in (("bare", model), ("edited", edited)):

            def seconds(program=program, tokens=tokens):
                start = time.perf_counter()
                out = call(program, tokens)
                taken = time.perf_counter() - start
                out.block_until_ready()
                return taken

            yield Work(f"{layout} {name}", lambda: None, seconds=seconds)


def transformer_lens(sizes):
    model, tokens = lens_model(sizes)
    residual = lambda name: name.startswith("blocks.") and name.count(".") == 2 and name.endswith("hook_out")
    found = model.run_with_cache(tokens, names_filter=residual)[1]
    if len(found) != sizes["layers"]:
        raise RuntimeError(f"expected {sizes['layers']} residual sites, the cache has {list(found)}")
    everything = model.run_with_cache(tokens)[1]
    flops = forward_flops(sizes)
    yield Work("bare", lambda: model(tokens), flops=flops)
    yield Work("12 residual sites", lambda: model.run_with_cache(tokens, names_filter=residual), flops=flops)
    note = f"{len(everything)} values, {_storage_mb(everything.values()):.0f} MB"
    del everything, found
    yield Work("everything", lambda: model.run_with_cache(tokens), flops=flops, note=note)


def nnsight(sizes):
    from nnsight import NNsight

    hf, tokens = hf_model(sizes)
    model = NNsight(hf)

    def bare():
        with model.trace(tokens, use_cache=False):
            logits = model.output.logits.save()
        return logits

    def residual():
        with model.trace(tokens, use_cache=False):
            saved = list().save()  # noqa: C408  nnsight's own spelling: a literal has no save()
            for i in range(sizes["layers"]):
                saved.append(model.transformer.h[i].output)
        return saved

    def everything():
        with model.trace(tokens, use_cache=False) as tracer:
            cache = tracer.cache().save()
        return cache

    flops = forward_flops(sizes)
    yield Work("bare", bare, flops=flops)
    yield Work("12 residual sites", residual, flops=flops)
    yield Work("everything", everything, flops=flops, note="the output of every module")


def transformers(sizes):
    model, tokens = hf_model(sizes)
    flops = forward_flops(sizes)
    yield Work("bare", lambda: model(tokens, use_cache=False).logits, flops=flops)
    read = lambda: model(tokens, use_cache=False, output_hidden_states=True).hidden_states
    yield Work("12 residual sites", read, flops=flops, note="output_hidden_states")


def _storage_mb(tensors) -> float:
    """The memory of tensors in MB. A storage that several tensors share counts once."""
    held = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors if hasattr(tensor, "numel")}
    return sum(held.values()) / 2**20


WORKERS = {
    "ours unrolled": Worker(ours(stacked=False)),
    "ours stacked": Worker(ours(stacked=True)),
    "transformers": Worker(transformers, home="v", packages=("torch", "transformers")),
    "TransformerLens": Worker(transformer_lens, home="v", packages=("torch", "transformers", "transformer-lens")),
    "nnsight": Worker(nnsight, home="v", packages=("torch", "transformers", "nnsight")),
    "dispatch": Worker(dispatch),
}


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    for worker in WORKERS:
        for work in ("12 residual sites", "everything"):
            ratio = rounds.ratio(f"{worker}: {work}", f"{worker}: bare")
            if ratio is not None:
                claim = " (to be at most 1.03)" if worker.startswith("ours") and work != "everything" else ""
                more = rounds.peak_mb(f"{worker}: {work}") - rounds.peak_mb(f"{worker}: bare")
                lines.append(f"{worker}, {work}: {ratio:.3f} of its bare forward{claim}, {more:+.0f} MB")
    for layout in ("unrolled", "stacked"):
        ratio = rounds.ratio(f"dispatch: {layout} edited", f"dispatch: {layout} bare")
        if ratio is not None:
            bare = rounds.seconds(f"dispatch: {layout} bare") * 1e6
            claim = " (to be under 200 us)" if layout == "stacked" else ""
            lines.append(f"dispatch, {layout}: {bare:.0f} us bare{claim}, edited {ratio:.2f} of it (to be at most 1.3)")
    return lines


if __name__ == "__main__":
    main(__doc__, __file__, WORKERS, FULL, TINY, conclude)
