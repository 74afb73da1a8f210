"""End-to-end training: dictionaries are trained so that the model with their reconstructions keeps its output (Braun et
al. 2024, arXiv:2405.12241).

    L = KL(p ‖ p̂) + the terms of each dictionary's config + β/K Σ_k ‖â^k - a^k‖²

p is the prediction of the clean model. p̂ is the prediction with all dictionaries spliced in at once. a^k and â^k are
the K values at `downstream` in the clean and in the spliced run. (In the paper, K = L - l: all later layers.) A step
has one clean and one spliced forward pass. Only the dictionaries are trained. A reconstruction term is not needed:

    sae = EndToEndSAEConfig.of(variants.relu("blocks.2.resid_post", loss=(L1(0.01),)))
    config = EndToEndConfig((sae,), steps=2000, downstream=("blocks.3.resid_post",))
    (sae,) = train_end_to_end(config, model, batch_at, run="runs/e2e")

With `balance` b, trained dictionaries are fine-tuned (Karvonen 2025). M is the sum of the reconstruction terms of the
configs. O is the sum of the output's term and of the term of the later values:

    L = (M + α b O) / (1 + b) + the other terms        α = M / (O + 1e-8), without gradient

In the spliced run, the input of a dictionary depends on earlier dictionaries. Its own terms use this input. Each
dictionary has its own optimizer, decoder constraint and handling of dead latents, as in train.py.

If the blocks of a model are scanned, the values of a dictionary are carried through every layer of the scan. Unroll the
layers that have a dictionary, for example with `replan(model, (2, 5))`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.errors import UserError
from jax_interp.core.layer import at_least_float32
from jax_interp.core.objectives import kl_divergence, log_probabilities, masked_mean, negative_log_likelihood
from jax_interp.core.pytrees import register_dataclass
from jax_interp.data.harvest import Stream, init_stream, stream_shapes
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.losses.forward import Forward
from jax_interp.dictionaries.losses.reconstruction import Kind
from jax_interp.dictionaries.losses.term import total
from jax_interp.dictionaries.sharding import rules
from jax_interp.dictionaries.training.apply_gradient import ALONE, StepResult, UpdateRule, apply_gradient, observe
from jax_interp.dictionaries.training.config import (
    EndToEndSAEConfig,
    check_at_least_1,
    check_sites,
    check_skip_first,
    older_saes,
)
from jax_interp.dictionaries.training.initialise import init_sae_of, new_learner
from jax_interp.dictionaries.training.learner import (
    BatchAt,
    Learner,
    adam,
    kind_of,
    lowered_rate,
    offset_rate,
    step_metrics,
    without_first,
)
from jax_interp.dictionaries.training.normalisation import fold_scale, for_inference
from jax_interp.dictionaries.training.resampling import resampler
from jax_interp.dictionaries.training.spliced import TrainingSplice, code_structure, kept_rows
from jax_interp.dictionaries.training.warm_start import check_count, warm_start
from jax_interp.models.sharding import rules_for
from jax_interp.surgery import at, canonical, edit, read
from jax_interp.surgery.contract import Model
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic, automatic_step, fit, placed
from jax_interp.training.planning.planned import PlannedStep


def _older(fields: dict[str, Any]) -> dict[str, Any]:
    """Earlier versions stored a `DictionaryConfig` for each dictionary. It held the steps and the buffer."""
    stored = fields.get("dictionaries", [])
    shared = {name: stored[0][name] for name in ("steps", "buffer") if stored and name in stored[0]}
    later = canonical(fields.get("downstream", []))
    return (
        {"skip_first": 0}
        | shared
        | fields
        | {"dictionaries": older_saes(stored, EndToEndSAEConfig), "downstream": later}
    )


@reads_older_files(rewritten=_older)
@dataclasses.dataclass(frozen=True)
class EndToEndConfig:
    """The config of end-to-end training."""

    dictionaries: tuple[EndToEndSAEConfig, ...]
    output: Literal["kl", "ce"] = "kl"
    """kl: KL(p ‖ p̂), mean over kept positions. ce: cross-entropy of the spliced model, mean over kept predictions."""
    coefficient: float = 1.0
    """The coefficient of the output's term."""
    downstream: tuple[str, ...] = ()
    """Addresses of later values that should keep their values of the clean run."""
    beta: float = 1.0
    """The coefficient of the term of all `downstream` values together."""
    kind: Kind = "fvu"
    """The divisor of the squared error of each later value: its variance (fvu), 1 (sse), or its width (mse, as in Braun
    et al.)."""
    balance: float | None = None
    """The weight b of the output's term relative to the reconstruction, for fine-tuning. None: terms are simply
    added."""
    steps: int = 800
    buffer: int = 65_536
    """The number of rows on which scale, mean and variance of the inputs are measured before the first step."""
    skip_first: int = 0
    """The number of positions at the start of every sequence that are left out: their values are not replaced, and they
    are in no term of the loss."""
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "downstream", canonical(self.downstream))
        check_skip_first(self.skip_first)
        check_sites(self.dictionaries, "end-to-end training")
        check_at_least_1(self, "steps", "buffer")
        for config in self.dictionaries:
            if self.balance is not None and not any(term.reconstructs for term in config.loss):
                raise UserError(
                    f"balance={self.balance} needs a reconstruction term, the loss of {config.address} has no such term"
                )

    @property
    def sites(self) -> tuple[str, ...]:
        """The addresses of the dictionaries."""
        return tuple(config.address for config in self.dictionaries)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class EndToEndState:
    """The state of end-to-end training. Scales and variances are measured once, in the clean model.

    Attributes:
      learners: one learner for each dictionary, in the order of the config.
      scale: the factor on the input of each dictionary.
      variance: the variance of each dictionary's scaled input.
      later: the variance of each later value, unscaled.
      key: the random key of the next step.
    """

    learners: tuple[Learner[Dictionary], ...]
    scale: Float[Array, " site"]
    variance: Float[Array, " site"]
    later: Float[Array, " value"]
    key: Key[Array, ""]


