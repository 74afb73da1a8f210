"""Dictionaries trained end to end: for what the model makes of their reconstructions (Braun et al. 2024,
arXiv:2405.12241).

    L = KL(p ‖ p̂) + the terms of each dictionary's config + β/K Σ_k ‖â^k - a^k‖²

p is the clean model's prediction, p̂ that of the model with every dictionary spliced in at once; â^k and a^k are the K
later values of `downstream` in the two runs (the L - l later layers: the paper's β/(L - l)). One forward pass is clean,
one spliced; only dictionaries are trained. No term need ask for the values themselves back:

    sae = variants.relu("blocks.2.resid_post", loss=(L1(0.01),), steps=2000)
    config = EndToEndConfig((sae,), downstream=("blocks.3.resid_post",))
    (sae,) = train_end_to_end(config, model, batch_at, run="runs/e2e")

With `balance` b a trained dictionary is fine-tuned (Karvonen 2025), M being the reconstruction terms of the configs and
O what is asked of the model, the KL with the later values where there are any:

    L = (M + α b O) / (1 + b) + the other terms        α = M / (O + 1e-8), without gradient

What a dictionary reads in the spliced run was changed by those before it; its own terms are about what it reads there.
Each dictionary has the optimizer, decoder constraint and dead-latent handling of its config, as in train.py.

A model whose blocks are scanned carries a dictionary's values through every layer of the scan: unroll the layers that
have one, `replan(model, (2, 5))`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core import optimizers as optimizer
from jax_interp.core.errors import UserError
from jax_interp.core.objectives import kl_divergence, log_probabilities, masked_mean, negative_log_likelihood
from jax_interp.data.harvest import start_stream
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.losses.forward import Forward
from jax_interp.dictionaries.losses.reconstruction import Kind
from jax_interp.dictionaries.losses.term import Term, total
from jax_interp.dictionaries.training.config import DictionaryConfig
from jax_interp.dictionaries.training.normalisation import fold_scale, for_inference
from jax_interp.dictionaries.training.spliced import TrainingSplice, code_structure, kept_rows
from jax_interp.dictionaries.training.train import Learner, adam, init_learner, learn
from jax_interp.dictionaries.training.warm_start import check_count, warm_start
from jax_interp.surgery import at, edit, read
from jax_interp.training import Log, RunTarget, SaveTo, fit


@dataclasses.dataclass(frozen=True)
class EndToEndConfig:
    """`dictionaries`: SAEs, one value each, all for the same number of steps. Their `buffer` is how many rows of their
    inputs are measured before the first step (scale, mean, variance)."""

    dictionaries: tuple[DictionaryConfig, ...]
    output: Literal["kl", "ce"] = "kl"
    """KL(p ‖ p̂) over the positions kept, or the spliced model's cross-entropy over the predictions kept."""
    coefficient: float = 1.0
    """Of the output's term."""
    downstream: tuple[str, ...] = ()
    """Later values that are to be what they are in the clean run."""
    beta: float = 1.0
    """Of these together."""
    kind: Kind = "fvu"
    """What each later value's squared error is divided by: its variance, 1 (sse) or its width (mse: Braun et al.)."""
    balance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        configs = self.dictionaries
        check_saes(configs, "end-to-end training")
        if len({config.steps for config in configs}) != 1:
            raise UserError(f"dictionaries for {[config.steps for config in configs]} steps: give all the same number")
        for config in configs:
            if self.balance is not None and not any(term.reconstructs for term in config.loss):
                raise UserError(
                    f"balance={self.balance} sets KL beside the reconstruction, {config.address} has no such term"
                )

    @property
    def steps(self) -> int:
        return self.dictionaries[0].steps

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(config.reads[0] for config in self.dictionaries)


