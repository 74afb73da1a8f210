"""One step of stochastic parameter decomposition with the published settings, in float32. The step also draws its data.

TMS 5-2: C 20, scalar gates of 16, tied, batch 4096. ResidMLP-1: 100 features, 1000 dimensions, 50 neurons, C 100,
scalar gates of 16, batch 2048. Both have Δ and three losses: importance minimality, reconstruction with all matrices
masked, and reconstruction with one matrix masked at a time.

`bare` is the same step written directly from the equations, as one jitted function that does not use this package. Ours
runs ResidMLP in the span of its embedding (`collapse`), which does not change the output. `bare` does the same under
the name "collapsed". `torch` is the step of the official code (goodfire-ai/spd, tag v1) in plain torch, without its
logging. `instances` is one step of eight seeds in one program, compared with eight steps of one seed.
"""

from __future__ import annotations

import itertools

from gemm import jax_gemm, torch_gemm
from timing import Rounds, Work, Worker, main

FULL = {"tms": {"batch": 4096, "C": 20}, "resid": {"batch": 2048, "C": 100, "d": 1000}, "hidden": 16, "seeds": 8,
        "gemm": 4096}  # fmt: skip
TINY = {"tms": {"batch": 32, "C": 20}, "resid": {"batch": 32, "C": 10, "d": 120}, "hidden": 16, "seeds": 2, "gemm": 64}


def _targets(sizes):
    """W and b of an exact pentagon, and random weights with the shape of ResidMLP-1."""
    import numpy as np

    rng, angle = np.random.default_rng(0), 2 * np.pi * np.arange(5) / 5
    W = (1.134 * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)
    d = sizes["resid"]["d"]
    E = rng.standard_normal((100, d))
    E = (E / np.linalg.norm(E, axis=1, keepdims=True)).astype(np.float32)
    up = (rng.standard_normal((d, 50)) / d**0.5).astype(np.float32)
    down = (rng.standard_normal((50, d)) / 50**0.5).astype(np.float32)
    return (W, np.full(5, -0.245, np.float32)), (E, up, down)


def ours(sizes):
    from functools import partial

    import jax
    import jax.numpy as jnp

    from jax_interp.decomposition import DecompositionConfig, Schedule
    from jax_interp.decomposition.importance import ScalarMLP
    from jax_interp.decomposition.losses import ImportanceMinimality, StochasticLayerwise, StochasticReconstruction
    from jax_interp.decomposition.train import SPD, init_state
    from jax_interp.toys.layers import Linear, ReluMLP, ResidBlock, Transposed
    from jax_interp.toys.resid_mlp import ResidMLP, collapse
    from jax_interp.toys.tms import TIED, TMS
    from jax_interp.toys.toy_training import sparse_features

    (W, b), (E, up, down) = _targets(sizes)
    tms = TMS(Linear(jnp.asarray(W)), [], Transposed(jnp.asarray(b)))
    resid = ResidMLP(Linear(jnp.asarray(E)), [ResidBlock(ReluMLP(Linear(jnp.asarray(up)), Linear(jnp.asarray(down))))])
    losses = lambda p, c: (ImportanceMinimality(c, p), StochasticReconstruction(), StochasticLayerwise())
    gates = ScalarMLP(sizes["hidden"])
    batch, C = sizes["tms"]["batch"], sizes["tms"]["C"]
    config = DecompositionConfig(("linear1",), C=C, tied=TIED, importance=gates, losses=losses(1.0, 3e-3), batch=batch)
    yield _work("TMS 5-2", config, tms, partial(sparse_features, batch=batch, n=5, probability=0.05))

    draw, count = partial(sparse_features, batch=batch, n=5, probability=0.05), itertools.count()
    example, seeds = jax.eval_shape(draw, jax.random.key(0)), jnp.arange(sizes["seeds"], dtype=jnp.uint32)
    states = jax.jit(jax.vmap(lambda seed: init_state(config, tms, example, seed=seed)))(seeds)
    together = jax.jit(SPD.instances_step(config, draw, states, tms), donate_argnums=0)
    held = {"state": states}

    def step():
        held["state"], metrics = together(held["state"], next(count), tms)
        jax.block_until_ready((held["state"], metrics))

    yield Work("TMS 5-2, instances", step, note=f"{sizes['seeds']} seeds")
    batch, C = sizes["resid"]["batch"], sizes["resid"]["C"]
    config = DecompositionConfig(
        ("blocks.*.mlp",), C=C, importance=gates, losses=losses(2.0, 1e-5), batch=batch, steps=20_000,
        schedule=Schedule(2e-3, "constant"),
    )  # fmt: skip
    sample = partial(sparse_features, batch=batch, n=100, probability=0.01, low=-1.0)
    yield _work("ResidMLP-1", config, collapse(resid), sample, resid_flops(sizes, 100))
    yield jax_gemm(sizes["gemm"])


