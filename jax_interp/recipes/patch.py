"""The recipe of `patch`: patching grids of a pair of prompts, or of a table of pairs, as figures, a page and arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from jax_interp.circuits.contrast import Contrast, Direction
from jax_interp.circuits.sweeps import Effects, Pieces, patch
from jax_interp.circuits.sweeps.grids import grid_of
from jax_interp.core import config_json
from jax_interp.core.array_files import write_arrays
from jax_interp.core.atomic_write import atomic_write, is_taken, make_directory
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import write_json
from jax_interp.core.labelled import Labelled
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models import load
from jax_interp.recipes.prompt_pairs import COLUMNS, encode_rows, read_pairs
from jax_interp.training import on_mesh
from jax_interp.views.drawing import Drawing
from jax_interp.views.labelled_maps import LabelledMap, labelled_map, labelled_page

PAGE, RESULTS = "patching.html", "results.json"
LARGEST = 20


@dataclasses.dataclass(frozen=True)
class PatchConfig:
    """Which prompts of which model are patched, and where."""

    model: str = "stdlib-small"
    """A model of the package, a Hugging Face directory, or a name on the Hugging Face hub."""
    clean: str | None = None
    """The clean prompt."""
    corrupted: str | None = None
    """The corrupted prompt, with as many tokens."""
    answer: str | None = None
    """The right next token of the clean prompt. The metric is its logit minus that of `other`."""
    other: str | None = None
    """The right next token of the corrupted prompt."""
    pairs: Path | None = None
    """A table of pairs in place of one pair: CSV, JSON lines or Parquet, with the columns clean, corrupted, answer and
    other."""
    grids: tuple[str, ...] = ("resid_pre", "attn_out", "mlp_out", "head_out")
    """What is patched: names of `jax_interp.circuits.sweeps.GRIDS`."""
    direction: Direction = "denoise"
    """denoise: clean values go into the corrupted run. noise: the other way."""
    bos: bool = True
    """Put the document-start token first, where the tokenizer has one."""
    budget_mb: int = 1024
    """The memory of the compiled program of one piece of a sweep, in MB, without the model."""

    def __post_init__(self) -> None:
        if not self.grids:
            raise UserError("grids is empty: name at least one, such as resid_pre")
        for grid in self.grids:
            grid_of(grid)
        if self.direction not in ("denoise", "noise"):
            raise UserError(f"direction={self.direction!r}: choose denoise or noise")
        if self.budget_mb < 1:
            raise UserError(f"budget_mb={self.budget_mb} must be at least 1")
        given = [name for name in COLUMNS if getattr(self, name) is not None]
        if self.pairs is not None and given:
            raise UserError(f"give either pairs or {', '.join(given)}, not both")
        if self.pairs is None and len(given) < len(COLUMNS):
            missing = ", ".join(name for name in COLUMNS if name not in given)
            raise UserError(f"{missing} is missing: give clean, corrupted, answer and other, or a table of pairs")


@dataclasses.dataclass(frozen=True)
class Patched:
    """The effects of each grid, and where they are written."""

    effects: dict[str, Effects]
    directory: Path


def patch_prompts(config: PatchConfig, out: Path | str, *, quiet: bool = False, mesh: Mesh | None = None) -> Patched:
    """Patch every cell of some grids, and write what was found to a directory.

    It holds `patching.html` (all grids, with the numbers under the pointer), a figure for each grid, the arrays
    (`<grid>.npy`: the metric of each cell and prompt), `results.json` and `config.json`.

    Args:
      config: prompts and grids.
      out: a directory that is empty or does not exist.
      quiet: show no progress.
      mesh: the mesh for the model. The cells of a grid are split over its row axes. None: one device.

    Raises:
      UserError: the table, a prompt, an answer, a grid or the directory is wrong; or the two runs do not differ.
    """
    directory = Path(out)
    if is_taken(directory):
        raise UserError(f"{directory} is not an empty directory: give another one")
    rows = read_pairs(config.pairs) if config.pairs is not None else [{name: getattr(config, name) for name in COLUMNS}]
    model, tokenizer = load(config.model, mesh=mesh)
    if tokenizer is None:
        raise UserError(f"{config.model} has no tokenizer, which the prompts need")
    contrast = encode_rows(tokenizer, rows, bos=config.bos).contrast
    pieces = Pieces(budget=config.budget_mb * 2**20, quiet=quiet)
    with on_mesh(mesh):
        effects = {
            grid: patch(model, contrast, grid, direction=config.direction, pieces=pieces) for grid in config.grids
        }
    first = next(iter(effects.values()))
    if np.isnan(first.normalised().values).all():
        raise UserError("the metric is the same in the clean and in the corrupted run: no patch can change it")
    make_directory(directory)
    tokens = column_names(contrast, tokenizer)
    _write(directory, config, effects, tokens, len(rows))
    return Patched(effects, directory)


def column_names(contrast: Contrast, tokenizer: Tokenizer) -> list[str]:
    """A name for each column of the tokens: the token, or both tokens where the runs differ; else its position.

    With several prompts, a column has a token only if all prompts have it.
    """
    sides = [[tokenizer.strings(row) for row in np.asarray(side)] for side in (contrast.corrupted, contrast.clean)]
    names = []
    for column in range(contrast.clean.shape[1]):
        found = [{row[column] for row in side} for side in sides]
        one = [next(iter(words)) for words in found if len(words) == 1]
        padded = contrast.mask is not None and not bool(contrast.mask[:, column].all())
        same = len(one) == 2 and not padded
        names.append((one[0] if one[0] == one[1] else f"{one[0]} ({one[1]})") if same else f"column {column}")
    return names


def named(grid: Labelled, tokens: Sequence[str]) -> Labelled:
    """The same numbers with tokens as the labels of positions."""
    axes = {name: tokens if name in ("pos", "dest", "src") else labels for name, labels in grid.axes.items()}
    return Labelled(grid.values, axes, grid.name)


def _write(
    directory: Path, config: PatchConfig, effects: dict[str, Effects], tokens: Sequence[str], prompts: int
) -> None:
    maps, found = [], {}
    for grid, one in effects.items():
        # positions last: they have the longest labels
        values, error = (_positions_last(named(part, tokens)) for part in (one.normalised(), one.standard_error()))
        largest = [{**place, "value": value} for place, value in values.largest(LARGEST)]
        found[grid] = {"axes": {name: list(labels) for name, labels in one.values.axes.items()}, "largest": largest}
        if len(values.axes) > 3:
            continue  # a pattern by destination and source has too many cells for a picture
        note = "In parentheses: the token of the clean prompt, where it is another one."
        maps.append(LabelledMap(values, grid, error if prompts > 1 else None, note))
        figure = labelled_map(values, f"{grid}: part of the clean answer")
        Drawing(figure, f"{grid}, normalised").save(directory / f"{grid}.svg")
    first = next(iter(effects.values()))
    clean, corrupted = float(first.clean.mean()), float(first.corrupted.mean())
    lead = {
        "denoise": "Clean values in the corrupted run: 0 is the corrupted run, and 1 restores the clean answer.",
        "noise": "Corrupted values in the clean run: 1 is the clean run, and 0 breaks the answer completely.",
    }[config.direction]
    facts = [
        ("model", config.model),
        ("pairs", str(prompts)),
        ("logit difference, clean", f"{clean:.3f}"),
        ("logit difference, corrupted", f"{corrupted:.3f}"),
    ]
    atomic_write(directory / PAGE, labelled_page(maps, f"Patching, {config.direction}", lead, facts))
    write_arrays(directory, {grid: one.values.values for grid, one in effects.items()})
    write_arrays(directory, {"clean": first.clean, "corrupted": first.corrupted})
    about = {"clean": clean, "corrupted": corrupted, "pairs": prompts, "tokens": list(tokens), "grids": found}
    write_json(directory / RESULTS, about, indent=1, nonfinite=True)
    config_json.save(config, directory / "config.json")


def _positions_last(grid: Labelled) -> Labelled:
    names = sorted(grid.axes, key=lambda name: name in ("pos", "dest", "src"))
    order = [grid.axis(name) for name in names]
    return Labelled(grid.values.transpose(order), {name: grid.axes[name] for name in names}, grid.name)
