"""clt-training (EleutherAI): sparsify's folders for cross-layer transcoders, one folder per layer.

    clt/layers.0.mlp/{cfg.json, sae.safetensors}, clt/layers.1.mlp/..., clt/config.json

    encoder.weight [feature, d], encoder.bias                 the encoder, TopK or GroupMax
    W_decs.<j> [feature, d], b_decs.<j>, W_skips.<j>          what it writes j layers later; W_dec where they are shared
    post_enc_scales.<j>, post_encs.<j> [feature]              a factor of the latents, and a constant of active latents
    in_norm, out_norm                                         input * sqrt(d) / in_norm, output * out_norm / sqrt(d)

The output of a layer is the sum of what all earlier sources write to it. The folder of one layer is one source.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.dictionaries.activations import GroupMax, TopK
from jax_interp.dictionaries.formats import cross_layers
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.formats.hook_names import HookValue, module_value
from jax_interp.dictionaries.formats.tensor_shapes import checked
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.dictionaries.storage import Saved

_CONFIG, _FILE = "cfg.json", "sae.safetensors"
_REFUSED = {
    "divide_cross_layer": "it divides what earlier layers write by their number",
    "secondary_target_tied": "each target decodes once more",
    "topk_coalesced": "the latents of several layers compete",
}
_SUM = "the biases of all sources that write a target are added up"


@FORMATS.register
class CltTraining(Format):
    """A cross-layer transcoder, or one of its sources."""

    name = "clt-training"
    title = "clt-training"
    repositories = ("EleutherAI/*clt*",)
    hub_files = ("{path}/*", "{path}/*/cfg.json", "{path}/*/sae.safetensors", "{folder}/config.json")

    @classmethod
    def recognise(cls, files: Files) -> bool:
        if files.selected in (None, _CONFIG, _FILE) and _CONFIG in files and _FILE in files:
            return "n_targets" in files.json(_CONFIG)
        if files.selected is not None:
            return False
        return any("n_targets" in files_of.json(_CONFIG) for files_of in _folders(files).values())

    @classmethod
    def read(cls, files: Files) -> Saved:
        folders = _folders(files)
        alone = _CONFIG in files
        if alone:
            folders = {files.location.rstrip("/").removesuffix(f"/{files.selected}").rsplit("/", 1)[-1]: files}
        read = [_Layer.of(folder) for folder in folders.values()]
        model, notes = _model(files.directory.parent if alone else files.directory), (_SUM,)
        inputs = [module_value(name, "input", model) for name in folders]
        outputs = [module_value(name, "output", model) for name in folders]
        if alone:
            source = read[0].source(files, 0, read[0].n_targets, [1.0] * read[0].n_targets)
            dictionary: Any = cross_layers.alone(source)
            own = HookValue(None, note="the folder of one layer does not name the later layers that it writes")
            outputs, notes = outputs if read[0].n_targets == 1 else [own], (cross_layers.ONE_SOURCE,)
            if read[0].out_scale != 1:
                raise UserError("one layer of a set with normalize_io cannot be scaled alone: load the whole set")
        else:
            dictionary = _together(read, files)
        address, normalized, why = cross_layers.addresses(inputs)
        written, _, more = cross_layers.addresses(outputs)
        notes = tuple(dict.fromkeys((*notes, *why, *more)))
        return Saved(dictionary, address, model, read[0].config, written, cls.name, notes, {}, normalized)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """The settings and the tensors of one folder."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    n_targets: int

    @classmethod
    def of(cls, folder: Files) -> _Layer:
        config = folder.json(_CONFIG)
        n = max(1, config.get("n_targets") or 0)
        _check_settings(config, folder.directory.name)
        return cls(config, _checked_tensors(folder, config, n), n)

    @property
    def in_scale(self) -> float:
        """The factor of the input."""
        return self._scale("in_norm", -1)

    @property
    def out_scale(self) -> float:
        """The factor of the output."""
        return self._scale("out_norm", 1)

    def _scale(self, name: str, power: int) -> float:
        if not self.config.get("normalize_io"):
            return 1.0
        norm = self.tensors[name].item()
        if not (np.isfinite(norm) and norm > 0):
            raise UserError(f"{name} is {norm}, so it was not measured")
        return (norm / self.config["d_in"] ** 0.5) ** power

    def source(self, files: Files, index: int, n_targets: int, out: list[float]) -> Source:
        """The source for raw activations. `out` holds the factor of each target."""
        tensors, prefix = self.tensors, f"sources.{index}."
        dtype = tensors["encoder.weight"].dtype
        decoders = []
        for j in range(n_targets):
            W = tensors[_either(tensors, f"W_decs.{j}", "W_dec")]
            scale = tensors.get(f"post_enc_scales.{j}", tensors.get("post_enc_scale", np.ones(1)))
            decoders.append((W * (scale[:, None] * out[j])).astype(dtype))
        W_skip = tensors.get("W_skips.0", tensors.get("W_skip"))
        skip = None if W_skip is None else (W_skip.T * (self.in_scale * out[0])).astype(dtype)
        kind = GroupMax if self.config.get("activation", "topk") == "groupmax" else TopK
        m = tensors["encoder.weight"].shape[0]
        return Source(
            W_enc=files.place(prefix + "W_enc", (tensors["encoder.weight"].T * self.in_scale).astype(dtype)),
            b_enc=files.place(prefix + "b_enc", tensors["encoder.bias"]),
            W_dec=files.place(prefix + "W_dec", np.stack(decoders, axis=1)),
            activation=kind(self.config.get("k", 32)).init(m, np.float32),
            W_skip=None if skip is None else files.place(prefix + "W_skip", skip),
        )


