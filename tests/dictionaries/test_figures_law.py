"""Laws: the figures of `evaluate`, batch by batch in float32, equal a float64 computation over all rows at once.

Dictionaries have every registered activation, and come from every trainer with every loss term. Activations are float32
or bfloat16, with long means, equal rows, rows of zeros, or one row. Sequences have padding on either side.
"""

from __future__ import annotations

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from generated import drawn

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.data.activation_writing import write_activation_store
from jax_interp.dictionaries import (
    Adam,
    CrossLayerConfig,
    Dictionary,
    DictionaryConfig,
    EndToEndConfig,
    EndToEndSAEConfig,
    JointConfig,
    SAEConfig,
    Sweep,
    evaluate,
    train_cross_layer,
    train_dictionary,
    train_end_to_end,
    train_from_store,
    train_joint,
    train_sweep,
)
from jax_interp.dictionaries.activations import ACTIVATIONS, Activation, Gate, Jump, SelectiveActivation
from jax_interp.dictionaries.evaluation.downstream import MEASURABLE
from jax_interp.dictionaries.forms.side_by_side import SideBySide
from jax_interp.dictionaries.losses import TERMS, Reconstruction
from jax_interp.surgery import Site
from jax_interp.training import QUIET

D, M, K, VOCAB, SEQ, POS = 6, 16, 4, 40, 4, 8


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Token t has the value `rows[t]` at "x" and twice that at "y". The prediction is a linear map of "y"."""

    rows: jax.Array
    unembed: jax.Array

    def __call__(self, tokens, *, taps=()):
        site = Site.open(taps)
        x = site("x", self.rows[tokens])
        y = site("y", x + site("added", self.rows[tokens]))
        return site.close(site("logits", y.astype(jnp.float32) @ self.unembed))


def table(rng: np.random.Generator, kind: str) -> Table:
    rows = rng.normal(size=(VOCAB, D)) * np.linspace(0.3, 2, D)
    if kind == "long mean":
        rows = rows + 40 * rng.normal(size=D)
    if kind == "rows of zeros":
        rows[::3] = 0
    if kind == "equal rows":
        rows[:] = rows[0]
    dtype = jnp.bfloat16 if kind == "bfloat16" else jnp.float32
    return Table(jnp.asarray(rows, dtype), jnp.asarray(rng.normal(size=(D, VOCAB)), jnp.float32))


def batches_of(rng: np.random.Generator, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches with padding on the left, on the right, on both sides and on neither."""
    out = []
    for _ in range(3):
        tokens = rng.integers(0, VOCAB, (SEQ, POS))
        left, right = rng.integers(0, 3, SEQ), POS - rng.integers(0, 3, SEQ)
        keep = (np.arange(POS) >= left[:, None]) & (np.arange(POS) < right[:, None])
        keep[0] = True
        out.append((tokens, keep))
    if kind == "one row":  # two kept positions, so that there is one prediction
        for _, keep in out:
            keep[:] = False
        out[1][1][2, 3:5] = True
    return out