def output_loss(
    output: str,
    logits: Float[Array, "seq pos vocab"],
    clean: Float[Array, "seq pos vocab"] | None,
    tokens: Int[Array, "seq pos"],
    keep: Bool[Array, "seq pos"],
) -> Float[Array, ""]:
    """The output's term: KL(clean ‖ spliced), or cross-entropy.

    The KL is a mean over kept positions. The cross-entropy is a mean over predictions whose position and next position
    are both kept. It is NaN if there are none.
    """
    log_q = log_probabilities(logits)
    if output == "ce":
        losses = negative_log_likelihood(log_q[:, :-1], tokens[:, 1:])
        return masked_mean(losses, keep[:, :-1] & keep[:, 1:])
    return masked_mean(kl_divergence(log_probabilities(clean), log_q), keep)


def downstream_loss(
    value: Array, clean: Array, keep: Bool[Array, "seq pos"], kind: Kind, variance: Float[Array, ""]
) -> Float[Array, ""]:
    """‖â - a‖²: summed over the dimensions of the value, mean over kept positions, in the units of `kind`."""
    wide = at_least_float32(value.dtype)
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
    model: Model,
) -> tuple[Float[Array, ""], tuple[dict[str, Array], list[Forward]]]:
    """(loss, (its parts, the `Forward` of each dictionary)). A pure function. The `dictionaries` in `state` are not
    used."""
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


@automatic_step
def end_to_end_step(
    config: EndToEndConfig,
    state: EndToEndState,
    batch: tuple[Array, Array],
    model: Model,
    rate_scale: Array | None = None,
) -> tuple[EndToEndState, dict[str, Any]]:
    """One training step of all dictionaries. A pure function.

    `partial(end_to_end_step, config)` is a step for `fit`, with the model in `frozen`. Metrics are the loss, its parts
    before coefficients, and for each dictionary `dictionary.<i>` with fvu, l0 and dead, in the spliced run.
    `rate_scale` is a factor of the learning rates.
    """
    dictionaries = tuple(learner.dictionary for learner in state.learners)
    loss_of = lambda dictionaries: loss(config, dictionaries, state, batch, model)
    (value, (parts, forwards)), gradients = jax.value_and_grad(loss_of, has_aux=True)(dictionaries)
    tokens = jnp.sum(batch[1], dtype=jnp.int32)
    learners, each = [], {}
    for i, (one, forward, learner) in enumerate(zip(config.dictionaries, forwards, state.learners, strict=True)):
        next_key, _, resample_key = jax.random.split(learner.key, 3)
        fires, error = forward.code.firing_counts(one.n_features), forward.error
        result = StepResult(value, gradients[i], fires, (observe(forward),), tokens, forward.x, error)
        rule = UpdateRule(
            optimizer=adam(one.optimizer, config.steps, lowered_rate(one.optimizer, rate_scale)),
            where=ALONE,
            decoders=(one.decoder,),
            offset_rate=offset_rate(one.optimizer, one.activation, learner.dictionary.d),
            resample=resampler(one, config.steps, resample_key),
        )
        after, _ = apply_gradient(rule, learner, result, next_key)
        learners.append(after)
        figures = step_metrics(value, {}, forward.x, error, fires, forward.dead, after.step)
        each[str(i)] = {name: figures[name] for name in ("fvu", "l0", "dead")}
    metrics = parts | {"loss": value, "dictionary": each}
    return dataclasses.replace(state, learners=tuple(learners), key=jax.random.split(state.key)[0]), metrics


