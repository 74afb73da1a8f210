"""A dictionary on disk: `dictionary.safetensors` and `dictionary.json` in one directory.

The JSON holds the form, the sizes, the activation with its settings, the model, the addresses that are read and
written, and the training config. Weights keep their dtype. The JSON is written last and holds the digest of the
tensors. Each file is put in place by one rename. Loading therefore detects an interrupted save and refuses it.

A `Dictionary` has the tensors W_enc [d_in, feature], b_enc, W_dec [feature, d_out], b_dec, W_skip if it has a skip, and
activation.<name> for each array of its activation. A `CrossLayer` has one b_dec [target, d_out]. The other tensors of
its source l are called sources.<l>.<name>, and the shape of W_dec is [feature, target, d_out]. A `Normalised` has the
tensors of its dictionary. A `Temporal` has W_enc if it is not tied, W_dec, b_dec and layers.<i>.<name>.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.core.leaves import check_finite
from jax_interp.core.tensor_files import FLOATS, read_described, write_described
from jax_interp.dictionaries.forms import FORMS, Dictionary, Normalised, Temporal
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.surgery import canonical

FORMAT = 2
TENSORS, DESCRIPTION = "dictionary.safetensors", "dictionary.json"

AnyDictionary = Dictionary | CrossLayer | Normalised | Temporal


@dataclasses.dataclass(frozen=True)
class Saved:
    """A dictionary, and the model and addresses that it was trained for."""

    dictionary: AnyDictionary
    address: str | tuple[str, ...] | None
    """The address that it reads, or several. None: the files do not say it."""
    model: str | None
    """The name of the model. None: the files do not say it."""
    config: Any = None
    """The training config, as JSON values. For a published format, what its config file holds."""
    writes: str | tuple[str, ...] | None = None
    """The address that it writes, or several. None: the same as `address`."""
    format: str = "jax_interp"
    """The name of the format of its files."""
    notes: tuple[str, ...] = ()
    """What a user must know to get right numbers: which value it reads exactly, how the model must be loaded."""
    stated: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Figures that its release states, such as "l0" and "variance_explained"."""
    normalized: str | tuple[str, ...] | None = None
    """Set if it reads the whole output of a norm, which has no address: the address of the normalized value, or
    several. `formats.norm_weight.read_normalized` moves the norm's weight into the encoder."""

    def reads(self) -> str | tuple[str, ...]:
        """The address that it reads. Raises UserError if the files do not say it."""
        if self.address is None and self.normalized is not None:
            raise UserError(
                f"it reads {self.normalized} times the weight of the norm, a value without an address: "
                "read_normalized(saved, model) moves the weight into the encoder"
            )
        if self.address is None:
            raise UserError("the files of this dictionary do not say which value it reads: give the address")
        return self.address

    def model_name(self) -> str:
        """The name of the model. Raises UserError if the files do not say it."""
        if self.model is None:
            raise UserError("the files of this dictionary do not say which model it is for: give the model")
        return self.model


def write_native(directory: Path | str, saved: Saved) -> Path:
    """Save a dictionary in the format of this file. `save_dictionary` documents it.

    Raises:
      UserError: the directory cannot be made, the activation is not registered, or address or model are not known.
    """
    form, arrays = saved.dictionary.describe()
    description = {
        "format": FORMAT,
        "form": type(saved.dictionary).__name__,
        **form,
        "dtype": str(saved.dictionary.b_dec.dtype),
        "address": canonical(saved.reads()) if saved.normalized is None else None,
        "writes": canonical(saved.writes),
        "model": saved.model_name(),
        "config": None if saved.config is None else configs.to_json(saved.config),
    }
    if saved.notes:  # entries that earlier versions do not know are left out where they say nothing
        description["notes"] = list(saved.notes)
    if saved.stated:
        description["stated"] = dict(saved.stated)
    if saved.normalized is not None:
        description["normalized"] = canonical(saved.normalized)
    return write_described(directory, "dictionary", arrays, description)


def read_native(directory: Path | str, place: Callable[[str, np.ndarray], Any]) -> Saved:
    """Read a dictionary that `write_native` saved.

    Args:
      directory: the directory that it was saved in.
      place: `place(name, numbers)` puts a tensor on devices (formats/placing.py).

    Raises:
      UserError: there is no dictionary, the format is of a later version, the form or the activation is not known, or
        tensors are damaged, missing, not finite, or have other shapes than described.
    """
    directory = Path(directory)
    described = directory / DESCRIPTION
    description, found = read_described(directory, "dictionary", formats=(FORMAT,), what="dictionary", dtypes=FLOATS)
    form = description.get("form", "Dictionary")
    if form not in FORMS.names():
        raise UserError(f"{described} has the form {form!r}; this version knows {', '.join(FORMS.names())}")
    names = {field.name for field in dataclasses.fields(DictionaryDescription)}
    common = {name: value for name, value in description.items() if name in names}
    labels = configs.from_json(DictionaryDescription, common, str(described))
    try:
        arrays = {name: place(name, found.pop(name)) for name in tuple(found)}  # one copy of each at a time
        dictionary: Any = FORMS[form].from_description(description, arrays)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error
    except Exception as error:  # sizes of other types, say
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{described} does not describe a dictionary: {reason}; save it again") from error
    again, saved = dictionary.describe()
    again |= {"dtype": str(dictionary.b_dec.dtype)}
    of_form = {name: value for name, value in description.items() if name not in names - {"dtype"}}
    if not _within(of_form, configs.to_json(again)):
        raise UserError(f"{described} describes another dictionary than its tensors: {of_form}, they are {again}")
    if extra := sorted(arrays.keys() - saved.keys()):
        raise UserError(f"{directory / TENSORS} has {extra[0]!r}, which a {form} does not have")
    check_finite(dictionary, str(directory))
    address, writes = canonical(labels.address), canonical(labels.writes)
    return Saved(
        dictionary,
        address,
        labels.model,
        labels.config,
        writes,
        notes=labels.notes,
        stated=labels.stated or {},
        normalized=canonical(labels.normalized),
    )


@dataclasses.dataclass(frozen=True)
class DictionaryDescription:
    """The entries of `dictionary.json` that do not depend on the form."""

    format: int
    address: str | tuple[str, ...] | None
    writes: str | tuple[str, ...] | None
    model: str
    config: Any
    dtype: str
    form: str = "Dictionary"
    notes: tuple[str, ...] = ()
    stated: dict[str, float] | None = None
    normalized: str | tuple[str, ...] | None = None


def _within(found: Any, expected: Any) -> bool:
    """Whether JSON values are the same, but for entries that the files of earlier versions do not have."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return all(name in expected and _within(value, expected[name]) for name, value in found.items())
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_within, found, expected))
    return type(found) is type(expected) and found == expected
