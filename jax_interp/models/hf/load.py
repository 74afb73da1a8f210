"""`load`: read a model and its tokenizer from a directory in Hugging Face's layout, or from the hub."""

from __future__ import annotations

import contextlib
import re
from importlib.resources import files
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from jax_interp.core.config_json import from_json, to_json
from jax_interp.core.errors import UserError
from jax_interp.core.tensor_files import read_json
from jax_interp.data.tokenizer import Tokenizer, load_tokenizer
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder, init
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.checkpoint import stored_tensors
from jax_interp.models.hf.family import Family, family_of
from jax_interp.models.hf.fill import fill

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

    Args:
      name_or_dir: the name of a packaged model (`stdlib-small`); a directory with `config.json`, `model.safetensors`
        (or several files with an index), and optionally `tokenizer.json`; or a model of the hub (`gpt2`), which is
        downloaded into Hugging Face's cache. If a directory with this name exists, it is used.
      revision: a branch, tag or commit of the hub's repository.
      dtype: the dtype of the parameters and of the computation. Default: the dtype of the files (the widest one, if
        tensors differ).
      mesh: the mesh for the parameters, which are placed by `jax_interp.models.sharding.rules`. Default: the default
        device.
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
    _, config, named = _described(_find(name_or_dir, revision, local_files_only, ("config.json",)))
    dtype = jnp.dtype(dtype or named or "float32")
    return jax.eval_shape(lambda: init(config, jax.random.key(0), stacked=stacked, dtype=dtype))


def _described(directory: Path) -> tuple[Family, Config, str | None]:
    """The family, the config and the dtype that `config.json` describes."""
    values = read_json(directory / "config.json")
    where = str(directory / "config.json")
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
    dtype = values.get("dtype") or values.get("torch_dtype")
    return family, config, dtype if dtype in ("float16", "bfloat16", "float32", "float64") else None


def _tokenizer(directory: Path) -> Tokenizer | None:
    if not (directory / "tokenizer.json").is_file():
        return None
    named = read_json(directory / "config.json").get("bos_token_id")
    return load_tokenizer(directory, bos_id=named if isinstance(named, int) else None)


def _find(
    name_or_dir: str | Path, revision: str | None, local_files_only: bool, patterns: tuple[str, ...] = FILES
) -> Path:
    """The directory of a model. If `name_or_dir` is a name on the hub, the model is downloaded."""
    name, directory = str(name_or_dir), Path(name_or_dir)
    with contextlib.suppress(RuntimeError):  # "~user" of an unknown user is not a directory
        directory = directory.expanduser()
    if directory.is_dir() or name in PACKAGED:
        if revision is not None:
            raise UserError(f"revision={revision!r} is for models on the hub; {name} is a local directory")
        return directory if directory.is_dir() else Path(str(files("jax_interp") / "assets" / name))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise UserError(f"there is no directory {name}, and it is not a name on the hub (name, or owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=local_files_only)
        )
    except Exception as error:  # many libraries: no network, unknown name or revision, no permission, no disk space
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{name!r} is not a directory, not a packaged model ({', '.join(PACKAGED)}), and could not be fetched from "
            f"the hub: {reason[0]}"
        ) from error
