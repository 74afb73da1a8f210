"""dictionary_learning (Marks, Karvonen, Mueller): `ae.pt` and `config.json`, one of seven classes.

    canrager/lm_sae/.../resid_post_layer_11/trainer_3/{ae.pt, config.json}

The config file names the class. Without it, the class follows from the names of the tensors, but for the two that have
the same: AutoEncoderTopK and BatchTopKSAE. `AutoEncoder` is read as its own `from_pretrained` does it: rows of the
decoder get norm 1, and latents are multiplied by their norms.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_interp.core.atomic_write import atomic_write, make_directory
from jax_interp.core.errors import UserError
from jax_interp.core.torch_writing import write_torch
from jax_interp.dictionaries.activations.batch_topk import BatchTopK
from jax_interp.dictionaries.activations.gated import Gate
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.activations.relu import ReLU
from jax_interp.dictionaries.activations.topk import TopK
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.folding import fold_decoder_norms, with_centre
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.hook_names import HookValue, module_value
from jax_interp.dictionaries.formats.tensor_shapes import checked
from jax_interp.dictionaries.formats.torch_contents import text, torch_contents, whole_number
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

_FILE, _CONFIG = "ae.pt", "config.json"
_LINEAR = {"encoder.weight": "m d", "encoder.bias": "m", "decoder.weight": "d m"}
_DIRECT = {"W_enc": "d m", "b_enc": "m", "W_dec": "m d", "b_dec": "d"}
_GATED = {"r_mag": "m", "gate_bias": "m", "mag_bias": "m"}
_CLASSES = {
    "AutoEncoder": {**_LINEAR, "bias": "d"},
    "AutoEncoderNew": {**_LINEAR, "decoder.bias": "d"},
    "GatedAutoEncoder": {"encoder.weight": "m d", "decoder.weight": "d m", "decoder_bias": "d", **_GATED},
    "JumpReluAutoEncoder": {**_DIRECT, "threshold": "m"},
    "AutoEncoderTopK": {**_LINEAR, "b_dec": "d"},
    "BatchTopKSAE": {**_LINEAR, "b_dec": "d", "threshold": ""},
    "MatryoshkaBatchTopKSAE": {**_DIRECT, "threshold": ""},
}
"""The tensors of each class with their axes. Some have `k` and `group_sizes` too, which are whole numbers."""
_SELECTING = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
_OUTPUT_BIASES = ("b_dec", "bias", "decoder.bias", "decoder_bias")
_SITE = re.compile(r"(resid_post|resid_out|resid_pre|attn_out|attention_out|mlp_out)_?layer_?(\d+)")


@FORMATS.register
class DictionaryLearning(Format):
    """Folders of one trainer."""

    name = "dictionary_learning"
    title = "dictionary_learning"
    repositories = ("canrager/lm_sae", "canrager/saebench_*", "adamkarvonen/saebench_*", "andyrdt/saes-*")
    hub_files = ("{folder}/ae.pt", "{folder}/config.json", "{path}/ae.pt", "{path}/config.json")
    writes = True

    @classmethod
    def recognise(cls, files: Files) -> bool:
        if files.selected not in (None, _FILE, _CONFIG) or _FILE not in files:
            return False
        encoder = torch_contents(files, _FILE, keep_unknown=True, verify=False).get("encoder.weight")
        return getattr(encoder, "ndim", 2) == 2  # a crosscoder has one matrix per layer

    @classmethod
    def read(cls, files: Files) -> Saved:
        found = torch_contents(files, _FILE)
        config = files.json(_CONFIG) if _CONFIG in files else None
        trainer = config.get("trainer", {}) if config is not None else {}
        if not isinstance(trainer, dict):
            raise UserError(f"{_CONFIG}: 'trainer' is not a group of settings")
        kind = _class_of(trainer, found)
        notes: list[str] = []
        dictionary = _read_dictionary(files, kind, found, trainer, notes)
        buffer = config.get("buffer") if config is not None else None
        if isinstance(buffer, dict) and buffer.get("remove_bos"):
            notes.append("it was trained on activations without those of the BOS token")
        model = text(trainer, "lm_name", _CONFIG)
        value = _value(trainer, files.location, model)
        notes += [value.note] if value.note else []
        return Saved(dictionary, value.address, model, config, format=cls.name, notes=tuple(notes))

    @classmethod
    def write(cls, saved: Saved, directory: Path) -> Path:
        kind, tensors, k = _as_tensors(saved.dictionary)
        address = saved.address if isinstance(saved.address, str) else None
        site = re.fullmatch(r"blocks\.(\d+)\.(resid_post|attn_out|mlp_out)", address or "")
        if saved.writes not in (None, saved.address) or site is None:
            raise UserError(
                f"dictionary_learning names the values resid_post, attn_out and mlp_out of a layer, not {saved.address}"
            )
        trainer: dict[str, Any] = {
            "dict_class": kind,
            "activation_dim": saved.dictionary.b_dec.shape[-1],
            "dict_size": saved.dictionary.n_features,
            "layer": int(site[1]),
            "lm_name": saved.model_name(),
            "submodule_name": f"{site[2]}_layer_{site[1]}",
        }
        trainer |= {} if k is None else {"k": k}
        make_directory(directory)
        write_torch(directory / _FILE, tensors)
        atomic_write(directory / _CONFIG, json.dumps({"trainer": trainer, "buffer": {}}, indent=2))
        return directory


def _class_of(trainer: dict[str, Any], found: dict[str, Any]) -> str:
    """The class of the dictionary: what the config says, or what only one class has the tensors of."""
    stated = text(trainer, "dict_class", _CONFIG)
    if stated is not None:
        if stated not in _CLASSES:
            raise UserError(f"{_CONFIG}: dict_class is {stated!r}; known are {', '.join(_CLASSES)}")
        return stated
    names = found.keys() - {"k", "group_sizes"}
    fits = [name for name, axes in _CLASSES.items() if names - {"threshold"} == axes.keys() - {"threshold"}]
    fits = [name for name in fits if ("k" in found) == (name in _SELECTING)]
    fits = [name for name in fits if ("group_sizes" in found) == name.startswith("Matryoshka")] or fits
    if len(fits) != 1:
        which = f"it fits {' and '.join(fits)}" if fits else f"its tensors are {', '.join(sorted(found))}"
        raise UserError(f"{_FILE} has no {_CONFIG} beside it that names its dict_class: {which}")
    return fits[0]


def _read_dictionary(
    files: Files, kind: str, found: dict[str, Any], trainer: dict[str, Any], notes: list[str]
) -> Dictionary:
    k = _number_of_latents(found, trainer) if kind in _SELECTING else None
    sizes = found.pop("group_sizes", None) if kind.startswith("Matryoshka") else None
    optional = {"threshold": ""} if kind == "AutoEncoderTopK" else {}
    stated = {"d": trainer.get("activation_dim"), "m": trainer.get("dict_size")}
    stated = {axis: size for axis, size in stated.items() if isinstance(size, int)}
    tensors, axes = checked(found, _FILE, _CLASSES[kind], optional, stated)
    if sizes is not None and (sizes.dtype.kind not in "iu" or sizes.sum() != axes["m"]):
        raise UserError(f"{_FILE}: the group_sizes add up to {sizes.sum()}, not to the {axes['m']} features")
    linear = "encoder.weight" in tensors
    place = files.place
    bias = next(name for name in _OUTPUT_BIASES if name in tensors)
    b_enc = "gate_bias" if kind == "GatedAutoEncoder" else "encoder.bias" if linear else "b_enc"
    dictionary = Dictionary(
        W_enc=place("W_enc", tensors["encoder.weight"].T if linear else tensors["W_enc"]),
        b_enc=place("b_enc", tensors[b_enc]),
        W_dec=place("W_dec", tensors["decoder.weight"].T if linear else tensors["W_dec"]),
        b_dec=place("b_dec", tensors[bias]),
        activation=_activation(files, kind, tensors, k, notes),
        centred=kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
    )
    if kind == "AutoEncoder":
        dictionary = _with_unit_rows(dictionary, notes)
    return dictionary


def _activation(files: Files, kind: str, tensors: dict[str, np.ndarray], k: int | None, notes: list[str]) -> Any:
    if kind in ("AutoEncoder", "AutoEncoderNew"):
        return ReLU()
    if kind == "GatedAutoEncoder":
        r_mag, b_mag = tensors["r_mag"], tensors["mag_bias"]
        return Gate(files.place("activation.r_mag", r_mag), files.place("activation.b_mag", b_mag))
    if kind == "JumpReluAutoEncoder":
        return Jump.of(files.place("activation.log_threshold", tensors["threshold"]))
    assert k is not None
    if kind == "AutoEncoderTopK":
        if "threshold" in tensors and tensors["threshold"] >= 0:
            stored = float(tensors["threshold"])
            notes.append(f"the k largest latents are on; the threshold {stored:.6g} of the file is not used")
        return TopK(k)
    threshold = tensors["threshold"]
    if not threshold >= 0:
        raise UserError(
            f"{_FILE}: the threshold of this {kind} is {float(threshold):g}, so it was never set in training, and "
            "without a batch its latents are not defined. Set it with `update_threshold` of dictionary_learning"
        )
    return BatchTopK(k, threshold=files.place("activation.threshold", threshold))


def _number_of_latents(found: dict[str, Any], trainer: dict[str, Any]) -> int:
    stored, stated = whole_number(found, "k", _FILE), trainer.get("k")
    if stored is None and type(stated) is int:
        stored = stated
    if stored is None or stated not in (None, stored):
        raise UserError(f"{_FILE} has k = {stored}, and {_CONFIG} has k = {stated!r}: they must be one whole number")
    if stored < 1:
        raise UserError(f"{_FILE}: k is {stored}, it should be at least 1")
    return stored


def _with_unit_rows(dictionary: Dictionary, notes: list[str]) -> Dictionary:
    norms = jnp.linalg.norm(dictionary.W_dec.astype(jnp.float32), axis=1)
    if bool(jnp.allclose(norms, jnp.ones_like(norms))):
        return dictionary
    notes.append(
        "rows of its decoder had other norms than 1; they have norm 1 now, and latents are multiplied by the norms, as "
        "`AutoEncoder.from_pretrained` does it"
    )
    return fold_decoder_norms(dictionary)


def _value(trainer: dict[str, Any], location: str, model: str | None) -> HookValue:
    """The value that it reads, from the name of the submodule or the names of the folders."""
    for name in (text(trainer, "submodule_name", _CONFIG), location):
        found = _SITE.findall(name or "")
        if found:
            site, layer = found[-1]
            break
    else:
        if re.search(r"(^|/)embed(/|$)", location):
            return module_value("embed_in", "output", model)
        return HookValue(None, note=f"{_CONFIG} does not say which value of layer {trainer.get('layer')} it reads")
    if trainer.get("layer") not in (None, int(layer)):
        raise UserError(f"{_CONFIG}: the layer is {trainer['layer']}, and the submodule {site} of layer {layer}")
    if site.startswith("resid"):
        return HookValue(f"blocks.{layer}.{'resid_pre' if site == 'resid_pre' else 'resid_post'}")
    modules = ("mlp",) if site == "mlp_out" else ("attention", "self_attn", "attn")
    values = [
        module_value(f"{blocks}.{layer}.{name}", "output", model) for name in modules for blocks in ("layers", "h")
    ]
    return next((value for value in values if value.address is not None), values[0])


def _as_tensors(dictionary: Any) -> tuple[str, dict[str, np.ndarray], int | None]:
    """The class that computes the same, its tensors, and its k."""
    if not isinstance(dictionary, Dictionary) or not dictionary.is_autoencoder() or dictionary.write_sites > 1:
        raise UserError("dictionary_learning files hold SAEs: one value is read and written, without a skip")
    activation = dictionary.activation
    kind = _CLASS_OF.get(type(activation))
    if kind is None or activation.weighted or activation.limit is not None:
        setting = " that weighs or limits its latents" if kind is not None else ""
        known = ", ".join(one.__name__ for one in _CLASS_OF)
        raise UserError(f"dictionary_learning has no {type(activation).__name__}{setting}; it has {known}")
    dictionary = with_centre(dictionary, kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"))
    activation = dictionary.activation
    numbers = lambda array: np.asarray(array, np.float32)
    tensors = {"b_dec": numbers(dictionary.b_dec)}
    if kind == "JumpReluAutoEncoder":
        tensors |= {"W_enc": dictionary.W_enc, "b_enc": dictionary.b_enc, "W_dec": dictionary.W_dec}
        tensors["threshold"] = np.broadcast_to(activation.threshold, dictionary.b_enc.shape)
    else:
        tensors |= {"encoder.weight": numbers(dictionary.W_enc).T, "decoder.weight": numbers(dictionary.W_dec).T}
        tensors["gate_bias" if kind == "GatedAutoEncoder" else "encoder.bias"] = dictionary.b_enc
    if kind == "GatedAutoEncoder":
        tensors |= {"r_mag": activation.r_mag, "mag_bias": activation.b_mag, "decoder_bias": tensors.pop("b_dec")}
    if kind == "AutoEncoderNew":
        tensors["decoder.bias"] = tensors.pop("b_dec")
    if kind == "BatchTopKSAE":
        tensors["threshold"] = np.asarray(activation._running_threshold)
    if kind == "AutoEncoderTopK":
        tensors["threshold"] = np.asarray(-1.0)  # never set: the k largest are on
    floats = {name: numbers(array) for name, array in tensors.items()}
    return kind, floats | ({} if activation.k is None else {"k": np.asarray(activation.k, np.int32)}), activation.k


_CLASS_OF = {
    ReLU: "AutoEncoderNew",  # the other one would normalise the decoder when it is loaded
    Gate: "GatedAutoEncoder",
    Jump: "JumpReluAutoEncoder",
    TopK: "AutoEncoderTopK",
    BatchTopK: "BatchTopKSAE",
}
