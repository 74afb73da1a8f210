"""`load`: read a model and its tokenizer from a directory in Hugging Face's layout, or from the hub."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from jax_interp.core.config_json import from_json, to_json
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.core.processes import process_count
from jax_interp.data.tokenizer import Tokenizer, load_tokenizer
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder, init
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.checkpoint import stored_tensors
from jax_interp.models.hf.digests import check_digests, same_files_everywhere
from jax_interp.models.hf.family import Family, family_of
from jax_interp.models.hf.fill import by_name, checked_dtype, fill, has_own_head

PACKAGED = ("stdlib-small",)
"""Models that are part of the package."""
FILES = ("config.json", "tokenizer.json", "model*.safetensors", "model.safetensors.index.json")


def load(
    name_or_dir: str | Path,
    *,
    revision: str | None = None,
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    first_n_layers: int | None = None,
    stacked: bool = True,
    local_files_only: bool = False,
) -> tuple[Decoder, Tokenizer | None]:
    """Load a model and its tokenizer.

    The weights are loaded without processing, and the logits are those of the reference implementation. Besides the
    model, host memory holds only one tensor at a time. Only JSON and safetensors files are downloaded and read, and no
    code or pickles.

    An unembedding in the files that differs from the embedding is used, also where `config.json` says that the two are
    tied (`load_shapes` reads `config.json` only, and follows it).

    Args:
      name_or_dir: the name of a packaged model (`stdlib-small`); a directory with `config.json`, `model.safetensors`
        (or several files with an index), and optionally `tokenizer.json`; or a model of the hub (`gpt2`), which is
        downloaded into Hugging Face's cache. If a directory with this name exists, it is used.
      revision: a branch, tag or commit of the hub's repository.
      dtype: the dtype of the parameters and of the computation. Default: the dtype of the files (the widest one, if
        tensors differ).
      mesh: the mesh for the parameters, which are placed by `jax_interp.models.sharding.rules`. Default: the default
        device. If it spans several processes, each one reads its own copy of the files; other files than those of
        process 0 are refused.
      first_n_layers: load only the first layers. The final norm and the unembedding follow directly.
      stacked: True: one scanned `Stack` of blocks. False: a list of blocks. `replan` can change the layout later.
      local_files_only: use only the cache, and do not connect to the hub.

    Returns:
      `(model, tokenizer)`. The tokenizer is None if there is no `tokenizer.json`.

    Raises:
      UserError: the model is not found, the files are damaged, or an architecture, attribute or tensor is not
        supported.

    Example:
        model, tokenizer = load("stdlib-small")
        model, tokenizer = load("EleutherAI/pythia-70m", revision="step1000", dtype="bfloat16")
    """
    directory = _find(name_or_dir, revision, local_files_only)
    check_digests(directory)
    values, where = read_json(directory / "config.json"), str(directory / "config.json")
    family, full = _described(values, where)
    tensors = stored_tensors(directory)
    if mesh is not None and process_count() > 1:
        same_files_everywhere(directory, list({tensor.file for tensor in tensors.values()}))
    stored = by_name(family, tensors)
    if full.n_layers * max(1, full.n_experts) > len(stored):
        raise UserError(f"{where} describes {full.n_layers} layers, but there are only {len(stored)} tensors")
    if full.tied_embedding and has_own_head(family, full, stored):
        family, full = _described(values | {"tie_word_embeddings": False}, where)
    config = full if first_n_layers is None else full.first(first_n_layers)
    model = fill(config, family, stored, full=full, dtype=dtype, mesh=mesh, stacked=stacked)
    return model, _tokenizer(directory, values, full)


def load_shapes(
    name_or_dir: str | Path,
    *,
    revision: str | None = None,
    dtype: DTypeLike | None = None,
    stacked: bool = True,
    local_files_only: bool = False,
) -> Decoder:
    """The model that `load` would return, with shapes and dtypes but without weights.

    This is enough for `sites`, `jax.eval_shape`, and planning shardings. Only `config.json` is read or downloaded.

    Args:
      name_or_dir: a name or a directory, as in `load`.
      revision: a branch, tag or commit of the hub's repository.
      dtype: the dtype of the parameters. Default: the dtype in `config.json`.
      stacked: True: one scanned `Stack` of blocks. False: a list of blocks.
      local_files_only: use only the cache.

    Example:
        sites(load_shapes("gpt2"))(jax.ShapeDtypeStruct((1, 8), jnp.int32))
    """
    file = _find(name_or_dir, revision, local_files_only, ("config.json",)) / "config.json"
    return shapes_of(read_json(file), str(file), dtype=dtype, stacked=stacked)


def shapes_of(values: dict[str, Any], where: str, *, dtype: DTypeLike | None = None, stacked: bool = True) -> Decoder:
    """`load_shapes` for the content of a `config.json`.

    Args:
      values: the content.
      where: its name, for messages.
      dtype: the dtype of the parameters. Default: the dtype in `values`.
      stacked: as in `load_shapes`.

    Raises:
      UserError: the architecture or an attribute is not supported.
    """
    _, config = _described(values, where)
    named = values.get("dtype") or values.get("torch_dtype")
    dtype = checked_dtype(dtype or (named if named in ("float16", "bfloat16", "float64") else "float32"))
    return jax.eval_shape(lambda: init(config, jax.random.key(0), stacked=stacked, dtype=dtype))


def _described(values: dict[str, Any], where: str) -> tuple[Family, Config]:
    """The family and the config that a `config.json` describes."""
    family = family_of(values, where)
    attributes = Attributes(values, where)
    try:
        config = family.read(attributes)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:  # a string for a number, say
        raise UserError(f"{where} has an attribute of the wrong type for {family.model_type}: {error}") from error
    attributes.close()
    try:
        from_json(Config, to_json(config))
    except UserError as error:
        raise UserError(f"{where} has an attribute of the wrong type: {error}") from error
    return family, config


def _tokenizer(directory: Path, values: dict[str, Any], config: Config) -> Tokenizer | None:
    """The tokenizer of a model. It refuses texts with token ids that the model does not have."""
    if not (directory / "tokenizer.json").exists():
        return None
    named = values.get("bos_token_id")
    return load_tokenizer(directory, bos_id=named if isinstance(named, int) else None, model_ids=config.vocab_size)


def _find(
    name_or_dir: str | Path, revision: str | None, local_files_only: bool, patterns: tuple[str, ...] = FILES
) -> Path:
    """The directory of a model. If `name_or_dir` is a name on the hub, the model is downloaded."""
    name, directory = str(name_or_dir), Path(name_or_dir)
    if not name.strip():
        raise UserError("the name of the model is empty: give a directory, or a name on the hub")
    with contextlib.suppress(RuntimeError):  # "~user" of an unknown user is not a directory
        directory = directory.expanduser()
    is_directory = _is(Path.is_dir, directory)
    if is_directory or name in PACKAGED:
        if revision is not None:
            raise UserError(f"revision={revision!r} is for models on the hub; {name} is a local directory")
        return directory if is_directory else Path(str(files("jax_interp") / "assets" / name))
    if _is(Path.exists, directory):
        raise UserError(f"{name} is a file: load takes the directory of a model")
    if near := difflib.get_close_matches(name, PACKAGED, n=1, cutoff=0.75):
        raise UserError(f"there is no model {name!r}: did you mean {near[0]!r}?")
    hint = _neighbour(directory)
    if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", name) or name.startswith("."):
        raise UserError(
            f"there is no directory {name[:300]!r}{hint}, and it is not a name on the hub (name, or owner/name)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=local_files_only)
        )
    except Exception as error:  # many libraries: no network, unknown name or revision, no permission, no disk space
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{name!r} is not a directory, not a packaged model ({', '.join(PACKAGED)}), and could not be fetched from "
            f"the hub: {reason[0]}{hint}"
        ) from error


def _is(what: Callable[[Path], bool], path: Path) -> bool:
    """`path.is_dir()` or `path.exists()`; False for a name that no file system takes."""
    try:
        return what(path)
    except (OSError, ValueError):
        return False


def _neighbour(directory: Path) -> str:
    """A hint at the directory with the nearest name beside one that does not exist."""
    parent = directory.parent
    with contextlib.suppress(OSError, ValueError):
        beside = [other.name for other in parent.iterdir() if other.is_dir()]
        if near := difflib.get_close_matches(directory.name, beside, n=1):
            return f"; did you mean {str(parent / near[0])!r}?"
    return ""
