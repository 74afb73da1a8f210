"""A dictionary on disk: `dictionary.safetensors` and `dictionary.json` in one directory.

The JSON says what the tensors are: form, sizes, activation with its settings, what is read and written in which model,
the training config. Weights keep their dtype. The JSON is written last and holds the digest of the tensors, and each
file appears by one rename: what is found is whole, or refused by name.

A `Dictionary` has W_enc [d_in, feature], b_enc, W_dec [feature, d_out], b_dec, perhaps W_skip, and activation.<name>
for the arrays of its activation. A `CrossLayer` has the same of each source l as sources.<l>.<name>, with W_dec
[feature, target, d_out], and one b_dec [target, d_out] for all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core import config_json as configs
from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import ACTIVATIONS, Activation
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source

FORMAT = 2
TENSORS, DESCRIPTION = "dictionary.safetensors", "dictionary.json"


@dataclasses.dataclass(frozen=True)
class Saved:
    """A dictionary and where it belongs. `address` is what it reads, `writes` what it writes where that is something
    else; `config` is the training config as JSON values."""

    dictionary: Dictionary | CrossLayer
    address: str | tuple[str, ...]
    model: str
    config: Any = None
    writes: str | tuple[str, ...] | None = None


def save_dictionary(
    directory: Path | str,
    dictionary: Dictionary | CrossLayer,
    *,
    address: str | tuple[str, ...],
    model: str,
    config: Any = None,
    writes: str | tuple[str, ...] | None = None,
) -> Path:
    """Write `dictionary` for `address` of the model named `model`; `config` is any dataclass or JSON value to keep with
    it. Replaces what is there. Returns the directory."""
    import safetensors.numpy

    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot save a dictionary in {directory}: {error.strerror}") from error
    form, arrays = _cross_layer(dictionary) if isinstance(dictionary, CrossLayer) else _single(dictionary)
    tensors = safetensors.numpy.save({name: np.asarray(a, order="C") for name, a in arrays.items()})
    description = {
        "format": FORMAT,
        "form": type(dictionary).__name__,
        **form,
        "dtype": str(dictionary.b_dec.dtype),
        "address": address,
        "writes": writes,
        "model": model,
        "config": None if config is None else configs.to_json(config),
        "sha256": hashlib.sha256(tensors).hexdigest(),
    }
    atomic_write(directory / TENSORS, tensors)
    atomic_write(directory / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    return directory


def _single(dictionary: Dictionary) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what is said of it, its arrays by name)."""
    settings, arrays = _part(dictionary)
    said = {
        "d_in": dictionary.W_enc.shape[0],
        "d_out": dictionary.W_dec.shape[1],
        "n_features": dictionary.n_features,
        "centred": dictionary.centred,
        "write_sites": dictionary.write_sites,
        "activation": settings,
    }
    return said, arrays | {"b_dec": dictionary.b_dec}


def _cross_layer(dictionary: CrossLayer) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same; activations, and how many targets are written, by source."""
    parts = [_part(source) for source in dictionary.sources]
    said = {
        "d_in": dictionary.sources[0].W_enc.shape[0],
        "d_out": dictionary.b_dec.shape[1],
        "n_features": dictionary.n_features,
        "targets": [source.W_dec.shape[1] for source in dictionary.sources],
        "activation": [settings for settings, _ in parts],
    }
    arrays = {f"sources.{i}.{name}": a for i, (_, of_source) in enumerate(parts) for name, a in of_source.items()}
    return said, arrays | {"b_dec": dictionary.b_dec}


def _part(part: Dictionary | Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the settings of its activation, its arrays without b_dec)."""
    settings, arrays = _described(part.activation)
    weights = {name: getattr(part, name) for name in ("W_enc", "b_enc", "W_dec", "W_skip")}
    arrays = {f"activation.{name}": a for name, a in arrays.items()}
    return settings, arrays | {name: a for name, a in weights.items() if a is not None}


def _saved_classes() -> dict[str, type[Activation]]:
    """The classes of activations that a dictionary can hold, by name."""
    return {kind.trained_class().__name__: kind.trained_class() for kind in ACTIVATIONS}


