"""Fetch the files of one dictionary from the Hugging Face hub.

    fetched = fetch("google/gemma-scope-2b-pt-res", "layer_5/width_16k/average_l0_68", kind=format_named("gemma-scope"))
    fetched.path, fetched.revision

Only the files that the format reads are fetched. Without a network, files of an earlier call are found in the cache of
`huggingface_hub`.
"""

from __future__ import annotations

import dataclasses
import glob
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.formats import Format
from jax_interp.dictionaries.releases import nearest

ANY_FORMAT = ("{path}", "{path}/*", "{path}/checkpoints/final.*", "{folder}/*.json", "{folder}/*.yaml")
"""The files to fetch where the format is not known."""
OF_TRAINING = re.compile(r"(optimizer|trainer_state|activations_store_state|lr_scheduler|rng_state)[^/]*$|/state\.pt$")
REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
ADDRESS = re.compile(r"hf:(?://)?(?P<repository>[^/@]+/[^/@]+)(?:/(?P<path>[^@]*))?(?:@(?P<revision>.+))?")


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A folder or file of a repository, on this disk."""

    path: Path
    location: str
    """The path with the name of the repository before it."""
    revision: str
    """The commit."""


def parse_hub_address(text: str) -> tuple[str, str, str | None]:
    """(repository, path, revision) of "hf:owner/repo/path@revision". Raises UserError if it is not of this form."""
    match = ADDRESS.fullmatch(text)
    if match is None or not REPOSITORY.fullmatch(match["repository"]) or ".." in (match["path"] or "").split("/"):
        raise UserError(f"{text!r} is not hf:owner/repository[/path][@revision]")
    return match["repository"], (match["path"] or "").strip("/"), match["revision"]


def fetch(repository: str, path: str, *, kind: type[Format] | None = None, revision: str | None = None) -> Fetched:
    """Fetch the files of one dictionary, unless they are in the cache.

    Args:
      repository: owner/name.
      path: the folder or file of the dictionary. "": the whole repository.
      kind: the format. None: not known; all files in the folder are fetched, but no state of training.
      revision: a branch, tag or commit. None: the newest commit of the main branch.

    Raises:
      UserError: the hub cannot be reached and the cache does not have the files, or the repository, the revision or the
        path do not exist.
    """
    from huggingface_hub import HfApi, snapshot_download

    patterns = ANY_FORMAT if kind is None else kind.hub_files
    what = "/".join(part for part in (repository, path) if part)
    try:
        about: Any = HfApi().repo_info(repository, revision=revision)
    except Exception as error:  # no network, unknown name or revision, no permission
        return _cached(repository, path, revision, what, error)
    names = [file.rfilename for file in about.siblings or ()]
    wanted = files_of(names, path, patterns)
    if not any(name == path or name.startswith(f"{path}/") or not path for name in wanted):
        raise UserError(f"{repository} has no {path!r}{_beside(path, names)}")
    if kind is None:
        _check_one(repository, path, wanted)
    try:
        exact = [glob.escape(name) for name in wanted]  # brackets in a name are not a pattern
        root = Path(snapshot_download(repository, revision=about.sha, allow_patterns=exact))
    except Exception as error:
        raise _not_fetched(what, error) from error
    return Fetched(root / path, what, str(about.sha))


def _cached(repository: str, path: str, revision: str | None, what: str, error: Exception) -> Fetched:
    """The files of an earlier call."""
    from huggingface_hub import snapshot_download

    try:
        root = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception:  # it was never fetched: the first error says why it cannot be now
        raise _not_fetched(what, error) from error
    if not (root / path).exists():
        raise _not_fetched(what, error) from error
    return Fetched(root / path, what, root.name)


def _not_fetched(what: str, error: Exception) -> UserError:
    return UserError(f"{what} is not in the cache and could not be fetched from the hub: {first_line(error)}")


def first_line(error: Exception) -> str:
    """The first line of what a library says, for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def files_of(names: Sequence[str], path: str, patterns: Sequence[str] = ANY_FORMAT) -> list[str]:
    """The files of one dictionary among the files of a repository.

    Args:
      names: the files of the repository.
      path: the folder or file of the dictionary.
      patterns: `Format.hub_files`.
    """
    found = PurePosixPath(path)
    folder = "" if str(found.parent) == "." else str(found.parent)
    places = {"path": path, "folder": folder, "stem": path.removesuffix(found.suffix), "name": found.name}
    expressions = []
    for pattern in patterns:
        parts = re.split(r"(\{\w+\}|\*)", pattern)
        text = "".join("[^/]*" if p == "*" else re.escape(places[p[1:-1]] if p[:1] == "{" else p) for p in parts)
        expressions.append(re.compile(text.removeprefix("/")))
    matched = (name for name in names if any(e.fullmatch(name) for e in expressions))
    return [name for name in matched if not OF_TRAINING.search(name)]


def _check_one(repository: str, path: str, wanted: Sequence[str]) -> None:
    """Raise UserError if the folder has several torch files: each is a dictionary of its own, and large."""
    torch = [name for name in wanted if name.endswith((".pt", ".pth"))]
    if len(torch) > 1 and path not in torch:
        raise UserError(
            f"{'/'.join(part for part in (repository, path) if part)} has {len(torch)} dictionaries: give one, such as "
            f"hf:{repository}/{torch[0]}"
        )


def _beside(path: str, names: Sequence[str]) -> str:
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents} - {"."}
    near = nearest(path, folders | set(names), 3)
    some = near or sorted({name.split("/")[0] for name in names})[:5]
    return f"; {'did you mean' if near else 'it has'} {', '.join(some)}" if some else "; it has no files"
