"""`save`: a model as a directory that `load` and transformers read back to the same logits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_interp.core.atomic_write import sync
from jax_interp.core.errors import UserError
from jax_interp.models.decoder import Decoder, init
from jax_interp.models.hf.checkpoint import INDEX, WEIGHTS
from jax_interp.models.hf.family import Family, family_for
from jax_interp.models.hf.fill import parameters
from jax_interp.models.hf.tensors import TensorSpec


def save(
    model: Decoder,
    directory: str | Path,
    *,
    tokenizer: Any = None,
    family: str | None = None,
    overwrite: bool = False,
    max_file_bytes: int = 5_000_000_000,
    header: Mapping[str, Any] | None = None,
) -> Path:
    """Write `config.json`, the weights as safetensors (several with an index where they exceed `max_file_bytes`), and
    `tokenizer.json` where a tokenizer is given. Host memory: one file's tensors. `header` has further entries of
    `config.json`, or others than would be written.

    `family` is the layout to write in, by its `model_type`; default: the first that has such a model, so that Phi-3
    without a window, say, becomes a Llama, whose logits are the same.

    The directory appears whole or not at all. One that exists is replaced only with `overwrite`, and only where it
    holds a model and no run; until then it stands, or comes back with the next call of a process that was killed
    between. `UserError` for a model that no family has, an edited one too: what surgery adds has no place there.
    """
    if not isinstance(model, Decoder):
        raise UserError(f"save takes a Decoder, got {type(model).__name__}: surgery is saved apart from the model")
    layout, values = family_for(model.config, family)
    _check_parts(model)
    dtype = jax.tree.leaves(model)[0].dtype.name
    directory = Path(directory).resolve()
    fresh, old = (directory.with_name(f".{directory.name}.{which}") for which in ("new", "old"))
    if old.exists() and not directory.exists():
        os.replace(old, directory)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: a model is saved as a directory, give another place")
    if directory.exists() and any(directory.iterdir()) and not (overwrite and _is_model(directory)):
        raise UserError(
            f"{directory} exists: give another place, or overwrite=True"
            if not overwrite
            else f"{directory} exists and holds no model, or a run as well: give another place"
        )
    for left in (fresh, old):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        values = {"architectures": [layout.architecture], "model_type": layout.model_type, "dtype": dtype} | values
        if getattr(tokenizer, "bos_id", None) is not None:
            values["bos_token_id"] = tokenizer.bos_id
        _write_tensors(_tensors(model, layout), fresh, max_file_bytes)
        (fresh / "config.json").write_text(json.dumps(values | dict(header or {}), indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(str(fresh / "tokenizer.json"))
        for file in fresh.iterdir():
            sync(file)
        sync(fresh)
        if directory.exists():
            os.replace(directory, old)
        os.replace(fresh, directory)
    except BaseException:
        if old.exists() and not directory.exists():
            os.replace(old, directory)
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)
    return directory


def _is_model(directory: Path) -> bool:
    """Whether there is a model in it that may be replaced: a run's directory has a config.json too."""
    has = lambda *names: any((directory / name).exists() for name in names)
    return has("config.json") and has(WEIGHTS, INDEX) and not has("checkpoints", ".lock")


def _check_parts(model: Decoder) -> None:
    """Refuse a model whose parameters are not, one for one, those that its config makes."""

    def held(model: Decoder) -> dict[str, tuple[int, ...]]:
        return {p.name.replace("*", str(layer), 1): p.shape for p in parameters(model) for layer in p.layers}

    has, made = held(model), held(jax.eval_shape(lambda key: init(model.config, key), jax.random.key(0)))
    if odd := [f"{name} {has.get(name, 'is missing')}" for name in has | made if has.get(name) != made.get(name)]:
        shown = ", ".join(odd[:3]) + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
        raise UserError(
            f"the model's parameters are not those of its config: {shown}. Surgery is saved apart from the model; "
            "save the model as it was, or undo what was put into it (a LoRA is folded in by its `merged`)"
        )


def _tensors(model: Decoder, family: Family) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors under the family's names, fused where it fuses them."""
    table = family.tensors(model.config)
    found: dict[str, list[tuple[TensorSpec, tuple[int, ...], Callable[[], np.ndarray]]]] = {}
    for p, leaf in zip(parameters(model), jax.tree.leaves(model), strict=True):
        tensor = table[p.name]
        for i, layer in enumerate(p.layers):
            for expert, name in enumerate(tensor.names(layer, p.shape)):
                index = ((i,) if p.stacked else ()) + ((expert,) if tensor.experts else ())
                part = lambda leaf=leaf, index=index: np.asarray(leaf[index])
                found.setdefault(name, []).append((tensor, p.shape, part))
    for name, parts in found.items():
        tensor, shape, part = parts[0]
        whole = np.empty(tensor.shape(shape), part().dtype)
        for tensor, _, part in parts:
            tensor.pack(part(), whole)
        yield family.stored_name(name), whole


def _write_tensors(tensors: Iterator[tuple[str, np.ndarray]], directory: Path, max_file_bytes: int) -> None:
    from safetensors.numpy import save_file

    shards, batch, size, total = [], {}, 0, 0

    def flush():
        if batch:
            shards.append((directory / f"part-{len(shards)}", sorted(batch)))
            save_file(dict(batch), shards[-1][0], metadata={"format": "pt"})
            batch.clear()

    for name, array in tensors:
        if size + array.nbytes > max_file_bytes:
            flush()
            size = 0
        batch[name] = array
        size, total = size + array.nbytes, total + array.nbytes
    flush()
    if len(shards) == 1:
        os.replace(shards[0][0], directory / WEIGHTS)
        return
    weight_map = {}
    for i, (file, names) in enumerate(shards, start=1):
        final = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        os.replace(file, directory / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
