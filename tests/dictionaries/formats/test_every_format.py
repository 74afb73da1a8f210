"""Laws of all published formats: one format recognises a layout, what is read computes what the publisher's code does,
and files that are changed are refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jax_interp.core.errors import UserError
from jax_interp.core.inert_pickle import Inert
from jax_interp.core.leaves import flatten
from jax_interp.core.torch_files import read_torch
from jax_interp.dictionaries import load_dictionary
from jax_interp.dictionaries.formats import FORMATS, Files
from jax_interp.dictionaries.formats.native import Native
from jax_interp.training.sharding import make_mesh
from tests.dictionaries.formats.published import Layout, every_layout
from tests.generated import drawn
from tests.torch_archives import Object, save

pytestmark = pytest.mark.filterwarnings("ignore:.*(orientation|thresholds):")  # the weights are random
LAYOUTS = every_layout()
MESH = make_mesh(fsdp=2, tensor=2)
WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")


def written(name: str, directory: Path) -> Layout:
    return LAYOUTS[name](directory, np.random.default_rng(zlib.crc32(name.encode())))


def recognised_by(path: Path) -> list[str]:
    return [kind.name for kind in FORMATS if kind.recognise(Files.at(path))]


@pytest.mark.parametrize("name", LAYOUTS)
def test_latents_and_outputs_are_those_of_the_publisher(name, tmp_path):
    layout = written(name, tmp_path)
    assert len(recognised_by(layout.path)) == 1
    saved = load_dictionary(layout.path)
    x = jnp.asarray(layout.x, jnp.float32)
    on = np.mean(layout.latents != 0)
    assert 0.002 < on < 0.98, "thresholds and selections should matter"
    for found, expected in ((saved.dictionary.encode(x), layout.latents), (saved.dictionary(x), layout.outputs)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
    assert (saved.address, saved.writes, saved.model) == (layout.address, layout.writes, layout.model)
    assert (saved.normalized, dict(saved.stated)) == (layout.normalized, layout.stated)
    for note in layout.notes:
        assert any(note in one for one in saved.notes), saved.notes
    if saved.address is None:
        assert saved.notes


@pytest.mark.parametrize("name", {re.split(r"[ ,:]", name)[0]: name for name in LAYOUTS}.values())
def test_a_mesh_holds_the_same_numbers(name, tmp_path):
    """Each device holds its part of what one device would hold, also of weights that a reader folds."""
    path = written(name, tmp_path).path
    alone, spread = (flatten(load_dictionary(path, place=place).dictionary) for place in (None, MESH))
    assert alone.keys() == spread.keys()
    assert {len(leaf.sharding.device_set) for leaf in spread.values()} == {4}
    assert any(leaf.addressable_shards[0].data.size < leaf.size for leaf in spread.values())
    for leaf, array in alone.items():
        largest = max(1.0, float(np.abs(array).max(where=np.isfinite(array), initial=0)))
        np.testing.assert_allclose(spread[leaf], array, rtol=0, atol=1e-6 * largest, err_msg=leaf)


def test_every_format_has_a_layout(tmp_path):
    found = set()
    for name in LAYOUTS:
        folder = tmp_path / str(zlib.crc32(name.encode()))
        folder.mkdir()
        found |= set(recognised_by(written(name, folder).path))
    assert found == {kind.name for kind in FORMATS} - {Native.name}


def weight_files(layout: Layout) -> list[Path]:
    """The files with the tensors: the one that was given, or those of the folder."""
    if layout.path.suffix in WEIGHTS:
        return [layout.path]
    folder = layout.path if layout.path.is_dir() else layout.path.parent
    return sorted(path for path in folder.rglob("*") if path.suffix in WEIGHTS)


@dataclasses.dataclass
class Weights:
    """The tensors of a file, which can be changed and written back."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def of(cls, path: Path) -> Weights:
        if path.suffix == ".safetensors":
            return cls(path, load_file(path))
        if path.suffix == ".npz":
            return cls(path, dict(np.load(path)))
        return cls(path, _writable(read_torch(path, keep_unknown=True)))

    @property
    def tensors(self) -> dict[str, Any]:
        inner = self.content.get("state_dict", self.content)
        return inner if isinstance(inner, dict) else self.content

    def write(self) -> None:
        self.path.unlink()
        if self.path.suffix == ".safetensors":
            save_file({name: np.asarray(a, order="C") for name, a in self.content.items()}, self.path)
        elif self.path.suffix == ".npz":
            np.savez(self.path, **self.content)
        else:
            save(self.path, self.content)