def _described(activation: Activation) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(its type and settings as JSON values, its arrays)."""
    known = _saved_classes()
    if type(activation) not in known.values():
        raise UserError(f"cannot save the activation {type(activation).__name__}: known are {', '.join(known)}")
    fields = {field.name: getattr(activation, field.name) for field in dataclasses.fields(activation)}
    arrays = {name: np.asarray(a) for name, a in fields.items() if isinstance(a, (jax.Array, np.ndarray))}
    return {"type": type(activation).__name__} | {n: a for n, a in fields.items() if n not in arrays}, arrays


def load_dictionary(directory: Path | str) -> Saved:
    """What `save_dictionary` wrote, in the same dtype. UserError: no dictionary there, a later format, an unknown form
    or activation, tensors that are damaged, missing or of other shapes than described."""
    import safetensors

    directory = Path(directory)
    described = directory / DESCRIPTION
    try:
        description = json.loads(described.read_text())
        tensors = (directory / TENSORS).read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"no dictionary in {directory}: {Path(error.filename).name} is missing; save_dictionary writes "
            f"{DESCRIPTION} and {TENSORS}"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {described}: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else description
        raise UserError(f"{described} has format {found!r}; this version reads {FORMAT}")
    if hashlib.sha256(tensors).hexdigest() != description.get("sha256"):
        raise UserError(
            f"{directory / TENSORS} is not the file that {DESCRIPTION} describes (SHA-256): it was cut short, altered, "
            "or a save was interrupted between the two; save it again"
        )
    try:
        arrays = {name: jnp.asarray(_array(entry)) for name, entry in safetensors.deserialize(tensors)}
    except (safetensors.SafetensorError, KeyError) as error:
        raise UserError(f"{directory / TENSORS} is not a safetensors file of floats: {error}") from error
    form = description.get("form", Dictionary.__name__)
    if form not in (Dictionary.__name__, CrossLayer.__name__):
        raise UserError(f"{described} has the form {form!r}; this version knows Dictionary and CrossLayer")
    read = _read_cross_layer if form == CrossLayer.__name__ else _read_single
    try:
        dictionary = read(description, arrays, directory)
        place = description["address"], description["writes"]
        model, config = description["model"], description["config"]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{described} does not describe a dictionary: {said}; save it again") from error
    address, writes = (tuple(a) if isinstance(a, list) else a for a in place)
    return Saved(dictionary, address, model, config, writes)


def _read_single(description: dict[str, Any], arrays: dict[str, jax.Array], directory: Path) -> Dictionary:
    d_in, d_out, m = (description[name] for name in ("d_in", "d_out", "n_features"))
    shapes = {"W_enc": (d_in, m), "b_enc": (m,), "W_dec": (m, d_out), "b_dec": (d_out,)}
    _check_shapes(arrays, shapes | _others(arrays, "", d_in, d_out, m), directory)
    return Dictionary(
        **{name: arrays[name] for name in shapes},
        activation=_activation(description.get("activation"), arrays, directory / DESCRIPTION),
        W_skip=arrays.get("W_skip"),
        centred=description["centred"],
        write_sites=description["write_sites"],
    )


def _read_cross_layer(description: dict[str, Any], arrays: dict[str, jax.Array], directory: Path) -> CrossLayer:
    d_in, d_out, m, targets = (description[name] for name in ("d_in", "d_out", "n_features", "targets"))
    _check_shapes(arrays, {"b_dec": (len(targets), d_out)}, directory)
    sources = []
    for i, (written, settings) in enumerate(zip(targets, description["activation"], strict=True)):
        prefix, shapes = f"sources.{i}.", {"W_enc": (d_in, m), "b_enc": (m,), "W_dec": (m, written, d_out)}
        named = {prefix + name: shape for name, shape in shapes.items()}
        _check_shapes(arrays, named | _others(arrays, prefix, d_in, d_out, m), directory)
        own = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
        activation = _activation(settings, own, directory / DESCRIPTION)
        sources.append(Source(**{name: own[name] for name in shapes}, activation=activation, W_skip=own.get("W_skip")))
    return CrossLayer(tuple(sources), arrays["b_dec"])


def _others(arrays: dict[str, jax.Array], prefix: str, d_in: int, d_out: int, m: int) -> dict[str, tuple[int, ...]]:
    """The shapes of what a part may have besides: a skip, and arrays of its activation, one number for each latent or
    one for all."""
    skip = {prefix + "W_skip": (d_in, d_out)} if prefix + "W_skip" in arrays else {}
    mine = {name: a for name, a in arrays.items() if name.startswith(prefix + "activation.")}
    return skip | {name: a.shape if a.size == 1 else (m,) for name, a in mine.items()}


def _check_shapes(arrays: dict[str, jax.Array], shapes: dict[str, tuple[int, ...]], directory: Path) -> None:
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape != shape:
            found = arrays[name].shape if name in arrays else f"missing; it has {', '.join(sorted(arrays))}"
            raise UserError(f"{directory / TENSORS}: {name} should have shape {shape} and is {found}")


def _array(entry: dict[str, Any]) -> np.ndarray:
    # safetensors' own numpy loader does not know bfloat16
    dtype = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}[entry["dtype"]]
    return np.frombuffer(entry["data"], dtype).reshape(entry["shape"])


def _activation(settings: Any, arrays: dict[str, jax.Array], path: Path) -> Activation:
    """The activation that is described; UserError for what this version does not know."""
    known = _saved_classes()
    kind = known.get(str(settings.get("type"))) if isinstance(settings, dict) else None
    if kind is None:
        raise UserError(f"{path} has the activation {settings!r}; this version knows {', '.join(known)}")
    prefix = "activation."
    fields = {name: value for name, value in settings.items() if name != "type"}
    fields |= {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
    try:
        return kind(**fields)
    except TypeError as error:
        raise UserError(f"{path}: the activation {settings!r} does not fit {kind.__name__}: {error}") from error
