"""Gemma Scope 2: SAEs, transcoders, crosscoders and cross-layer transcoders of Gemma 3, `params.safetensors`.

    google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_small/            params.safetensors, config.json
    google/gemma-scope-2-1b-pt/transcoder/layer_13_width_16k_l0_small_affine/     the same, with an affine skip
    google/gemma-scope-2-1b-pt/clt/width_262k_l0_medium_affine/                   params_layer_0.safetensors, ...
    google/gemma-scope-2-1b-pt/crosscoder/layer_7_13_17_22_width_262k_l0_medium/  params_layer_0.safetensors, ...

All are JumpReLU without a bias before the encoder: f = ReLU(pre) where pre > threshold. The skip is `x @ A`. The
crosscoders are weakly causal: each source reads one layer, and writes it and later ones, as in a cross-layer
transcoder. `config.json` names the values; without it the folder does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.formats import cross_layers
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.hook_names import HookValue, hook_value
from jax_interp.dictionaries.formats.tensor_shapes import checked, one_dtype
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

_FILE, _CONFIG = "params.safetensors", "config.json"
_OF_LAYER = r"params_layer_(\d+)\.safetensors"
_VECTORS = {"b_enc": "m", "b_dec": "d_out", "threshold": "m"}
_SKIP = {"affine_skip_connection": "d d_out"}
_HOOKS = {
    "resid_post": ("model.layers.{}.output", None),
    "attn_out": ("model.layers.{}.self_attn.o_proj.input", None),
    "mlp_out": ("model.layers.{}.post_feedforward_layernorm.output", None),
    "crosscoder": ("model.layers.{}.output", None),
    "transcoder": (
        "model.layers.{}.pre_feedforward_layernorm.output",
        "model.layers.{}.post_feedforward_layernorm.output",
    ),
}
_HOOKS["clt"] = _HOOKS["transcoder"]
_KNOWN = (
    "architecture",
    "model_name",
    "hf_hook_point_in",
    "hf_hook_point_out",
    "affine_connection",
    "type",
    "width",
    "l0",
)


@FORMATS.register
class GemmaScope2(Format):
    """SAEs and transcoders of one layer, and crosscoders and cross-layer transcoders of several."""

    name = "gemma-scope-2"
    title = "Gemma Scope 2"
    repositories = tuple(f"google/gemma-scope-2-{size}-*" for size in ("270m", "1b", "4b", "12b", "27b"))

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return any(name == _FILE or re.fullmatch(_OF_LAYER, name) for name in files.names())

    @classmethod
    def read(cls, files: Files) -> Saved:
        config = _config(files)
        if _FILE in files.names():
            return _saved(_read_one(files), config, files, [0])
        return _read_layers(files, config)


def _read_one(files: Files) -> Dictionary:
    tensors, _ = checked(files.tensors(_FILE), _FILE, {"w_enc": "d m", "w_dec": "m d_out"} | _VECTORS, _SKIP)
    placed = _placed(tensors, files, "")
    return Dictionary(centred=False, **placed)


def _read_layers(files: Files, config: dict[str, Any]) -> Saved:
    named = cross_layers.numbered(files, _OF_LAYER)
    names, sizes, found = cross_layers.consecutive(named, files), {}, []
    for name in names:
        axes = {"w_enc": "d m", "w_dec": f"m targets_of_{name} d_out"} | _VECTORS
        tensors, sizes = checked(files.tensors(name), name, axes, _SKIP, sizes)
        found.append(tensors)
    decoders = cross_layers.targets_of([tensors["w_dec"] for tensors in found], files.directory.name)
    alone = cross_layers.selected_layer(named, files)
    sources = []
    for i in range(len(found)) if alone is None else [alone]:
        placed = _placed(found[i] | {"w_dec": decoders[i]}, files, f"sources.{i}.")
        del placed["b_dec"]
        sources.append(Source(**placed))
    if alone is not None:
        return _saved(cross_layers.alone(sources[0]), config, files, [alone], range(alone, len(found)))
    b_dec = np.stack([tensors["b_dec"] for tensors in found]).astype(found[0]["w_enc"].dtype)
    return _saved(CrossLayer(tuple(sources), files.place("b_dec", b_dec)), config, files, range(len(found)))


def _placed(tensors: dict[str, np.ndarray], files: Files, prefix: str) -> dict[str, Any]:
    """The fields of a `Dictionary` or a `Source`, and `b_dec`."""
    names = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"}
    threshold = files.place(f"{prefix}activation.log_threshold", tensors["threshold"])
    weights = one_dtype({name: array for name, array in tensors.items() if name != "threshold"}, "w_enc")
    weights = {names.get(name, name): array for name, array in weights.items()}
    placed = {name: files.place(prefix + name, array) for name, array in weights.items()}
    return placed | {"activation": Jump.of(threshold)}


def _config(files: Files) -> dict[str, Any]:
    """What `config.json` says, or the names of the folders."""
    kind, layers = _folder(files)
    config: dict[str, Any] = {}
    if _CONFIG in files:
        config = files.json(_CONFIG)
        if config.get("architecture") != "jump_relu":
            raise UserError(f"{_CONFIG} has architecture {config.get('architecture')!r}; Gemma Scope 2 has 'jump_relu'")
        if unknown := sorted(config.keys() - set(_KNOWN)):
            raise UserError(f"{_CONFIG} has {unknown[0]!r}, which this format does not have: known are {_KNOWN}")
        if config.get("affine_connection") not in (None, True, False):
            raise UserError(f"{_CONFIG} has affine_connection {config['affine_connection']!r}; it is true or false")
    hooks = _HOOKS.get(kind or "", (None, None))
    places = "{" + ",".join(map(str, layers)) + "}" if len(layers) > 1 else str(layers[0]) if layers else "{all}"
    for name, hook in zip(("hf_hook_point_in", "hf_hook_point_out"), hooks):
        config.setdefault(name, None if hook is None else hook.replace("{}", places))
    config.setdefault("model_name", _repository_model(files))
    if kind in ("transcoder", "clt"):
        config.setdefault("affine_connection", "_affine" in files.location.split(f"/{kind}")[-1])
    return config


def _saved(
    dictionary: Dictionary | CrossLayer,
    config: dict[str, Any],
    files: Files,
    reads: Sequence[int],
    writes: Sequence[int] | None = None,
) -> Saved:
    """The dictionary with its values. `reads` and `writes` count the layers that the config names."""
    has_skip = _has_skip(dictionary)
    if config.get("affine_connection") not in (None, has_skip):
        raise UserError(
            f"{_CONFIG} says affine_connection={config['affine_connection']}, but the tensors have "
            f"{'an' if has_skip else 'no'} affine_skip_connection"
        )
    model = _model(config["model_name"])
    n = len(dictionary.sources) if isinstance(dictionary, CrossLayer) else None
    total = cross_layers.numbered(files, _OF_LAYER)
    inputs = _values(config["hf_hook_point_in"], reads, len(total), model)
    hook_out = config["hf_hook_point_out"] or config["hf_hook_point_in"]
    outputs = _values(hook_out, reads if writes is None else writes, len(total), model)
    address, normalized, notes = cross_layers.addresses(inputs)
    written, _, more = cross_layers.addresses(outputs)
    if writes is not None:
        notes = (cross_layers.ONE_SOURCE, *notes)
    same = written == address and n is None and normalized is None
    notes = notes if same else tuple(dict.fromkeys((*notes, *more)))
    stated = {"l0": float(config["l0"])} if type(config.get("l0")) in (int, float) else {}
    return Saved(
        dictionary,
        address,
        model,
        config if _CONFIG in files else None,
        None if same else written,
        GemmaScope2.name,
        notes,
        stated,
        normalized,
    )


def _has_skip(dictionary: Dictionary | CrossLayer) -> bool:
    if isinstance(dictionary, Dictionary):
        return dictionary.W_skip is not None
    have = [source.W_skip is not None for source in dictionary.sources]
    if any(have) and not all(have):
        raise UserError(f"layer {have.index(False)} has no affine_skip_connection, and other layers have one")
    return any(have)


def _values(hook: Any, layers: Sequence[int], n_layers: int, model: str | None) -> list[HookValue]:
    """The values that a hook point of the config names. `{all}` and `{7,13,17,22}` stand for several layers."""
    if not isinstance(hook, str):
        return [HookValue(None, note="neither config.json nor the folder names the values")] * len(layers)
    several = re.search(r"\{(all|\d+(?:,\d+)*)\}", hook)
    if several is None and n_layers > 1:
        raise UserError(f"{_CONFIG} names one layer in {hook!r}, and there are files for {n_layers}")
    if several is None:
        return [hook_value(hook, model)]
    numbers = list(range(n_layers)) if several[1] == "all" else [int(i) for i in several[1].split(",")]
    if len(numbers) != n_layers:
        raise UserError(f"{_CONFIG} names {len(numbers)} layers in {hook!r}, and there are files for {n_layers}")
    return [hook_value(hook.replace(several[0], str(numbers[i])), model) for i in layers]


def _folder(files: Files) -> tuple[str | None, list[int]]:
    """(kind, layers) from the names of the folders: ("crosscoder", [7, 13, 17, 22]). None where they do not say it."""
    for i, part in enumerate(reversed(parts := files.location.split("/"))):
        kind = part.removesuffix("_all")
        if kind in _HOOKS:
            below = "/".join(parts[len(parts) - i :])
            layers = re.search(r"(?:^|/)layer_(\d+(?:_\d+)*)_width", below)
            return kind, [int(layer) for layer in layers[1].split("_")] if layers else []
    return None, []


def _repository_model(files: Files) -> str | None:
    found = re.findall(r"gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)", files.location)
    return f"google/gemma-3-{'-'.join(found[-1])}" if found else None


def _model(name: Any) -> str | None:
    """The name of the model on the hub. Configs also write "gemma-v3-1b-pt" and "gemma-3-270m-pt"."""
    if not isinstance(name, str):
        return None
    name = name if name.startswith("google/") else f"google/{name}"
    name = name.replace("-v3", "-3")
    return name.removesuffix("-pt") if "270m" in name else name
