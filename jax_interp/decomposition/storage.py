"""A trained decomposition on disk: one safetensors file with V, U, the importance function, and the config in its
header. The target's weights are not saved.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp

from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json
from jax_interp.core.layer import upcast_leaves
from jax_interp.core.leaves import PyTree, flatten, unflatten
from jax_interp.core.tensor_files import TensorFile, read_tensors, write_tensors
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.decomposition.matrices import check_tied, select_matrices, weight_of
from jax_interp.decomposition.train import Trained, initial_decomposition
from jax_interp.surgery.contract import Model
from jax_interp.training.fingerprint import fingerprint

T = TypeVar("T")


def save_decomposition(path: Path | str, trained: Trained, config: DecompositionConfig) -> None:
    """Save V, U and the importance function as one safetensors file, with the config in its header.

    Tensors are called `components.<entry>.V`, `components.<entry>.U` and `gates.…`.

    Args:
      path: the file to write. It is written completely or not at all.
      trained: the decomposition.
      config: the config of its run.
    """
    write_tree(path, {"components": trained.model.components, "gates": trained.ci_fn}, config, trained.model.target)


def load_decomposition(path: Path | str, model: Model) -> tuple[Trained, DecompositionConfig]:
    """Load a decomposition that `save_decomposition` wrote.

    Args:
      path: the file.
      model: the target that was decomposed.

    Returns:
      The decomposition and its config.

    Raises:
      UserError: the file does not exist, or it belongs to another method or another model: with other shapes, or with
        other matrices.
    """
    file, config = read_tree(path, DecompositionConfig)

    def blank(model: Model) -> PyTree:
        parts = initial_decomposition(config, model)
        return {"components": parts.components, "gates": config.importance.init(jax.random.key(0), parts)}

    check_tied(model, config.tied)
    tree = fill_tree(path, jax.eval_shape(blank, model), file, model)
    parts = Decomposed(upcast_leaves(model), tree["components"], config.tied)
    return Trained(parts, tree["gates"], config.sigmoid), config


def write_tree(path: Path | str, tree: PyTree, config: object, target: Model) -> None:
    """Write the leaves of a pytree under their addresses, with the config and a digest of the target in the header."""
    header = {"config": json.dumps(configs.to_json(config)), "target": target_digest(target)}
    write_tensors(path, flatten(tree), header)


def target_digest(target: Model) -> str:
    """A digest of all matrices of a model. It does not depend on the layout, nor on 16 or 32 bits for equal numbers."""
    prints = {name: int(_fingerprint(weight_of(target, name))) for name in select_matrices(target, "*")}
    return hashlib.sha256(json.dumps(prints, sort_keys=True).encode()).hexdigest()[:16]


_fingerprint = jax.jit(lambda weight: fingerprint(upcast_leaves(weight)))  # compiled, so that no copy is made


def read_tree(path: Path | str, kind: type[T]) -> tuple[TensorFile, T]:
    """The file, and the config in its header. Raises UserError if it is missing or has another kind of config."""
    try:
        file = read_tensors(path)
    except UserError as error:
        raise UserError(f"no decomposition at {path}: {error}") from error
    if "config" not in file.header:
        raise UserError(f"{path} holds no decomposition: its header has no config")
    where = f"the config in {path}"
    return file, configs.from_json(kind, parse_json(file.header["config"], where), where)


def fill_tree(path: Path | str, tree: PyTree, file: TensorFile, target: Model) -> PyTree:
    """A pytree with the structure of `tree` and the leaves of the file.

    Raises:
      UserError: shapes differ, or the file was written for a target with other matrices. A file of an earlier version
        does not say for which target it was written.
    """
    flat = {name: jnp.asarray(array) for name, array in file.arrays.items()}
    want = {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}
    have = {name: tuple(leaf.shape) for name, leaf in flat.items()}
    if want != have:
        odd = sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))
        raise UserError(
            f"{path} is of another model: {odd[0]} is {have.get(odd[0])}, this one needs {want.get(odd[0])}"
        )
    if "target" in file.header and file.header["target"] != target_digest(target):
        raise UserError(f"{path} is of another model: its matrices have other values than this model's")
    return unflatten(tree, flat)
