"""A language model that is trained together with SAEs has a lower loss, and SAEs describe its stream better.

Lai & Heimersheim 2025, "SAE regularisation produces more interpretable models", means of ten runs. A character model of
Tiny Shakespeare (4 layers, d 64) is trained alone, or with L = CE + mean over five sites of [3 R/N + S] (joint.py). The
sites are the inputs of the blocks and of the last norm. The SAEs of this training are then thrown away. New SAEs are
trained on each model, with the model fixed, for eight sparsity penalties. The experiment compares the rise of the
cross-entropy when these SAEs are spliced in, at equal L0.

The text is read from the file `text`, or from text/tinyshakespeare.txt in the folder $JAX_INTERP_TEST_DATA. The
defaults are the published sizes. Three seeds take about an hour on a GPU (published: ten seeds). On a CPU a step takes
1.8 processor seconds alone, 6.8 with SAEs, and 4.9 for the new SAEs: one seed takes 100 hours on two cores. `QUICK`
only shows that the code runs: its models see a two-thousandth of the characters. There are three differences from the
publication: float32 instead of bf16 autocast, 127 predictions in each window instead of 128, and the whole validation
text instead of 100 batches.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.experiment import Results, Row
from jax_interp.core.errors import UserError
from jax_interp.data.batches import WindowSampler
from jax_interp.dictionaries import ReLU, init_sae
from jax_interp.dictionaries.losses import L1, OverNorm, Reconstruction
from jax_interp.dictionaries.training.config import SAEConfig
from jax_interp.dictionaries.training.joint import JointConfig, next_token, train_joint
from jax_interp.models.config import Config as ModelConfig
from jax_interp.models.decoder import init
from jax_interp.models.language_modelling import Optimization, decays, init_state, train_step
from jax_interp.surgery import Splice, at, edit, read
from jax_interp.toys.cache import cached
from jax_interp.training import Log, fit
from jax_interp.views.style import BLUE, INK, MUTED, ORANGE, canvas, styled

LAYERS, D = 4, 64
SITES = (*(f"blocks.{i}.resid_pre" for i in range(LAYERS)), f"blocks.{LAYERS - 1}.resid_post")
WIDTHS = tuple(D * n for n in (8, 8, 32, 64, 64))
REGULARISER = (0.020, 0.035, 0.085, 0.070, 0.075)
SWEEP = {  # penalties of fresh SAEs at each site, first and last of eight
    "plain": ((0.0021, 0.0175, 0.056, 0.09, 0.275), (0.009, 0.105, 0.33, 0.39, 0.87)),
    "joint": ((0.0005, 0.002, 0.006, 0.010, 0.02), (0.0055, 0.014, 0.044, 0.048, 0.06)),
}
PUBLISHED_CE = {"plain": (1.5718, 0.0044), "joint": (1.5537, 0.0076)}
# (L0, rise of the cross-entropy) at each site, at both ends of the sweep
PUBLISHED = {
    "plain": (((52.6, 0.0019), (48.4, 0.1103), (49.9, 0.1343), (48.9, 0.1036), (48.8, 0.0503)),
              ((10.0, 0.0077), (9.9, 0.3484), (10.2, 0.5492), (9.8, 0.2954), (9.9, 0.1772))),
    "joint": (((52.7, 0.0006), (48.4, 0.0386), (49.1, 0.0876), (52.7, 0.0633), (49.9, 0.0345)),
              ((10.0, 0.0015), (10.2, 0.1437), (9.9, 0.4126), (9.9, 0.2049), (9.7, 0.1301))),
}  # fmt: skip
PUBLISHED_ALL = {"plain": (249.0, 1.010), "joint": (253.0, 0.348)}  # all five at once: (sum of L0, rise)


@dataclasses.dataclass(frozen=True)
class Config:
    text: Path | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    context: int = 128
    batch: int = 128
    steps: int = 15_000
    warmup: int = 1000
    joint_warmup: int = 750
    sae_steps: int = 7500
    points: int = 8
    evaluate_every: int = 250
    windows: int | None = None
    """The number of validation windows; None: all."""


QUICK = Config(
    seeds=(0,), batch=8, steps=100, warmup=20, joint_warmup=20, sae_steps=60, points=2, evaluate_every=100, windows=32
)


def run(config: Config) -> Results:
    train, validation = load_text(config)
    found = {kind: [evaluate_model(kind, config, seed, train, validation) for seed in config.seeds] for kind in SWEEP}
    data = {kind: jax.tree.map(lambda *leaves: np.stack(leaves), *every) for kind, every in found.items()}
    return Results(result_rows(data), data)


def load_text(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The training characters (the first 90 %, a multiple of 256), and the validation windows."""
    folder = os.environ.get("JAX_INTERP_TEST_DATA")
    path = config.text or (Path(folder) / "text" / "tinyshakespeare.txt" if folder else None)
    if path is None or not path.is_file():
        raise UserError(
            f"no Tiny Shakespeare at {path}: give the file with --text, or the folder that has "
            "text/tinyshakespeare.txt in JAX_INTERP_TEST_DATA"
        )
    characters = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int32)
    if characters.max() > 127:
        raise UserError(f"{path} has bytes above 127: the model's vocabulary is ASCII")
    cut = int(0.9 * len(characters)) // 256 * 256
    rest = characters[cut:]
    windows = rest[: len(rest) // config.context * config.context].reshape(-1, config.context)
    return characters[:cut], windows[: config.windows]


def evaluate_model(kind: str, config: Config, seed: int, train: np.ndarray, validation: np.ndarray) -> dict[str, Any]:
    """The validation loss of one model, and L0 and the rise of the loss for its SAEs."""
    # What decides the model: the rest of the config may change without training it again.
    asked = dataclasses.replace(config, text=None, seeds=(), sae_steps=0, points=0)
    fresh = init(model_config(config), jax.random.key(seed))
    make = partial(plain_model if kind == "plain" else joint_model, config, seed, fresh, train, validation)
    model = cached(f"shakespeare_{kind}", asked, seed, fresh, make)
    clean = cross_entropy(model, validation)
    points = [penalties(kind, i, config.points) for i in range(config.points)]
    each = [evaluate_saes(config, seed, model, clean, one, train, validation) for one in points]
    return {"loss": np.asarray(clean)} | jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def model_config(config: Config) -> ModelConfig:
    return ModelConfig(
        n_layers=LAYERS, d_model=D, n_heads=4, d_mlp=4 * D, vocab_size=128, n_ctx=config.context, act="gelu_tanh",
        gated_mlp=False, norm="layernorm", positions="learned", qkv_bias=True, out_bias=True, mlp_bias=True,
    )  # fmt: skip


def batches(config: Config, seed: int, train: np.ndarray) -> Callable[[int], Any]:
    sampler = WindowSampler(train, config.batch, config.context, seed=seed)
    keep = np.ones((config.batch, config.context), bool)
    return lambda i: (sampler.batch_at(i), keep)


def plain_model(config: Config, seed: int, fresh: Any, train: np.ndarray, validation: np.ndarray) -> Any:
    optimizer = Optimization(1e-3, config.warmup, 0.01, 1.0, 0.1, 1.0, 0.9, 0.95).build(config.steps)
    at_step, best = batches(config, seed, train), Best(validation)
    fit(
        train_step(optimizer),
        init_state(fresh, optimizer),
        lambda i: at_step(i)[0],
        steps=config.steps,
        log=Log(evaluate=best, evaluate_every=config.evaluate_every, title=f"plain, seed {seed}"),
    )
    return best.model


def joint_model(config: Config, seed: int, fresh: Any, train: np.ndarray, validation: np.ndarray) -> Any:
    joint = JointConfig(sae_configs(REGULARISER), (OverNorm(3.0),), steps=config.steps, seed=seed)
    optimizer = adamw(1e-3, 1e-5, config.joint_warmup, config.steps, lambda pair: (decays(pair[0]), _never(pair[1])))
    at_step, best = batches(config, seed, train), Best(validation)
    train_joint(
        joint,
        fresh,
        at_step,
        optimizer,
        init_saes(seed),
        log=Log(evaluate=best, evaluate_every=config.evaluate_every, title=f"joint, seed {seed}"),
    )
    return best.model


class Best:
    """The validation loss, for `fit` to evaluate. Keeps the model with the smallest loss."""

    def __init__(self, validation: np.ndarray):
        self.validation, self.least, self.model = validation, np.inf, None

    def __call__(self, state: Any) -> dict[str, float]:
        loss = cross_entropy(state.model, self.validation)
        if loss < self.least:
            self.least, self.model = loss, jax.tree.map(jnp.copy, state.model)  # the state is donated to the next step
        return {"loss": loss}


def sae_configs(strengths: tuple[float, ...]) -> tuple[Any, ...]:
    return tuple(
        SAEConfig(site, width, ReLU(), (L1(c, "l1_of_norms", warmup=0.0),), decoder="free")
        for site, width, c in zip(SITES, WIDTHS, strengths, strict=True)
    )


def init_saes(seed: int) -> list[Any]:
    """New SAEs. Decoder rows have norm √2, the mean of PyTorch's Kaiming-uniform. Encoders are the transposes."""
    keys = jax.random.split(jax.random.key(1000 + seed), len(SITES))
    return [init_sae(key, D, width, ReLU(), row_norm=2**0.5) for key, width in zip(keys, WIDTHS, strict=True)]


def adamw(peak: float, end: float, warmup: int, steps: int, mask: Any) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, end)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=0.1, mask=mask))