def _work(name, config, target, sample, flops=None):

    import jax

    from jax_interp.decomposition.train import SPD, init_state

    state = init_state(config, target, jax.eval_shape(sample, jax.random.key(0)))
    advance = jax.jit(SPD.sampled_step(config, sample, state, target), donate_argnums=0)
    held = {"state": state}

    def step():
        held["state"], metrics = advance(held["state"], 0, target)
        jax.block_until_ready((held["state"], metrics))

    return Work(name, step, flops=flops)


def resid_flops(sizes, d):
    """FLOPs of the matrix products in one step, in a stream of d dimensions: the target's forward pass and three masked
    forward passes, and twice as many for the backward pass. Gates are elementwise and not counted."""
    batch, C = sizes["resid"]["batch"], sizes["resid"]["C"]
    dense = 2.0 * batch * (100 * d + d * 50 + 50 * d + d * 100)
    parts = 2.0 * batch * C * (d + 50) * 2  # x V and (x V m) U of both matrices
    return dense + 3 * (3 * dense + 2 * parts + parts)


def bare(sizes):
    """Only the equations: V, U, gates, masks, three forward passes, Adam."""
    import jax
    import jax.numpy as jnp
    import optax

    (W, b), (E, up, down) = _targets(sizes)
    h = sizes["hidden"]

    def gate_init(key, C):
        one, two = jax.random.split(key)
        return {"wi": jax.random.normal(one, (C, h)) * 2**0.5, "bi": jnp.zeros((C, h)),
                "wo": jax.random.normal(two, (C, h)) / h**0.5, "bo": jnp.zeros(C)}  # fmt: skip

    def gate(g, a):
        hidden = jax.nn.gelu(a[..., None] * g["wi"] + g["bi"], approximate=False)
        return (hidden * g["wo"]).sum(-1) + g["bo"]

    @jax.custom_vjp
    def lower(z):
        return jnp.clip(z, 0, 1)

    lower.defvjp(
        lambda z: (jnp.clip(z, 0, 1), z),
        lambda z, g: (jnp.where(z <= 0, jnp.where(g < 0, 0.01 * g, 0.0), jnp.where(z <= 1, g, 0.0)),),
    )
    upper = lambda z: jnp.where(z > 1, 1 + 0.01 * (z - 1), jnp.clip(z, 0, 1))

    def layer(V, U, weight, x, mask):
        if mask is None:
            return x @ weight
        return ((x @ V) * mask[0]) @ U + mask[1][:, None] * (x @ (weight - V @ U))

    def draw(key, ci):
        one, two = jax.random.split(key)
        r = jax.random.uniform(one, ci.shape)
        return ci + (1 - ci) * r, jax.random.uniform(two, ci.shape[:1])

    def stepper(forward, reads, pairs_of, sample, p, beta, schedule):
        adam = optax.adam(schedule)

        def loss(params, target, x, key):
            clean = forward(target, pairs_of(params), x, (None, None))
            gates = [gate(g, a @ V) for g, a, (V, _) in zip(params["gates"], reads(target, x), pairs_of(params))]
            ci = [lower(g) for g in gates]
            keys = jax.random.split(key, 4)
            masks = [draw(k, c) for k, c in zip(keys[:2], ci)]
            total = jnp.mean((forward(target, pairs_of(params), x, masks) - clean) ** 2)
            for i in range(2):
                only = [draw(keys[2 + i], ci[i]) if j == i else None for j in range(2)]
                total += jnp.mean((forward(target, pairs_of(params), x, only) - clean) ** 2) / 2
            return total + beta * sum(jnp.mean(jnp.sum((upper(g) + 1e-12) ** p, -1)) for g in gates)

        def step(state, target):
            params, opt, key = state
            key, data, masks = jax.random.split(key, 3)
            value, grads = jax.value_and_grad(loss)(params, target, sample(data), masks)
            updates, opt = adam.update(grads, opt, params)
            return (optax.apply_updates(params, updates), opt, key), value

        return jax.jit(step, donate_argnums=0), adam

    def work(name, made, params, target, flops=None):
        step, adam = made
        held = {"state": (params, adam.init(params), jax.random.key(1))}

        def once():
            held["state"], value = step(held["state"], target)
            jax.block_until_ready((held["state"], value))

        return Work(name, once, flops=flops)

    def sparse(batch, n, p, low):
        def sample(key):
            on, value = jax.random.split(key)
            return jnp.where(
                jax.random.bernoulli(on, p, (batch, n)), jax.random.uniform(value, (batch, n), minval=low), 0.0
            )

        return sample

    # ---- TMS: V, U of W; of its transpose the same pair turned round
    C = sizes["tms"]["C"]
    keys = jax.random.split(jax.random.key(0), 6)
    params = {"V": jax.random.normal(keys[0], (5, C)) / 5**0.5, "U": jax.random.normal(keys[1], (C, 2)) / C**0.5,
              "gates": [gate_init(keys[2], C), gate_init(keys[3], C)]}  # fmt: skip
    both = lambda p: ((p["V"], p["U"]), (p["U"].T, p["V"].T))

    def tms(target, pairs, x, masks):
        W, b = target
        hidden = layer(*pairs[0], W, x, masks[0])
        return jax.nn.relu(layer(*pairs[1], W.T, hidden, masks[1]) + b)

    made = stepper(tms, lambda t, x: (x, x @ t[0]), both, sparse(sizes["tms"]["batch"], 5, 0.05, 0.0), 1.0, 3e-3,
                   optax.cosine_decay_schedule(1e-3, 10_000))  # fmt: skip
    yield work("TMS 5-2", made, params, (jnp.asarray(W), jnp.asarray(b)))

    # ---- ResidMLP-1, as published and in the span of its embedding
    import numpy as np

    C, d = sizes["resid"]["C"], sizes["resid"]["d"]

    def resid(target, pairs, x, masks):
        E, up, down = target
        r = x @ E
        r = r + layer(*pairs[1], down, jax.nn.relu(layer(*pairs[0], up, r, masks[0])), masks[1])
        return r @ E.T

    basis = np.linalg.qr(E.T)[0]
    narrow = (E @ basis, basis.T @ up, down @ basis)
    for name, target, width in (("ResidMLP-1", (E, up, down), d), ("ResidMLP-1, collapsed", narrow, min(100, d))):
        params = {
            "up": (jax.random.normal(keys[0], (width, C)) / width**0.5, jax.random.normal(keys[1], (C, 50)) / C**0.5),
            "down": (jax.random.normal(keys[2], (50, C)) / 50**0.5, jax.random.normal(keys[3], (C, width)) / C**0.5),
            "gates": [gate_init(keys[4], C), gate_init(keys[5], C)],
        }
        made = stepper(resid, lambda t, x: (x @ t[0], jax.nn.relu(x @ t[0] @ t[1])), lambda p: (p["up"], p["down"]),
                       sparse(sizes["resid"]["batch"], 100, 0.01, -1.0), 2.0, 1e-5, 2e-3)  # fmt: skip
        yield work(name, made, params, tuple(map(jnp.asarray, target)), resid_flops(sizes, width))
    yield jax_gemm(sizes["gemm"])


