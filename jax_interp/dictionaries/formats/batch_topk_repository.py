"""SAEs of bartbussmann/BatchTopK: `sae.pt` and `config.json`, with the orientation of SAELens.

    gpt2-small_blocks.8.hook_resid_pre_12288_batchtopk_32_0.0003_.../{config.json, sae.pt}

`sae_type` in the config tells what the tensors mean. TopK and BatchTopK do not use `b_enc`. Only JumpReLU does not
subtract `b_dec` from its input. `input_unit_norm` normalises each vector before, and undoes it after.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.batch_topk import BatchTopK
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.activations.relu import ReLU
from jax_interp.dictionaries.activations.topk import TopK
from jax_interp.dictionaries.formats.e2e_sae import PROCESSED
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.tensor_shapes import checked
from jax_interp.dictionaries.formats.torch_contents import hook_named, text, torch_contents
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.forms.normalised import Normalised
from jax_interp.dictionaries.storage import Saved

_CONFIG, _FILE = "config.json", "sae.pt"
_AXES = {"W_enc": "d m", "b_enc": "m", "W_dec": "m d", "b_dec": "d"}
_JUMP = "jumprelu.log_threshold"
_KINDS = ("vanilla", "topk", "batchtopk", "jumprelu")


@FORMATS.register
class BatchTopKRepository(Format):
    """The four classes of `sae_type`: vanilla, topk, batchtopk, jumprelu."""

    name = "bartbussmann"
    title = "bartbussmann/BatchTopK"
    hub_files = ("{path}/config.json", "{path}/sae.pt")

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return files.selected in (None, _CONFIG, _FILE) and _FILE in files

    @classmethod
    def read(cls, files: Files) -> Saved:
        config = files.json(_CONFIG)
        kind = text(config, "sae_type", _CONFIG)
        if kind not in _KINDS:
            raise UserError(f"{_CONFIG}: sae_type is {kind!r}; known are {', '.join(_KINDS)}")
        unit_norm = config.get("input_unit_norm", False)
        if type(unit_norm) is not bool:
            raise UserError(f"{_CONFIG}: input_unit_norm is {unit_norm!r}, not true or false")
        found = torch_contents(files, _FILE)
        axes = {**_AXES, _JUMP: "m"} if kind == "jumprelu" else _AXES
        optional = {"threshold": ""} if kind == "batchtopk" else {}
        sizes = {axis: config[name] for axis, name in (("d", "act_size"), ("m", "dict_size")) if name in config}
        tensors, sizes = checked(found, _FILE, axes, optional, sizes)
        without_bias = kind in ("topk", "batchtopk")
        if without_bias and np.any(tensors["b_enc"]):
            raise UserError(f"{_FILE}: b_enc is not zero, and the code of sae_type {kind} does not use it")
        dictionary = Dictionary(
            W_enc=files.place("W_enc", tensors["W_enc"]),
            b_enc=files.place("b_enc", tensors["b_enc"]),
            W_dec=files.place("W_dec", tensors["W_dec"]),
            b_dec=files.place("b_dec", tensors["b_dec"]),
            activation=_activation(files, kind, tensors, config, sizes["m"]),
            centred=kind != "jumprelu",
        )
        form = Normalised(dictionary, "layer_norm") if unit_norm else dictionary
        model = text(config, "model_name", _CONFIG)
        value = hook_named(config, "hook_point", model, _CONFIG)
        notes = [value.note] if value.note else []
        model = "gpt2" if model == "gpt2-small" else model
        notes += [PROCESSED] if model == "gpt2" else []
        return Saved(form, value.address, model, config, format=cls.name, notes=tuple(notes))


def _activation(files: Files, kind: str, tensors: dict[str, np.ndarray], config: dict[str, Any], m: int) -> Any:
    if kind == "vanilla":
        return ReLU()
    if kind == "jumprelu":
        return Jump(files.place("activation.log_threshold", tensors[_JUMP]))
    k = config.get("top_k")
    if type(k) is not int or not 1 <= k <= m:
        raise UserError(f"{_CONFIG}: top_k is {k!r}; with {m} features it is from 1 to {m}")
    if kind == "topk":
        return TopK(k)
    threshold = tensors.get("threshold")
    if threshold is None or not threshold >= 0:
        raise UserError(
            f"{_FILE} has no threshold, so without its batch the latents of this BatchTopK are not defined. The code "
            "does not store one. Measure it: the mean of the smallest latent that is on in each batch, stored in the "
            'file as \'threshold\'; or set "sae_type": "topk" in the config, to have k latents on for each input'
        )
    return BatchTopK(k, threshold=jnp.asarray(files.place("activation.threshold", threshold)))
