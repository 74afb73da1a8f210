"""llamascopium (OpenMOSS): SAEs, transcoders, cross-layer transcoders and crosscoders.

    config.json                   sae_type, d_model, act_fn, norm_activation, sparsity_include_decoder_norm, ...
    sae_weights.safetensors       or .pt, or checkpoints/pruned.* or checkpoints/final.*

    sae          W_E [d, feature], W_D [feature, d], b_E, b_D
    clt          W_E [layer, d, feature], W_D.<target> [source, feature, d] with the sources 0, ..., target
    crosscoder   W_E [value, d, feature], W_D [value, feature, d]; pre-activations are summed over the values

A crosscoder gates each value by the norm of its own decoder row. With thresholds, a latent may then be on for one value
and off for another: here each value has its own copy of the latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import ReLU, TopK
from jax_interp.dictionaries.activations.jumprelu import Jump
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
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

_CONFIG, _NORM = "config.json", "dataset_average_activation_norm."
_THRESHOLD = "activation_function.log_jumprelu_threshold"
_HOOKS = {"sae": ("hook_point_in", "hook_point_out"), "clt": ("hook_points_in", "hook_points_out"),
          "crosscoder": ("hook_points",)}  # fmt: skip
_REFUSED = {"lorsa": "sparse attention", "molt": "a mixture of linear transforms"}
_COPIES = "feature i of value v is feature v * {m} + i: the gates of the values differ, so each has its own copy"


@FORMATS.register
class Llamascopium(Format):
    """SAEs, transcoders, cross-layer transcoders and crosscoders."""

    name = "llamascopium"
    title = "llamascopium (OpenMOSS)"
    hub_files = ("{path}/*", "{path}/checkpoints/final.*", "{path}/checkpoints/pruned.*")

    @classmethod
    def recognise(cls, files: Files) -> bool:
        if files.selected not in (None, _CONFIG) or _CONFIG not in files:
            return False
        if not {"sae_type", "d_model"} <= files.json(_CONFIG).keys():  # other programs have a sae_type too
            return False
        where, name = _weights_file(files)
        return not name.endswith(".safetensors") or "encoder.weight" not in where.tensors(name)

    @classmethod
    def read(cls, files: Files) -> Saved:
        config = files.json(_CONFIG)
        kind = config["sae_type"]
        if kind in _REFUSED:
            raise UserError(f"{_CONFIG} has sae_type {kind!r}: {_REFUSED[kind]}, which no form here has")
        readers = {"sae": _read_sae, "clt": _read_clt, "crosscoder": _read_crosscoder}
        if kind not in readers:
            raise UserError(f"{_CONFIG} has sae_type {kind!r}; known are {', '.join(readers)}")
        check_settings(config, _CONFIG)
        where, name = _weights_file(files)
        found: Any = where.tensors(name)
        if name.endswith(".pt"):
            found = found["sae"] if isinstance(found.get("sae"), Mapping) else found
        return readers[kind](_Stored(config, dict(found), name, files))


@dataclasses.dataclass
class _Stored:
    """The config and the tensors of one dictionary."""

    config: dict[str, Any]
    tensors: dict[str, Any]
    name: str
    files: Files

    def __post_init__(self) -> None:
        norms = [name for name in self.tensors if name.startswith(_NORM)]
        self.norms = {name.removeprefix(_NORM): np.asarray(self.tensors.pop(name)).item() for name in norms}
        required = ("d_model", *_HOOKS[self.config["sae_type"]])
        if missing := [name for name in required if name not in self.config]:
            raise UserError(f"{_CONFIG} has no {missing[0]!r}")

    def checked(
        self, required: dict[str, str], biases: dict[str, str], sizes: dict[str, int], threshold: str
    ) -> dict[str, np.ndarray]:
        """The tensors, with zeros for biases that the config leaves out."""
        jump = {_THRESHOLD: threshold} if str(self.config.get("act_fn", "")).lower() == "jumprelu" else {}
        used = biases if self.config.get("use_decoder_bias", True) else {}
        tensors, sizes = checked(
            self.tensors, self.name, required | jump | used, {}, sizes | {"d": self.config["d_model"]}
        )
        for name, axes in biases.items():
            tensors.setdefault(name, np.zeros([sizes[axis] for axis in axes.split()], np.float32))
        log = {name: tensors.pop(name) for name in (_THRESHOLD,) if name in tensors}
        return one_dtype(tensors, "W_E") | log

    def scales(self, hooks: Sequence[str]) -> list[float]:
        """The factor of each value."""
        mode = self.config.get("norm_activation", "dataset-wise")
        if mode == "inference":
            return [1.0] * len(hooks)
        if mode != "dataset-wise":
            raise UserError(
                f"{_CONFIG} has norm_activation {mode!r}: only a constant scale ('dataset-wise') can be folded"
            )
        return [scale_of(self.config["d_model"], self.norms.get(hook), hook) for hook in hooks]

    def notes(self, *more: str) -> tuple[str, ...]:
        return ((SCALED,) if self.config.get("norm_activation", "dataset-wise") == "dataset-wise" else ()) + more

    def place(self, role: str, view: np.ndarray) -> Array:
        return self.files.place(role, view)

    def values(self, hooks: Sequence[str]) -> Any:
        return cross_layers.addresses([hook_value(hook, self.config.get("model_name")) for hook in hooks])


def _read_sae(stored: _Stored) -> Saved:
    config = stored.config
    hooks = [config["hook_point_in"], config["hook_point_out"]]
    tensors = stored.checked({"W_E": "d m", "b_E": "m", "W_D": "m d_out"}, {"b_D": "d_out"}, {}, "m")
    W_dec = stored.place("W_dec", tensors["W_D"])
    threshold = lambda: jnp.exp(stored.place("activation.log_threshold", tensors[_THRESHOLD]))
    dictionary = Dictionary(
        W_enc=stored.place("W_enc", tensors["W_E"]),
        b_enc=stored.place("b_enc", tensors["b_E"]),
        W_dec=W_dec,
        b_dec=stored.place("b_dec", tensors["b_D"]),
        activation=activation_of(config, threshold, lambda: row_norms(W_dec), _CONFIG),
        centred=False,
    )
    dictionary = fold_input_scale(dictionary, *stored.scales(hooks))
    address, normalized, why = stored.values(hooks[:1])
    written, _, more = (None, None, ()) if hooks[0] == hooks[1] else stored.values(hooks[1:])
    notes = stored.notes(*why, *more)
    return Saved(
        dictionary, address, config.get("model_name"), config, written, Llamascopium.name, notes, {}, normalized
    )


def _read_clt(stored: _Stored) -> Saved:
    config = stored.config
    hooks_in, hooks_out = config["hook_points_in"], config["hook_points_out"]
    n = len(hooks_in)
    decoders = {f"W_D.{t}": f"sources_of_{t} m d_out" for t in range(n)}
    sizes = {"n": n} | {f"sources_of_{t}": t + 1 for t in range(n)}
    tensors = stored.checked(
        {"W_E": "n d m", "b_E": "n m"} | decoders, {f"b_D.{t}": "d_out" for t in range(n)}, sizes, "n m"
    )
    into, out = stored.scales(hooks_in), stored.scales(hooks_out)
    sources = []
    for i in range(n):
        prefix = f"sources.{i}."
        W_dec = stored.place(prefix + "W_dec", np.stack([tensors[f"W_D.{t}"][i] for t in range(i, n)], axis=1))
        threshold = lambda i=i, prefix=prefix: jnp.exp(
            stored.place(f"{prefix}activation.log_threshold", tensors[_THRESHOLD][i])
        )
        source = Source(
            W_enc=stored.place(prefix + "W_enc", tensors["W_E"][i]),
            b_enc=stored.place(prefix + "b_enc", tensors["b_E"][i]),
            W_dec=W_dec,
            activation=activation_of(config, threshold, lambda W=W_dec: row_norms(W), _CONFIG),
        )
        sources.append(_scaled(source, into[i], out[i:]))
    b_dec = stored.place("b_dec", np.stack([tensors[f"b_D.{t}"] for t in range(n)]))
    b_dec = b_dec / jnp.asarray(out, b_dec.dtype)[:, None]
    address, normalized, why = stored.values(hooks_in)
    written, _, more = stored.values(hooks_out)
    if isinstance(sources[0].activation, TopK) and includes_norms(config):
        more = (*more, "its latents are multiplied by the norms of their decoder rows, by which TopK compares them")
    dictionary = CrossLayer(tuple(sources), b_dec)
    notes = stored.notes(*why, *more)
    return Saved(
        dictionary, address, config.get("model_name"), config, written, Llamascopium.name, notes, {}, normalized
    )


def _scaled(source: Source, into: float, out: Sequence[float]) -> Source:
    """The source for raw activations. The norms by which TopK compares are those of the stored decoders."""
    activation, norms = source.activation, None
    if isinstance(activation, TopK) and activation.weighted:
        norms = row_norms(source.W_dec).astype(source.W_dec.dtype)
        activation = activation.with_unit_rows(norms)
    dtype = source.W_enc.dtype
    W_enc, b_enc = source.W_enc * jnp.asarray(into, dtype), source.b_enc
    W_dec = source.W_dec / jnp.asarray(out, dtype)[None, :, None]
    if norms is not None:
        safe = jnp.where(norms == 0, jnp.ones_like(norms), norms)
        W_enc, b_enc, W_dec = W_enc * norms[None, :], b_enc * norms, W_dec / safe[:, None, None]
    return Source(W_enc, b_enc, W_dec, activation)


def _read_crosscoder(stored: _Stored) -> Saved:
    config = stored.config
    hooks = config["hook_points"]
    n = len(hooks)
    tensors = stored.checked({"W_E": "n d m", "b_E": "n m", "W_D": "n m d"}, {"b_D": "n d"}, {"n": n}, "m")
    scales = np.asarray(stored.scales(hooks))
    m, d = tensors["W_D"].shape[1:]
    W_E = tensors["W_E"].astype(np.float32) * scales[:, None, None].astype(np.float32)
    W_D = tensors["W_D"].astype(np.float32)
    norms = np.linalg.norm(W_D.astype(np.float64), axis=-1)
    W_D = W_D / scales[:, None, None].astype(np.float32)
    W_enc, b_enc = W_E.reshape(n * d, m), tensors["b_E"].astype(np.float32).sum(axis=0)
    W_dec = W_D.transpose(1, 0, 2).reshape(m, n * d)
    kind, notes, activation = str(config.get("act_fn", "relu")).lower(), (), ReLU()
    if kind == "jumprelu":
        with np.errstate(divide="ignore"):
            thresholds = np.exp(tensors[_THRESHOLD].astype(np.float64)) / (
                norms if includes_norms(config) else np.ones((n, 1))
            )
        thresholds = np.minimum(thresholds, np.finfo(np.float32).max)
        if (thresholds == thresholds[:1]).all():
            thresholds = thresholds[0]
        else:
            notes = (_COPIES.format(m=m),)
            W_enc, b_enc = np.tile(W_enc, (1, n)), np.tile(b_enc, n)
            W_dec = np.zeros((n, m, n, d), np.float32)
            W_dec[np.arange(n), :, np.arange(n)] = W_D
            W_dec = W_dec.reshape(n * m, n * d)
        activation = Jump.of(stored.place("activation.log_threshold", thresholds.astype(np.float32).reshape(-1)))
    elif kind != "relu":
        raise UserError(
            f"{_CONFIG} has act_fn {kind!r}: the latents of each value compete by the norms of its own decoder, which "
            "no activation here does; known for crosscoders are relu and jumprelu"
        )
    b_dec = (tensors["b_D"].astype(np.float32) / scales[:, None].astype(np.float32)).reshape(-1)
    arrays = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    placed: dict[str, Any] = {name: stored.place(name, array) for name, array in arrays.items()}
    dictionary = Dictionary(**placed, activation=activation, centred=False, write_sites=n)
    address, normalized, why = stored.values(hooks)
    notes = stored.notes(*notes, *why)
    return Saved(dictionary, address, config.get("model_name"), config, None, Llamascopium.name, notes, {}, normalized)


def _weights_file(files: Files) -> tuple[Files, str]:
    """The folder and the name of the file of weights."""
    folders: list[tuple[Files, tuple[str, ...]]] = [(files, ("sae_weights",))]
    if (inside := files.directory / "checkpoints").is_dir():
        folders.append((dataclasses.replace(files, directory=inside, selected=None), ("pruned", "final")))
    for folder, stems in folders:
        for stem in stems:
            for ending in (".safetensors", ".pt"):
                if stem + ending in folder:
                    return folder, stem + ending
            if (folder.directory / f"{stem}.dcp").exists():
                raise UserError(
                    f"{folder.directory / stem}.dcp is a distributed checkpoint of torch: load it with llamascopium "
                    "and save it as sae_weights.safetensors"
                )
    raise UserError(f"{files.directory} has no sae_weights.safetensors and no checkpoints/final.safetensors")