def _never(tree: Any) -> Any:
    return jax.tree.map(lambda _: False, tree)


def penalties(kind: str, i: int, points: int) -> tuple[float, ...]:
    first, last = SWEEP[kind]
    return tuple(a + (b - a) * i / max(points - 1, 1) for a, b in zip(first, last, strict=True))


def evaluate_saes(
    config: Config,
    seed: int,
    model: Any,
    clean: float,
    strengths: tuple[float, ...],
    train: Any,
    validation: np.ndarray,
) -> dict[str, np.ndarray]:
    """Train five new SAEs together on a fixed model: {"l0", "rise"} by site, and {"rise_all"} with all spliced in."""
    joint = JointConfig(sae_configs(strengths), (Reconstruction(kind="sse"),), "dictionaries", config.sae_steps, seed)
    warmup = min(750, config.sae_steps // 10)
    # published: the sum over the sites, and the norm of its gradient clipped
    optimizer = optax.chain(optax.scale(len(SITES)), adamw(1e-3, 1e-4, warmup, config.sae_steps, _never))
    at_step, log = batches(config, seed + 1, train), Log(title="new SAEs")
    _, saes = train_joint(joint, model, at_step, optimizer, init_saes(seed), log=log)
    edits = [at(site, Splice(sae)) for site, sae in zip(SITES, saes, strict=True)]
    rises = [cross_entropy(edit(model, one), validation) - clean for one in edits]
    return {
        "l0": np.asarray(mean_l0(model, saes, validation)),
        "rise": np.asarray(rises),
        "rise_all": np.asarray(cross_entropy(edit(model, *edits), validation) - clean),
    }


_losses = jax.jit(lambda model, tokens: next_token(model(tokens), (tokens, jnp.ones(tokens.shape, bool))))


@jax.jit
def _l0(model: Any, saes: tuple[Any, ...], tokens: jax.Array) -> jax.Array:
    values = read(model, *SITES, output=False)(tokens)
    on = [jnp.sum(sae.encode(values[site]) > 0, axis=-1) for site, sae in zip(SITES, saes, strict=True)]
    return jnp.stack([jnp.mean(one.astype(jnp.float32)) for one in on])


def cross_entropy(model: Any, windows: np.ndarray, rows: int = 128) -> float:
    """The mean over all predictions of the windows, in nats per character."""
    parts = [windows[i : i + rows] for i in range(0, len(windows), rows)]
    return float(sum(len(one) * float(_losses(model, one)) for one in parts) / len(windows))


def mean_l0(model: Any, saes: tuple[Any, ...], windows: np.ndarray, rows: int = 128) -> np.ndarray:
    parts = [windows[i : i + rows] for i in range(0, len(windows), rows)]
    return np.asarray(sum(len(one) * np.asarray(_l0(model, saes, one)) for one in parts) / len(windows))


def rise_at(l0: np.ndarray, rise: np.ndarray, wanted: float) -> float:
    """The rise at an L0, interpolated in one sweep (log rise against log L0); NaN outside the sweep."""
    order = np.argsort(l0)
    logs = np.log(np.maximum(l0[order], 1e-9)), np.log(np.maximum(rise[order], 1e-6))
    return float(np.exp(np.interp(np.log(wanted), *logs, left=np.nan, right=np.nan)))


def result_rows(data: dict[str, Any]) -> tuple[Row, ...]:
    spread = lambda values: f"{np.mean(values):.4f} ± {np.std(values):.4f}"
    plain, joint = data["plain"]["loss"], data["joint"]["loss"]
    said = [f"{mean} ± {std}" for mean, std in (PUBLISHED_CE["plain"], PUBLISHED_CE["joint"])]
    rows = [
        Row("validation cross-entropy, plain", spread(plain), said[0]),
        Row("validation cross-entropy, with SAEs", spread(joint), said[1], bool(joint.mean() < plain.mean())),
    ]
    for i, site in enumerate(SITES):
        for end, name in enumerate(("about 50", "about 10")):
            ours, theirs = {}, {}
            for kind in SWEEP:
                l0, theirs[kind] = PUBLISHED[kind][end][i]
                every = data[kind]
                ours[kind] = np.mean([rise_at(a[:, i], b[:, i], l0) for a, b in zip(every["l0"], every["rise"])])
            rows.append(
                Row(
                    f"rise at {site}, L0 {name}: plain, with SAEs",
                    f"{ours['plain']:.4f}, {ours['joint']:.4f}",
                    f"{theirs['plain']:.4f}, {theirs['joint']:.4f}",
                    None if np.isnan(list(ours.values())).any() else bool(ours["joint"] < ours["plain"]),
                )
            )
    all_of = {kind: (np.mean(data[kind]["l0"].sum(-1)[:, 0]), np.mean(data[kind]["rise_all"][:, 0])) for kind in SWEEP}
    say = lambda pair: f"{pair[1]:.3f} (L0 {pair[0]:.0f})"
    rows.append(
        Row(
            "rise with all five, weakest penalty: plain, with SAEs",
            f"{say(all_of['plain'])}, {say(all_of['joint'])}",
            f"{say(PUBLISHED_ALL['plain'])}, {say(PUBLISHED_ALL['joint'])}",
            bool(all_of["joint"][1] < all_of["plain"][1]),
        )
    )
    return tuple(rows)


@styled
def figure(data: dict[str, Any]) -> Any:
    drawn, panels = canvas(15, 3.2, len(SITES))
    for i, (axes, site) in enumerate(zip(panels, SITES, strict=True)):
        for kind, color in (("plain", ORANGE), ("joint", BLUE)):
            l0, rise = np.asarray(data[kind]["l0"])[..., i], np.maximum(np.asarray(data[kind]["rise"])[..., i], 1e-5)
            for seed, (x, y) in enumerate(zip(l0, rise, strict=True)):
                axes.plot(x, y, color=color, lw=1.2, marker=".", label=None if seed else kind)
            axes.plot(*zip(*(ends[i] for ends in PUBLISHED[kind])), ls="none", marker="x", color=color, ms=7)
        axes.set(title=site, xscale="log", yscale="log", xlabel="L0")
    panels[0].set_ylabel("rise of the cross-entropy, nats")
    panels[0].plot([], [], ls="none", marker="x", color=MUTED, label="published")
    panels[0].legend(fontsize=8, labelcolor=INK)
    return drawn
