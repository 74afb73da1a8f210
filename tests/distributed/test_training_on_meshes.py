"""Everything that is trained gives on a mesh, with explicit and with automatic axes, what it gives on one device."""

from __future__ import annotations

import os
import random
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import flatten, is_key
from jax_interp.dictionaries import variants
from jax_interp.dictionaries.sharding import rules
from jax_interp.dictionaries.training.train import train_dictionary
from jax_interp.training import QUIET, Log, SaveTo
from jax_interp.training.sharding import make_mesh, shard
from tests.distributed.trainable import FIELDS, RUN, SITES, K, batch_at, everything, model
from tests.generated import drawn

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices, simulated or real")

MESHES = {"2 × replicate": {"replicate": 2}, "2 × data": {"data": 2}, "2 × fsdp": {"fsdp": 2},
          "2 × tensor": {"tensor": 2}, "2 × 2 × 2": {"data": 2, "fsdp": 2, "tensor": 2},
          "2 × 2 × 2, replicated": {"replicate": 2, "fsdp": 2, "tensor": 2}}  # fmt: skip
TOLERANCE = 3e-4  # of the norm of an array. Three steps move every array by more than a hundredth


def numbers(result: Any) -> dict[str, np.ndarray]:
    tree = jax.device_get({name: leaf for name, leaf in flatten(result).items() if not is_key(leaf)})
    return {name: np.asarray(leaf, np.float64) for name, leaf in tree.items()}


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest relative difference of two results, and the name of the array that has it."""
    assert one.keys() == other.keys()
    far = lambda a, b: float(np.linalg.norm(a - b) / (np.linalg.norm(a) + 1e-3))
    worst = max(one, key=lambda name: far(one[name], other[name]))
    return far(one[worst], other[worst]), worst


@cache
def on_one_device(name: str) -> dict[str, np.ndarray]:
    return numbers(everything()[name]()(None))


def broken_on(name: str, sizes: dict[str, int], explicit: bool) -> str | None:
    """What is wrong with one training on one mesh. None: nothing."""
    try:
        there = numbers(everything()[name]()(make_mesh(**sizes, explicit=explicit)))
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    far, where = difference(on_one_device(name), there)
    return None if far < TOLERANCE else f"{where} differs by {far:.1e}"


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("first", "then"), [({"data": 2}, {"fsdp": 2, "tensor": 2}), ({"tensor": 2}, None)])
def test_a_run_begun_on_one_mesh_resumes_on_another(first, then, tmp_path):
    config = variants.topk(SITES[1], k=K, **FIELDS, **RUN)
    train = partial(train_dictionary, config, model(), batch_at)

    def stop(record):
        if record["step"] == 2:
            raise Stopped

    alone = train(log=QUIET)
    with pytest.raises(Stopped):
        train(run=SaveTo(tmp_path, every=1), place=make_mesh(**first), log=Log(every=1, on_record=stop, quiet=True))
    steps: list[int] = []
    resumed = train(
        run=SaveTo(tmp_path, every=1),
        place=None if then is None else make_mesh(**then),
        log=Log(every=1, on_record=lambda record: steps.append(record["step"]), quiet=True),
    )
    assert 1 not in steps
    assert difference(numbers(alone), numbers(resumed))[0] < TOLERANCE


def test_a_function_as_place_is_the_mesh_as_place():
    config, mesh = variants.topk(SITES[1], k=K, **FIELDS, **RUN), make_mesh(data=2, tensor=2)
    with jax.set_mesh(mesh):
        own = train_dictionary(
            config, model(), batch_at, place=lambda state: shard(state, rules(state), mesh), log=QUIET
        )
    given = train_dictionary(config, model(), batch_at, place=mesh, log=QUIET)
    assert own.W_dec.sharding.spec == given.W_dec.sharding.spec == jax.P("tensor", "fsdp")
    assert difference(numbers(own), numbers(given))[0] == 0


@pytest.mark.parametrize(
    ("sizes", "fields", "message"),
    [
        ({"tensor": 3}, {}, "which tensor = 3 does not divide"),
        ({"data": 3}, {}, "a batch of 8 cannot be split equally over a mesh of data=3, fsdp=1"),
        ({"tensor": 4}, {"n_features": 30}, "W_enc has an axis of 30, which tensor = 4 does not divide"),
    ],
)
def test_what_a_mesh_does_not_divide_is_refused_by_name(sizes, fields, message):
    config = variants.topk(SITES[1], k=K, **FIELDS | fields, **RUN)
    with pytest.raises(UserError, match=message):
        train_dictionary(config, model(), batch_at, place=make_mesh(**sizes), log=QUIET)


def meshes_for(name: str) -> list[str]:
    """The meshes that a trainer is tried on.

    On eight simulated devices XLA's CPU backend may run the collectives of joint training in another order on each
    device, and then ends the process. `--xla_cpu_enable_concurrency_optimized_scheduler=false` in XLA_FLAGS helps.
    """
    return [mesh for mesh in MESHES if not (name.startswith("joint") and "2 × 2" in mesh)]


@pytest.mark.hardening
@pytest.mark.parametrize("share", range(4))
def test_training_on_a_mesh_is_training_on_one_device(share, tally):
    seed = int(os.environ.get("JAX_INTERP_LAW_SEED") or random.SystemRandom().randrange(2**32))
    rng = random.Random(seed)
    names = sorted(everything())
    rng.shuffle(names)
    mine = names[share::4][: drawn(1, 5)]
    cases = [(name, rng.choice(meshes_for(name)), rng.random() < 0.5) for name in mine]
    found = {case: broken_on(case[0], MESHES[case[1]], case[2]) for case in cases}
    broken = [f"{name} on {mesh}, explicit={explicit}: {why}" for (name, mesh, explicit), why in found.items() if why]
    tally("training on a mesh is training on one device", tried=len(cases), broken=len(broken))
    assert not broken, f"JAX_INTERP_LAW_SEED={seed}\n" + "\n".join(broken)
