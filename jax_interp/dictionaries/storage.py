"""A dictionary on disk: `dictionary.safetensors` and `dictionary.json` in one directory.

The JSON describes the tensors: form, sizes, activation with its settings, what is read and written in which model, and
the training config. Weights keep their dtype. The JSON is written last and holds the digest of the tensors, and each
file appears by one rename. An interrupted save is therefore recognised and refused.

A `Dictionary` has W_enc [d_in, feature], b_enc, W_dec [feature, d_out], b_dec, perhaps W_skip, and activation.<name>
for the arrays of its activation. A `CrossLayer` has the same of each source l as sources.<l>.<name>, with W_dec
[feature, target, d_out], and one b_dec [target, d_out] for all.
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
    """A dictionary and where it belongs."""

    dictionary: Dictionary | CrossLayer
    address: str | tuple[str, ...]
    """What it reads."""
    model: str
    """The name of the model."""
    config: Any = None
    """The training config, as JSON values."""
    writes: str | tuple[str, ...] | None = None
    """What it writes. None: what it reads."""


def save_dictionary(
    directory: Path | str,
    dictionary: Form,
    *,
    address: str | tuple[str, ...],
    model: str,
    config: Any = None,
    writes: str | tuple[str, ...] | None = None,
) -> Path:
    """Save a dictionary, and where it belongs.

    Args:
      directory: made where it does not exist. What is saved there is replaced.
      dictionary: of any registered form.
      address: what the dictionary reads.
      model: the name of the model.
      config: a dataclass or JSON value to keep with it: how it was trained.
      writes: what it writes. None: what it reads.

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
    """Load what `save_dictionary` wrote, in the same dtype.

    Args:
      directory: the directory that it was saved in.

    Raises:
      UserError: there is no dictionary, its format is of a later version, its form or activation is not known, or
        tensors are damaged, missing or of other shapes than described.
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
