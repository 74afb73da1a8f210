"""A tuned lens on disk: `tuned_lens.safetensors` and `tuned_lens.json` in one directory.

The JSON says which model it reads and how it was trained. It is written last and holds the digest of the tensors, and
each file appears by one rename: what is found is whole, or refused by name.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_interp.analysis.lens_training import TunedLens
from jax_interp.core import config_json as configs
from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError

FORMAT = 1
TENSORS, DESCRIPTION = "tuned_lens.safetensors", "tuned_lens.json"


def save_tuned_lens(directory: Path | str, lens: TunedLens, *, model: str, config: Any = None) -> Path:
    """Write a lens of the model named `model`; `config` is any dataclass or JSON value to keep with it. Replaces what
    is there. Returns the directory."""
    import safetensors.numpy

    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot save a tuned lens in {directory}: {error.strerror}") from error
    arrays = {"weight": np.ascontiguousarray(lens.weight), "bias": np.ascontiguousarray(lens.bias)}
    tensors = safetensors.numpy.save(arrays)
    description = {
        "format": FORMAT,
        "model": model,
        "n_layers": lens.bias.shape[0],
        "d_model": lens.bias.shape[1],
        "config": None if config is None else configs.to_json(config),
        "sha256": hashlib.sha256(tensors).hexdigest(),
    }
    atomic_write(directory / TENSORS, tensors)
    atomic_write(directory / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    return directory


def load_tuned_lens(directory: Path | str, *, model: str | None = None) -> TunedLens:
    """What `save_tuned_lens` wrote, to the bit. UserError: no lens there, a later format, damaged tensors, or, where
    `model` is given, a lens of another one."""
    import safetensors.numpy

    directory = Path(directory)
    try:
        description = json.loads((directory / DESCRIPTION).read_text())
        tensors = (directory / TENSORS).read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"no tuned lens in {directory}: {Path(error.filename).name} is missing; save_tuned_lens writes "
            f"{DESCRIPTION} and {TENSORS}"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the tuned lens in {directory}: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"{directory / DESCRIPTION} is of another format; this version reads {FORMAT}")
    if hashlib.sha256(tensors).hexdigest() != description.get("sha256"):
        raise UserError(
            f"{directory / TENSORS} is not the file that {DESCRIPTION} describes (SHA-256): it was cut short, altered, "
            "or a save was interrupted between the two; save it again"
        )
    if model is not None and model != description.get("model"):
        raise UserError(f"the lens in {directory} is of {description.get('model')!r}, not of {model!r}")
    try:
        arrays = safetensors.numpy.load(tensors)
        weight, bias = jnp.asarray(arrays["weight"]), jnp.asarray(arrays["bias"])
    except (safetensors.SafetensorError, KeyError) as error:
        raise UserError(f"{directory / TENSORS} holds no weight and bias: {error}") from error
    n, d = description.get("n_layers"), description.get("d_model")
    if weight.shape != (n, d, d) or bias.shape != (n, d):
        raise UserError(f"{directory / TENSORS}: {weight.shape} and {bias.shape} are not maps of {n} layers of {d}")
    return TunedLens(weight, bias)