def encoded(dictionary: Dictionary, x: np.ndarray) -> np.ndarray | None:
    """The latents by the definition of the activation, in float64. None: the definition is not written here."""
    a, W = dictionary.activation, np.asarray(dictionary.W_dec, np.float64)
    centre = np.asarray(dictionary.b_dec, np.float64) if dictionary.centred else 0
    linear = (x - centre) @ np.asarray(dictionary.W_enc, np.float64)
    pre = linear + np.asarray(dictionary.b_enc, np.float64)
    if isinstance(a, Jump):
        return np.where(pre > np.exp(np.asarray(a.log_threshold, np.float64)), pre, 0)
    if isinstance(a, Gate):
        magnitude = linear * np.exp(np.asarray(a.r_mag, np.float64)) + np.asarray(a.b_mag, np.float64)
        return np.where(pre > 0, np.maximum(magnitude, 0), 0)
    name = type(a).__name__
    if name == "ReLU":
        return np.maximum(pre, 0)
    if name == "BatchTopK":
        return np.where(pre > max(float(a.threshold), 0), pre, 0)
    if name == "TopK":
        return np.where(pre >= np.sort(pre, axis=1)[:, -a.k][:, None], np.maximum(pre, 0), 0)
    if name == "AbsTopK":
        return np.where(np.abs(pre) >= np.sort(np.abs(pre), axis=1)[:, -a.k][:, None], pre, 0)
    if name == "GroupMax":
        groups = pre.reshape(len(pre), a.k, -1)
        return np.where(groups == groups.max(2, keepdims=True), np.maximum(groups, 0), 0).reshape(pre.shape)
    if name == "MatchingPursuit":
        z, rest, rows = np.zeros((len(x), M)), x - np.asarray(dictionary.b_dec, np.float64), np.arange(len(x))
        taken, done = np.zeros(z.shape, bool), np.zeros(len(x), bool)
        for _ in range(a.k):
            before = z != 0
            j = np.argmax(np.where(taken & (not a.retakes), -np.inf, rest @ W.T), axis=1)
            value = np.where(done, 0, np.maximum((rest * W[j]).sum(1), 0))
            z[rows, j] += value
            taken[rows, j] = True
            rest = rest - value[:, None] * W[j]
            done |= a.stop_at_retake & ((z != 0) == before).all(1)
            done |= np.linalg.norm(rest, axis=1) < a.residual_threshold
        return z
    return None


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def expected(model: Table, dictionary: Dictionary, batches: list) -> dict[str, float]:
    """The figures over all rows at once, in float64."""
    tokens, keep = (np.concatenate(parts) for parts in zip(*batches))
    table_rows = np.asarray(model.rows.astype(jnp.float32), np.float64)
    x = table_rows[tokens][keep]
    z = np.asarray(dictionary.encode(jnp.asarray(x, jnp.float32)), np.float64)
    W, b = (np.asarray(a, np.float64) for a in (dictionary.W_dec, dictionary.b_dec))
    x_hat = z @ W + b
    own = encoded(dictionary, x)
    assert own is None or (np.abs(own - z) > 1e-3 * (1 + np.abs(own))).mean() < 2e-3, "the latents"
    error, norm, norm_hat = ((x - x_hat) ** 2).sum(1), *(np.sqrt((a * a).sum(1)) for a in (x, x_hat))
    variance, some = ((x - x.mean(0)) ** 2).sum(1).mean(), norm > 1e-6
    cosine = (x * x_hat).sum(1)[some] / np.maximum(norm * norm_hat, 1e-30)[some]
    figures = {
        "tokens": len(x), "l0": (z != 0).sum(1).mean(), "l1": np.abs(z).sum(1).mean(), "sse": error.mean(),
        "l1_weighted": (np.abs(z) @ np.sqrt((W * W).sum(1))).mean(),
        "fvu": error.mean() / variance if variance > 1e-9 * (norm**2).mean() else np.nan,
        "cosine": cosine.mean() if some.any() else np.nan,
        "l2_ratio": (norm_hat[some] / norm[some]).mean() if some.any() else np.nan,
        "dead": ((z != 0).sum(0) == 0).sum(),
        "nmse": (error[some] / norm[some] ** 2).mean() if some.any() else np.nan,
    }  # fmt: skip

    def of_model(value_of) -> tuple[np.ndarray, np.ndarray]:
        value = table_rows[tokens]
        replaced = np.where(keep[..., None], value_of(value), value)
        added = table_rows[tokens]
        log_p = log_softmax((replaced + added) @ np.asarray(model.unembed, np.float64))[:, :-1]
        counted = keep[:, :-1] & keep[:, 1:]
        return -np.take_along_axis(log_p, tokens[:, 1:, None], -1)[..., 0][counted].mean(), log_p[counted]

    whole = np.zeros((*keep.shape, D))
    whole[keep] = x_hat
    clean, p = of_model(lambda value: value)
    for name, value_of in {
        "spliced": lambda value: whole,
        "zero_ablated": np.zeros_like,
        "mean_ablated": lambda value: np.broadcast_to(x.mean(0), value.shape),
    }.items():
        loss, q = of_model(value_of)
        figures |= {name: loss, f"kl_{name}": (np.exp(p) * (p - q)).sum(-1).mean()}
    figures["clean"] = clean
    for name in ("zero", "mean"):
        hurts = figures[f"{name}_ablated"] - clean
        defined = hurts > MEASURABLE
        figures[f"recovered_{name}"] = (figures[f"{name}_ablated"] - figures["spliced"]) / hurts if defined else np.nan
    return figures


