"""The interventions of pyreft give the same logits, and the same losses in the same steps of AdamW."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import run_oracle

from jax_interp.core import optimizers
from jax_interp.models import load
from jax_interp.steering.trained import (
    ChangedTokens,
    DiReFT,
    Intervened,
    LoReFT,
    NoReFT,
    RankK,
    TrainedSteeringConfig,
)
from jax_interp.steering.trained.completions import texts_of
from jax_interp.steering.trained.objectives import Batch
from jax_interp.steering.trained.train import SteeringState, steering_step
from jax_interp.surgery import at, call, edit

pytestmark = pytest.mark.parity

KINDS = {"Loreft": LoReFT, "Direft": DiReFT, "Noreft": NoReFT, "Nodireft": RankK}
SITE, STEPS = "blocks.1.resid_post", 4


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pyreft")
    run_oracle("pyvene", "pyreft_interventions.py", folder)
    with np.load(folder / "cases.npz") as arrays:
        return load(folder / "model")[0], dict(arrays)


def intervention(arrays, name):
    return KINDS[name](*(jnp.asarray(arrays[f"{name}.{key}"]) for key in ("rows", "weight", "bias")))


@pytest.mark.parametrize("name", KINDS)
def test_the_logits_are_those_of_pyreft(theirs, name):
    model, arrays = theirs
    tokens = jnp.asarray(arrays["tokens"], jnp.int32)
    changed = edit(model, at(SITE, Intervened(intervention(arrays, name)), pos=slice(1, None)))
    ours = call(changed, tokens)
    assert np.abs(ours - call(model, tokens)).max() > 0.1  # the intervention does something
    np.testing.assert_allclose(ours, arrays[f"{name}.logits"], atol=5e-5)


@pytest.mark.parametrize("name", ["Noreft", "Nodireft"])
def test_the_steps_are_those_of_pyreft(theirs, name):
    model, arrays = theirs
    config = TrainedSteeringConfig((SITE,), changed=ChangedTokens(skip=1), steps=STEPS, batch=4, learning_rate=0.01)
    rows = arrays["tokens"].tolist()
    texts = texts_of([row[:4] for row in rows], [row[4:] for row in rows], config.changed)
    batch = Batch(jax.tree.map(lambda a: jnp.asarray(a)[:, None], texts), None, None, jnp.zeros((4, 1)))
    members = jax.tree.map(lambda leaf: leaf[None], (intervention(arrays, name),))
    opt = jax.vmap(lambda member: optimizers.init(config.optimizer(), member))(members)
    state, losses = SteeringState(members, opt, jnp.zeros((), jnp.int32)), []
    step = jax.jit(lambda state, model: steering_step(config, state, batch, model, None))
    for _ in range(STEPS):
        state, metrics = step(state, model)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, arrays[f"{name}.losses"], rtol=2e-5)
    assert losses[-1] < losses[0] - 0.01
    for key in ("rows", "weight", "bias"):
        np.testing.assert_allclose(
            getattr(state.interventions[0], key)[0], arrays[f"{name}.trained.{key}"], atol=2e-4, err_msg=key
        )
