"""One process of a run over several, for test_processes.py:
python process_run.py COORDINATOR PROCESSES PROCESS RUN_DIRECTORY STEPS [nan | later]

nan: batch 12 is NaN, and the run skips it. later: the batches begin with number 13.
"""

from __future__ import annotations

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.training import Interrupted, Log, OnNan, SaveTo, fit
from jax_interp.training.sharding import BATCH, make_mesh, shardings

RULES = (("w", jax.P("fsdp")), ("**", jax.P()))
SHAPE = (16, 8)


def initial_state(mesh):
    abstract = {
        "w": jax.ShapeDtypeStruct(SHAPE, jnp.float32),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
        "n": jax.ShapeDtypeStruct((), jnp.int32),
    }
    init = lambda: {"w": jax.random.normal(jax.random.key(3), SHAPE), "key": jax.random.key(0), "n": jnp.int32(0)}
    return jax.jit(init, out_shardings=shardings(abstract, RULES, mesh))()


def step(state, batch):
    key, sub = jax.random.split(state["key"])
    noise = jax.random.normal(sub, SHAPE)
    loss, grad = jax.value_and_grad(lambda w: jnp.mean((batch @ w) ** 2))(state["w"])
    w = state["w"] - jnp.float32(0.1) * grad + jnp.float32(0.01) * noise
    return {"w": w, "key": key, "n": state["n"] + 1}, {"loss": loss, "n": state["n"]}


if __name__ == "__main__":
    coordinator, count, index, directory, steps = sys.argv[1:6]
    variant = sys.argv[6] if len(sys.argv) > 6 else ""
    jax.distributed.initialize(coordinator, int(count), int(index))
    mesh = make_mesh(fsdp=-1, explicit=False)
    where = jax.sharding.NamedSharding(mesh, BATCH)

    def batch_at(k):
        time.sleep(0.02)  # so that a signal arrives before the end
        k += 13 if variant == "later" else 0
        whole = np.random.default_rng(k).standard_normal((8, SHAPE[0])).astype(np.float32)
        whole = whole * np.float32(np.nan) if variant == "nan" and k == 12 else whole
        return jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])

    log = Log(every=5, on_nan=OnNan("skip" if variant == "nan" else "stop"))
    try:
        fit(step, initial_state(mesh), batch_at, steps=int(steps), run=SaveTo(directory, every=50), log=log)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
