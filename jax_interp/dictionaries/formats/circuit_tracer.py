"""circuit-tracer: sets of transcoders and cross-layer transcoders (Hanna et al., Ameisen et al. 2025).

    config.yaml                                      model_name, model_kind, feature_input_hook, feature_output_hook
    layer_0.safetensors, ...                         a transcoder set: W_enc [feature, d], W_dec [feature, d], b_enc,
                                                     b_dec, activation_function.threshold, W_skip [d_out, d_in]
    W_enc_0.safetensors, W_dec_0.safetensors, ...    a cross-layer transcoder: W_dec_0 [feature, target - source, d]

A file of the folder selects one layer, the folder all layers: a set is then a cross-layer dictionary whose sources
write their own layer only.

circuit-tracer sets the latents of the first position to zero when it uses a set, not in the weights. Its models are
loaded without folding norms.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import ReLU, TopK
from jax_interp.dictionaries.activations.activation import Activation
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.formats import cross_layers
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.hook_names import hook_value
from jax_interp.dictionaries.formats.qwen_transcoders import CONFIG, check_sizes, read_config, wandb_config
from jax_interp.dictionaries.formats.tensor_shapes import checked, one_dtype
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source, from_transcoders
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

LAYER, ENCODER = r"layer_(\d+)\.safetensors", r"W_enc_(\d+)\.safetensors"
_THRESHOLD = "activation_function.threshold"
_KINDS = {"transcoder_set": LAYER, "cross_layer_transcoder": ENCODER}
FIRST_POSITION = "circuit-tracer sets the latents of the first position (BOS) to zero; here they keep their values"
UNFOLDED = "its model is loaded without folding norms into other weights"
_TOP_K = "where fewer than k pre-activations are positive, circuit-tracer keeps negative ones; here they are 0 (ReLU)"


@FORMATS.register
class CircuitTracer(Format):
    """Transcoder sets, one transcoder of a set, and cross-layer transcoders."""

    name = "circuit-tracer"
    title = "circuit-tracer"
    repositories = ("mntss/*", "mwhanna/qwen3-*-transcoders*", "facebook/crv-8b-instruct-transcoders")
    hub_files = ("{path}", "{path}/*.safetensors", "{path}/*.yaml", "{folder}/*.yaml")
    writes = True

    @classmethod
    def recognise(cls, files: Files) -> bool:
        if not any(re.fullmatch(kind, name) for name in files.names() for kind in (LAYER, ENCODER, r"config\.yaml")):
            return False
        if wandb_config(files) is not None:
            return True
        return CONFIG in files and not {"model_kind", "feature_input_hook"}.isdisjoint(files.yaml(CONFIG))

    @classmethod
    def read(cls, files: Files) -> Saved:
        if wandb_config(files) is None:
            return read_folder(files, files.yaml(CONFIG), cls.name)
        saved = read_folder(files, read_config(files), cls.name)
        check_sizes(files, saved)
        return saved

    @classmethod
    def write(cls, saved: Saved, directory: Path) -> Path:
        from jax_interp.dictionaries.formats.circuit_tracer_writing import write

        return write(saved, directory)


def read_folder(files: Files, config: dict[str, Any], format: str) -> Saved:
    """Read a folder, or one layer of it.

    Args:
      files: the folder.
      config: what `config.yaml` says.
      format: the name of the format.
    """
    layers, encoders = (cross_layers.numbered(files, kind) for kind in (LAYER, ENCODER))
    kind = config.get("model_kind") or ("cross_layer_transcoder" if encoders else "transcoder_set")
    if kind not in _KINDS:
        raise UserError(f"{CONFIG} has model_kind {kind!r}; known are {' and '.join(_KINDS)}")
    if config.get("transcoders") and not (layers or encoders):
        first = config["transcoders"][0] if isinstance(config["transcoders"], list) else config["transcoders"]
        raise UserError(f"{CONFIG} names files of other repositories, the first is {first}: load these one by one")
    found = encoders if kind == "cross_layer_transcoder" else layers
    if not found:
        raise UserError(f"{files.directory} has no files of a {kind}: they are called {_KINDS[kind]}")
    if kind == "cross_layer_transcoder":
        return _read_cross_layer(files, config, found, format)
    alone = cross_layers.selected_layer(found, files)
    numbers = list(found) if alone is None else [alone]
    read = [_read_one(files, found[i], config, f"sources.{i}." if alone is None else "") for i in numbers]
    if len(read) == 1:
        return _saved(read[0], config, numbers, format)
    sizes = sorted({one.W_enc.shape for one in read})
    if len(sizes) > 1:
        raise UserError(
            f"the transcoders of {files.directory} have encoders of different shapes {sizes}, which one cross-layer "
            "dictionary cannot hold: load them one by one"
        )
    return _saved(from_transcoders(read), config, numbers, format)


def _read_one(files: Files, name: str, config: dict[str, Any], prefix: str) -> Dictionary:
    """One transcoder of a set."""
    found = dict(files.tensors(name))
    k = found.pop("k", None)
    required = {"W_enc": "m d", "W_dec": "m d_out", "b_enc": "m", "b_dec": "d_out"}
    encoder, decoder = (np.shape(found.get(name, 0.0)) for name in ("W_enc", "W_dec"))
    if len(encoder) == len(decoder) == 2 and encoder[0] == decoder[1] != decoder[0]:  # the first files, of Llama
        found["W_dec"] = found["W_dec"].T
    tensors, sizes = checked(found, name, required, {_THRESHOLD: "m", "W_skip": "d_out d"})
    threshold = tensors.pop(_THRESHOLD, None)
    activation = _activation(name, threshold, config, k, sizes["m"], files, prefix)
    weights = one_dtype(tensors, "W_enc")
    transposed = {"W_enc": weights["W_enc"].T} | ({"W_skip": weights["W_skip"].T} if "W_skip" in weights else {})
    placed: dict[str, Any] = {name: files.place(prefix + name, a) for name, a in (weights | transposed).items()}
    return Dictionary(**placed, activation=activation, centred=False)


def _activation(
    name: str, threshold: np.ndarray | None, config: dict[str, Any], k: Any, m: int, files: Files, prefix: str
) -> Activation:
    kind = config.get("activation") or ("relu" if threshold is None else "jumprelu")
    if (kind in ("jumprelu", "jump_relu")) != (threshold is not None):
        has = "no thresholds" if threshold is None else "thresholds"
        raise UserError(f"{CONFIG} says activation {kind!r}, but {name} has {has}")
    if threshold is not None:
        return _jump(threshold, name, files, prefix)
    if kind == "relu":
        return ReLU()
    if kind != "topk":
        raise UserError(f"{CONFIG} has activation {kind!r}; known are relu, topk and jumprelu")
    k = config.get("k") if k is None else np.asarray(k).item()
    if type(k) is not int or not 1 <= k <= m:
        raise UserError(f"{name} is a TopK transcoder, and k is {k!r}: a number from 1 to {m} is needed in {CONFIG}")
    return TopK(k)


def _jump(threshold: np.ndarray, name: str, files: Files, prefix: str) -> Jump:
    if (threshold < 0).any():
        raise UserError(
            f"{name} has thresholds below 0, above which circuit-tracer passes negative pre-activations: no activation "
            "here does this"
        )
    return Jump.of(files.place(f"{prefix}activation.log_threshold", threshold))


def _read_cross_layer(files: Files, config: dict[str, Any], found: dict[int, str], format: str) -> Saved:
    alone = cross_layers.selected_layer(found, files)
    n = len(cross_layers.consecutive(found, files)) if alone is None else None
    sources, biases, sizes = [], [], {}
    for i in range(len(found)) if alone is None else [alone]:
        axes = {f"W_enc_{i}": "m d", f"b_enc_{i}": "m", f"b_dec_{i}": "d_out"}
        tensors, sizes = checked(files.tensors(found[i]), found[i], axes, {f"threshold_{i}": "m"}, sizes)
        decoder = f"W_dec_{i}.safetensors"
        sizes |= {} if n is None else {f"targets_of_{i}": n - i}
        W_dec, sizes = checked(files.tensors(decoder), decoder, {f"W_dec_{i}": f"m targets_of_{i} d_out"}, {}, sizes)
        prefix = f"sources.{i}."
        tensors = {name.removesuffix(f"_{i}"): array for name, array in (tensors | W_dec).items()}
        threshold, b_dec = tensors.pop("threshold", None), tensors.pop("b_dec")
        weights = one_dtype(tensors, "W_enc")
        placed: dict[str, Any] = {
            name: files.place(prefix + name, a) for name, a in (weights | {"W_enc": weights["W_enc"].T}).items()
        }
        activation = ReLU() if threshold is None else _jump(threshold, found[i], files, prefix)
        sources.append(Source(**placed, activation=activation))
        if type(activation) is not type(sources[0].activation):
            raise UserError(f"{found[i]} has {'no ' if threshold is None else ''}thresholds, unlike {found[0]}")
        biases.append(b_dec.astype(weights["W_enc"].dtype))
    if alone is not None:
        return _saved(
            cross_layers.alone(sources[0]), config, [alone], format, range(alone, alone + sizes[f"targets_of_{alone}"])
        )
    return _saved(CrossLayer(tuple(sources), files.place("b_dec", np.stack(biases))), config, range(len(found)), format)


def _saved(
    dictionary: Dictionary | CrossLayer, config: dict[str, Any], reads: Any, format: str, writes: Any = None
) -> Saved:
    model = config.get("model_name")
    hook_in, hook_out = config.get("feature_input_hook"), config.get("feature_output_hook")
    if not all(isinstance(value, str) for value in (model, hook_in, hook_out)):
        raise UserError(
            f"{CONFIG} needs model_name, feature_input_hook and feature_output_hook; it has {sorted(config)}"
        )
    inputs = [hook_value(f"blocks.{i}.{hook_in}", model) for i in reads]
    outputs = [hook_value(f"blocks.{i}.{hook_out}", model) for i in (reads if writes is None else writes)]
    address, normalized, notes = cross_layers.addresses(inputs)
    written, _, more = cross_layers.addresses(outputs)
    notes = (FIRST_POSITION, UNFOLDED, *notes, *more, *(() if writes is None else (cross_layers.ONE_SOURCE,)))
    activations = (
        [s.activation for s in dictionary.sources] if isinstance(dictionary, CrossLayer) else [dictionary.activation]
    )
    notes += (_TOP_K,) if any(isinstance(a, TopK) for a in activations) else ()
    return Saved(dictionary, address, model, config, written, format, tuple(dict.fromkeys(notes)), {}, normalized)
