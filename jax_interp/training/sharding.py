"""Shardings by rule: address pattern -> `PartitionSpec`. The meshes are those of `jax_interp.training.meshes`.

    RULES = (
        ("embed.weight",  P("tensor", "fsdp")),
        ("attn.*.weight", P("fsdp", "tensor")),
        ("**.scale",      P()),
        ...
    )
    state = shard(state, RULES, make_mesh(fsdp=4, tensor=2))

Model code contains no shardings. The rules of a model say on which devices its parameters are stored. An axis that a
mesh lacks has size 1.

A pattern is a dotted name. Each part is a glob: `*` is any single part, `q*` is a part that starts with q, and `**` is
any number of parts. A pattern matches every address that *ends* with it. One rule therefore covers a parameter in the
model, in the moments of the optimizer (`opt.0.mu.blocks.0.attn.q.weight`) and in every block. The first matching rule
is used. A rule without a leaf and a leaf without a rule are errors, because a renamed parameter would otherwise lose
its sharding without a message.

A spec is aligned with the *last* axes of its leaf; the other axes are replicated. Stacked blocks with a leading layer
axis therefore use the rule of a single block. `P()` replicates, and also fits a scalar.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import PyTree, flatten, is_key, unflatten
from jax_interp.training.meshes import BATCH, abstract_mesh, make_mesh, mesh_of, present, row_axes, row_shards

__all__ = [
    "BATCH",
    "Rules",
    "abstract",
    "abstract_mesh",
    "check_rows",
    "make_mesh",
    "matches",
    "mesh_of",
    "put",
    "shard",
    "shard_batch",
    "shardings",
    "specs",
    "used",
]

Rules = Sequence[tuple[str, PartitionSpec]]


def matches(pattern: str, address: str) -> bool:
    """Whether `address` ends with `pattern`, part by part."""

    def match(pattern: list[str], parts: list[str]) -> bool:
        if not pattern:
            return True  # the rest of the address is any prefix
        if pattern[-1] == "**":
            return any(match(pattern[:-1], parts[:i]) for i in range(len(parts) + 1))
        return bool(parts) and fnmatch.fnmatchcase(parts[-1], pattern[-1]) and match(pattern[:-1], parts[:-1])

    return match(pattern.split("."), address.split("."))


def specs(tree: PyTree, rules: Rules) -> dict[str, PartitionSpec]:
    """The spec of every leaf.

    Args:
      tree: a pytree of arrays or abstract values.
      rules: pairs (pattern, spec), in order of precedence.

    Returns:
      `{address: spec}`, each spec padded on the left to the rank of its leaf.

    Raises:
      UserError: a leaf has no rule, a rule has no leaf, or a spec has more axes than its leaf.
    """
    out, unused, homeless = {}, dict.fromkeys(range(len(rules))), []
    for address, leaf in flatten(tree).items():
        index = next((i for i, (pattern, _) in enumerate(rules) if matches(pattern, address)), None)
        if index is None:
            homeless.append(address)
            continue
        unused.pop(index, None)
        pattern, spec = rules[index]
        rank = len(jax.numpy.shape(leaf))
        if len(spec) > rank:
            raise UserError(
                f"rule {pattern!r}: {spec} has {len(spec)} axes, {address} has {rank}; put a rule for "
                "the smaller leaf before it"
            )
        out[address] = PartitionSpec(*[None] * (rank - len(spec)), *spec)
    if homeless:
        more = f" and {len(homeless) - 5} more" if len(homeless) > 5 else ""
        raise UserError(
            f"no sharding rule for {', '.join(homeless[:5])}{more}; ('**', PartitionSpec()) as the last "
            "rule replicates all other leaves"
        )
    if unused:
        raise UserError(
            f"sharding rules that match no leaf: {', '.join(repr(rules[i][0]) for i in unused)}; the "
            f"leaves are {', '.join(list(out)[:8])}, ...: correct or remove them"
        )
    return out


def used(rules: Rules, tree: PyTree) -> Rules:
    """The rules that decide something in `tree`, and a last rule that replicates all other leaves."""
    every = (*rules, ("**", PartitionSpec()))
    decide = {next(i for i, (end, _) in enumerate(every) if matches(end, name)) for name in flatten(tree)}
    return tuple(rule for i, rule in enumerate(every) if i in decide)


def shardings(tree: PyTree, rules: Rules, mesh: Mesh | AbstractMesh) -> PyTree:
    """A tree of `NamedSharding` with the structure of `tree`.

    Raises:
      UserError: as in `specs`, or a mesh axis does not exist or does not divide the axis of a leaf.
    """
    found = {address: present(spec, mesh) for address, spec in specs(tree, rules).items()}
    flat = flatten(tree)
    for address, spec in found.items():
        for size, axis in zip(jax.numpy.shape(flat[address]), spec):
            names = (axis,) if isinstance(axis, str) else tuple(axis or ())
            missing = [name for name in names if name not in mesh.shape]
            if missing:
                raise UserError(
                    f"the rule for {address} names mesh axis {missing[0]!r}; the mesh has {', '.join(mesh.axis_names)}"
                )
            ways = math.prod(mesh.shape[name] for name in names)
            if size % ways:
                raise UserError(f"{address} has an axis of {size}, which {'x'.join(names)} = {ways} does not divide")
    return unflatten(tree, {address: NamedSharding(mesh, spec) for address, spec in found.items()})


def shard(tree: PyTree, rules: Rules, mesh: Mesh) -> PyTree:
    """Place every leaf on the mesh by the rules. A leaf that already has its sharding is not moved.

    Args:
      tree: a pytree of arrays.
      rules: pairs (pattern, spec), in order of precedence.
      mesh: the mesh.

    Returns:
      `tree` with the shardings of `shardings`.

    Raises:
      UserError: as in `shardings`.

    Example:
        state = shard(state, (("*.weight", P("fsdp", "tensor")), ("**", P())), make_mesh(fsdp=4, tensor=2))
    """
    return jax.tree.map(put, tree, shardings(tree, rules, mesh))


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Place an array by a sharding, also if its devices belong to several processes.

    Args:
      x: an array of JAX or NumPy. If there are several processes, every one has the same whole array, and each copies
        only the parts of its own devices. An array that has the sharding already is not moved.
      sharding: the sharding of the result.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x if x.sharding == sharding else jax.jit(lambda x: x, out_shardings=sharding)(x)
    if is_key(x):
        data = put(jax.random.key_data(x), NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec)))  # type: ignore[attr-defined]
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def abstract(tree: PyTree, rules: Rules, mesh: Mesh | AbstractMesh) -> PyTree:
    """`tree` as `jax.ShapeDtypeStruct`s with shardings: a template for `checkpoint.restore` and `jax.eval_shape`."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings(tree, rules, mesh)
    )


