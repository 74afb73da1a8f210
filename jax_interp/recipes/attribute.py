"""The recipe of `attribute`: estimate which units of a model carry a behaviour, check it by patching, write a page.

    found = attribute_units(AttributeConfig(task="docstring"), "runs/docstring")

The directory then holds

    config.json               the config
    attribution.safetensors   effects [prompt, unit], the metric of both runs, and the check
    attribution.json          the names of the units with their means and standard errors, and the check
    attribution.html          the check, the largest units, heat maps
    <address>.svg             a heat map for each address
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure

from jax_interp.circuits.attribution import METHODS, Attribution, attribute
from jax_interp.circuits.attribution_methods import IntegratedGradients, Method
from jax_interp.circuits.contrast import Direction
from jax_interp.circuits.nodes import make_nodes
from jax_interp.circuits.tasks import Examples
from jax_interp.circuits.units import NodeValue
from jax_interp.core import config_json
from jax_interp.core.atomic_write import atomic_write, make_directory
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import write_json
from jax_interp.core.tensor_files import write_tensors
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models import load
from jax_interp.recipes.prompt_pairs import prompt_pairs
from jax_interp.training import on_mesh
from jax_interp.views.attribution_page import AttributionPage, attribution_page
from jax_interp.views.style import svg
from jax_interp.views.unit_map import estimates_plot, unit_map

PAGE = "attribution.html"
MOST_CELLS = 20_000
"""A heat map with more cells is not drawn."""


@dataclasses.dataclass(frozen=True)
class AttributeConfig:
    """What is attributed to what, and how."""

    model: str = "stdlib-small"
    """A model of the package, a Hugging Face directory, or a name on the Hugging Face hub."""
    task: str = "induction"
    """The task whose prompts are used."""
    table: Path | None = None
    """A table of prompt pairs in place of a task, with the columns clean, corrupted, answer and other."""
    addresses: tuple[str, ...] = ("blocks.*.attn.z",)
    """The values that are cut into units."""
    per: tuple[str, ...] = ("head", "pos")
    """The axes along which they are cut: head, pos, feature, or another axis of the value."""
    method: str = "gradient"
    """How effects are estimated: gradient, ig-inputs, ig-activations or atp*."""
    steps: int | None = None
    """The number of gradients of integrated gradients. None: the method's own number."""
    direction: Direction = "noise"
    """noise: corrupted values in the clean run. denoise: clean values in the corrupted run."""
    other: Literal["corrupted", "zero"] = "corrupted"
    """What units are patched with."""
    prompts: int = 16
    """The number of pairs of prompts."""
    check: int = 20
    """How many of the largest units, and as many random ones, are patched for real. 0: none."""
    rows: int = 64
    """How many prompts run at once. It bounds the memory."""
    seed: int = 0
    """The seed of the prompts."""

    def chosen_method(self) -> Method:
        """The method with its settings. Raises `UserError` if there is none, or it takes no steps."""
        if self.method not in METHODS:
            raise UserError(f"there is no method {self.method!r}; there are {', '.join(METHODS)}")
        method = METHODS[self.method]
        if self.steps is None:
            return method
        if not isinstance(method, IntegratedGradients):
            raise UserError(f"--steps is for integrated gradients, and the method is {self.method}")
        return dataclasses.replace(method, steps=self.steps)

    def __post_init__(self) -> None:
        for name in ("prompts", "rows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")


def attribute_units(
    config: AttributeConfig, directory: Path | str | None = None, *, mesh: Mesh | None = None
) -> Attribution:
    """Attribute, check, and write the results.

    Args:
      config: model, prompts, units, method.
      directory: where the results go. None: nothing is written.
      mesh: the mesh for the model. Prompts are split over its row axes. None: one device.

    Raises:
      UserError: the model, the task, the table, an address or the method cannot be used.
    """
    method = config.chosen_method()
    model, tokenizer = load(config.model, mesh=mesh)
    if tokenizer is None:
        raise UserError(f"{config.model} has no tokenizer, which is needed to turn the prompts into tokens")
    examples = prompt_pairs(tokenizer, config.task, config.table, config.prompts, config.seed)
    with on_mesh(mesh):
        contrast = examples.contrast.split()
        nodes = make_nodes(model, contrast, config.addresses, per=config.per)
        found = attribute(
            model, contrast, nodes, method,
            direction=config.direction, other=config.other, check=config.check, rows=config.rows,
        )  # fmt: skip
    if directory is not None:
        _write(Path(directory), config, found, examples, tokenizer)
    return found


