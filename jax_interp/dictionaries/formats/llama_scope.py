"""Llama Scope (He et al. 2024): JumpReLU SAEs and transcoders of Llama 3.1 8B, and SAEs of DeepSeek-R1-Distill.

    Llama3_1-8B-Base-L15R-8x/       hyperparams.json, checkpoints/final.safetensors
    .../L15R/                       config.json, sae_weights.safetensors          (Llama Scope R1)

The single `jump_relu_threshold` of Llama Scope is in units of raw activations: over the layers it grows with their
norm. SAELens reads it so too. The thresholds of Llama Scope R1 are in units of scaled activations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.formats import cross_layers
from jax_interp.dictionaries.formats.dataset_norms import (
    SCALED,
    activation_of,
    check_settings,
    includes_norms,
    row_norms,
    scale_of,
)
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.folding import fold_input_scale
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.hook_names import hook_value
from jax_interp.dictionaries.formats.tensor_shapes import checked, one_dtype
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

_SETTINGS, _WEIGHTS, _R1_WEIGHTS, _R1_SETTINGS = (
    "hyperparams.json",
    "final.safetensors",
    "sae_weights.safetensors",
    "config.json",
)
_LINEAR = {"encoder.weight": "m d", "encoder.bias": "m", "decoder.weight": "d_out m"}
_MODEL = "meta-llama/Llama-3.1-8B"
_RAW = "its threshold is read in units of raw activations, as by SAELens"
_GATED = (
    "a latent is on where its pre-activation times the norm of its decoder row is above the threshold, as its config "
    "says (sparsity_include_decoder_norm). SAELens leaves the norm out"
)


@FORMATS.register
class LlamaScope(Format):
    """SAEs of the stream, of attention and MLP outputs, and transcoders, with one threshold for all latents."""

    name = "llama-scope"
    title = "Llama Scope"
    repositories = ("fnlp/Llama3_1-8B-Base-LX*", "OpenMOSS-Team/Llama3_1-8B-Base-LX*")
    hub_files = ("{path}/hyperparams.json", "{path}/checkpoints/final.safetensors")

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return _SETTINGS in files.names()

    @classmethod
    def read(cls, files: Files) -> Saved:
        config = {"act_fn": "jumprelu"} | files.json(_SETTINGS)
        norms, theta = config.get("dataset_average_activation_norm"), config.get("jump_relu_threshold")
        if not isinstance(norms, dict) or config.get("norm_activation", "dataset-wise") != "dataset-wise":
            raise UserError(
                f"{_SETTINGS} has norm_activation {config.get('norm_activation')!r}; 'dataset-wise' is known"
            )
        if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 <= theta < float("inf"):
            raise UserError(f"{_SETTINGS} has jump_relu_threshold {theta!r}; a number of at least 0 is needed")
        inside = dataclasses.replace(files, directory=files.directory / "checkpoints", selected=None)
        tensors = _linear(inside.tensors(_WEIGHTS), _WEIGHTS, config, {})
        d, m = tensors["encoder.weight"].shape[1], tensors["encoder.weight"].shape[0]
        scales = tuple(scale_of(d, norms.get(side), f"the activations {side!r}") for side in ("in", "out"))
        threshold = lambda: files.place("activation.log_threshold", np.full(m, theta * scales[0], np.float32))
        dictionary = _dictionary(tensors, files, config, threshold, scales, _SETTINGS)
        return _saved(dictionary, config, _MODEL, cls.name, (_RAW,))


@FORMATS.register
class LlamaScopeR1(Format):
    """SAEs of the stream of DeepSeek-R1-Distill-Llama-8B, with one threshold per latent."""

    name = "llama-scope-r1"
    title = "Llama Scope R1"
    repositories = ("fnlp/Llama-Scope-R1-Distill", "OpenMOSS-Team/Llama-Scope-R1-Distill")

    @classmethod
    def recognise(cls, files: Files) -> bool:
        if files.selected not in (None, _R1_SETTINGS, _R1_WEIGHTS) or not (
            _R1_SETTINGS in files and _R1_WEIGHTS in files
        ):
            return False
        return {"encoder.weight", "log_jumprelu_threshold"} <= files.tensors(_R1_WEIGHTS).keys()

    @classmethod
    def read(cls, files: Files) -> Saved:
        config = {"act_fn": "jumprelu"} | files.json(_R1_SETTINGS)
        found = dict(files.tensors(_R1_WEIGHTS))
        prefix = "dataset_average_activation_norm."
        norms = {
            name.removeprefix(prefix): np.asarray(found.pop(name)).item()
            for name in list(found)
            if name.startswith(prefix)
        }
        tensors = _linear(found, _R1_WEIGHTS, config, {"log_jumprelu_threshold": "m"})
        d = tensors["encoder.weight"].shape[1]
        scales = _scales_r1(config, norms, files.settings, d)
        log_threshold = tensors.pop("log_jumprelu_threshold")
        threshold = lambda: jnp.exp(files.place("activation.log_threshold", log_threshold.astype(np.float32)))
        dictionary = _dictionary(tensors, files, config, threshold, scales, _R1_SETTINGS)
        return _saved(dictionary, config, "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", cls.name, ())


def _scales_r1(
    config: Mapping[str, Any], norms: Mapping[str, float], settings: Mapping[str, Any], d: int
) -> tuple[float, float]:
    """The factors of input and output: from the tensors, or from what the release says."""
    mode = config.get("norm_activation", "dataset-wise")
    if mode == "inference":
        return 1.0, 1.0
    if mode != "dataset-wise":
        raise UserError(f"{_R1_SETTINGS} has norm_activation {mode!r}; 'dataset-wise' and 'inference' are known")
    hooks = [config.get("hook_point_in"), config.get("hook_point_out", config.get("hook_point_in"))]
    if norms:
        first, second = (scale_of(d, norms.get(str(hook)), f"{hook}") for hook in hooks)
        return first, second
    if "norm_scaling_factor" in settings:
        return float(settings["norm_scaling_factor"]), float(settings["norm_scaling_factor"])
    raise UserError(
        "the files do not hold the mean norm of the activations, so the scale of the input is not known: load it by "
        "the name of its release, which has the scale"
    )


def _linear(
    found: Mapping[str, Any], where: str, config: Mapping[str, Any], more: dict[str, str]
) -> dict[str, np.ndarray]:
    check_settings(config, where)
    if config["act_fn"] != "jumprelu":
        raise UserError(f"the config has act_fn {config['act_fn']!r}; Llama Scope has 'jumprelu'")
    bias = {"decoder.bias": "d_out"}
    required = _LINEAR | more | (bias if config.get("use_decoder_bias", True) else {})
    sizes = {} if not isinstance(config.get("d_model"), int) else {"d": config["d_model"]}
    tensors, sizes = checked(found, where, required, {}, sizes)
    tensors.setdefault("decoder.bias", np.zeros(sizes["d_out"], tensors["decoder.weight"].dtype))
    return tensors


def _dictionary(
    tensors: dict[str, np.ndarray], files: Files, config: Mapping[str, Any], threshold: Any, scales: Any, where: str
) -> Dictionary:
    tensors = one_dtype(tensors, "encoder.weight")
    W_dec: Array = files.place("W_dec", tensors["decoder.weight"].T)
    dictionary = Dictionary(
        W_enc=files.place("W_enc", tensors["encoder.weight"].T),
        b_enc=files.place("b_enc", tensors["encoder.bias"]),
        W_dec=W_dec,
        b_dec=files.place("b_dec", tensors["decoder.bias"]),
        activation=activation_of(config, threshold, lambda: row_norms(W_dec), where),
        centred=False,
    )
    return fold_input_scale(dictionary, *scales)


def _saved(dictionary: Dictionary, config: Any, model: str, format: str, notes: tuple[str, ...]) -> Saved:
    hook_in, hook_out = config.get("hook_point_in"), config.get("hook_point_out", config.get("hook_point_in"))
    address, normalized, why = cross_layers.addresses([hook_value(str(hook_in), model)])
    writes = None
    if hook_out != hook_in:
        writes, _, more = cross_layers.addresses([hook_value(str(hook_out), model)])
        why = (*why, *more)
    notes = (SCALED, *notes, *((_GATED,) if includes_norms(config) else ()), *why)
    return Saved(dictionary, address, model, config, writes, format, notes, {}, normalized)
