"""Temporal SAEs: those of SAELens, and the published `conf.yaml` and `latest_ckpt.safetensors` (arXiv:2511.01836)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.saelens_config import SAELensConfig
from jax_interp.dictionaries.formats.tensor_shapes import checked, one_dtype
from jax_interp.dictionaries.forms.temporal import PredictingAttention, Temporal
from jax_interp.dictionaries.storage import Saved

_CONFIG, _WEIGHTS = "conf.yaml", "latest_ckpt.safetensors"
_LAYERS = {"Q": ("q_target", "qk"), "K": ("k_ctx", "qk"), "V": ("v_ctx", "m"), "O": ("c_proj", "m")}


def read_temporal(config: SAELensConfig, files: Files, weights: str) -> Temporal:
    """A temporal SAE.

    Raises:
      UserError: an entry or a tensor is missing or not known, or inputs are normalised in another way than by a number.
    """
    if config.normalize not in ("none", "constant_scalar_rescale"):
        raise UserError(f"a temporal dictionary with normalize_activations {config.normalize!r} cannot be read")
    rescaled = config.normalize == "constant_scalar_rescale"
    scale = config.get("activation_normalization_factor", float, 1.0) if rescaled else 1.0
    tied, n_layers = config.get("tied_weights", bool, True), config.get("n_attn_layers", int, 1)
    found = files.tensors(weights)
    names = {"D": "W_dec", "E": "W_enc", "b": "b_dec"} if "D" in found else {}
    tensors = _checked(config, {names.get(name, name): a for name, a in found.items()}, weights, tied, n_layers)
    place = lambda role, name, turned=False: files.place(role, tensors[name].T if turned else tensors[name])
    layers = tuple(
        PredictingAttention(
            **{
                f"{kind}_{role}": place(f"layers.{i}.{kind}_{role}", f"attn_layers.{i}.{module}.{stored}", kind == "W")
                for role, (module, _) in _LAYERS.items()
                for kind, stored in (("W", "weight"), ("b", "bias"))
            }
        )
        for i in range(n_layers)
    )
    b_dec = place("b_dec", "b_dec")
    return Temporal(
        None if tied else place("W_enc", "W_enc"),
        place("W_dec", "W_dec"),
        b_dec * 0 if tied and not config.centred else b_dec,  # it is neither subtracted nor added then
        layers,
        n_heads=_heads(config),
        k=_k(config),
        scale=scale,
        centred=config.centred,
    )


def _checked(
    config: SAELensConfig, found: Mapping[str, Any], where: str, tied: bool, n_layers: int
) -> dict[str, np.ndarray]:
    axes = {"W_dec": "m d", "b_dec": "d"} | ({} if tied else {"W_enc": "d m"})
    for i in range(n_layers):
        for module, out in _LAYERS.values():
            axes |= {f"attn_layers.{i}.{module}.weight": f"{out} m", f"attn_layers.{i}.{module}.bias": out}
    factor = config.get("bottleneck_factor", int, 64)
    sizes = {"m": config.d_sae, "d": config.d_in, "qk": config.d_sae // factor if factor > 0 else 0}
    if sizes["qk"] < 1 or config.d_sae % (factor * _heads(config)):
        raise UserError(f"{config.d_sae} latents cannot be divided by bottleneck_factor {factor} and n_heads")
    tensors, _ = checked(found, where, axes, sizes=sizes)
    return one_dtype(tensors, "W_dec")


def _heads(config: SAELensConfig) -> int:
    n_heads = config.get("n_heads", int, 8)
    if n_heads < 1 or config.d_sae % n_heads:
        raise UserError(f"n_heads is {n_heads}, which does not divide {config.d_sae} latents")
    return n_heads


def _k(config: SAELensConfig) -> int | None:
    kind = config.get("sae_diff_type", str, "topk")
    if kind not in ("relu", "topk"):
        raise UserError(f"sae_diff_type is {kind!r}; known are 'relu' and 'topk'")
    k = config.get("kval_topk", int, None) if kind == "topk" else None
    if k is not None and not 1 <= k <= config.d_sae:
        raise UserError(f"kval_topk is {k}; with {config.d_sae} latents it is from 1 to {config.d_sae}")
    return k


@FORMATS.register
class TemporalCheckpoints(Format):
    """The published checkpoints of temporal SAEs."""

    name = "temporal"
    title = "Temporal SAEs"
    repositories = ("canrager/temporalSAEs",)
    hub_files = (f"{{path}}/{_CONFIG}", f"{{path}}/{_WEIGHTS}")

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return files.selected in (None, _CONFIG, _WEIGHTS) and _CONFIG in files and _WEIGHTS in files

    @classmethod
    def read(cls, files: Files) -> Saved:
        given = files.yaml(_CONFIG)
        model, sae = (_section(given, name) for name in ("llm", "sae"))
        try:
            d_in, factor, scale = model["dimin"], sae["exp_factor"], sae["scaling_factor"]
            settings = {name: sae[name] for name in ("n_heads", "n_attn_layers", "bottleneck_factor", "sae_diff_type")}
            settings |= {name: sae[name] for name in ("kval_topk", "tied_weights")}
            d_sae = int(d_in * factor)
        except KeyError as error:
            raise UserError(f"{_CONFIG} lacks {error}") from error
        except TypeError as error:
            raise UserError(f"{_CONFIG} has dimin {d_in!r} and exp_factor {factor!r}, which are not numbers") from error
        settings |= {"activation_normalization_factor": scale}
        config = SAELensConfig("temporal", d_in, d_sae, True, "constant_scalar_rescale", settings, {})
        dictionary = read_temporal(config, files, _WEIGHTS)
        layer = re.findall(r"layer_(\d+)", files.location)
        if not layer:
            notes = ("the path names no layer (layer_12), so what it reads is not known",)
            return Saved(dictionary, None, None, given, format=cls.name, notes=notes)
        return Saved(dictionary, f"blocks.{int(layer[-1])}.resid_post", None, given, format=cls.name)


def _section(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = given.get(name)
    if not isinstance(section, dict):
        raise UserError(f"{_CONFIG} has no section {name!r}; it has {', '.join(map(str, given)) or 'nothing'}")
    return section
