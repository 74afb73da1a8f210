"""`load`: a model and its tokenizer from a directory in Hugging Face's layout, or from the hub."""

from __future__ import annotations

import contextlib
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from jax_interp.core.config_json import from_json, to_json
from jax_interp.core.errors import UserError
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder, init
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.checkpoint import read_json, stored_tensors
from jax_interp.models.hf.family import Family, family_of
from jax_interp.models.hf.fill import fill

if TYPE_CHECKING:
    from jax_interp.data.tokenizer import Tokenizer

PACKAGED = ("stdlib-small",)
"""Models that come with the package."""
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
    """`model, tokenizer = load(...)`: weights as they are, logits those of the reference implementation.

    Args:
      name_or_dir: a directory with `config.json`, `model.safetensors` (or an index of several) and maybe
        `tokenizer.json`; the name of a packaged model (`stdlib-small`); or a name on the hub (`gpt2`), whose files are
        downloaded to the usual cache. Only JSON and safetensors are fetched and read: no code, no pickles.
      revision: a branch, tag or commit of the hub's repository.
      dtype: of the parameters, and so of the computation; default: the files', the widest where they differ.
      mesh: where the parameters go, by `jax_interp.models.sharding.rules`; default: the default device.
      first_n_layers: read that many blocks only; the final norm and the head follow directly.
      stacked: one scanned `Stack` of blocks, or every block its own (`replan` changes it later).
      local_files_only: of the hub's files, take what is in the cache and go nowhere.

    The tokenizer is None where there is no `tokenizer.json`. Host memory beyond the model: one tensor. `UserError` for
    an architecture, an attribute or a tensor that is not understood, and for files that are not what they should be.
    """
    directory = _find(name_or_dir, revision, local_files_only)
    family, full, _ = _described(directory)
    config = full if first_n_layers is None else full.first(first_n_layers)
    model = fill(config, family, stored_tensors(directory), full=full, dtype=dtype, mesh=mesh, stacked=stacked)
    return model, _tokenizer(directory)


def load_shapes(
    name_or_dir: str | Path,
    *,
    revision: str | None = None,
    dtype: DTypeLike | None = None,
    stacked: bool = True,
    local_files_only: bool = False,
) -> Decoder:
    """The model as `load` would give it, of shapes and dtypes only: what `sites`, `jax.eval_shape` and a plan of
    shardings need. Reads (or fetches) `config.json` and nothing else; `dtype` is by default the one named there.
    """
    _, config, named = _described(_find(name_or_dir, revision, local_files_only, ("config.json",)))
    dtype = jnp.dtype(dtype or named or "float32")
    return jax.eval_shape(lambda: init(config, jax.random.key(0), stacked=stacked, dtype=dtype))


def _described(directory: Path) -> tuple[Family, Config, str | None]:
    """What `config.json` tells: the family, the config, the dtype."""
    values = read_json(directory / "config.json")
    where = str(directory / "config.json")
    family = family_of(values, where)
    attributes = Attributes(values, where)
    try:
        config = family.read(attributes)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:  # a string for a number, say
        raise UserError(f"{where} has an attribute that is no {family.model_type} model's: {error}") from error
    attributes.close()
    try:
        from_json(Config, to_json(config))
    except UserError as error:
        raise UserError(f"{where} gives a model of the wrong kind: {error}") from error
    dtype = values.get("dtype") or values.get("torch_dtype")
    return family, config, dtype if dtype in ("float16", "bfloat16", "float32", "float64") else None


def _tokenizer(directory: Path) -> Tokenizer | None:
    from jax_interp.data.tokenizer import load_tokenizer

    if not (directory / "tokenizer.json").is_file():
        return None
    named = read_json(directory / "config.json").get("bos_token_id")
    return load_tokenizer(directory, bos_id=named if isinstance(named, int) else None)


def _find(
    name_or_dir: str | Path, revision: str | None, local_files_only: bool, patterns: tuple[str, ...] = FILES
) -> Path:
    """The directory that is meant. A directory that exists goes before a name."""
    name, directory = str(name_or_dir), Path(name_or_dir)
    with contextlib.suppress(RuntimeError):  # no such user: then it is no directory
        directory = directory.expanduser()
    if directory.is_dir() or name in PACKAGED:
        if revision is not None:
            raise UserError(f"revision={revision!r} is for names on the hub; {name} is here")
        return directory if directory.is_dir() else Path(str(files("jax_interp") / "assets" / name))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise UserError(f"there is no directory {name}, and it is no name on the hub either (name, or owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=local_files_only)
        )
    except Exception as error:  # of many libraries: no network, no such name, no such revision, no permission, no space
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{name!r} is no directory here, none of the packaged models ({', '.join(PACKAGED)}), and could not be "
            f"fetched from the hub: {reason[0]}"
        ) from error
