"""64 requests of mixed lengths with mixed edits: continuous batching against static batches of the same eight rows.

GPT-2-small shape, float32, random weights. Prompts have 8 to 48 tokens, continuations 8 to 96. Half of the requests
have an edit, with any operator. A static batch is one `generate` of eight requests, padded to its longest prompt and
run to its longest continuation; requests are taken in order. Both do the same work, and only the asked tokens count.
The warm-up compiles everything; compilations after it are counted and should be 0.
"""

from __future__ import annotations

from gpt2_shape import FULL, TINY, our_model
from timing import Rounds, Work, Worker, main

SHAPE = {"batch": 8, "pos": 16, "requests": 64, "prompts": [8, 48], "new": [8, 96], "steps": 8}


def requests_of(sizes):
    import numpy as np

    from jax_interp.steering import OPERATORS
    from jax_interp.steering.serving import Request, RequestEdit

    rng, names, requests = np.random.default_rng(0), list(OPERATORS), []
    for i in range(sizes["requests"]):
        n, n_new = (int(rng.integers(low, high + 1)) for low, high in (sizes["prompts"], sizes["new"]))
        layer, vector = int(rng.integers(sizes["layers"])), rng.normal(size=sizes["d_model"])
        edit = RequestEdit(f"blocks.{layer}.resid_post", vector, names[i % len(names)], 0.5)
        requests.append(Request(rng.integers(0, sizes["vocab"], n).tolist(), n_new, (edit,) * (i % 2)))
    return requests


def ours(stacked: bool):
    def build(sizes):
        import jax
        import numpy as np

        from jax_interp.models import generate, pad_left
        from jax_interp.steering.serving import edit_rows, engine_of, serve_events, warm_up

        model, _ = our_model(sizes, stacked)
        requests, rows = requests_of(sizes), sizes["batch"]
        slots = max(len(request.tokens) + request.n_new - 1 for request in requests)
        engine = engine_of(model, rows=rows, slots=slots, steps=sizes["steps"])
        warm_up(engine)
        compiled = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda name, _, **__: compiled.append(name) if "backend_compile" in name else None
        )
        continuous = lambda: sum(event.token is not None for event in serve_events(engine, requests))
        asked = sum(request.n_new for request in requests)
        assert continuous() == asked
        batches = [requests[i : i + rows] for i in range(0, len(requests), rows)]
        longest = max(len(request.tokens) for request in requests)
        note = f"{asked} tokens; {len(compiled)} compilations after the warm-up"

        def static():
            for batch in batches:
                tokens, mask = pad_left([request.tokens for request in batch])
                rest = [(0, 0), (longest - tokens.shape[1], 0)]  # one shape of prompts: one program for each n_new
                tokens, mask = np.pad(tokens, rest), np.pad(mask, rest)
                n_new = max(request.n_new for request in batch)
                edited = edit_rows(model, batch, ["blocks.*.resid_post"])
                jax.block_until_ready(generate(edited, tokens, n_new, mask=mask))

        yield Work("continuous", continuous, note=note)
        yield Work("static", static, note=f"{asked} tokens")

    return build


WORKERS = {"stacked": Worker(ours(stacked=True)), "unrolled": Worker(ours(stacked=False))}


def conclude(rounds: Rounds) -> list[str]:
    lines, asked = [], sum(request.n_new for request in requests_of({**FULL, **SHAPE, "d_model": 1}))
    for layout in WORKERS:
        if (ratio := rounds.ratio(f"{layout}: static", f"{layout}: continuous")) is not None:
            seconds = rounds.seconds(f"{layout}: continuous")
            lines.append(
                f"{layout}: continuous {ratio:.2f} times as fast as static batches, {asked / seconds:.0f} tokens/s"
            )
    return lines


if __name__ == "__main__":
    main(__doc__, __file__, WORKERS, {**FULL, **SHAPE}, {**TINY, **SHAPE, "n_ctx": 160}, conclude)
