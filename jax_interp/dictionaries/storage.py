"""A dictionary on disk: `dictionary.safetensors` and `dictionary.json` in one directory.

The JSON says what the tensors are: form, activation and k, the address and model they were trained on, the training
config. Weights keep their dtype. The JSON is written last and holds the digest of the tensors, and each file appears by
one rename: what is found is whole, or refused by name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_interp.dictionaries.activations import TopK
from jax_interp.dictionaries.forms import SAE
from jax_interp.errors import UserError
from jax_interp.training import config as configs
from jax_interp.training.atomic_write import atomic_write

FORMAT = 1
TENSORS, DESCRIPTION = "dictionary.safetensors", "dictionary.json"
WEIGHTS = {"sae": ("W_enc", "b_enc", "W_dec", "b_dec")}


@dataclasses.dataclass(frozen=True)
class Saved:
    """A dictionary and where it belongs. `config` is the training config as JSON values."""

    dictionary: SAE
    address: str
    model: str
    config: Any = None


def save_dictionary(directory: Path | str, sae: SAE, *, address: str, model: str, config: Any = None) -> Path:
    """Write `sae` for `address` of the model named `model`; `config` is any dataclass or JSON value to keep with it.
    Replaces what is there. Returns the directory."""
    import safetensors.numpy

    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot save a dictionary in {directory}: {error.strerror}") from error
    arrays = {name: np.asarray(getattr(sae, name)) for name in WEIGHTS["sae"]}
    tensors = safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in arrays.items()})
    description = {
        "format": FORMAT,
        "form": "sae",
        "activation": {"type": "topk", "k": sae.activation.k},
        "d": sae.d,
        "n_features": sae.n_features,
        "dtype": str(sae.W_dec.dtype),
        "address": address,
        "model": model,
        "config": None if config is None else configs.to_json(config),
        "sha256": hashlib.sha256(tensors).hexdigest(),
    }
    atomic_write(directory / TENSORS, tensors)
    atomic_write(directory / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    return directory


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
    activation = _checked(description, described)
    if hashlib.sha256(tensors).hexdigest() != description.get("sha256"):
        raise UserError(
            f"{directory / TENSORS} is not the file that {DESCRIPTION} describes (SHA-256): it was cut short, altered, "
            "or a save was interrupted between the two; save it again"
        )
    try:
        arrays = {name: _array(entry) for name, entry in safetensors.deserialize(tensors)}
    except (safetensors.SafetensorError, KeyError) as error:
        raise UserError(f"{directory / TENSORS} is not a safetensors file of floats: {error}") from error
    d, m = description["d"], description["n_features"]
    for name, shape in {"W_enc": (d, m), "b_enc": (m,), "W_dec": (m, d), "b_dec": (d,)}.items():
        if name not in arrays or arrays[name].shape != shape:
            found = arrays[name].shape if name in arrays else f"missing; it has {', '.join(sorted(arrays))}"
            raise UserError(f"{directory / TENSORS}: {name} should have shape {shape} and is {found}")
    sae = SAE(**{name: jnp.asarray(arrays[name]) for name in WEIGHTS["sae"]}, activation=activation)
    return Saved(sae, description["address"], description["model"], description["config"])


def _array(entry: dict[str, Any]) -> np.ndarray:
    # safetensors' own numpy loader does not know bfloat16
    dtype = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}[entry["dtype"]]
    return np.frombuffer(entry["data"], dtype).reshape(entry["shape"])


def _checked(description: dict[str, Any], path: Path) -> TopK:
    """The activation that is described; UserError for what this version does not know."""
    if description.get("format") != FORMAT:
        raise UserError(f"{path} has format {description.get('format')!r}; this version reads {FORMAT}")
    if description.get("form") not in WEIGHTS:
        raise UserError(f"{path} is of form {description.get('form')!r}; this version knows {', '.join(WEIGHTS)}")
    match description.get("activation"):
        case {"type": "topk", "k": int(k)}:
            return TopK(k)
    raise UserError(f"{path} has the activation {description.get('activation')!r}; this version knows topk with a k")
