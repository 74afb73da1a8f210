"""Write transcoders and cross-layer dictionaries as folders that circuit-tracer loads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import ReLU
from jax_interp.dictionaries.activations.activation import Activation
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.formats.circuit_tracer import CONFIG
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved

_HOOKS = {"mlp_out": "hook_mlp_out", "resid_mid": "hook_resid_mid", "resid_pre": "hook_resid_pre",
          "ln2.normalized": "ln2.hook_normalized"}  # fmt: skip


def write(saved: Saved, directory: Path) -> Path:
    """Write a folder for circuit-tracer's `load_transcoder_set` or `load_clt`.

    A dictionary whose sources write only their own layer becomes a transcoder set. Otherwise it becomes a cross-layer
    transcoder.

    Raises:
      UserError: the dictionary is not a transcoder of layers 0, 1, ..., its activation is not ReLU or JumpReLU, or it
        reads or writes values that circuit-tracer does not name.
    """
    sources, b_dec = _sources(saved)
    window = {source.W_dec.shape[1] for source in sources}
    per_layer = window == {1}
    if not per_layer and [s.W_dec.shape[1] for s in sources] != list(range(len(sources), 0, -1)):
        raise UserError(
            f"its sources write {[s.W_dec.shape[1] for s in sources]} targets: circuit-tracer has all later ones"
        )
    reads, writes = saved.normalized or saved.address, saved.writes
    hook_in = "mlp.hook_in" if saved.normalized is not None else _hook(reads, len(sources), "reads")
    if saved.normalized is not None:
        _hook(saved.normalized, len(sources), "reads")
    config = {
        "model_name": saved.model_name(),
        "model_kind": "transcoder_set" if per_layer else "cross_layer_transcoder",
        "feature_input_hook": hook_in,
        "feature_output_hook": _hook(writes, len(sources), "writes"),
    }
    directory.mkdir(parents=True, exist_ok=True)
    if stale := sorted(path.name for path in directory.glob("*.safetensors")):
        raise UserError(f"{directory} already has {stale[0]}: circuit-tracer would read it as another layer")
    for i, source in enumerate(sources):
        (_write_one if per_layer else _write_source)(directory, i, source, np.asarray(b_dec[i]))
    (directory / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return directory


def _sources(saved: Saved) -> tuple[Sequence[Source], Any]:
    dictionary = saved.dictionary
    if isinstance(dictionary, CrossLayer):
        return dictionary.sources, dictionary.b_dec
    if not isinstance(dictionary, Dictionary) or dictionary.centred or dictionary.write_sites != 1:
        raise UserError("circuit-tracer has transcoders: dictionaries that are not centred and write one value")
    one = Source(
        dictionary.W_enc, dictionary.b_enc, dictionary.W_dec[:, None], dictionary.activation, dictionary.W_skip
    )
    return [one], dictionary.b_dec[None]


def _hook(addresses: str | tuple[str, ...] | None, n: int, what: str) -> str:
    """The name of a value without its layer. Raises UserError unless they are one value of layers 0 to n - 1."""
    given = [addresses] if isinstance(addresses, str) else list(addresses or ())
    found = [re.fullmatch(r"blocks\.(\d+)\.(.+)", address) for address in given]
    names = {match[2] for match in found if match}
    if [int(match[1]) for match in found if match] != list(range(n)) or len(names) != 1 or not names <= set(_HOOKS):
        raise UserError(
            f"this dictionary {what} {addresses}; circuit-tracer has one value of each layer from 0, one of "
            f"{', '.join(f'blocks.0.{name}' for name in _HOOKS)}"
        )
    return _HOOKS[names.pop()]


def _threshold(activation: Activation) -> np.ndarray | None:
    if isinstance(activation, Jump):
        return np.asarray(activation.threshold)
    if isinstance(activation, ReLU):
        return None
    raise UserError(f"circuit-tracer loads ReLU and JumpReLU transcoders, not {type(activation).__name__}")


def _write_one(directory: Path, layer: int, source: Source, b_dec: np.ndarray) -> None:
    tensors = {"W_enc": source.W_enc.T, "W_dec": source.W_dec[:, 0], "b_enc": source.b_enc, "b_dec": b_dec}
    tensors |= {} if source.W_skip is None else {"W_skip": source.W_skip.T}
    if (threshold := _threshold(source.activation)) is not None:
        tensors["activation_function.threshold"] = threshold
    _save(tensors, directory / f"layer_{layer}.safetensors")


def _write_source(directory: Path, layer: int, source: Source, b_dec: np.ndarray) -> None:
    if source.W_skip is not None:
        raise UserError("the files of circuit-tracer's cross-layer transcoders have no skip")
    tensors = {f"W_enc_{layer}": source.W_enc.T, f"b_enc_{layer}": source.b_enc, f"b_dec_{layer}": b_dec}
    if (threshold := _threshold(source.activation)) is not None:
        tensors[f"threshold_{layer}"] = threshold
    _save(tensors, directory / f"W_enc_{layer}.safetensors")
    _save({f"W_dec_{layer}": source.W_dec}, directory / f"W_dec_{layer}.safetensors")


def _save(tensors: dict[str, Any], path: Path) -> None:
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
