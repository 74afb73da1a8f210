"""Fill the parameters of a model from stored tensors, one at a time, each directly on its device.

The files are mapped. On a CPU, tensors are copied from the files to the memory of the parameters. For other devices and
for meshes, host memory holds only one tensor at a time, or the parts of it that belong to the devices of this process.
For a stack this is the tensor of one layer, which is written into the stacked array on the device.
"""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, DTypeLike

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import addresses
from jax_interp.core.processes import to_host
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder, init
from jax_interp.models.hf.checkpoint import DTYPES, StoredTensor
from jax_interp.models.hf.family import Family
from jax_interp.models.hf.host_copies import copy_checked, empty_aligned
from jax_interp.models.hf.tensors import TensorSpec
from jax_interp.models.sharding import rules
from jax_interp.surgery import iter_segments
from jax_interp.training.sharding import shardings


@dataclass(frozen=True)
class Parameter:
    """A leaf of a model."""

    name: str
    """Its name in `Family.tensors`: `embed.weight`, `blocks.*.attn.q.weight`."""
    shape: tuple[int, ...]
    """The shape in one layer."""
    layers: range = range(1)
    """The layers in the leaf. For a parameter outside the blocks it is `range(1)`, which has no meaning."""
    stacked: bool = False
    """Whether the leaf has a leading layer axis."""


def parameters(model: Decoder) -> list[Parameter]:
    """The parameters of a model, in the order of `jax.tree.leaves`."""
    segments = list(iter_segments(model))
    found = []
    for address, leaf in zip(addresses(model), jax.tree.leaves(model), strict=True):
        if (inside := re.fullmatch(r"blocks\.(\d+)\.(?:block\.)?(.+)", address)) is None:
            found.append(Parameter(address, leaf.shape))
            continue
        segment = segments[int(inside[1])]
        shape = leaf.shape[1:] if segment.stacked else leaf.shape
        found.append(Parameter(f"blocks.*.{inside[2]}", shape, segment.layers, segment.stacked))
    return found


