"""`save`: write a model as a directory in Hugging Face's layout."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_interp.core.atomic_write import WriteError, atomic_write, sync, sync_tree
from jax_interp.core.errors import UserError
from jax_interp.core.locks import locked
from jax_interp.core.processes import barrier, is_first_process, on_host
from jax_interp.core.tensor_files import write_tensors
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models.decoder import Decoder, init
from jax_interp.models.hf.checkpoint import INDEX, WEIGHTS
from jax_interp.models.hf.digests import write_digests
from jax_interp.models.hf.family import Family, family_for
from jax_interp.models.hf.fill import parameters
from jax_interp.models.hf.tensors import TensorSpec


def save(
    model: Decoder,
    directory: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    family: str | None = None,
    overwrite: bool = False,
    max_file_bytes: int = 5_000_000_000,
    header: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model as a directory. `load` and transformers read it back with the same logits.

    The directory contains `config.json`, the weights as safetensors, `tokenizer.json` if a tokenizer is given, and
    `digests.json`, with which `load` notices a file that was changed or exchanged. It is written atomically: if the
    process is killed, the previous model still exists, or the next call restores it.
    Besides the model, host memory holds only the tensors of one file. Of a run over several processes, the first one
    writes, and all return when it has.

    Args:
      model: a decoder without surgery. Save edits separately, with `save_edits`.
      directory: the directory to write.
      tokenizer: the tokenizer of the model.
      family: the `model_type` of the layout. Default: the most general family that has such a model. A Phi-3 without a
        window, for example, is written as a Llama with the same logits.
      overwrite: whether to replace an existing directory. It must contain a model, and no run.
      max_file_bytes: if the weights have more bytes, they are written as several files with an index.
      header: entries of `config.json` to add or to replace.

    Returns:
      The directory, as an absolute path.

    Raises:
      UserError: no family has such a model, the parameters of the model do not fit its config, or `directory` exists
        and cannot be replaced or written.

    Example:
        model, tokenizer = load("gpt2")
        save(process(model), "gpt2-processed", tokenizer=tokenizer)
    """
    if not isinstance(model, Decoder):
        raise UserError(f"save takes a Decoder, got {type(model).__name__}: surgery is saved apart from the model")
    layout, values = family_for(model.config, family)
    _check_parts(model)
    dtype = jax.tree.leaves(model)[0].dtype.name
    values = {"architectures": [layout.architecture], "model_type": layout.model_type, "dtype": dtype} | values
    if tokenizer is not None and tokenizer.bos_id is not None:
        values["bos_token_id"] = tokenizer.bos_id
    directory, tensors = Path(directory).resolve(), _tensors(model, layout)
    if is_first_process():
        with _replacing(directory, overwrite) as fresh:
            _write_tensors(tensors, fresh, max_file_bytes)
            atomic_write(fresh / "config.json", json.dumps(values | dict(header or {}), indent=2) + "\n")
            if tokenizer is not None:
                tokenizer.save(str(fresh / "tokenizer.json"))
            write_digests(fresh)
    else:
        for _ in tensors:  # the first process gets the parts that are on the devices of this one
            pass
    barrier("a model is saved")
    return directory


@contextlib.contextmanager
def _replacing(directory: Path, overwrite: bool) -> Iterator[Path]:
    """A new directory to fill. After the block it replaces `directory`. After an error `directory` is unchanged."""
    fresh, old, lock = (directory.with_name(f".{directory.name}.{which}") for which in ("new", "old", "lock"))
    try:
        with locked(lock, f"the model {directory}"):
            if old.exists() and not directory.exists():  # a process was killed between the two renames below
                os.replace(old, directory)
            _check_replaceable(directory, overwrite)
            for leftover in (fresh, old):  # from a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            fresh.mkdir()
            try:
                yield fresh
                sync_tree(fresh)
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
    except OSError as error:
        raise WriteError.of(directory, error) from error


def _check_replaceable(directory: Path, overwrite: bool) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file, but a model is saved as a directory: give another place")
    if not any(directory.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{directory} exists: give another place, or overwrite=True")
    has = lambda *names: any((directory / name).exists() for name in names)
    # The directory of a run has a config.json too.
    if not (has("config.json") and has(WEIGHTS, INDEX)) or has("checkpoints", ".lock"):
        raise UserError(f"{directory} exists and contains no model, or contains a run too: give another place")


def _check_parts(model: Decoder) -> None:
    """Raise `UserError` unless the model has exactly the parameters of its config."""

    def shapes(model: Decoder) -> dict[str, tuple[int, ...]]:
        return {p.name.replace("*", str(layer), 1): p.shape for p in parameters(model) for layer in p.layers}

    has, wanted = shapes(model), shapes(jax.eval_shape(lambda key: init(model.config, key), jax.random.key(0)))
    if odd := [f"{name} {has.get(name, 'is missing')}" for name in has | wanted if has.get(name) != wanted.get(name)]:
        shown = ", ".join(odd[:3]) + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
        raise UserError(
            f"the model's parameters are not those of its config: {shown}. Surgery is saved apart from the model; "
            "save the original model, or undo the surgery (`LoRA.merged` folds a LoRA into its weight)"
        )


def _tensors(model: Decoder, family: Family) -> Iterator[tuple[str, np.ndarray]]:
    """The stored tensors of a family, by name. Parameters that the family fuses are combined."""
    specs = family.tensors(model.config)
    parts: dict[str, list[tuple[TensorSpec, tuple[int, ...], Callable[[], np.ndarray]]]] = {}
    for p, leaf in zip(parameters(model), jax.tree.leaves(model), strict=True):
        spec = specs[p.name]
        for i, layer in enumerate(p.layers):
            for expert, name in enumerate(spec.names(layer, p.shape)):
                index = ((i,) if p.stacked else ()) + ((expert,) if spec.experts else ())
                value = lambda leaf=leaf, index=index: on_host(leaf[index])
                parts.setdefault(name, []).append((spec, p.shape, value))
    for name, parts_of_tensor in parts.items():
        spec, shape, value = parts_of_tensor[0]
        whole = np.empty(spec.shape(shape), value().dtype)
        for spec, _, value in parts_of_tensor:
            spec.pack(value(), whole)
        yield family.stored_name(name), whole


def _write_tensors(tensors: Iterator[tuple[str, np.ndarray]], directory: Path, max_file_bytes: int) -> None:
    """Write the tensors to one file, or to several files with an index if they exceed `max_file_bytes`."""
    shards, batch, size, total = [], {}, 0, 0

    def flush():
        if batch:
            shards.append((directory / f"part-{len(shards)}", sorted(batch)))
            write_tensors(shards[-1][0], batch, {"format": "pt"})
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
    atomic_write(directory / INDEX, json.dumps(index, indent=2) + "\n")