def found(model: Table, dictionary: Dictionary, batches: list) -> dict[str, float]:
    result = evaluate(model, "x", dictionary, batches)
    flat = dataclasses.asdict(result.reconstruction) | dataclasses.asdict(result.cross_entropy)
    assert None not in (result.to_json()["reconstruction"]["sse"], result.to_json()["cross_entropy"]["clean"])
    return flat | {"dead": result.density.dead, "nmse": result.published.nmse_per_token}


def broken(case: object, model: Table, dictionary: Dictionary, batches: list) -> list[str]:
    """The figures that differ, each as one line."""
    # In bfloat16, what replaces a value is rounded to 8 bits. Zeros are exact.
    rounded = ("spliced", "mean_ablated", "recovered_zero", "recovered_mean", "kl_spliced", "kl_mean_ablated")
    rounded = rounded if model.rows.dtype == jnp.bfloat16 else ()
    try:
        got = found(model, dictionary, batches)
    except UserError as error:
        return [f"{case}: refused: {error}"]
    bad = []
    for name, want in expected(model, dictionary, batches).items():
        rtol = 0.05 if name in rounded else 2e-3
        near_border = name.startswith("recovered") and not np.isfinite(got[name] * want)
        if near_border and np.isnan(got[name]) == np.isnan(want):
            continue
        if not np.isclose(got[name], want, rtol=rtol, atol=1e-4, equal_nan=True):
            bad.append(f"{case}: {name} is {got[name]}, not {want}")
    return bad


def activation_of(kind: type[Activation], rng: np.random.Generator) -> Activation:
    """An activation with parameters of all signs."""
    options: dict = {}
    if kind.__name__ == "MatchingPursuit":
        retakes, stops, least = (int(n) for n in rng.integers(0, 2, 3))
        options = {"retakes": bool(retakes), "stop_at_retake": bool(stops), "residual_threshold": 2.0 * least}
    made = (kind(k=K, **options) if issubclass(kind, SelectiveActivation) else kind()).init(M, jnp.float32)
    noise = jnp.asarray(rng.normal(size=M), jnp.float32)
    return jax.tree.map(lambda a: a + 0.2 * noise if a.shape == (M,) else jnp.abs(a) * 0.3, made)


def dictionary_of(activation: Activation, rng: np.random.Generator) -> Dictionary:
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    W_dec, b_enc = normal(M, D), normal(M)
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    b_enc[::5] = -1e4  # dead latents
    weights = (normal(D, M), b_enc, W_dec, normal(D))
    return Dictionary(*map(jnp.asarray, weights), activation, centred=bool(rng.integers(2)))


KINDS = ("plain", "long mean", "rows of zeros", "equal rows", "bfloat16", "one row")


@pytest.mark.hardening
def test_figures_equal_float64_over_all_rows(tally):
    seed, bad, n = random.randrange(2**32), [], drawn(6, 60)
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in ACTIVATIONS if kind.__module__.startswith("jax_interp.")]
    for i in range(n):
        kind, of_rows = kinds[int(rng.integers(len(kinds)))], KINDS[int(rng.integers(len(KINDS)))]
        dictionary = dictionary_of(activation_of(kind, rng), rng)
        if kind.__name__ == "MatchingPursuit":
            dictionary = dataclasses.replace(dictionary, centred=True)
        bad += broken((seed, i, kind.__name__, of_rows), table(rng, of_rows), dictionary, batches_of(rng, of_rows))
    tally("figures equal float64 over all rows", tried=n, broken=len({line.partition(")")[0] for line in bad}))
    assert not bad, "\n".join(bad)