def check_saes(configs: Sequence[DictionaryConfig], what: str) -> None:
    """UserError unless these are SAEs of one value each, at different sites."""
    sites = [config.reads[0] for config in configs]
    if not configs or len(set(sites)) != len(sites):
        raise UserError(f"{what} needs dictionaries at different addresses, at least one; got {sites}")
    for config in configs:
        if len(config.reads) != 1 or config.writes is not None:
            raise UserError(
                f"{what} is for SAEs, which write the one value that they read; this one reads {config.reads} and "
                f"writes {config.targets}"
            )
        if config.matmul is not None:
            raise UserError(
                f"matmul={config.matmul!r}: {what} multiplies as the model does; leave it out, or set "
                "jax.default_matmul_precision around the call"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EndToEndState:
    """`scale` and `variance` (of the scaled value) of each dictionary's input, `later`: the variance of each later
    value, unscaled. Measured once, in the clean model."""

    learners: tuple[Learner, ...]
    scale: Float[Array, " site"]
    variance: Float[Array, " site"]
    later: Float[Array, " value"]
    key: Key[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Along(Term):
    """The term whose gradient is `gradient`: how `learn` is given one that was computed elsewhere."""

    gradient: Any

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        products = jax.tree.map(lambda g, p: jnp.sum(g * p), self.gradient, forward.dictionary)
        return sum(jax.tree.leaves(products), jnp.zeros((), forward.x.dtype))


def output_loss(
    output: str,
    logits: Float[Array, "seq pos vocab"],
    clean: Float[Array, "seq pos vocab"] | None,
    tokens: Int[Array, "seq pos"],
    keep: Bool[Array, "seq pos"],
) -> Float[Array, ""]:
    """KL from the clean prediction, mean over kept positions, or cross-entropy, mean over the predictions that are made
    at a kept position and of a kept token. NaN where there is none."""
    log_q = log_probabilities(logits)
    if output == "ce":
        losses = negative_log_likelihood(log_q[:, :-1], tokens[:, 1:])
        return masked_mean(losses, keep[:, :-1] & keep[:, 1:])
    return masked_mean(kl_divergence(log_probabilities(clean), log_q), keep)


def downstream_loss(
    value: Array, clean: Array, keep: Bool[Array, "seq pos"], kind: Kind, variance: Float[Array, ""]
) -> Float[Array, ""]:
    """‖â - a‖², Σ over the value's dimensions, mean over kept positions, in the units of `kind`."""
    wide = jnp.promote_types(value.dtype, jnp.float32)
    error = (value.astype(wide) - clean.astype(wide)).reshape(*keep.shape, -1)
    sse = masked_mean(jnp.sum(error * error, axis=-1), keep)
    if kind == "fvu":
        return sse / variance.astype(wide)
    return sse if kind == "sse" else sse / jnp.asarray(error.shape[-1], wide)


def loss(
    config: EndToEndConfig,
    dictionaries: Sequence[Dictionary],
    state: EndToEndState,
    batch: tuple[Int[Array, "seq pos"], Bool[Array, "seq pos"]],
    model: Any,
) -> tuple[Float[Array, ""], tuple[dict[str, Array], list[Forward]]]:
    """(loss, (its parts, what each dictionary has computed)). Pure; `state` gives all but the dictionaries."""
    tokens, keep = batch
    rows, kept = kept_rows(keep, jax.random.split(state.key)[1])
    clean, before = None, {}
    if config.downstream:
        clean, before = read(model, *config.downstream)(tokens)
    elif config.output == "kl":
        clean = model(tokens)

    structures = [code_structure(d, keep.size) for d in dictionaries]
    named = [
        [f"{site}.{name}" for name in ("x", "y_hat", *(f"code.{i}" for i in range(s.num_leaves)))]
        for site, s in zip(config.sites, structures, strict=True)
    ]
    edits = [
        at(site, TrainingSplice(d, scale.astype(d.W_enc.dtype), rows, kept))
        for site, d, scale in zip(config.sites, dictionaries, state.scale, strict=True)
    ]
    logits, after = read(edit(model, *edits), *config.downstream, *named)(tokens)

    forwards, fidelity, others = [], 0.0, 0.0
    for i, (one, d) in enumerate(zip(config.dictionaries, dictionaries, strict=True)):
        x, y_hat, *leaves = (after[name] for name in named[i])
        learner, code = state.learners[i], jax.tree.unflatten(structures[i], leaves)
        progress = learner.step.astype(x.dtype) / config.steps
        dead, key = learner.since_fired > one.dead_after, jax.random.split(learner.key, 3)[1]
        forwards.append(Forward(d, x, x, code, y_hat, dead, state.variance[i].astype(x.dtype), progress, key))
        is_fidelity = [config.balance is not None and term.reconstructs for term in one.loss]
        terms = lambda chosen, mask=is_fidelity, one=one: [t for t, m in zip(one.loss, mask) if m == chosen]
        fidelity += total(terms(True), forwards[-1])[0]
        others += total(terms(False), forwards[-1])[0]

    out = output_loss(config.output, logits, clean, tokens, keep)
    parts = {config.output: out, "terms": others}
    out = config.coefficient * out
    if config.downstream:
        errors = [
            downstream_loss(after[name], before[name], keep, config.kind, variance)
            for name, variance in zip(config.downstream, state.later, strict=True)
        ]
        parts["downstream"] = sum(errors) / len(errors)
        out = out + config.beta * parts["downstream"]
    if config.balance is not None:
        alpha = jax.lax.stop_gradient(fidelity / (out + 1e-8))
        parts["fidelity"] = fidelity
        out = (fidelity + config.balance * alpha * out) / (1 + config.balance)
    return out + others, (parts, forwards)


def end_to_end_step(
    config: EndToEndConfig, state: EndToEndState, batch: tuple[Array, Array], model: Any
) -> tuple[EndToEndState, dict[str, Any]]:
    """One step of all dictionaries. Pure; `partial(end_to_end_step, config)` is a `fit` step, the model among `frozen`.

    Metrics: the loss and its parts (before coefficients), and for each dictionary under `dictionary.<i>` those of
    `learn`, about what it read in the spliced run.
    """
    dictionaries = tuple(learner.dictionary for learner in state.learners)
    of = lambda dictionaries: loss(config, dictionaries, state, batch, model)
    (value, (parts, forwards)), gradients = jax.value_and_grad(of, has_aux=True)(dictionaries)
    learners, each, kept = [], {}, jnp.sum(batch[1], dtype=jnp.int32)
    for i, (one, forward) in enumerate(zip(config.dictionaries, forwards, strict=True)):
        along, variance = (Along(gradients[i]),), state.variance[i : i + 1]
        learner, metrics = learn(one, state.learners[i], forward.x, variance, loss=along, tokens=kept)
        learners.append(learner)
        each[str(i)] = {name: metrics[name] for name in ("fvu", "l0", "dead")}
    metrics = parts | {"loss": value, "dictionary": each}
    return dataclasses.replace(state, learners=tuple(learners), key=jax.random.split(state.key)[0]), metrics


def init_end_to_end_state(
    config: EndToEndConfig,
    model: Any,
    batch_at: Callable[[int], tuple[Array, Array]],
    dictionaries: Sequence[Dictionary] | None = None,
) -> EndToEndState:
    """The state before the first step: inputs measured, dictionaries fresh or as given (`warm_start`)."""
    if dictionaries is not None:
        check_count(config.dictionaries, dictionaries)
    n, key = len(config.sites), jax.random.key(config.seed)
    stream_key, state_key = jax.random.split(jax.random.fold_in(key, n))
    found = start_stream(stream_key, model, config.sites + config.downstream, batch_at, config.dictionaries[0].buffer)
    ends = np.cumsum([0, *found.widths])
    learners = []
    for i, one in enumerate(config.dictionaries):
        mean = found.mean[ends[i] : ends[i + 1]]
        learner = init_learner(one, jax.random.fold_in(jax.random.key(one.seed), i), found.widths[i : i + 1], mean)
        if dictionaries is not None:
            learner = _warm_learner(one, learner, dictionaries[i], found.scale[i])
        learners.append(learner)
    later = found.variance[n:] / found.scale[n:] ** 2
    return EndToEndState(tuple(learners), found.scale[:n], found.variance[:n], later, state_key)


def _warm_learner(config: DictionaryConfig, learner: Learner, dictionary: Dictionary, scale: Array) -> Learner:
    """A learner that goes on from a trained dictionary."""
    given = warm_start(config, learner.dictionary, dictionary)
    every = jnp.full((given.d,), 1 / scale)
    scaled = fold_scale(given, every, every, 1 / scale)
    # its rows have norm 1 then, and a choice weighted by them is the config's again
    if given.activation.weighted:
        scaled = dataclasses.replace(scaled, activation=dataclasses.replace(scaled.activation, weighted=True))
    return dataclasses.replace(
        learner, dictionary=scaled, opt=optimizer.init(adam(config.optimizer, config.steps), scaled)
    )


def export_end_to_end(state: EndToEndState) -> tuple[Dictionary, ...]:
    """The dictionaries as trained so far, for raw activations, in the order of the config."""
    out = []
    for learner, scale in zip(state.learners, state.scale, strict=True):
        every = jnp.full((learner.dictionary.d,), scale)
        out.append(for_inference(fold_scale(learner.dictionary, every, every, scale)))
    return tuple(out)


def train_end_to_end(
    config: EndToEndConfig,
    model: Any,
    batch_at: Callable[[int], tuple[Array, Array]],
    dictionaries: Sequence[Dictionary] | None = None,
    *,
    run: RunTarget = None,
    log: Log = Log(),
) -> tuple[Dictionary, ...]:
    """Train from the start, or from the last checkpoint of `run`, and export, in the order of the config.

    `dictionaries` are trained ones (for raw activations) to go on from. `batch_at` and `log` are as in
    `train_dictionary`: the same call after a kill ends with the same bits.
    """
    state = init_end_to_end_state(config, model, batch_at, dictionaries)
    tokens = batch_at(0)[0].size
    log = log.with_defaults(shown=("loss", config.output), per_step={"tokens": tokens}, title="end to end")
    step = partial(end_to_end_step, config)
    saving = SaveTo.of(run, config)
    state = fit(step, state, batch_at, steps=config.steps, run=saving, frozen=(model,), log=log)
    return export_end_to_end(state)
