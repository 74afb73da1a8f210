"""What the step of each kind of training communicates over the axes of copies, read from its compiled program."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jax_interp.core.leaves import is_key
from jax_interp.training.meshes import make_mesh
from tests.distributed.compiled_steps import collectives_of
from tests.distributed.trainable import CONFIG, everything, tokens_at

pytestmark = pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices, simulated or real")

# Not those with AuxK: each branch of its conditional has its own sum of gradients, and `collectives` counts them all.
NAMES = ("relu", "language model", "tuned lens")
OPTIMIZER = {"opt", "opt_components", "opt_gates"}
SMALL = 4096  # scalars, counts of latents, and the order of the shuffled rows


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["replicate", "data"])
@pytest.mark.parametrize("name", NAMES)
def test_copies_exchange_gradients_and_at_most_the_rows_of_the_batch(name, axis):
    sizes: dict[str, Any] = {axis: 2}
    mesh = make_mesh(**sizes, explicit=False)
    step, rows = collectives_of(everything()[name](), mesh)
    trained = sum(
        int(np.prod(leaf.shape)) * leaf.dtype.itemsize
        for address, leaf in step.state.items()
        if not is_key(leaf) and not address.startswith("stream.") and not OPTIMIZER & set(address.split("."))
    )
    moved = tokens_at(0).size * CONFIG.d_model * 4
    assert {row.axes for row in rows} == {(axis,)}
    assert sum(row.bytes for row in rows if row.kind == "all-reduce") <= trained + moved + SMALL
    assert sum(row.bytes for row in rows if row.kind != "all-reduce") <= SMALL
