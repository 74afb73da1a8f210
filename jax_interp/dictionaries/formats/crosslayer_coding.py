"""crosslayer-coding (Curt Tigges): cross-layer transcoders with ReLU or JumpReLU, and three ways to share decoders.

    cfg.json                 num_features, num_layers, d_model, activation_fn, normalization_method, decoder_tying, ...
    model.safetensors        or clt_checkpoint_<step>.safetensors

    encoder_module.encoders.<i>.weight [feature, d], .bias_param
    decoder_module.decoders.<source->target>.weight [d, feature], .bias_param       decoder_tying "none"
    decoder_module.decoders.<source>, or <target>                                   "per_source", "per_target"
    theta_manager.log_threshold [layer, feature]

The biases of all decoders that write a target are added up. TopK and BatchTopK rank pre-activations that are normalised
over the batch, so their latents depend on the other rows: they are refused. The library converts BatchTopK to JumpReLU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import ReLU
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.formats import cross_layers
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.hook_names import HookValue, hook_value, module_value
from jax_interp.dictionaries.formats.tensor_shapes import checked, one_dtype
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.dictionaries.storage import Saved

_CONFIG = "cfg.json"
_WEIGHTS = r"model\.safetensors|clt_checkpoint_(\d+|latest)\.safetensors"
_ENCODER, _DECODER = "encoder_module.encoders.", "decoder_module.decoders."
_OFFSET, _SCALE = "decoder_module.feature_offset.", "decoder_module.feature_scale."
_THRESHOLD = "theta_manager.log_threshold"
_TYINGS = ("none", "per_source", "per_target")


@FORMATS.register
class CrosslayerCoding(Format):
    """A cross-layer transcoder of all layers."""

    name = "crosslayer-coding"
    title = "crosslayer-coding"
    hub_files = ("{path}/cfg.json", "{path}/*.safetensors")

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return _CONFIG in files and {"num_features", "num_layers"} <= files.json(_CONFIG).keys()

    @classmethod
    def read(cls, files: Files) -> Saved:
        config = files.json(_CONFIG)
        n, tying = _checked_settings(config)
        found = [name for name in files.names() if re.fullmatch(_WEIGHTS, name)]
        if len(found) != 1:
            raise UserError(f"{files.directory} has the weights {found}: give the path of one file of weights")
        tensors = _checked_tensors(files.tensors(found[0]), found[0], config, n, tying)
        sources, b_dec = [], np.zeros((n, config["d_model"]), np.float32)
        for i in range(n):
            targets = [_decoder(tensors, i, t, tying) for t in range(i, n)]
            prefix = f"sources.{i}."
            weights = one_dtype({"W_enc": tensors[f"{_ENCODER}{i}.weight"].T, "W_dec": np.stack(targets, axis=1),
                                 "b_enc": tensors[f"{_ENCODER}{i}.bias_param"]}, "W_enc")  # fmt: skip
            placed: dict[str, Any] = {name: files.place(prefix + name, array) for name, array in weights.items()}
            placed["activation"] = ReLU()
            if _THRESHOLD in tensors:
                log = files.place(f"{prefix}activation.log_threshold", tensors[_THRESHOLD][i])
                placed["activation"] = Jump.of(jnp.exp(log))
            sources.append(Source(**placed))
        for t in range(n):
            b_dec[t] = _bias(tensors, t, tying)
        b_dec = files.place("b_dec", b_dec.astype(tensors[f"{_ENCODER}0.weight"].dtype))
        return _saved(CrossLayer(tuple(sources), b_dec), config, n, cls.name)


def _checked_settings(config: Mapping[str, Any]) -> tuple[int, str]:
    """(number of layers, how decoders are shared). Raises UserError for what no form here has."""
    for name in ("num_features", "num_layers", "d_model"):
        if type(config.get(name)) is not int or config[name] < 1:
            raise UserError(f"{_CONFIG} has {name} {config.get(name)!r}; a positive number is needed")
    tying, kind = config.get("decoder_tying", "none"), config.get("activation_fn", "jumprelu")
    if kind in ("topk", "batchtopk"):
        raise UserError(
            f"{_CONFIG} has activation_fn {kind!r} (topk_mode {config.get('topk_mode', 'global')!r}): its latents are "
            "ranked over the batch, which no form here does; convert it to jumprelu with crosslayer-coding"
        )
    if kind not in ("relu", "jumprelu") or tying not in _TYINGS:
        raise UserError(f"{_CONFIG} has activation_fn {kind!r} and decoder_tying {tying!r}, which are not known")
    method = config.get("normalization_method", "none")
    if method != "none" or config.get("sqrt_d_model_normalize"):
        raise UserError(
            f"{_CONFIG} has normalization_method {method!r}: the statistics of its inputs are with the training data, "
            "not with the weights, so its values cannot be converted to raw activations"
        )
    if config.get("skip_connection"):
        raise UserError(f"{_CONFIG} has a skip_connection: its skips from earlier layers have no form here")
    return config["num_layers"], tying


def _checked_tensors(
    found: Mapping[str, Any], where: str, config: Mapping[str, Any], n: int, tying: str
) -> dict[str, np.ndarray]:
    pairs = [f"{s}->{t}" for s in range(n) for t in range(s, n)]
    names = pairs if tying == "none" else [str(i) for i in range(n)]
    axes = {f"{_ENCODER}{i}.weight": "m d" for i in range(n)} | {f"{_DECODER}{name}.weight": "d m" for name in names}
    biases = {f"{_ENCODER}{i}.bias_param": "m" for i in range(n)} | {
        f"{_DECODER}{name}.bias_param": "d" for name in names
    }
    jump = {_THRESHOLD: "n m"} if config.get("activation_fn", "jumprelu") == "jumprelu" else {}
    enabled = [(_OFFSET, "enable_feature_offset"), (_SCALE, "enable_feature_scale")]
    affine = {f"{prefix}{i}": "m" for prefix, setting in enabled if config.get(setting) for i in range(n)}
    sizes = {"m": config["num_features"], "d": config["d_model"], "n": n}
    tensors, _ = checked(found, where, axes | biases | jump | affine, {}, sizes)
    for i in range(n):
        if tensors.get(f"{_OFFSET}{i}", np.zeros(1)).any():
            raise UserError(
                f"{where} has {_OFFSET}{i!r} other than zero: no form here adds a constant to active latents"
            )
    return tensors


def _decoder(tensors: Mapping[str, np.ndarray], source: int, target: int, tying: str) -> np.ndarray:
    """The decoder from a source to a target, [feature, d]."""
    name = {"none": f"{source}->{target}", "per_source": source, "per_target": target}[tying]
    W = tensors[f"{_DECODER}{name}.weight"].T
    scale = tensors.get(f"{_SCALE}{target}")
    return W if scale is None else W * scale[:, None].astype(W.dtype)


def _bias(tensors: Mapping[str, np.ndarray], target: int, tying: str) -> np.ndarray:
    """What the biases of all decoders add to a target."""
    if tying == "per_target":  # the latents of all sources are added up and decoded once
        return tensors[f"{_DECODER}{target}.bias_param"].astype(np.float32)
    names = [f"{s}->{target}" if tying == "none" else s for s in range(target + 1)]
    return np.sum([tensors[f"{_DECODER}{name}.bias_param"].astype(np.float64) for name in names], axis=0)


def _saved(dictionary: CrossLayer, config: dict[str, Any], n: int, format: str) -> Saved:
    model = config.get("model_name")
    inputs = [_value(config, "input", i, model) for i in range(n)]
    outputs = [_value(config, "output", i, model) for i in range(n)]
    address, normalized, notes = cross_layers.addresses(inputs)
    written, _, more = cross_layers.addresses(outputs)
    notes = tuple(dict.fromkeys((*notes, *more)))
    return Saved(dictionary, address, model, config, written, format, notes, {}, normalized)


def _value(config: Mapping[str, Any], side: Any, layer: int, model: str | None) -> HookValue:
    hook, module = config.get(f"tl_{side}_template"), config.get(f"mlp_{side}_template")
    if isinstance(hook, str):
        return hook_value(hook.replace("{}", str(layer)), model)
    if isinstance(module, str):
        return module_value(module.replace("{}", str(layer)), side, model)
    return HookValue(None, note=f"{_CONFIG} does not name the {side} of its layers")
