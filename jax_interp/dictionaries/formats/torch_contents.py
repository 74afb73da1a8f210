"""What the torch file of a published dictionary holds: names, tensors and plain values.

Formats without a config file are recognised by these names. Looking at them does not read the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.torch_files import read_torch
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.hook_names import HookValue, hook_value

_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pkl.gz")
_COMPILED = "_orig_mod."  # what `torch.compile` puts before the names of a module


def torch_file(files: Files) -> str | None:
    """The name of the torch file, if there is exactly one."""
    found = [name for name in files.names() if name.endswith(_ENDINGS)]
    return found[0] if len(found) == 1 else None


def only_torch_file(files: Files) -> str:
    """The name of the torch file. Raises UserError unless there is exactly one."""
    name = torch_file(files)
    if name is None:
        raise UserError(f"{files.directory} does not hold exactly one torch file: give the file")
    return name


def torch_contents(files: Files, name: str, *, keep_unknown: bool = False, verify: bool = True) -> dict[str, Any]:
    """The entries of a torch file by name, without the prefix that `torch.compile` leaves. The options are those of
    `read_torch`.

    Raises:
      UserError: as `read_torch`, or two names differ only in the prefix.
    """
    found = read_torch(files.path(name), keep_unknown=keep_unknown, verify=verify)
    named = {key.replace(_COMPILED, ""): value for key, value in found.items()}
    if len(named) != len(found):
        raise UserError(f"{name} has tensors whose names differ only in {_COMPILED!r}")
    return named


def names_in(files: Files, name: str | None) -> frozenset[str]:
    """The names in a torch file. Empty if `name` is None."""
    return frozenset() if name is None else frozenset(torch_contents(files, name, keep_unknown=True, verify=False))


def whole_number(found: dict[str, Any], name: str, where: str) -> int | None:
    """Take a whole number, or a tensor of one, out of the entries. None if it is not there."""
    if name not in found:
        return None
    value = found.pop(name)
    single = np.asarray(value) if isinstance(value, (int, np.ndarray)) and not isinstance(value, bool) else None
    if single is None or single.size != 1 or single.dtype.kind not in "iu":
        raise UserError(f"{where}: {name!r} is not a whole number")
    return int(single.reshape(()))


def text(config: Mapping[str, Any], name: str, where: str) -> str | None:
    """A setting that is text. None if it is missing or null. Raises UserError if it has another type."""
    value = config.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {name} is {value!r}, which is not text")
    return value


def hook_named(config: Mapping[str, Any], name: str, model: str | None, where: str) -> HookValue:
    """The value of a TransformerLens name in the settings. No address if there is no such setting."""
    hook = text(config, name, where)
    if hook is None:
        return HookValue(None, note=f"{where} has no {name}, so what it reads is not known")
    return hook_value(hook, model)
