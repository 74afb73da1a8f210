"""Checkpoints: a pytree at one step, written by orbax and verified leaf by leaf when it is read.

    directory/00001200/arrays/       orbax: the flat {address: leaf}; whole/ if the hosts of the run share no disk
    directory/00001200/leaves.json   shape, dtype and fingerprint of every leaf, and what the run records beside them

Orbax alone loads flipped bits and casts dtypes without an error, cannot store an array of size zero, and cannot load a
tree that contains an `nnx.List`. The leaves are therefore stored as a flat dict, their description is stored beside the
arrays, and both are compared when they are read. If the comparison fails, `restore` warns and uses an earlier step.

A step appears by one rename, after all its files and directories are flushed to the disk. A process that is killed, or
a machine that loses its power, leaves either the complete step or a `.tmp` directory, which the next save removes. A
save that fails removes it at once. `save` returns after the step is on the disk, so the arrays may be donated right
after.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.atomic_write import make_directory, sync, sync_tree
from jax_interp.core.decisions import exchange, of_first, on_one_disk
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json
from jax_interp.core.leaves import PyTree, addresses, flatten, is_key
from jax_interp.core.processes import barrier, from_first_process, is_first_process, process_count
from jax_interp.training.arrays import UnreadableArrays, read_arrays, write_arrays
from jax_interp.training.fingerprint import begin_fingerprints, fingerprints
from jax_interp.training.whole_arrays import pass_on, read_whole, write_whole


class CheckpointError(UserError):
    """A checkpoint that cannot be used."""


class CorruptCheckpoint(CheckpointError):
    """A step is damaged: its bytes differ from the saved bytes (truncated, altered, or not completely written)."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint of another state: its leaves, shapes or dtypes differ from those of the template.

    `problems` has one phrase for each difference.
    """

    def __init__(self, path: Path, problems: list[str]):
        shown = problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
        super().__init__(
            f"checkpoint {path} holds another state: {'; '.join(shown)}. "
            "Start it with the config it was saved with, or use another directory"
        )
        self.problems = shown


class CheckpointWarning(UserWarning):
    """A damaged step was skipped."""


def path_of(directory: Path | str, step: int) -> Path:
    """The directory of a step."""
    return Path(directory) / f"{step:08d}"


def steps(directory: Path | str) -> list[int]:
    """The completed steps in `directory`, ascending. Their content is not checked; `restore` checks it."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.is_dir() and path.name.isdecimal())


def latest(directory: Path | str) -> int | None:
    """The last completed step in `directory`; None if there is none."""
    return max(steps(directory), default=None)


