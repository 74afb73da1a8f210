"""Crosscoders of science-of-finetuning (Minder, Dumas et al. 2025, arXiv:2504.02922): a torch file, or safetensors.

    Butanium/gemma-2-2b-crosscoder-l13-.../{config.json, model.safetensors}

    f = ReLU(sum over layers of x_l W_enc[l] + b_enc)               x̂_l = f W_dec[l] + b_dec[l]

With BatchTopK, a latent is on where f times the norm of its decoder is above a threshold; its value stays f.
`code_normalization_id` says which norm: the sum of the norms in each layer, or the norm of all layers together. Values
may be normalised before: (x - mean) times one factor per layer. Norms, factors and means are folded into the weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.activations.relu import ReLU
from jax_interp.dictionaries.formats.ckkissane import PAIR
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.folding import fold_input_scale, fold_input_shift
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.tensor_shapes import checked
from jax_interp.dictionaries.formats.torch_contents import text, torch_contents, torch_file, whole_number
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

_CONFIG, _SAFE = "config.json", "model.safetensors"
_AXES = {"encoder.weight": "layer d m", "encoder.bias": "m", "decoder.weight": "layer m d", "decoder.bias": "layer d"}
_OPTIONAL = {
    "target_rms": "", "activation_mean": "layer d", "activation_std": "layer d", "activation_global_scale": "layer",
    "threshold": "",
}  # fmt: skip
_ID = "code_normalization_id"
_NORMS = {1: "crosscoder", 2: "sae", 3: "mixed", 4: "none", 5: "decoupled"}

OLDER = (
    "the file does not say which norm of a decoder multiplies its latent before the threshold; it is the sum of the "
    "norms in each layer, as crosscoder_learning assumes it of its older files"
)


@FORMATS.register
class CrosscoderLearning(Format):
    """A crosscoder with ReLU or BatchTopK."""

    name = "crosscoder_learning"
    title = "crosscoder_learning"
    repositories = ("Butanium/*crosscoder*", "science-of-finetuning/*crosscoder*")
    hub_files = ("{folder}/config.json", "{path}", "{path}/config.json", "{path}/model.safetensors")

    @classmethod
    def recognise(cls, files: Files) -> bool:
        name = _file(files)
        if name is None:
            return False
        found = _contents(files, name, verify=False)
        weights = [found.get(f"{part}.weight") for part in ("encoder", "decoder")]
        return all(isinstance(w, np.ndarray) and w.ndim == 3 for w in weights)

    @classmethod
    def read(cls, files: Files) -> Saved:
        name = _file(files)
        if name is None:
            raise UserError(f"{files.directory} holds no {_SAFE}, and not exactly one torch file")
        config = files.json(_CONFIG) if _CONFIG in files else {}
        found = _contents(files, name)
        notes = ["it reads one value of several models or layers, side by side; the files do not say which"]
        if "threshold" in found and _ID not in found and "code_normalization" not in config:
            notes.append(OLDER)
        dictionary = _read_dictionary(files, name, found, config)
        address = PAIR if dictionary.write_sites == 2 else None
        return Saved(dictionary, address, None, config or None, format=cls.name, notes=tuple(notes))


def _file(files: Files) -> str | None:
    if files.selected in (None, _CONFIG, _SAFE) and _SAFE in files:
        return _SAFE
    return torch_file(files)


def _contents(files: Files, name: str, verify: bool = True) -> dict[str, Any]:
    if name == _SAFE:
        return {key.replace("_orig_mod.", ""): value for key, value in files.tensors(name).items()}
    return torch_contents(files, name, keep_unknown=not verify, verify=verify)


def _read_dictionary(files: Files, name: str, found: dict[str, Any], config: dict[str, Any]) -> Dictionary:
    k = whole_number(found, "k", name)
    norm = _norm_named(whole_number(found, _ID, name), config, name)
    if config.get("encoder_layers") is not None:
        raise UserError(f"{_CONFIG}: it encodes a part of its layers ({config['encoder_layers']}), which is not read")
    tensors, sizes = checked(found, name, _AXES, _OPTIONAL)
    layers, d, m = sizes["layer"], sizes["d"], sizes["m"]
    if (k is None) != ("threshold" not in tensors):
        raise UserError(f"{name} has one of 'k' and 'threshold'; a BatchTopK crosscoder has both, another one none")
    dictionary = Dictionary(
        W_enc=files.place("W_enc", tensors["encoder.weight"].reshape(layers * d, m)),
        b_enc=files.place("b_enc", tensors["encoder.bias"]),
        W_dec=files.place("W_dec", tensors["decoder.weight"].transpose(1, 0, 2).reshape(m, layers * d)),
        b_dec=files.place("b_dec", tensors["decoder.bias"].reshape(layers * d)),
        activation=ReLU(),
        centred=False,
        write_sites=layers,
    )
    if k is not None:
        threshold = _threshold(tensors["threshold"], dictionary, norm, config, name)
        dictionary = dataclasses.replace(dictionary, activation=Jump.of(threshold))
    return _normalised(dictionary, tensors, config, name)


def _norm_named(number: int | None, config: dict[str, Any], name: str) -> str:
    """The name of the norm that multiplies latents before they are compared with the threshold."""
    stated = text(config, "code_normalization", _CONFIG)
    if number is not None and number not in _NORMS:
        raise UserError(f"{name}: code_normalization_id is {number}; known are {_NORMS}")
    found = _NORMS[number] if number is not None else (stated or _NORMS[1]).lower()
    if found not in _NORMS.values():
        raise UserError(f"{_CONFIG}: code_normalization is {stated!r}; known are {', '.join(_NORMS.values())}")
    if stated is not None and stated.lower() != found:
        raise UserError(f"{_CONFIG} has the code_normalization {stated}, and {name} has {found}")
    if found == "decoupled":
        raise UserError(
            f"{name} has a code of its own for each layer (code_normalization DECOUPLED), which is not read"
        )
    return found


def _threshold(
    stored: np.ndarray, dictionary: Dictionary, norm: str, config: dict[str, Any], name: str
) -> Float[Array, " feature"]:
    """The threshold of each latent itself: θ over the norm of its decoder."""
    if not stored >= 0:
        raise UserError(f"{name}: the threshold is {float(stored):g}, so it was never set in training")
    rows = dictionary.W_dec.astype(jnp.float32).reshape(dictionary.n_features, dictionary.write_sites, -1)
    each = jnp.linalg.norm(rows, axis=2)
    both = {"crosscoder": jnp.sum(each, axis=1), "sae": jnp.linalg.norm(each, axis=1), "none": jnp.ones(len(rows))}
    if norm == "mixed":
        shares = [config.get(f"code_normalization_alpha_{part}") for part in ("sae", "cc")]
        if not all(type(share) in (int, float) for share in shares):
            raise UserError(
                f"{name} has the code_normalization MIXED, and {_CONFIG} does not hold its two factors "
                "(code_normalization_alpha_sae, code_normalization_alpha_cc)"
            )
        both["mixed"] = shares[0] * both["sae"] + shares[1] * both["crosscoder"]
    # a latent without a direction is never on: its score is 0
    largest = float(jnp.finfo(jnp.float32).max)
    norms = both[norm]
    return jnp.where(norms > 0, float(stored) / jnp.where(norms > 0, norms, jnp.ones_like(norms)), largest)


def _normalised(
    dictionary: Dictionary, tensors: dict[str, np.ndarray], config: dict[str, Any], name: str
) -> Dictionary:
    """The dictionary for raw values, if it was trained on normalised ones."""
    mean, std = tensors.get("activation_mean"), tensors.get("activation_std")
    if mean is None or std is None:
        if mean is not None or std is not None:
            raise UserError(f"{name} has one of 'activation_mean' and 'activation_std'")
        return dictionary
    unset = [bool(np.isnan(array).all()) for array in (mean, std)]
    if all(unset):
        return dictionary
    if any(unset) or not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise UserError(f"{name}: a part of the statistics of its normalisation is NaN or infinite")
    mean, std = mean.astype(np.float64), std.astype(np.float64)
    if _keeps_relative_variance(tensors, std, config, name):
        scale = np.repeat(tensors["activation_global_scale"].astype(np.float64), mean.shape[1])
        into, out = scale, scale + 1e-8
    else:
        into, out = 1 / (std.reshape(-1) + 1e-8), 1 / (std.reshape(-1) + 1e-8)
    dtype = dictionary.W_enc.dtype
    dictionary = fold_input_scale(dictionary, jnp.asarray(into, dtype), jnp.asarray(out, dtype))
    centre = jnp.asarray(mean.reshape(-1), dtype)
    dictionary = fold_input_shift(dictionary, centre)
    return dataclasses.replace(dictionary, b_dec=dictionary.b_dec + centre)


def _keeps_relative_variance(
    tensors: dict[str, np.ndarray], std: np.ndarray, config: dict[str, Any], name: str
) -> bool:
    """Whether a layer has one factor. Otherwise each coordinate is divided by its standard deviation."""
    stored, rms = tensors.get("activation_global_scale"), tensors.get("target_rms")
    stated = config.get("keep_relative_variance")
    if stated is False:
        return False
    if stored is None or rms is None:
        raise UserError(f"{name} has statistics of a normalisation, but no 'activation_global_scale' and 'target_rms'")
    expected = float(rms) / np.sqrt((std**2).sum(axis=1) + 1e-8)
    if np.allclose(stored, expected, rtol=1e-3):
        return True
    raise UserError(
        f"{name}: activation_global_scale is {stored.tolist()}, and its statistics give {expected.tolist()}. If "
        f'coordinates were normalised one by one, {_CONFIG} must hold "keep_relative_variance": false'
    )
