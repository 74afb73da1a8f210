"""A trained decomposition on disk: one safetensors file with V, U, the importance function, and the config in its
header. The target's weights are not saved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.core.leaves import PyTree, flatten, unflatten
from jax_interp.core.tensor_files import TensorFileError, read_tensors, write_tensors
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.decomposition.matrices import check_tied
from jax_interp.decomposition.train import Trained, initial_decomposition
from jax_interp.surgery.contract import Model

T = TypeVar("T")


def save_decomposition(path: Path | str, trained: Trained, config: DecompositionConfig) -> None:
    """Save V, U and the importance function as one safetensors file, with the config in its header.

    Tensors are called `components.<entry>.V`, `components.<entry>.U` and `gates.…`.

    Args:
      path: the file to write. It is written completely or not at all.
      trained: the decomposition.
      config: the config of its run.
    """
    write_tree(path, {"components": trained.model.components, "gates": trained.ci_fn}, config)


def load_decomposition(path: Path | str, model: Model) -> tuple[Trained, DecompositionConfig]:
    """Load a decomposition that `save_decomposition` wrote.

    Args:
      path: the file.
      model: the target that was decomposed.

    Returns:
      The decomposition and its config.

    Raises:
      UserError: the file does not exist, or it belongs to another method or another model.
    """
    flat, config = read_tree(path, DecompositionConfig)

    def blank(model: Model) -> PyTree:
        parts = initial_decomposition(config, model)
        return {"components": parts.components, "gates": config.importance.init(jax.random.key(0), parts)}

    check_tied(model, config.tied)
    tree = fill_tree(path, jax.eval_shape(blank, model), flat)
    return Trained(Decomposed(model, tree["components"], config.tied), tree["gates"], config.sigmoid), config


def write_tree(path: Path | str, tree: PyTree, config: object) -> None:
    """Write the leaves of a pytree under their addresses, and the config in the header."""
    write_tensors(path, flatten(tree), {"config": json.dumps(configs.to_json(config))})


def read_tree(path: Path | str, kind: type[T]) -> tuple[dict[str, Array], T]:
    """The leaves by address, and the config. Raises UserError if the file is missing or has another kind of config."""
    try:
        file = read_tensors(path)
    except TensorFileError as error:
        raise UserError(f"no decomposition at {path}: {error}") from error
    if "config" not in file.header:
        raise UserError(f"{path} holds no decomposition: its header has no config")
    flat = {name: jnp.asarray(array) for name, array in file.arrays.items()}
    return flat, configs.from_json(kind, json.loads(file.header["config"]), f"the config in {path}")


def fill_tree(path: Path | str, tree: PyTree, flat: dict[str, Array]) -> PyTree:
    """A pytree with the structure of `tree` and these leaves. Raises UserError if shapes differ."""
    want = {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}
    have = {name: tuple(leaf.shape) for name, leaf in flat.items()}
    if want != have:
        odd = sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))
        raise UserError(
            f"{path} is of another model: {odd[0]} is {have.get(odd[0])}, this one needs {want.get(odd[0])}"
        )
    return unflatten(tree, flat)