def fill(
    config: Config,
    family: Family,
    stored: dict[str, StoredTensor],
    *,
    full: Config,
    dtype: DTypeLike | None,
    mesh: Mesh | None,
    stacked: bool,
) -> Decoder:
    """A model with the weights of a checkpoint.

    Args:
      config: the config of the model.
      family: the layout of the checkpoint.
      stored: the tensors of the checkpoint, from `by_name`.
      full: the config of the checkpoint, which may have more layers.
      dtype: the dtype of the parameters. None: the dtype of the checkpoint (the widest one, if tensors differ).
      mesh: the mesh for the parameters. None: the default device.
      stacked: True: one scanned `Stack` of blocks. False: a list of blocks.

    Raises:
      UserError: a tensor is missing or extra, or has another shape or dtype. The message names all such tensors. This
        is checked before any tensor is read. Or a parameter is NaN or infinite.
    """
    abstract = jax.eval_shape(lambda key: init(config, key, stacked=stacked), jax.random.key(0))
    specs = family.tensors(config)
    _check(family, specs, parameters(abstract), stored, full)
    used = {name for p in parameters(abstract) for layer in p.layers for name in specs[p.name].names(layer, p.shape)}
    if dtype is None:  # the dtype that can represent all dtypes of the files, also under strict promotion
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(*{DTYPES[stored[name].dtype] for name in used})
    dtype = checked_dtype(dtype)

    def read(spec: TensorSpec, layer: int, shape: tuple[int, ...]) -> np.ndarray:
        window = spec.window(shape)
        parts = [spec.unpack(stored[name].read(window)) for name in spec.names(layer, shape)]
        return np.stack(parts) if spec.experts else parts[0]

    wanted = parameters(abstract)
    tensors = [partial(read, specs[p.name], shape=p.shape) for p in wanted]
    if mesh is None and _puts_on_cpu():
        leaves, finite = _in_host_memory(wanted, tensors, dtype)
    else:
        places = [None] * len(wanted) if mesh is None else jax.tree.leaves(shardings(abstract, rules(config), mesh))
        with jax.set_mesh(mesh) if mesh is not None else nullcontext():
            leaves = [
                _stack(map(tensor, p.layers), (len(p.layers), *p.shape), dtype, where)
                if p.stacked
                else _on_device(_placed(tensor(p.layers[0]), dtype, where))
                for p, tensor, where in zip(wanted, tensors, places, strict=True)
            ]
            finite = to_host(_finite(leaves))
    if not all(finite):
        odd = [specs[p.name].name for p, good in zip(wanted, finite, strict=True) if not good]
        raise UserError(
            f"the checkpoint has NaN or infinite values in {_listed(odd)} (as {dtype.name}): the training diverged, "
            "the file is damaged, or the dtype is too narrow"
        )
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def by_name(family: Family, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Stored tensors by their names in `Family.tensors`. A checkpoint may have names with or without the prefix.

    Raises:
      UserError: a tensor is stored under both names.
    """
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        short = name.removeprefix(family.prefix)
        if short in found:
            raise UserError(
                f"the checkpoint has both {name!r:.200} and {found[short].name!r:.200}: one of the two is left over"
            )
        found[short] = tensor
    return found


def has_own_head(family: Family, config: Config, stored: Mapping[str, StoredTensor]) -> bool:
    """Whether a checkpoint stores an unembedding that is not the embedding, whatever its config says.

    Some tools write a trained unembedding beside `tie_word_embeddings: true`. transformers (from version 5) then uses
    the stored one.

    Args:
      family: the layout of the checkpoint.
      config: the config of the checkpoint.
      stored: its tensors, from `by_name`.
    """
    head, embed = stored.get(f"{family.head}.weight"), stored.get(family.tensors(config)["embed.weight"].name)
    if f"{family.head}.bias" in stored:
        return True
    if head is None or embed is None:
        return False
    if head.shape != embed.shape or not {head.dtype, embed.dtype} <= set(DTYPES):
        return True
    n, step = head.shape[0], max(1, 2**24 // max(1, math.prod(head.shape[1:])))
    wide = np.float64 if "F64" in (head.dtype, embed.dtype) else np.float32
    for start in range(0, n, step):
        a, b = (tensor.read((slice(start, min(n, start + step)),)).astype(wide) for tensor in (head, embed))
        if not np.array_equal(a, b, equal_nan=True):
            return True
    return False


def _puts_on_cpu() -> bool:
    """Whether the default device is a CPU. Its memory is host memory."""
    return next(iter(jax.device_put(np.float32(0)).devices())).platform == "cpu"


def _in_host_memory(
    wanted: list[Parameter], tensors: list[Callable[[int], np.ndarray]], dtype: np.dtype
) -> tuple[list[Array], list[bool]]:
    """Copy every tensor to its place in the memory of its parameter. Also returns whether each parameter is finite."""
    leaves, finite = [], []
    for p, tensor in zip(wanted, tensors, strict=True):
        memory = empty_aligned((len(p.layers), *p.shape), dtype)
        finite.append(all(copy_checked(tensor(layer), memory[i]) for i, layer in enumerate(p.layers)))
        leaves.append(jax.device_put(memory if p.stacked else memory[0], may_alias=True))
    return leaves, finite


def _stack(rows: Iterator[np.ndarray], shape: tuple[int, ...], dtype: np.dtype, where: NamedSharding | None) -> Array:
    """The rows as one array. Each row is written into the buffer on the device before the next row is read."""
    buffer = jnp.zeros(shape, dtype, device=where)
    row_where = None if where is None else NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
    for i in range(shape[0]):  # a variable (or `enumerate`) would keep a row in memory while the next one is read
        buffer = _on_device(_put(buffer, _placed(next(rows), dtype, row_where), np.int32(i)))
    return buffer


def _placed(array: np.ndarray, dtype: np.dtype, where: NamedSharding | None) -> Array:
    """The array on its devices. Of a view of a file, only the parts of the devices of this process are read."""

    def part(index: tuple[slice, ...] | None = None) -> np.ndarray:
        local = array if index is None else array[index]
        copy = empty_aligned(local.shape, dtype)
        copy_checked(local, copy)
        return copy

    return jax.device_put(part()) if where is None else jax.make_array_from_callback(array.shape, where, part)


def _on_device(array: Array) -> Array:
    """Wait for the array, and free the host memory of its source.

    Dispatch is asynchronous, and JAX keeps host arrays until the next garbage collection of Python. Without this
    function, tensors would accumulate in host memory. Collecting the youngest generation is enough.
    """
    jax.block_until_ready(array)
    gc.collect(0)
    return array


@jax.jit
def _finite(leaves: list[Array]) -> list[Array]:
    return [jnp.all(jnp.isfinite(leaf)) for leaf in leaves]


@partial(jax.jit, donate_argnums=0)
def _put(buffer: Array, row: Array, i: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(buffer, row, i, axis=0)


def checked_dtype(dtype: DTypeLike) -> np.dtype:
    """The dtype. Raises `UserError` for one that parameters cannot have."""
    names = [jnp.dtype(known).name for known in DTYPES.values()]
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in names:
        raise UserError(f"dtype={dtype!r} is not supported for parameters: choose from {', '.join(names)}")
    return found


def _check(
    family: Family,
    specs: Mapping[str, TensorSpec],
    wanted: list[Parameter],
    stored: dict[str, StoredTensor],
    full: Config,
) -> None:
    """Raise `UserError` unless the stored tensors fit the model."""
    missing, misshaped, kinds = [], [], []
    for p in wanted:
        for layer in p.layers:
            shape = specs[p.name].shape(p.shape)
            for name in specs[p.name].names(layer, p.shape):
                if name not in stored:
                    missing.append(name)
                elif stored[name].shape != shape:
                    misshaped.append(f"{name} is {list(stored[name].shape)} and should be {list(shape)}")
                elif stored[name].dtype not in DTYPES:
                    kinds.append(f"{name} is {stored[name].dtype}")
    experts = (full.n_experts,)
    known = {
        name
        for spec in family.tensors(full).values()
        for layer in range(full.n_layers)
        for name in spec.names(layer, experts)
    }
    known |= {f"{family.head}.weight"} if full.tied_embedding else set()
    extra = [n for n in stored if n not in known and not any(re.fullmatch(r, n) for r in family.ignored)]
    problems = [
        f"{what}: {_listed(names)}"
        for what, names in (
            ("missing tensors", missing),
            ("tensors that this model does not have", extra),
            ("tensors of another shape", misshaped),
            (f"tensors of another type than {', '.join(DTYPES)}", kinds),
        )
        if names
    ]
    if problems:
        raise UserError(f"the checkpoint does not fit this {family.architecture}: {'; '.join(problems)}")


def _listed(names: list[str]) -> str:
    """The first names, and the number of the remaining names."""
    names = [name[:200] for name in sorted(set(names))]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