def torch_code(sizes):
    """The step of the official code in plain torch, with the same three losses and Δ."""
    import os

    import torch
    from torch.nn.functional import gelu, relu

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    h = sizes["hidden"]

    class Lower(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z.clamp(0, 1)

        @staticmethod
        def backward(ctx, g):
            (z,) = ctx.saved_tensors
            return torch.where(z <= 0, torch.where(g < 0, 0.01 * g, 0.0), torch.where(z <= 1, g, 0.0))

    upper = lambda z: torch.where(z > 1, 1 + 0.01 * (z - 1), z.clamp(0, 1))

    def gate(C):
        tensors = (torch.randn(C, h) * 2**0.5, torch.zeros(C, h), torch.randn(C, h) / h**0.5, torch.zeros(C))
        return [tensor.requires_grad_() for tensor in tensors]

    def gate_values(gate, a):
        wi, bi, wo, bo = gate
        hidden = gelu(torch.einsum("bc,ch->bch", a, wi) + bi)
        return torch.einsum("bch,ch->bc", hidden, wo) + bo

    def layer(pair, weight, x, mask):
        if mask is None:
            return x @ weight
        V, U = pair
        return ((x @ V) * mask[0]) @ U + mask[1][:, None] * (x @ (weight - V @ U))

    def draw(ci):
        return ci + (1 - ci) * torch.rand_like(ci), torch.rand(len(ci))

    def work(name, forward, reads, pairs_of, parameters, gates, draw_batch, p, beta):
        optimizer = torch.optim.AdamW([*parameters, *itertools.chain(*gates)], lr=1e-3, weight_decay=0)

        def step():
            optimizer.zero_grad()
            x, pairs = draw_batch(), pairs_of()
            with torch.no_grad():
                clean, read = forward(pairs, x, (None, None)), reads(x)
            values = [gate_values(g, a @ pair[0]) for g, a, pair in zip(gates, read, pairs)]
            ci = [Lower.apply(value) for value in values]
            total = ((forward(pairs, x, [draw(c) for c in ci]) - clean) ** 2).mean()
            for i in range(2):
                only = [draw(ci[i]) if j == i else None for j in range(2)]
                total = total + ((forward(pairs, x, only) - clean) ** 2).mean() / 2
            total = total + beta * sum(((upper(value) + 1e-12) ** p).sum(-1).mean() for value in values)
            total.item()  # its trainer logs it every step
            total.backward()
            optimizer.step()

        return Work(name, step)

    def sparse(batch, n, p, low):
        return lambda: torch.where(torch.rand(batch, n) < p, low + (1 - low) * torch.rand(batch, n), 0.0)

    normal = lambda n, m: (torch.randn(n, m) / n**0.5).requires_grad_()
    (W, b), (E, up, down) = [[torch.from_numpy(a) for a in arrays] for arrays in _targets(sizes)]
    C = sizes["tms"]["C"]
    V, U = normal(5, C), normal(C, 2)

    def tms(pairs, x, masks):
        return relu(layer(pairs[1], W.T, layer(pairs[0], W, x, masks[0]), masks[1]) + b)

    yield work("TMS 5-2", tms, lambda x: (x, x @ W), lambda: ((V, U), (U.T, V.T)), [V, U], [gate(C), gate(C)],
               sparse(sizes["tms"]["batch"], 5, 0.05, 0.0), 1, 3e-3)  # fmt: skip
    C, d = sizes["resid"]["C"], sizes["resid"]["d"]
    pairs = (normal(d, C), normal(C, 50)), (normal(50, C), normal(C, d))

    def resid(pairs, x, masks):
        r = x @ E
        r = r + layer(pairs[1], down, relu(layer(pairs[0], up, r, masks[0])), masks[1])
        return r @ E.T

    yield work("ResidMLP-1", resid, lambda x: (x @ E, relu(x @ E @ up)), lambda: pairs,
               [*pairs[0], *pairs[1]], [gate(C), gate(C)],
               sparse(sizes["resid"]["batch"], 100, 0.01, -1.0), 2, 1e-5)  # fmt: skip
    yield torch_gemm(sizes["gemm"])


WORKERS = {
    "ours": Worker(ours, packages=("jax", "jaxlib", "flax", "optax")),
    "bare": Worker(bare, packages=("jax", "jaxlib", "optax")),
    "torch": Worker(torch_code, home="v", packages=("torch",)),
}


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    for name in ("TMS 5-2", "ResidMLP-1"):
        mine = f"ours: {name}"
        for peer in (f"torch: {name}", f"bare: {name}", f"bare: {name}, collapsed"):
            if (ratio := rounds.ratio(peer, mine)) is not None:
                lines.append(f"{name}: {ratio:.2f} times the speed of {peer}")
    if (ratio := rounds.ratio("ours: TMS 5-2, instances", "ours: TMS 5-2")) is not None:
        seeds = rounds.info["ours: TMS 5-2, instances"]["note"]
        lines.append(f"a step of {seeds} in one program takes {ratio:.2f} times that of one")
    if "ours: ResidMLP-1" in rounds.rows:
        share = rounds.gflops("ours: ResidMLP-1") / rounds.gflops("ours: GEMM")
        lines.append(f"ResidMLP-1: {share:.0%} of the GEMM rate, {rounds.gflops('ours: GEMM'):.0f} GFLOP/s in this run")
    return lines


if __name__ == "__main__":
    main(__doc__, __file__, WORKERS, FULL, TINY, conclude)
