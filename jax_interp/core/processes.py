"""The processes of one run: which of them writes files, and arrays whose parts are on several hosts.

A run over several processes (`jax.distributed`) executes the same program in each of them. All of them call the same
functions in the same order, because a collective waits for every process. One process writes files and prints.

    write_tensors(path, arrays)      every process calls it, and the first process writes
    to_host(tree)                    the whole arrays of a pytree, in every process
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError


def process_count() -> int:
    """The number of processes of this run. 1 without `jax.distributed`. It starts no backend."""
    return sys.modules["jax"].process_count() if _is_distributed() else 1


def process_index() -> int:
    """The number of this process, from 0. 0 without `jax.distributed`. It starts no backend."""
    return sys.modules["jax"].process_index() if _is_distributed() else 0


def is_first_process() -> bool:
    """Whether this process writes the files of the run and prints. True without `jax.distributed`."""
    return process_index() == 0


def _is_distributed() -> bool:
    jax = sys.modules.get("jax")  # a program that has not imported JAX has one process
    return jax is not None and jax.distributed.is_initialized()


def on_host(array: Any) -> np.ndarray:
    """A whole array in host memory, also if its parts are on several hosts.

    Every process of the run calls this with the same array, because the parts are exchanged.

    Args:
      array: an array of JAX or NumPy.
    """
    import jax

    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def to_host(tree: Any) -> Any:
    """`jax.device_get`, also for arrays whose parts are on several hosts.

    Every process of the run calls this with the same tree, because the parts are exchanged.

    Args:
      tree: any pytree.

    Returns:
      The tree with NumPy arrays.
    """
    import jax

    return jax.device_get(tree) if process_count() == 1 else jax.tree.map(_fetched, tree)


def _fetched(leaf: Any) -> Any:
    import jax

    return on_host(leaf) if isinstance(leaf, jax.Array) else leaf


def from_first_process(value: Callable[[], Any]) -> Any:
    """What `value()` returns in the first process, in every process. The others do not call it.

    Every process of the run calls this function, because the value is sent.

    Args:
      value: a function that returns JSON values.

    Raises:
      UserError: the call in the first process raised one. Every process raises it.
    """
    if process_count() == 1:
        return value()
    from jax.experimental import multihost_utils

    from jax_interp.core.json_files import parse_json  # it imports this file

    sent: dict[str, Any] = {}
    if is_first_process():
        try:
            sent = {"value": value()}
        except UserError as error:
            sent = {"error": str(error)}
    body = np.frombuffer(json.dumps(sent).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(body.size)))
    padded = body if is_first_process() else np.zeros(size, np.uint8)
    body = np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes()
    found = parse_json(body, "what the first process sent", nonfinite=True)
    if "error" in found:
        raise UserError(found["error"])
    return found["value"]


def arrays_from_first_process(
    arrays: Mapping[str, np.ndarray], kinds: Mapping[str, tuple[tuple[int, ...], str]]
) -> dict[str, np.ndarray]:
    """The arrays that the first process has, bit for bit, in every process. Every process of the run calls this.

    Args:
      arrays: the arrays by name. What the other processes give is not used.
      kinds: (shape, dtype) of each array, in every process.
    """
    if process_count() == 1:
        return dict(arrays)
    found = {}
    for name, (shape, dtype) in kinds.items():
        own = np.ascontiguousarray(arrays[name]) if is_first_process() else np.zeros(shape, dtype)
        found[name] = _sent(own.reshape(-1).view(np.uint8)).view(own.dtype).reshape(shape)
    return found


def _sent(value: np.ndarray) -> np.ndarray:
    """Integers of the first process, in every process. Bytes of floats are sent as integers, so that no bit changes."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(value))


def barrier(name: str) -> None:
    """Wait until every process of the run is here. It returns at once if there is only one process.

    Args:
      name: the name of the place, which is the same in every process.
    """
    if process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def from_every(array: np.ndarray) -> np.ndarray:
    """Small arrays of all processes, in every process.

    Args:
      array: an array of the same shape and dtype in every process.

    Returns:
      `[process, *shape]`.
    """
    if process_count() == 1:
        return np.asarray(array)[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(array)))
