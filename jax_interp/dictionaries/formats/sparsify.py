"""sparsify (EleutherAI): `cfg.json` and `sae.safetensors` in a folder that is named after the module.

    EleutherAI/sae-llama-3-8b-32x/layers.10/{cfg.json, sae.safetensors}

An SAE reads and writes the output of the module. A transcoder (`transcode`) reads the input of the module and writes
its output. The name of the model is in `config.json` of the folder above, if it is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jax_interp.core.atomic_write import atomic_write, make_directory
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.core.tensor_files import write_tensors
from jax_interp.dictionaries.activations.abs_topk import AbsTopK
from jax_interp.dictionaries.activations.group_max import GroupMax
from jax_interp.dictionaries.activations.topk import TopK
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.hook_names import module_value
from jax_interp.dictionaries.formats.tensor_shapes import checked
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

_CONFIG, _FILE = "cfg.json", "sae.safetensors"
_SETTINGS = {
    "activation": str, "expansion_factor": int, "normalize_decoder": bool, "num_latents": int, "k": int,
    "multi_topk": bool, "skip_connection": bool, "transcode": bool, "d_in": int, "signed": bool,
}  # fmt: skip
_DEFAULTS = {
    "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": 0, "k": 32,
    "multi_topk": False, "skip_connection": False, "transcode": False, "signed": False,
}  # fmt: skip
CROSS_LAYER = "n_targets"
"""A setting that only the fork for cross-layer transcoders has."""


@FORMATS.register
class Sparsify(Format):
    """The folder of one module."""

    name = "sparsify"
    title = "sparsify"
    repositories = ("EleutherAI/sae-*", "EleutherAI/skip-transcoder-*")
    hub_files = ("{path}/cfg.json", "{path}/sae.safetensors", "{folder}/config.json")
    writes = True

    @classmethod
    def recognise(cls, files: Files) -> bool:
        if files.selected not in (None, _CONFIG, _FILE) or _CONFIG not in files or _FILE not in files:
            return False
        return CROSS_LAYER not in files.json(_CONFIG)

    @classmethod
    def read(cls, files: Files) -> Saved:
        config = files.json(_CONFIG)
        settings = _checked_settings(config)
        dictionary = _read_dictionary(files, settings)
        model = _model(files)
        path = files.location.rstrip("/").removesuffix(f"/{files.selected}").rsplit("/", 1)[-1]
        written = module_value(path, "output", model)
        read = module_value(path, "input", model) if settings["transcode"] else written
        notes = [value.note for value in (read, written) if value.note]
        return Saved(
            dictionary,
            read.address,
            model,
            config,
            writes=None if read == written else written.address,
            format=cls.name,
            notes=tuple(dict.fromkeys(notes)),
            normalized=read.normalized,
        )

    @classmethod
    def write(cls, saved: Saved, directory: Path) -> Path:
        settings, tensors = _as_files(saved.dictionary)
        make_directory(directory)
        write_tensors(directory / _FILE, tensors)
        atomic_write(directory / _CONFIG, json.dumps(settings, indent=2))
        return directory


def _checked_settings(config: dict[str, Any]) -> dict[str, Any]:
    if unknown := sorted(name for name in config.keys() - _SETTINGS.keys() if config[name]):
        raise UserError(
            f"{_CONFIG} has the setting {unknown[0]!r} = {config[unknown[0]]!r}, which is not known; known are "
            f"{', '.join(_SETTINGS)}"
        )
    settings = {**_DEFAULTS, **{name: config[name] for name in _SETTINGS if config.get(name) is not None}}
    for name, kind in _SETTINGS.items():
        if type(settings.get(name)) is not kind:
            raise UserError(f"{_CONFIG}: {name!r} is {settings.get(name)!r}, which is not {kind.__name__}")
    if settings["activation"] not in ("topk", "groupmax"):
        raise UserError(f"{_CONFIG}: the activation {settings['activation']!r} is not known; known are topk, groupmax")
    if settings["signed"] and settings["activation"] != "topk":
        raise UserError(f"{_CONFIG}: 'signed' goes with the activation topk")
    return settings


def _read_dictionary(files: Files, settings: dict[str, Any]) -> Dictionary:
    d, k = settings["d_in"], settings["k"]
    m = settings["num_latents"] or d * settings["expansion_factor"]
    if not 1 <= k <= m:
        raise UserError(f"{_CONFIG}: k is {k}; with {m} features it is from 1 to {m}")
    axes = {"encoder.weight": "m d", "encoder.bias": "m", "W_dec": "m d", "b_dec": "d"}
    axes |= {"W_skip": "d d"} if settings["skip_connection"] else {}
    found, _ = checked(files.tensors(_FILE), _FILE, axes, sizes={"d": d, "m": m})
    activation = AbsTopK(k) if settings["signed"] else TopK(k)
    if settings["activation"] == "groupmax":
        activation = GroupMax(k).init(m, np.float32)
    return Dictionary(
        W_enc=files.place("W_enc", found["encoder.weight"].T),
        b_enc=files.place("b_enc", found["encoder.bias"]),
        W_dec=files.place("W_dec", found["W_dec"]),
        b_dec=files.place("b_dec", found["b_dec"]),
        activation=activation,
        W_skip=files.place("W_skip", found["W_skip"].T) if "W_skip" in found else None,
        centred=not settings["transcode"],
    )


def _model(files: Files) -> str | None:
    above = files.directory.parent / "config.json"
    if not above.is_file():
        return None
    model = read_json(above).get("model")
    return model if isinstance(model, str) else None


def _as_files(dictionary: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The settings and the tensors."""
    if not isinstance(dictionary, Dictionary) or dictionary.W_enc.shape != dictionary.W_dec.shape[::-1]:
        raise UserError("sparsify files hold dictionaries that read and write one value each, of the same width")
    if dictionary.write_sites > 1:
        raise UserError("sparsify files hold no crosscoders")
    activation = dictionary.activation
    names = {TopK: "topk", GroupMax: "groupmax"}
    if type(activation) not in names or activation.weighted or activation.limit is not None:
        raise UserError(f"sparsify has no {activation!r}; it has TopK and GroupMax, unweighted and without a limit")
    d, m = dictionary.W_enc.shape
    settings = _DEFAULTS | {
        "activation": names[type(activation)],
        "normalize_decoder": False,
        "num_latents": m,
        "k": activation.k,
        "skip_connection": dictionary.W_skip is not None,
        "transcode": not dictionary.centred,
        "d_in": d,
    }
    del settings["signed"]
    tensors = {"encoder.weight": dictionary.W_enc.T, "encoder.bias": dictionary.b_enc, "W_dec": dictionary.W_dec}
    tensors |= {"b_dec": dictionary.b_dec}
    tensors |= {} if dictionary.W_skip is None else {"W_skip": dictionary.W_skip.T}
    return settings, {name: np.ascontiguousarray(array) for name, array in tensors.items()}