def _either(tensors: Mapping[str, np.ndarray], name: str, shared: str) -> str:
    """The name of the tensor of one target, or of the tensor that all targets share."""
    return name if name in tensors else shared


def _together(read: list[_Layer], files: Files) -> CrossLayer:
    n = len(read)
    sources, b_dec = [], np.zeros((n, read[0].config["d_in"]))
    if len({layer.tensors["encoder.weight"].shape for layer in read}) > 1:
        raise UserError(f"the folders of {files.directory} have encoders of different shapes: load them one by one")
    for i, layer in enumerate(read):
        written = min(layer.n_targets, n - i)
        out = [read[i + j].out_scale for j in range(written)]
        sources.append(layer.source(files, i, written, out))
        for j in range(written):
            b_dec[i + j] += layer.tensors[_either(layer.tensors, f"b_decs.{j}", "b_dec")] * out[j]
    return CrossLayer(tuple(sources), files.place("b_dec", b_dec.astype(read[0].tensors["encoder.weight"].dtype)))


def _check_settings(config: Mapping[str, Any], where: str) -> None:
    for name, why in _REFUSED.items():
        if config.get(name):
            raise UserError(f"{where}: {_CONFIG} sets {name}: {why}, which no form here does")
    if config.get("coalesce_topk") not in (None, "none"):
        raise UserError(
            f"{where}: {_CONFIG} has coalesce_topk {config['coalesce_topk']!r}; only 'none' can be held here"
        )
    if config.get("activation", "topk") not in ("topk", "groupmax"):
        raise UserError(f"{where}: {_CONFIG} has activation {config['activation']!r}; known are topk and groupmax")
    if not config.get("transcode"):
        raise UserError(f"{where}: {_CONFIG} does not set transcode: cross-layer dictionaries here are transcoders")
    if type(config.get("d_in")) is not int or type(config.get("k", 32)) is not int:
        raise UserError(
            f"{where}: {_CONFIG} has d_in {config.get('d_in')!r} and k {config.get('k')!r}; both are numbers"
        )


def _checked_tensors(folder: Files, config: Mapping[str, Any], n: int) -> dict[str, np.ndarray]:
    several = bool(config.get("n_targets"))
    tied = bool(config.get("per_source_tied")) or not several
    indices = [f"s.{j}" for j in range(n)] if several else [""]
    required = {"encoder.weight": "m d", "encoder.bias": "m"} | {f"b_dec{i}": "d" for i in indices}
    required |= {"W_dec": "m d"} if tied else {f"W_dec{i}": "m d" for i in indices}
    if config.get("skip_connection"):
        required |= {f"W_skip{i}": "d d" for i in indices}
    if config.get("normalize_io"):
        required |= {"in_norm": "one", "out_norm": "one"}
    if config.get("post_encoder_scale"):
        required |= {f"post_enc_scale{i}": "m" for i in indices}
    aliases = {name: axes for name, axes in (("W_dec", "m d"), ("b_dec", "d"), ("W_skip", "d d")) if several}
    optional = {f"post_enc{i}": "m" for i in indices} | {k: v for k, v in aliases.items() if k not in required}
    where = f"{folder.directory.name}/{_FILE}"
    tensors, _ = checked(folder.tensors(_FILE), where, required, optional, {"d": config["d_in"], "one": 1})
    for i in indices:
        if tensors.get(f"post_enc{i}", np.zeros(1)).any():
            raise UserError(f"{where} has post_enc{i} other than zero: no form here adds a constant to active latents")
    for i in indices[1:]:
        if tensors.get(f"W_skip{i}", np.zeros(1)).any():
            raise UserError(f"{where} has W_skip{i} other than zero: a skip here reaches the layer of its source only")
    return tensors


def _folders(files: Files) -> dict[str, Files]:
    """The folders of the layers, in the order of their numbers."""
    found = {}
    for path in files.directory.iterdir():
        numbers = [int(number) for number in re.findall(r"\d+", path.name)]
        if path.is_dir() and (path / _CONFIG).is_file() and (path / _FILE).is_file():
            found[tuple(numbers), path.name] = dataclasses.replace(files, directory=path, selected=None)
    return {name: found[key, name] for key, name in sorted(found)}


def _model(directory: Any) -> str | None:
    path = directory / "config.json"
    model = read_json(path).get("model") if path.is_file() else None
    return model if isinstance(model, str) else None
