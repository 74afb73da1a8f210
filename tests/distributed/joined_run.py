"""A process that trains a tiny model with others, for tests that stop, kill and resume it:

    python joined_run.py COORDINATOR PROCESSES PROCESS RUN_DIRECTORY STEPS [option ...]

Options: log=N, every=N (steps between checkpoints), seconds=S (how long a batch takes), fails=I (process I raises at
step 5), nan (the loss becomes NaN at step 5), same=TEXT (what the processes compare), after=S (process 0 works for S
seconds after the training).
"""

from __future__ import annotations

import sys
import time

from jax_interp.core.errors import UserError
from jax_interp.training import Interrupted, Log, NonFinite, SaveTo, fit, join_processes

SHAPE = (24, 24)


def train(directory: str, steps: int, options: dict[str, str], index: int) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jax_interp.training.sharding import make_mesh, shard, shard_batch

    mesh = make_mesh(fsdp=-1, explicit=False)
    rules = (("w", jax.P("fsdp")), ("**", jax.P()))
    rng = np.random.default_rng(3)
    state = {
        "w": rng.standard_normal(SHAPE).astype(np.float32),
        "key": jax.random.key(0),
        "n": np.int32(0),
    }
    breaks = 4 if "nan" in options else -1

    def step(state, batch):
        key, sub = jax.random.split(state["key"])
        noise = jax.random.normal(sub, SHAPE)
        loss, grad = jax.value_and_grad(lambda w: jnp.mean((batch @ w) ** 2))(state["w"])
        w = state["w"] - jnp.float32(0.1) * grad + jnp.float32(0.01) * noise
        loss = jnp.where(state["n"] == breaks, jnp.float32(jnp.nan), loss)
        return {"w": w, "key": key, "n": state["n"] + 1}, {"loss": loss, "n": state["n"]}

    def batch_at(k):
        time.sleep(float(options.get("seconds", "0.02")))  # so that a signal arrives before the end
        if options.get("fails") == str(index) and k == 5:
            raise UserError("the batch of step 5 cannot be read")
        if options.get("hangs") == str(index) and k == 5:
            time.sleep(600)
        return shard_batch(np.random.default_rng(k).standard_normal((24, SHAPE[0])).astype(np.float32), mesh)

    saving = SaveTo(directory, every=int(options.get("every", "50")))
    log = Log(every=int(options.get("log", "5")), quiet=True)
    fit(step, shard(state, rules, mesh), batch_at, steps=steps, run=saving, log=log)
    if index == 0:
        time.sleep(float(options.get("after", "0")))


def main() -> int:
    coordinator, count, index, directory, steps = sys.argv[1:6]
    options = {name: value for name, _, value in (option.partition("=") for option in sys.argv[6:])}
    with join_processes(coordinator, int(count), int(index), same={"the text": options.get("same", "")}):
        train(directory, int(steps), options, int(index))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Interrupted, UserError, NonFinite) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2 if isinstance(error, UserError) else 1))
