"""The XOR of two features can be read from random networks, and less well if more features compete.

Marks 2024 (LessWrong, hjJXCn9GsskysDceS) found that the XOR of two features of a text can often be read linearly from a
language model, and asked to compare with a network whose weights are drawn anew. Here: (1) random networks, where the
third column has the figures of an independent implementation; (2) prompts with two features, in the packaged model and
with its weights drawn anew; (3) probes that are trained on three of the four cells: a maximum-margin probe is wrong in
the fourth cell unless the XOR is more than √1.5 times as strong as the features.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import Results, Row
from jax_interp import load
from jax_interp.core.logistic import fit_logistic
from jax_interp.probes import gather, tokenized
from jax_interp.probes.baselines import reset
from jax_interp.views.style import BLUE, MUTED, ORANGE, canvas, styled

TARGETS = ("a", "b", "a xor b", "shuffled a xor b")
STEMS = ("count", "total", "index", "value", "result", "item", "node", "key", "path", "line", "name", "size", "data",
         "start", "buffer", "token", "record", "entry", "frame", "stack")  # fmt: skip
SUFFIXES = ("", "_map", "_of", "_list", "_id")


@dataclasses.dataclass(frozen=True)
class Config:
    seeds: int = 5
    """Random networks of each kind, networks with weights drawn anew, and splits."""
    rows: int = 4000
    """Inputs of the random networks, of which a fifth is held out."""
    names: int = 100
    """Names in the prompts. A fifth of the names is held out."""


QUICK = Config(seeds=1, rows=1000, names=40)
REFERENCE = {"linear": 0.471, "1 layer": 0.995, "4 blocks, 4 features": 1.0, "4 blocks, 8 features": 1.0,
             "4 blocks, 32 features": 0.695}  # fmt: skip
CELLS = {1.0: 1 / 3, 1.2: 0.12 / 3.88, 1.25: -0.125 / 4.125, 2.0: -5 / 9}
"""The logit of the held-out cell, (3 - 2s²) / (1 + 2s²), where a positive one is wrong. s: the strength of the XOR."""


def run(config: Config) -> Results:
    rows, data = random_networks(config)
    in_prompts, found = prompts(config)
    cells = {strength: held_out_logit(strength) for strength in CELLS}
    for strength, logit in cells.items():
        rows.append(Row(f"3 of 4 cells, XOR of strength {strength:g}: logit of the fourth cell", f"{logit:+.3f}",
                        f"{CELLS[strength]:+.3f} (closed form)", abs(logit - CELLS[strength]) < 1e-3))  # fmt: skip
    return Results((*rows, *in_prompts), {"random": data, "prompts": found, "cells": cells})


def random_networks(config: Config) -> tuple[list[Row], dict[str, list[float]]]:
    """The held-out accuracy of XOR probes, for each seed."""
    data: dict[str, list[float]] = {name: [] for name in REFERENCE}
    for name, seed in itertools.product(REFERENCE, range(config.seeds)):
        x, xor = _random_network(name, np.random.default_rng(seed), config.rows)
        train = np.random.default_rng(100 + seed).random(config.rows) < 0.8
        data[name].append(float(accuracies(x[None], xor[None], train)[0]))
    rows = []
    for name, values in data.items():
        mean, reference = float(np.mean(values)), REFERENCE[name]
        holds = abs(mean - 0.5) < 0.04 if name == "linear" else mean > 0.97 if reference > 0.99 else 0.55 < mean < 0.85
        ours = f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"
        rows.append(Row(f"random network, {name}: accuracy of XOR", ours, f"{reference:.3f}", bool(holds)))
    return rows, data


def _random_network(name: str, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(activations, a xor b). Features are signs, mixed at random into the input."""
    features = int(name.split()[2]) if "features" in name else 2
    width = 256 if "features" in name else 64
    signs = rng.choice([-1.0, 1.0], (rows, features))
    x = signs @ rng.standard_normal((features, width)) / np.sqrt(features) + 0.1 * rng.standard_normal((rows, width))
    if name == "1 layer":
        x = np.maximum(x @ rng.standard_normal((width, 512)) / np.sqrt(width), 0)
    if "blocks" in name:
        for _ in range(4):
            into, out = rng.standard_normal((2, width, width)) / np.sqrt(width)
            x = x + np.maximum(x @ into * np.sqrt(2), 0) @ out
    return x, signs[:, 0] != signs[:, 1]