def _write(
    directory: Path, config: AttributeConfig, found: Attribution, examples: Examples, tokenizer: Tokenizer
) -> None:
    make_directory(directory)
    write_json(directory / "config.json", config_json.to_json(config))
    arrays = {"effects": found.effects, "run": found.run, "other": found.other}
    if found.check is not None:
        check = found.check
        arrays |= {"check.units": check.units, "check.estimated": check.estimated, "check.measured": check.measured}
    write_tensors(directory / "attribution.safetensors", {name: np.asarray(a) for name, a in arrays.items()})
    write_json(directory / "attribution.json", _summary(found), nonfinite=True)
    maps = heat_maps(found, examples, tokenizer)
    for name, figure in maps.items():
        atomic_write(directory / f"{name.replace('*', 'all').replace(':', '-')}.svg", str(svg(figure, name)))
    atomic_write(directory / PAGE, attribution_page(_page(config, found, examples, maps)))


def heat_maps(found: Attribution, examples: Examples, tokenizer: Tokenizer) -> dict[str, Figure]:
    """A heat map of the mean effects for each address that is not too large: positions are columns.

    The tokens are those of the first clean prompt. They are orange where some pair of prompts differs.
    """
    contrast, figures = examples.contrast, {}
    run = np.asarray(contrast.clean if found.direction == "noise" else contrast.corrupted)
    differ = np.asarray(contrast.clean != contrast.corrupted)
    tokens = tokenizer.strings(run[0].tolist())
    for value, units in zip(found.nodes.values, found.nodes.split(found.mean()).values()):
        axes = list(value.unit_axes)
        if units.size > MOST_CELLS or not axes:
            continue
        column = "pos" if "pos" in axes else axes[-1] if len(axes) > 1 else None
        table = units if column is None else np.moveaxis(units, axes.index(column), -1)
        rows = [name for name in axes if name != column]
        table = table.reshape(-1, table.shape[-1]) if column else table.reshape(-1, 1)
        columns = tokens if column == "pos" else [str(i) for i in range(table.shape[1])] if column else ["all"]
        marked = [bool(np.any(differ[:, i])) for i in range(differ.shape[1])] if column == "pos" else []
        title = f"{value.address}: {' × '.join(rows) or 'one row'} by {column or 'nothing'}"
        figures[value.address] = unit_map(table, _row_labels(value, rows), columns, title, _quantity(found), marked)
    return figures


def _row_labels(value: NodeValue, rows: list[str]) -> list[str]:
    sizes = [value.unit_axes[name] for name in rows]
    places = np.ndindex(*(len(labels) for labels in sizes))
    short = {"layer": "L", "head": "H", "kv_head": "KV"}
    label = lambda name, i: f"{short[name]}{i}" if name in short else f"{name} {i}"
    return [" ".join(label(n, s[i]) for n, s, i in zip(rows, sizes, place)) or "all" for place in places]


def _quantity(found: Attribution) -> str:
    return "estimated effect" if found.method.signed else "size of the effect"


def _summary(found: Attribution) -> dict[str, Any]:
    mean, error, names = found.mean(), found.standard_error(), found.nodes.names()
    order = np.argsort(-np.abs(mean), kind="stable")
    units = [{"unit": names[i], "mean": float(mean[i]), "standard_error": float(error[i])} for i in order]
    check = None
    if found.check is not None:
        check = {
            "pearson": found.check.pearson(),
            "pearson_largest": found.check.pearson(False),
            "pearson_random": found.check.pearson(True),
            "spearman": found.check.spearman(),
            "sign_agreement": found.check.sign_agreement(),
            "warning": found.check.warning(),
        }
    return {
        "direction": found.direction,
        "metric_of_run": float(found.run.mean()),
        "metric_of_other": float(found.other.mean()),
        "prompts": len(found.effects),
        "check": check,
        "units": units,
    }


def _page(config: AttributeConfig, found: Attribution, examples: Examples, maps: dict[str, Figure]) -> AttributionPage:
    check, number = found.check, lambda x: f"{x:+.4g}"
    facts = {
        "model": config.model,
        "prompts": f"{len(found.effects)} pairs, {config.table or 'task ' + config.task}",
        "method": f"{found.method}",
        "direction": f"{found.direction}: metric {found.run.mean():.4g} in the run that is patched, "
        f"{found.other.mean():.4g} in the other",
        "units": f"{found.nodes.size:,}: {', '.join(found.nodes.addresses)} per {', '.join(config.per) or 'layer'}",
    }
    behaviour = config.task if config.table is None else Path(config.table).stem
    return AttributionPage(
        title=f"{behaviour} in {config.model}",
        facts=facts,
        warning=None if check is None else check.warning(),
        check=[] if check is None else check.figures(),
        estimates=None if check is None else estimates_plot(check.estimated, check.measured, check.drawn),
        largest=[(name, number(mean), f"{error:.2g}") for name, mean, error in found.largest(20)],
        misses=[] if check is None else [(name, number(a), number(b)) for name, a, b in check.worst(8)],
        maps=maps,
        prompts=list(zip(examples.clean, examples.corrupted))[:3],
    )