def terms_for(activation: Activation, rng: np.random.Generator, fits) -> tuple:
    """The reconstruction term and one other term that `activation` can be trained with."""
    found = []
    for kind in TERMS:
        term = kind()
        try:
            term.check(activation)
        except UserError:
            continue
        if not term.reconstructs and fits(term) and kind.__module__.startswith("jax_interp."):
            found.append(term)
    return Reconstruction(), *([found[int(rng.integers(len(found)))]] if found else [])


def trained(trainer: str, activation: Activation, model: Table, rng: np.random.Generator, directory):
    """A dictionary after two steps."""
    cross = trainer == "cross-layer"
    fits = lambda term: not cross or term.cross_layer is not None
    fields = {"n_features": M, "activation": activation, "loss": terms_for(activation, rng, fits)}
    harvested = fields | {"steps": 2, "optimizer": Adam(warmup=0)}
    saes = {"address": "x", **fields}

    def batch_at(i):
        rows = np.random.default_rng([7, i])
        return rows.integers(0, VOCAB, (SEQ, POS)), np.broadcast_to(np.arange(POS) > 0, (SEQ, POS))

    if cross:
        config = CrossLayerConfig(("x",), buffer=64, **harvested)
        return SideBySide(train_cross_layer(config, model, batch_at, log=QUIET))
    if trainer == "store":
        store = write_activation_store(directory, model, "x", batch_at, rows=128, quiet=True)
        return train_from_store(DictionaryConfig("x", **harvested), store, batch=32, log=QUIET)
    if trainer == "sweep":
        grid = Sweep(learning_rates=(1e-3, 2e-3))
        config = DictionaryConfig("x", buffer=64, **harvested)
        return train_sweep(config, grid, model, batch_at, log=QUIET)[1][1]
    if trainer == "end to end":
        config = EndToEndConfig((EndToEndSAEConfig(**saes),), steps=2, buffer=64, skip_first=1)
        return train_end_to_end(config, model, batch_at, log=QUIET)[0]
    if trainer == "joint":
        config = JointConfig((SAEConfig(**saes),), shared=(), train="dictionaries", steps=2)
        return train_joint(config, model, batch_at, optax.adam(1e-3), log=QUIET)[1][0]
    config = DictionaryConfig("x", buffer=64, skip_first=2, max_norm=20.0, **harvested)
    return train_dictionary(config, model, batch_at, log=QUIET)


TRAINERS = ("stream", "store", "sweep", "cross-layer", "end to end", "joint")


@pytest.mark.hardening
def test_figures_of_trained_dictionaries(tally, tmp_path):
    seed, bad, n = random.randrange(2**32), [], drawn(2, 14)
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in ACTIVATIONS if kind.__module__.startswith("jax_interp.")]
    for i in range(n):
        kind, trainer = kinds[int(rng.integers(len(kinds)))], TRAINERS[int(rng.integers(len(TRAINERS)))]
        if trainer == "cross-layer" and not kind.cross_layer:
            trainer = "stream"
        activation = kind(k=K) if issubclass(kind, SelectiveActivation) else kind()
        of_rows = ("plain", "long mean", "bfloat16")[int(rng.integers(3))]
        model = table(rng, of_rows)
        one = trained(trainer, activation, model, rng, tmp_path / str(i))
        if isinstance(one, SideBySide):  # one source and one target: an SAE that is not centred
            source = one.dictionary.sources[0]
            one = dataclasses.replace(source.dictionary, b_dec=one.dictionary.b_dec[0])
        case = (seed, i, trainer, kind.__name__, of_rows)
        bad += broken(case, model, one, batches_of(rng, of_rows))
    tally("figures of trained dictionaries", tried=n, broken=len({line.partition(")")[0] for line in bad}))
    assert not bad, "\n".join(bad)