def init_end_to_end_state(
    config: EndToEndConfig,
    model: Model,
    batch_at: BatchAt,
    dictionaries: Sequence[Dictionary] | None = None,
) -> EndToEndState:
    """The state before the first step. Inputs are measured. Dictionaries are new, or start from given ones."""
    if dictionaries is not None:
        check_count(config.dictionaries, dictionaries)
    n, key, batch_at = len(config.sites), jax.random.key(config.seed), without_first(batch_at, config.skip_first)
    stream_key, state_key = jax.random.split(jax.random.fold_in(key, n))
    measured = init_stream(stream_key, model, config.sites + config.downstream, batch_at, config.buffer)
    return _first_state(config, measured, state_key, dictionaries)


def planned(config: EndToEndConfig, model: Model, batch: tuple[Any, Any]) -> PlannedStep:
    """The step of `train_end_to_end`, from the shapes of a model and of a batch (`training.planning`)."""
    measured = stream_shapes(model, config.sites + config.downstream, batch, config.buffer)
    first = lambda stream: _first_state(config, stream, jax.random.key(0), None)
    state, frozen = jax.eval_shape(first, measured), ((model, rules_for(model)),)
    step = partial(end_to_end_step, config)
    return PlannedStep(step, state, batch, frozen, rules(state), kind_of, config.steps, batch[0].size)


def _first_state(
    config: EndToEndConfig,
    measured: Stream,
    state_key: Key[Array, ""],
    dictionaries: Sequence[Dictionary] | None,
) -> EndToEndState:
    n, ends = len(config.sites), np.cumsum([0, *measured.widths])
    learners = []
    for i, one in enumerate(config.dictionaries):
        mean, key = measured.mean[ends[i] : ends[i + 1]], jax.random.fold_in(jax.random.key(one.seed), i)
        dictionary = init_sae_of(one, key, mean)
        if dictionaries is not None:
            dictionary = _scaled(warm_start(one, dictionary, dictionaries[i]), measured.scale[i])
        learners.append(new_learner(dictionary, one.optimizer, config.steps, (one.n_features,), key))
    later = measured.variance[n:] / measured.scale[n:] ** 2
    return EndToEndState(tuple(learners), measured.scale[:n], measured.variance[:n], later, state_key)


def _scaled(given: Dictionary, scale: Float[Array, ""]) -> Dictionary:
    """Convert `given`, a dictionary for raw values, into one for scaled values."""
    every = jnp.full((given.d,), 1 / scale)
    scaled = fold_scale(given, every, every, 1 / scale)
    # `fold_scale` made the rows norm 1 and the activation unweighted. The config needs it weighted again.
    if given.activation.weighted:
        scaled = dataclasses.replace(scaled, activation=dataclasses.replace(scaled.activation, weighted=True))
    return scaled


@partial(automatic, rules=rules)
def export_end_to_end(state: EndToEndState) -> tuple[Dictionary, ...]:
    """The dictionaries in their current state, for raw activations, in the order of the config."""
    out = []
    for learner, scale in zip(state.learners, state.scale, strict=True):
        every = jnp.full((learner.dictionary.d,), scale)
        out.append(for_inference(fold_scale(learner.dictionary, every, every, scale)))
    return tuple(out)


def train_end_to_end(
    config: EndToEndConfig,
    model: Model,
    batch_at: BatchAt,
    dictionaries: Sequence[Dictionary] | None = None,
    *,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> tuple[Dictionary, ...]:
    """Train dictionaries end to end, from the start or from the last checkpoint of `run`.

    If a run is killed, the same call resumes it. The result has the same bits as that of an uninterrupted run.

    Args:
      config: the config of the training and of the dictionaries.
      model: any model that keeps the surgery contract. It is not changed. Blocks that have a dictionary should be
        unrolled (`replan`).
      batch_at: a function from the index of a batch to (tokens [seq, pos], keep [seq, pos]), as in `train_dictionary`.
      dictionaries: trained dictionaries for raw activations, to start from. None: new ones.
      run: where to save the run: a directory, or a `SaveTo` that also sets how often. None: nothing is saved.
      place: as in `train_dictionary`.
      log: what is evaluated, logged and shown.

    Returns:
      The dictionaries, for raw activations, in the order of the config.

    Raises:
      UserError: an address is not in the model, `dictionaries` do not fit the config, or `run` holds a run of another
        config.

    Example:
        sae = EndToEndSAEConfig.of(variants.relu("blocks.2.resid_post", loss=(L1(0.01),)))
        (trained,) = train_end_to_end(EndToEndConfig((sae,), steps=2000), replan(model, 2), batch_at)
    """
    tokens = batch_at(0)[0].size
    log = log.with_defaults(shown=("loss", config.output), per_step={"tokens": tokens}, title="end to end")
    step, saving = partial(end_to_end_step, config), SaveTo.of(run, config)
    with placed(place, rules) as there:
        model, batch_at = there.frozen(model, rules_for(model)), there.batches(batch_at)
        state = there.state(init_end_to_end_state(config, model, batch_at, dictionaries))
        batch_at = without_first(batch_at, config.skip_first)
        state = fit(step, state, batch_at, steps=config.steps, run=saving, frozen=(model,), log=log)
        return export_end_to_end(state)
