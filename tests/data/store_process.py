"""One process of several that write and read a store, for test_stores_over_processes.py:
python store_process.py COORDINATOR PROCESSES PROCESS DIRECTORY MESH [OTHER]

MESH is `none`, or the mesh that the model is on. OTHER is the directory of the other processes.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host
from jax_interp.data.activation_shards import StoreLayout
from jax_interp.data.activation_writing import write_activation_store
from jax_interp.training.placement import placed
from jax_interp.training.sharding import mesh_of, shard

OPTIONS = {"rows": 1500, "layout": StoreLayout(200, "float32"), "model_name": "toy", "quiet": True}
ADDRESSES = ("blocks.0.resid_post", "blocks.1.resid_post")


def slow_batch_at(number):
    time.sleep(float(os.environ.get("SECONDS_PER_BATCH", 0)))
    return tuple(np.asarray(part) for part in batch_at(number))


def reads_only_its_rows(store, mesh) -> bool:
    """Whether the batch on the mesh is the whole batch, and this process read its part of the rows only."""
    taken = []

    class Watched(type(store)):
        def take(self, rows):
            taken.append(len(rows))
            return super().take(rows)

    watched = Watched(**{name: getattr(store, name) for name in store.__dataclass_fields__})
    with placed(mesh, lambda state: ()) as there:
        batch = there.batches(watched.batches(48, seed=1))(3)
    same = np.array_equal(on_host(batch), store.batch_at(3, 48, 1))
    return same and sum(taken) == 48 // jax.process_count()


if __name__ == "__main__":
    coordinator, count, index, directory, mesh, *other = sys.argv[1:]
    if int(count) > 1:
        jax.distributed.initialize(coordinator, int(count), int(index))
    place = None if mesh == "none" else mesh_of(mesh)
    model = toy() if place is None else shard(toy(), (("**", jax.P()),), place)
    if other and int(index):
        directory = other[0]
    try:
        store = write_activation_store(Path(directory), model, ADDRESSES, slow_batch_at, **OPTIONS)
    except UserError as error:
        print(error)
        sys.exit(1)
    print("its rows only" if reads_only_its_rows(store, mesh_of("data=-1")) else "other rows")
