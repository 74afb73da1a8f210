"""Save dictionaries, in the format of this package or for another program, on this disk or on the hub.

save_dictionary("runs/sae/dictionary", sae, address="blocks.2.resid_post", model="gpt2")
save_dictionary("for-saelens", saved, format="saelens")
upload_dictionary(saved, "me/my-saes", path="layer_5", format="saelens")
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.formats.detection import format_named
from jax_interp.dictionaries.forms import Form
from jax_interp.dictionaries.hub import REPOSITORY, first_line
from jax_interp.dictionaries.storage import Saved

NATIVE = "jax_interp"


def save_dictionary(
    directory: Path | str,
    dictionary: Form | Saved,
    *,
    address: str | tuple[str, ...] | None = None,
    model: str | None = None,
    config: object = None,
    writes: str | tuple[str, ...] | None = None,
    format: str = NATIVE,
) -> Path:
    """Save a dictionary, with the model and the addresses that it was trained for.

    Args:
      directory: created if it does not exist. A dictionary that was saved there before is replaced.
      dictionary: a dictionary of any registered form, or what `load_dictionary` returned.
      address: the address that the dictionary reads, or several. A loaded dictionary has it already.
      model: the name of the model. A loaded dictionary has it already.
      config: the training config, to keep with the dictionary: a dataclass or a JSON value.
      writes: the address that the dictionary writes, or several. None: the same as `address`.
      format: the name of the format, such as "saelens" for files that SAELens loads.

    Returns:
      The directory.

    Raises:
      UserError: the directory cannot be made, the activation is not registered, address or model are missing, the
        format is unknown, or it cannot hold this dictionary.

    Example:
        save_dictionary("runs/sae/dictionary", sae, address="blocks.2.resid_post", model="gpt2")
    """
    given: dict[str, Any] = {"address": address, "model": model, "config": config, "writes": writes}
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(dictionary, Saved):
        saved = dataclasses.replace(dictionary, **given)
    else:
        saved = Saved(dictionary, **({"address": None, "model": None} | given))  # type: ignore[arg-type]
    return format_named(format).write(saved, Path(directory))


def upload_dictionary(
    dictionary: Form | Saved,
    repository: str,
    *,
    path: str = "",
    format: str = NATIVE,
    private: bool = False,
    message: str = "Upload a dictionary",
    **labels: Any,
) -> str:
    """Upload a dictionary to the hub. The repository is made if it does not exist. Needs `hf auth login` once.

    Args:
      dictionary: a dictionary, or what `load_dictionary` returned.
      repository: owner/name.
      path: the folder in the repository.
      format: the name of the format, as in `save_dictionary`.
      private: whether a repository that is made now is private.
      message: the message of the commit.
      labels: `address`, `model`, `writes` and `config`, as in `save_dictionary`.

    Returns:
      What `load_dictionary` takes to load it again, with the commit.

    Raises:
      UserError: the format cannot hold the dictionary, or the hub refuses the upload.

    Example:
        upload_dictionary(saved, "me/my-saes", path="layer_5", format="saelens", private=True)
    """
    from huggingface_hub import HfApi

    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"{repository!r} is not owner/repository")
    with tempfile.TemporaryDirectory() as directory:
        save_dictionary(directory, dictionary, format=format, **labels)
        try:
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=directory,
                path_in_repo=path,
                commit_message=message,
                ignore_patterns=[".*"],  # the lock of the writer
            )
        except Exception as error:
            raise UserError(f"the upload to {repository} failed: {first_line(error)}") from error
    return f"hf:{'/'.join(part for part in (repository, path) if part)}@{commit.oid}"
