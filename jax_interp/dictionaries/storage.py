"""A dictionary on disk: `dictionary.safetensors` and `dictionary.json` in one directory.

The JSON holds the form, the sizes, the activation with its settings, the model, the addresses that are read and
written, and the training config. Weights keep their dtype. The JSON is written last and holds the digest of the
tensors. Each file is put in place by one rename. Loading therefore detects an interrupted save and refuses it.

A `Dictionary` has the tensors W_enc [d_in, feature], b_enc, W_dec [feature, d_out], b_dec, W_skip if it has a skip, and
activation.<name> for each array of its activation. A `CrossLayer` has one b_dec [target, d_out]. The other tensors of
its source l are called sources.<l>.<name>, and the shape of W_dec is [feature, target, d_out].
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.core.tensor_files import FLOATS, read_described, write_described
from jax_interp.dictionaries.forms import FORMS, Dictionary, Form
from jax_interp.dictionaries.forms.cross_layer import CrossLayer

FORMAT = 2
TENSORS, DESCRIPTION = "dictionary.safetensors", "dictionary.json"


@dataclasses.dataclass(frozen=True)
class Saved:
    """A dictionary, and the model and addresses that it was trained for."""

    dictionary: Dictionary | CrossLayer
    address: str | tuple[str, ...]
    """The address that it reads, or several."""
    model: str
    """The name of the model."""
    config: Any = None
    """The training config, as JSON values."""
    writes: str | tuple[str, ...] | None = None
    """The address that it writes, or several. None: the same as `address`."""


def save_dictionary(
    directory: Path | str,
    dictionary: Form,
    *,
    address: str | tuple[str, ...],
    model: str,
    config: object = None,
    writes: str | tuple[str, ...] | None = None,
) -> Path:
    """Save a dictionary, with the model and the addresses that it was trained for.

    Args:
      directory: created if it does not exist. A dictionary that was saved there before is replaced.
      dictionary: a dictionary of any registered form.
      address: the address that the dictionary reads, or several.
      model: the name of the model.
      config: the training config, to keep with the dictionary: a dataclass or a JSON value.
      writes: the address that the dictionary writes, or several. None: the same as `address`.

    Returns:
      The directory.

    Raises:
      UserError: the directory cannot be made, or the activation is not registered.
    """
    form, arrays = dictionary.describe()
    description = {
        "format": FORMAT,
        "form": type(dictionary).__name__,
        **form,
        "dtype": str(dictionary.b_dec.dtype),
        "address": address,
        "writes": writes,
        "model": model,
        "config": None if config is None else configs.to_json(config),
    }
    return write_described(directory, "dictionary", arrays, description)


def load_dictionary(directory: Path | str) -> Saved:
    """Load a dictionary that `save_dictionary` saved. Weights have the dtype that they were saved in.

    Args:
      directory: the directory that it was saved in.

    Returns:
      The dictionary with its model, addresses and training config.

    Raises:
      UserError: there is no dictionary, the format is of a later version, the form or the activation is not known, or
        tensors are damaged, missing, or have other shapes than described.
    """
    directory = Path(directory)
    described = directory / DESCRIPTION
    description, found = read_described(directory, "dictionary", formats=(FORMAT,), what="dictionary", dtypes=FLOATS)
    arrays = {name: jnp.asarray(array) for name, array in found.items()}
    form = description.get("form", "Dictionary")
    if form not in FORMS.names():
        raise UserError(f"{described} has the form {form!r}; this version knows {' and '.join(FORMS.names())}")
    try:
        dictionary: Any = FORMS[form].from_description(description, arrays)
        place = description["address"], description["writes"]
        model, config = description["model"], description["config"]
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{described} does not describe a dictionary: {reason}; save it again") from error
    address, writes = (tuple(a) if isinstance(a, list) else a for a in place)
    return Saved(dictionary, address, model, config, writes)