def _describe(leaf: Any) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def save(
    directory: Path | str,
    step: int,
    tree: PyTree,
    *,
    keep: int = 3,
    milestone_every: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write `tree` as `step`, then delete old steps.

    Every process of a run over several processes calls this with the same path. If they share the disk, each writes its
    part of the arrays. Otherwise process 0 gathers and writes them, one array after the other.

    Args:
      directory: the directory of all checkpoints. It is created if it is missing.
      step: the number of the step. Later steps are deleted, because the run has returned to an earlier step.
      tree: any pytree of arrays and PRNG keys.
      keep: how many of the last steps are kept, at least 1.
      milestone_every: steps that are a multiple of this number are never deleted.
      about: JSON values that are stored with the step, see `about`.

    Returns:
      The directory of the step.

    Raises:
      UserError: `keep` is below 1.
      OSError: the step cannot be written. Nothing of it is left, and the earlier steps stay.

    Example:
        save("runs/sae/checkpoints", 1200, state, keep=2, milestone_every=1000)
    """
    if keep < 1:
        raise UserError(f"keep={keep}: at least one checkpoint has to be kept (2 or more to survive a damaged one)")
    directory = Path(directory).absolute()
    final = path_of(directory, step)
    temporary = final.with_name(f".{final.name}.tmp")
    flat = {name: jnp.asarray(leaf) for name, leaf in flatten(tree).items()}
    marks = begin_fingerprints(flat)
    if process_count() > 1:  # no other collective may run beside those of the save
        marks()
    first = jax.process_index() == 0
    try:
        if first:
            make_directory(directory)
            remove_unfinished(directory)
            temporary.mkdir()
        arrays = {name: jax.random.key_data(x) if is_key(x) else x for name, x in flat.items() if x.size}
        if not on_one_disk(temporary):
            write_whole(temporary / "whole", arrays)
        elif arrays:
            write_arrays(temporary / "arrays", arrays)
        barrier(f"checkpoint {step} is written")
        prints = marks()
        leaves = {name: _describe(leaf) | {"fingerprint": prints[name]} for name, leaf in flat.items()}
        if first:
            body = json.dumps({"step": step, "leaves": leaves, "about": dict(about or {})}, indent=1)
            digest = hashlib.sha256(body.encode()).hexdigest()
            (temporary / "leaves.json").write_text(f"{digest}\n{body}\n")
            sync_tree(temporary)
            _remove(final)  # the step exists if it was damaged and the run has reached it again
            os.rename(temporary, final)
            sync(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if first:
        _prune(directory, step, keep, milestone_every)
    barrier(f"checkpoint {step} is done")
    return final


def remove_unfinished(directory: Path) -> None:
    """Remove what a killed process left of a save or of a removal. No other process may save in `directory`."""
    for stale in directory.glob(".*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)


def _remove(path: Path) -> None:
    """Delete a step. It is renamed first, so a killed process does not leave a partial step under its name."""
    if path.exists():
        trash = path.with_name(f".{path.name}.trash.tmp")
        shutil.rmtree(trash, ignore_errors=True)
        os.rename(path, trash)
        shutil.rmtree(trash)


def _prune(directory: Path, step: int, keep: int, milestone_every: int | None) -> None:
    past = [s for s in steps(directory) if s <= step]
    milestones = {s for s in past if milestone_every and s % milestone_every == 0}
    for s in set(steps(directory)) - set(past[-keep:]) - milestones:
        _remove(path_of(directory, s))


def restore(directory: Path | str, template: PyTree, step: int | None = None) -> tuple[PyTree, int]:
    """Read a checkpoint.

    Args:
      directory: the directory of all checkpoints.
      template: the structure, shapes, dtypes and shardings of the result. Its leaves are arrays or
        `jax.ShapeDtypeStruct`s. The mesh may differ from the mesh at saving; the restored bits are the same.
      step: the step to read. None: the last undamaged step. Damaged steps are then skipped, each with a
        `CheckpointWarning` that names the step and the reason.

    Returns:
      The tree, and the number of the step that was read.

    Raises:
      CheckpointMismatch: the checkpoint does not fit the template.
      CorruptCheckpoint: `step` is damaged, or all steps are damaged.
      CheckpointError: `step` does not exist, or there is no checkpoint.

    Example:
        template = jax.eval_shape(make_state)
        state, step = restore("runs/sae/checkpoints", template)
    """
    directory = Path(directory).absolute()
    present = from_first_process(lambda: steps(directory))
    if not present:
        raise CheckpointError(f"no checkpoint in {directory}")
    if step is not None:
        if step not in present:
            raise CheckpointError(f"no checkpoint of step {step} in {directory}; there are {present}")
        return _load(path_of(directory, step), template), step
    reasons = []
    for candidate in reversed(present):
        try:
            tree = _load(path_of(directory, candidate), template)
        except CorruptCheckpoint as error:
            reasons.append(str(error))
            continue
        for reason in reasons if is_first_process() else ():
            warnings.warn(f"{reason}; using step {candidate} instead", CheckpointWarning, stacklevel=2)
        return tree, candidate
    raise CorruptCheckpoint("no sound checkpoint is left: " + "; ".join(reasons))


def describe(path: Path | str) -> dict[str, dict[str, Any]]:
    """The description of the step in `path`: `{address: {"shape", "dtype", "fingerprint"}}`. It reads no arrays.

    Raises:
      CorruptCheckpoint: the description is missing or damaged.
    """
    return _manifest(Path(path))[0]["leaves"]


def about(path: Path | str) -> dict[str, Any]:
    """The JSON values that were stored with the step in `path`. Empty for a step of an earlier version.

    Raises:
      CorruptCheckpoint: the description is missing or damaged.
    """
    return _manifest(Path(path))[0].get("about", {})


def identity(path: Path | str) -> str:
    """A digest of the step in `path`: of its leaves' fingerprints and of what is stored with it.

    Raises:
      CorruptCheckpoint: the description is missing or damaged.
    """
    return _manifest(Path(path))[1]


def _manifest(path: Path) -> tuple[dict[str, Any], str]:
    """The content of `leaves.json`, and its SHA-256."""
    try:
        digest, _, body = (path / "leaves.json").read_text().partition("\n")
        if hashlib.sha256(body.removesuffix("\n").encode()).hexdigest() != digest:
            raise ValueError("the checksum does not match")
        content = parse_json(body, "it", nonfinite=True)
        if not isinstance(content["leaves"], dict):
            raise ValueError("it does not describe leaves")
        return content, digest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"checkpoint {path} is damaged: leaves.json: {error}") from error


def _load(path: Path, template: PyTree) -> PyTree:
    one_disk = _see_the_same(path)
    saved = of_first(lambda: describe(path), CorruptCheckpoint)
    flat = {name: leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for name, leaf in flatten(template).items()}
    wanted = {
        name: jax.ShapeDtypeStruct(
            x.shape, jax.dtypes.canonicalize_dtype(x.dtype) if not is_key(x) else x.dtype, sharding=_sharding(x)
        )
        for name, x in flat.items()
    }
    _compare(path, saved, wanted)
    abstract = {name: _stored(x) for name, x in wanted.items() if x.size}
    try:
        arrays = _arrays(path, abstract, one_disk)
    except UnreadableArrays as error:
        raise CorruptCheckpoint(f"checkpoint {path} is damaged: its arrays cannot be read: {error}") from error
    out = {}
    for name, x in wanted.items():
        if not x.size:
            out[name] = jnp.zeros(x.shape, x.dtype) if not is_key(x) else flat[name]
        else:
            out[name] = jax.random.wrap_key_data(arrays[name], impl=_impl(x)) if is_key(x) else arrays[name]
    found = fingerprints(out)
    bad = [name for name in found if found[name] != saved[name]["fingerprint"]]
    if bad:
        which = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise CorruptCheckpoint(f"checkpoint {path} is damaged: the bits of {which} are not the bits that were saved")
    return jax.tree.unflatten(jax.tree.structure(template), [out[name] for name in addresses(template)])


def _see_the_same(path: Path) -> bool:
    """Whether every process can read the step in `path`: from one disk, or from copies of its own."""
    if process_count() == 1:
        return True
    try:
        mine = identity(path)
    except CorruptCheckpoint:
        mine = ""
    return len(set(exchange("the identity of the checkpoint", mine))) == 1


def _arrays(path: Path, wanted: dict[str, jax.ShapeDtypeStruct], one_disk: bool) -> dict[str, jax.Array]:
    if not wanted:
        return {}
    if not one_disk:
        return pass_on(path, wanted)
    return read_whole(path / "whole", wanted) if (path / "whole").is_dir() else read_arrays(path / "arrays", wanted)


def _sharding(x: Any) -> jax.sharding.Sharding:
    sharding = getattr(x, "sharding", None)
    return sharding if sharding is not None else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _impl(x: Any) -> str:
    """The PRNG implementation of a key array, or of its abstract value."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct(x.shape, x.dtype))
    return found[0]


def _stored(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The array that orbax stores for the leaf `x`. For a PRNG key: its key data, uint32, with the key axes last."""
    if not is_key(x):
        return x
    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=x.sharding)


def _compare(path: Path, saved: dict[str, dict[str, Any]], wanted: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Raise one error that lists the differences between the template and the saved leaves."""
    problems = []
    for name in sorted(wanted.keys() - saved.keys()):
        near = difflib.get_close_matches(name, saved.keys() - wanted.keys(), n=1)
        problems.append(f"it has no {name}{f' (but it has {near[0]})' if near else ''}")
    problems += [f"it has {name}, which is not wanted" for name in sorted(saved.keys() - wanted.keys())]
    for name in sorted(saved.keys() & wanted.keys()):
        have, want = saved[name], _describe(wanted[name])
        problems += [
            f"{name} has {what} {have[what]}, wanted {want[what]}"
            for what in ("shape", "dtype")
            if have[what] != want[what]
        ]
    if problems:
        raise CheckpointMismatch(path, problems)
