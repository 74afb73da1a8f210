"""SPD finds the hundred features that a residual MLP reads, and the fifty neurons with which it writes.

Stochastic parameter decomposition (Bushnaq, Braun & Sharkey 2025, arXiv 2506.20790) of `x + relu(x)` on 100 sparse
features by 50 neurons, with the configuration of 2026. On one-hot inputs every component of `mlp_in` belongs to one
feature, and every feature has one (identity-CI error 0 at tolerance .1). In `mlp_out` as many components are alive as
there are neurons; they are a dense block, shared by all features. `spd_resid_mlp_deeper` does the same for more layers.
The same call resumes a run that was killed.

There are two differences: batches of 512 (published: 2048), and the model is decomposed in the span of its embedding
(`collapse`: the same function in 100 dimensions instead of 1000). The strict error is the error with only the important
components, divided by ‖f‖. For one layer, the oracle has the features as parts of `mlp_in`, and does not split
`mlp_out`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.experiment import Results, Row, resumable
from experiments.spd_tms import oracle_error
from jax_interp.core.errors import UserError
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.decomposition.evaluate import linearity_of
from jax_interp.decomposition.linearity import LinearitySettings
from jax_interp.decomposition.metrics import dense_error, identity_error, match_components, one_hot_inputs
from jax_interp.decomposition.presets import preset
from jax_interp.decomposition.train import Trained, train_instances
from jax_interp.toys.resid_mlp import ResidMLP, collapse, resid_mlp_target
from jax_interp.toys.toy_training import sparse_features
from jax_interp.training import RunTarget
from jax_interp.views.style import BLUE, INK, canvas, fading, styled

TARGETS = {  # the targets that SPD was published on
    "resid_mlp1": "1-layer-spd", "resid_mlp1_v1": "1-layer-spd", "resid_mlp2": "2-layer-spd", "resid_mlp3": "3-layer",
}  # fmt: skip
UP, DOWN = "blocks.*.mlp.up", "blocks.*.mlp.down"


@dataclasses.dataclass(frozen=True)
class Config:
    presets: tuple[str, ...] = ("resid_mlp1",)
    """Keys of TARGETS. Two layers take four times as long as one layer, and three layers ten times."""
    seeds: tuple[int, ...] = (0, 1)
    batch: int = 512
    steps: int | None = None
    """The number of steps of each preset; None: the published number."""


QUICK = Config(seeds=(0,), steps=2000, batch=128)


def run(config: Config) -> Results:
    rows: list[Row] = []
    data: dict[str, Any] = {}
    for name in config.presets:
        if name not in TARGETS:
            raise UserError(f"there is no decomposition {name!r} here: {', '.join(TARGETS)}")
        with resumable(name, config, decomposition_config(name, config)) as saving:
            found = [measure(trained, name) for trained in train_all(name, config, saving)]
        rows += _rows(name, found)
        shown = 2 * found[0]["features"]  # components after these are never alive
        data[name] = {matrix: [np.round(g[:, :shown], 2) for g in found[0][matrix]] for matrix in ("mlp_in", "mlp_out")}
    return Results(tuple(rows), data)


def decomposition_config(name: str, config: Config) -> DecompositionConfig:
    recipe = preset(name)
    return dataclasses.replace(recipe, batch=config.batch, steps=config.steps or recipe.steps)


def train_all(name: str, config: Config, run: RunTarget = None) -> list[Trained]:
    """All seeds of one target in one program. `run` is as in `training.fit`."""
    model = collapse(resid_mlp_target(TARGETS[name]))
    draw = partial(sparse_features, batch=config.batch, n=len(model.embed.weight), probability=0.01, low=-1.0)
    every = train_instances(decomposition_config(name, config), model, seeds=config.seeds, sample=draw, run=run)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], every) for i in range(len(config.seeds))]


def measure(trained: Trained, name: str) -> dict[str, Any]:
    """The figures of one run, and its importances on one-hot inputs, `[feature, C]` for each layer."""
    target: ResidMLP = trained.model.target
    n, neurons = target.embed.weight.shape[0], target.blocks[0].mlp.up.weight.shape[1]
    importance = jax.device_get(trained.importance(one_hot_inputs(n)).lower)
    x = sparse_features(jax.random.key(99), 256, n, 0.01, -1.0)
    report = linearity_of(preset(name), trained, x, settings=LinearitySettings(2, adversary_steps=(20,), pairs=4))
    reading, writing = np.asarray(importance[UP]), np.asarray(importance[DOWN])
    return {
        "identity": sum(identity_error(g) for g in reading), "dense": sum(dense_error(g, neurons) for g in writing),
        "alive": [[int((g > 0.1).any(0).sum()) for g in layers] for layers in (reading, writing)],
        "features": n, "neurons": neurons, "strict": report.strict.relative, "stochastic": report.stochastic.relative,
        "oracle": oracle_error(trained, x),
        "mlp_in": [g[:, _by_feature(g)] for g in reading], "mlp_out": [g[:, np.argsort(-g.sum(0))] for g in writing],
    }  # fmt: skip


def _by_feature(g: np.ndarray) -> np.ndarray:
    """A new order of columns: first the columns matched to features, in the order of features, then others by mass."""
    rows, columns = match_components(g)
    others = np.setdiff1d(np.arange(g.shape[1]), columns)
    return np.concatenate([columns[np.argsort(rows)], others[np.argsort(-g[:, others].sum(0))]])


def _title(name: str) -> str:
    return f"ResidMLP-{name.removeprefix('resid_mlp')[0]}{', v1' if name.endswith('v1') else ''}"


def _rows(name: str, found: list[dict[str, Any]]) -> list[Row]:
    n, neurons, layers = found[0]["features"], found[0]["neurons"], len(found[0]["mlp_in"])
    title = _title(name)
    each = lambda values: ", ".join(str(v) for v in values)
    plus = lambda counts: "+".join(map(str, counts))
    identity, dense = [run["identity"] for run in found], [run["dense"] for run in found]
    reading, writing = ([run["alive"][i] for run in found] for i in (0, 1))
    oracle = "" if found[0]["oracle"] is None else f" ({found[0]['oracle']:.3f})"
    return [
        Row(f"{title}: mlp_in, identity-CI errors at .1, each run", each(identity), "0", not any(identity)),
        Row(f"{title}: mlp_in, components alive", each(map(plus, reading)), plus([n] * layers),
            all(count == n for counts in reading for count in counts)),
        Row(f"{title}: mlp_out, components alive", each(map(plus, writing)), plus([neurons] * layers),
            all(count == neurons for counts in writing for count in counts)),
        Row(f"{title}: mlp_out, errors against a dense block of as many", each(dense), "0", not any(dense)),
        _density(title, found[0]["mlp_out"], neurons),
        Row(f"{title}: strict error, mean{' (oracle)' if oracle else ''}",
            f"{np.mean([run['strict'] for run in found]):.3f}{oracle}"),
        Row(f"{title}: stochastic error, mean", f"{np.mean([run['stochastic'] for run in found]):.3f}"),
    ]  # fmt: skip


def _density(title: str, layers: list[Any], neurons: int) -> Row:
    shares = ", ".join(f"{np.mean(np.asarray(g)[:, :neurons] > 0.1):.0%}" for g in layers)
    return Row(f"{title}: mlp_out, share of that block above .1, run of the figure", shares)


@styled
def figure(data: dict[str, Any]) -> Any:
    shown = []
    for name, both in data.items():
        for matrix, layers in both.items():
            for i, layer in enumerate(layers):
                which = f", layer {i}" if len(layers) > 1 else ""
                order = "matched to features" if matrix == "mlp_in" else "by mass"
                shown.append((f"{_title(name)}: {matrix}{which}", f"component, {order}", np.asarray(layer)))
    drawn, panels = canvas(3.6 * len(shown) + 0.6, 3.6, len(shown), sharey=False)
    for axes, (title, label, values) in zip(panels, shown):
        mesh = axes.pcolormesh(values, cmap=fading(BLUE), vmin=0, vmax=1, rasterized=True)
        axes.grid(False)
        axes.invert_yaxis()
        axes.set(title=title, xlabel=label)
    panels[0].set_ylabel("feature that is on")
    bar = drawn.colorbar(mesh, ax=panels, shrink=0.9, pad=0.01)
    bar.set_label("causal importance", color=INK)
    return drawn