def _writable(value: Any) -> Any:
    if isinstance(value, Inert):
        state = {name: one for name, one in value.state.items() if not isinstance(one, Inert)}
        return Object(value.name, state)
    return {name: _writable(one) for name, one in value.items()} if isinstance(value, dict) else value


NOT_REFUSED = (
    # published in both orientations, which the widths tell apart
    ("circuit-tracer|qwen-transcoders", "W_dec", "transposed"),
    # a file without it is another kind of dictionary
    ("circuit-tracer", "W_skip|.*threshold.*", "missing"),
    ("clt-training", r"post_enc.*", "missing"),
    ("crosslayer-coding", r".*bias_param|.*\.feature_(offset|scale)\..*", "missing"),
    # a number, which some layouts do not use
    ("llama", "dataset_average_activation_norm.*", ".*"),
)
"""(layouts, tensors, changes) that are read nevertheless."""


def changes(name: str, layout: Layout) -> Iterator[tuple[Path, str, Callable[[Path], None]]]:
    """(file, what is changed, a function that changes it) for every change that a reader must refuse."""
    optional = getattr(layout, "optional", ())
    for path in weight_files(layout):
        length = path.stat().st_size
        for kept in (0, 9, length // 2, length - 1):
            yield path, f"cut short at {kept}", lambda path, kept=kept: path.write_bytes(path.read_bytes()[:kept])
        for tensor, value in Weights.of(path).tensors.items():
            if not isinstance(value, np.ndarray):
                continue
            others: dict[str, np.ndarray | None] = {"missing": None}
            if jnp.issubdtype(value.dtype, jnp.floating):
                first = np.arange(value.size).reshape(value.shape) == 0
                others["not finite"] = np.where(first, np.nan, value).astype(value.dtype)
                others["whole numbers"] = np.ones(value.shape, np.int64)
            if value.ndim > 1 and value.shape != value.T.shape:
                others["transposed"] = value.T
            for change, other in others.items():
                read = any(
                    re.match(of, name) and re.fullmatch(tensors, tensor) and re.fullmatch(what, change)
                    for of, tensors, what in NOT_REFUSED
                )
                if not read and tensor.replace("_orig_mod.", "") not in optional:
                    yield path, f"{tensor} {change}", partial(replace, tensor=tensor, by=other)
        yield path, "unknown", partial(replace, tensor=f"unknown_{tensor}", by=value)


def refused(path: Path) -> str | None:
    """The message of a refusal. None: the files were read."""
    try:
        load_dictionary(path)
    except UserError as error:
        return str(error)
    return None


def replace(path: Path, tensor: str, by: np.ndarray | None) -> None:
    weights = Weights.of(path)
    weights.tensors.pop(tensor, None)
    if by is not None:
        weights.tensors[tensor] = by
    weights.write()


@pytest.mark.hardening
@pytest.mark.parametrize("name", LAYOUTS)
def test_files_that_are_changed_are_refused(name, tmp_path):
    """Tensors that are missing, unknown, transposed, not finite or whole numbers, and files that are cut short."""
    layout = written(name, tmp_path)
    every = list(changes(name, layout))
    rng = random.Random(name)
    for path, what, change in rng.sample(every, min(len(every), drawn(3, 1000))):
        whole = path.read_bytes()
        change(path)
        message = refused(layout.path)
        assert message is not None, f"{path.name}: {what} was read"
        assert what != "unknown" or "unknown_" in message
        path.write_bytes(whole)
    load_dictionary(layout.path)


OTHERS = (None, True, -1, 2.5, "", "other", [], {})


def entries(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all entries of a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*where, key)
        yield from entries(inner, (*where, key))


@pytest.mark.hardening
@pytest.mark.parametrize("name", LAYOUTS)
def test_configs_of_other_types_raise_nothing_but_user_errors(name, tmp_path):
    layout = written(name, tmp_path)
    folder = layout.path if layout.path.is_dir() else layout.path.parent
    rng = random.Random(name)
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.yaml")]):
        whole = path.read_text()
        cases = [(place, other) for place in entries(yaml.safe_load(whole)) for other in OTHERS]
        for place, other in rng.sample(cases, min(len(cases), drawn(2, 1000))):
            config = inner = yaml.safe_load(whole)
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = other
            path.write_text(json.dumps(config))  # YAML too
            with contextlib.suppress(UserError):  # any other exception fails
                load_dictionary(layout.path, check=False)
        path.write_text(whole)