def accuracies(x: np.ndarray, y: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The held-out accuracy of logistic regression on standardised columns, for each problem `[problem, row, d]`."""
    mean, scale = x[:, train].mean(axis=1, keepdims=True), x[:, train].std(axis=1, keepdims=True)
    scaled = jnp.asarray((x - mean) / np.maximum(scale, 1e-6), jnp.float32)
    weight = jnp.broadcast_to(jnp.asarray(train, jnp.float32)[None], y.shape)
    scores = np.asarray(fit_logistic(scaled, jnp.asarray(y), weight).scores(scaled))
    return np.mean(((scores > 0) == y)[:, ~train], axis=1)


def prompts(config: Config) -> tuple[list[Row], dict[str, Any]]:
    """Definitions with two features: the keyword (a) and the argument (b). Read at the closing bracket."""
    model, tokenizer = load("stdlib-small")
    assert tokenizer is not None
    names = [stem + suffix for suffix in SUFFIXES for stem in STEMS][: config.names]
    cells = list(itertools.product(names, (0, 1), (0, 1)))
    texts = [f"{('def', 'class')[a]} {name}({('self', 'object')[b]})" for name, a, b in cells]
    data = tokenized(tokenizer, texts, [a != b for _, a, b in cells], groups=[name for name, _, _ in cells])
    a, b = np.array([cell[1:] for cell in cells]).T > 0
    read = lambda model: gather(model, data, "blocks.*.resid_post").stacked()[:, 0]
    found: dict[str, Any] = {}
    for network in ("trained", "reset"):
        found[network] = []
        x = read(model)
        for seed in range(config.seeds):
            rng = np.random.default_rng(seed)
            held_out = rng.permutation(len(names))[: len(names) // 5]
            train = ~np.isin(np.arange(len(cells)) // 4, held_out)
            x = read(reset(model, jax.random.key(seed))) if network == "reset" else x
            y = np.stack([a, b, a != b, rng.permutation(a != b)])
            layers, targets = np.divmod(np.arange(len(x) * 4), 4)
            found[network].append(accuracies(x[layers], y[targets], train).reshape(len(x), 4))
        found[network] = np.stack(found[network])
    rows = []
    for number, target in enumerate(TARGETS):
        of = {network: values[:, :, number].mean(axis=0) for network, values in found.items()}
        rows.append(Row(f"prompts, {target}: accuracy in layers 0 to {len(x) - 1}, trained / drawn anew", " / ".join(
            " ".join(f"{value:.2f}" for value in values) for values in of.values())))  # fmt: skip
    return rows, found


def held_out_logit(strength: float) -> float:
    """Train on three of the four cells (a, b, s · a xor b) in signs, and return the logit of the fourth, times the sign
    of the wrong answer. The probe has the maximum margin, which three points reach with equality."""
    points = np.array([[a, b, -strength * a * b] for a in (1, -1) for b in (1, -1)], float)
    wanted = points[:, 2] / strength
    gram = np.block([[points[:3] @ points[:3].T, np.ones((3, 1))], [np.ones((1, 3)), np.zeros((1, 1))]])
    multipliers = np.linalg.solve(gram, np.append(wanted[:3], 0))
    assert (multipliers[:3] * wanted[:3] >= 0).all(), "each of the three points supports the margin"
    logit = points[3] @ (points[:3].T @ multipliers[:3]) + multipliers[3]
    return float(-wanted[3] * logit)


@styled
def figure(data: dict[str, Any]) -> Any:
    drawn, (left, right) = canvas(11.6, 3.6, columns=2)
    for place, values in enumerate(data["random"].values()):
        left.plot([place] * len(values), values, "o", color=BLUE, ms=5)
    left.set_xticks(range(len(data["random"])), [name.replace(", ", "\n") for name in data["random"]])
    left.axhline(0.5, color=MUTED, lw=1, ls="--")
    left.set(title="XOR in random networks", ylabel="held-out accuracy", ylim=(0.4, 1.03))
    for network, color in (("trained", BLUE), ("reset", ORANGE)):
        values = np.asarray(data["prompts"][network]).mean(axis=0)
        for number, style in ((0, ":"), (2, "-"), (3, "--")):
            right.plot(values[:, number], style, color=color, label=f"{network}: {TARGETS[number]}")
    right.set(title="Two features of a prompt", xlabel="layer", ylabel="held-out accuracy", ylim=(0.4, 1.03))
    right.set_xticks(range(len(values)))
    right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return drawn