def check_rows(rows: int, mesh: Mesh | AbstractMesh) -> None:
    """Raises UserError if the rows of a batch cannot be split equally over `replicate`, `data` and `fsdp`."""
    if rows % (ways := row_shards(mesh)):
        names = [name for name in row_axes(mesh) if name != "replicate" or mesh.shape[name] > 1]
        asked = ", ".join(f"{name}={mesh.shape[name]}" for name in names)
        raise UserError(
            f"a batch of {rows} cannot be split equally over a mesh of {asked}: give a multiple of {ways}, or a mesh "
            f"whose {' and '.join(names)} divide {rows}"
        )


def shard_batch(batch: PyTree, mesh: Mesh, spec: PartitionSpec = BATCH) -> PyTree:
    """Place a batch from the host on the mesh. The leading axis is split over `meshes.ROWS`; scalars are copied.

    Args:
      batch: a pytree of arrays.
      mesh: the mesh.
      spec: how the arrays are split, if not by their leading axis.

    Raises:
      UserError: the leading axis cannot be split equally.
    """

    def of_leaf(x: Any) -> jax.Array:
        if not jax.numpy.ndim(x):
            return put(x, NamedSharding(mesh, PartitionSpec()))
        if spec == BATCH:
            check_rows(len(x), mesh)
        return put(x, NamedSharding(mesh, PartitionSpec(row_axes(mesh)) if spec == BATCH else spec))

    return jax.tree.map(of_leaf, batch)
