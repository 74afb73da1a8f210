"""gpt-circuits: SAEs of the residual stream of a small GPT, `sae.<layer>.safetensors` beside `sae.json`.

    checkpoints/topk.tiny_32x4/{sae.json, sae.0.safetensors, sae.1.safetensors, ...}

`sae.json` names the variant, and for TopK the k of each layer. The SAE of layer l reads the input of block l; the last
one reads the output of the last block. A pre-bias is subtracted in all variants.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.gated import Gate
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.activations.relu import ReLU
from jax_interp.dictionaries.activations.topk import TopK
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.tensor_shapes import checked
from jax_interp.dictionaries.formats.torch_contents import text
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

_CONFIG = "sae.json"
_FILE = re.compile(r"sae\.(\d+)\.safetensors")
_BIASES = {"W_dec": "m d", "b_dec": "d"}
_PLAIN = {**_BIASES, "b_enc": "m", "W_enc": "d m"}
_GATED = {**_BIASES, "b_gate": "m", "b_mag": "m"}
_AXES = {
    "standard": _PLAIN,
    "standard_v2": {**_BIASES, "b_enc": "m"},  # the encoder is the transposed decoder
    "gated": {**_GATED, "W_gate": "d m", "r_mag": "m"},
    "gated_v2": _GATED,
    "jumprelu": {**_PLAIN, "jumprelu.log_threshold": "m"},
    "topk": _PLAIN,
}
NO_RELU = (
    "gpt-circuits has no ReLU after TopK: a latent that is among the k largest and negative has its negative value "
    "there, and is 0 here. It matters only where fewer than k pre-activations are positive"
)


@FORMATS.register
class GPTCircuits(Format):
    """One layer's SAE: standard, gated, jumprelu or topk."""

    name = "gpt-circuits"
    title = "gpt-circuits"
    hub_files = ("{path}", "{folder}/sae.json", "{folder}/model.json")

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return _CONFIG in files and any(_FILE.fullmatch(name) for name in files.names())

    @classmethod
    def read(cls, files: Files) -> Saved:
        named = [name for name in files.names() if _FILE.fullmatch(name)]
        if len(named) != 1:
            raise UserError(f"{files.directory} has the SAEs {', '.join(named)}: give one of the files")
        (name,), config = named, files.json(_CONFIG)
        layer = int(_FILE.fullmatch(name)[1])  # type: ignore[index]
        variant = text(config, "sae_variant", _CONFIG) or "missing"
        if variant not in _AXES:
            raise UserError(f"{_CONFIG}: sae_variant is {variant!r}; known are {', '.join(_AXES)}")
        sizes = {"m": _of_layer(config, "n_features", layer)}
        found, sizes = checked(files.tensors(name), name, _AXES[variant], sizes=sizes)
        encoder = found.get("W_enc", found.get("W_gate", found["W_dec"].T))
        gated = variant.startswith("gated")
        dictionary = Dictionary(
            W_enc=files.place("W_enc", encoder),
            b_enc=files.place("b_enc", found["b_gate" if gated else "b_enc"]),
            W_dec=files.place("W_dec", found["W_dec"]),
            b_dec=files.place("b_dec", found["b_dec"]),
            activation=_activation(files, variant, found, config, layer),
        )
        notes = (NO_RELU,) if variant == "topk" else ()
        return Saved(dictionary, _address(files, layer, config), None, config, format=cls.name, notes=notes)


def _activation(files: Files, variant: str, found: dict[str, np.ndarray], config: dict[str, Any], layer: int) -> Any:
    if variant.startswith("standard"):
        return ReLU()
    if variant == "jumprelu":
        return Jump(files.place("activation.log_threshold", found["jumprelu.log_threshold"]))
    if variant == "topk":
        k, m = _of_layer(config, "top_k", layer), len(found["b_enc"])
        if not 1 <= k <= m:
            raise UserError(f"{_CONFIG}: top_k is {k}; with {m} features it is from 1 to {m}")
        return TopK(k)
    r_mag = found.get("r_mag", np.zeros_like(found["b_mag"]))
    return Gate(files.place("activation.r_mag", r_mag), files.place("activation.b_mag", found["b_mag"]))


def _of_layer(config: dict[str, Any], name: str, layer: int) -> int:
    each = config.get(name)
    if not isinstance(each, list) or layer >= len(each) or type(each[layer]) is not int:
        raise UserError(f"{_CONFIG}: {name} is {each!r}; it should have a whole number for layer {layer}")
    return each[layer]


def _address(files: Files, layer: int, config: dict[str, Any]) -> str:
    """The input of block `layer`. The SAE after the last block reads the output of that block."""
    last = len(config["n_features"]) - 1
    if layer == last and "model.json" in files and files.json("model.json").get("n_layer") == last:
        return f"blocks.{last - 1}.resid_post"
    return f"blocks.{layer}.resid_pre"
