"""Joint training: a model and its dictionaries share one loss, so that a few features suffice to reconstruct the values
of the model (Lai & Heimersheim 2025, "SAE regularisation produces more interpretable models").

    L = task + mean_l [ Σ shared terms + Σ terms of dictionary l ]     published: task = CE, shared = λ R_l / N_l, λ = 3

The dictionaries do not change the output of the model. But the gradients of their losses flow into the values that they
read, and therefore into the model. After training, the dictionaries are discarded, and new ones are trained on the
fixed model. `train="dictionaries"` does this for several sites at once, on raw values, without a shuffle buffer.

    saes = tuple(SAEConfig.of(variants.april(site, 0.035)) for site in sites)
    model, _ = train_joint(JointConfig(saes, steps=15_000), model, batch_at, optimizer)

Values are not scaled, because their scale changes while the model is trained. `Reconstruction(kind="fvu")` divides by
the variance of the current batch, which gets no gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core import optimizers
from jax_interp.core.config_json import reads_older_files
from jax_interp.core.leaves import PyTree
from jax_interp.core.pytrees import register_dataclass
from jax_interp.data.harvest import values
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.losses.forward import Forward
from jax_interp.dictionaries.losses.reconstruction import OverNorm
from jax_interp.dictionaries.losses.term import Term, check_terms, total
from jax_interp.dictionaries.sharding import dictionary_rules
from jax_interp.dictionaries.training.apply_gradient import (
    BESIDE_MODEL,
    StepResult,
    UpdateRule,
    apply_gradient,
    observe,
)
from jax_interp.dictionaries.training.config import (
    SAEConfig,
    check_at_least_1,
    check_sites,
    check_skip_first,
    older_saes,
)
from jax_interp.dictionaries.training.end_to_end import output_loss
from jax_interp.dictionaries.training.initialise import init_sae_of
from jax_interp.dictionaries.training.learner import BatchAt, Learner
from jax_interp.dictionaries.training.normalisation import for_inference
from jax_interp.dictionaries.training.spliced import kept_rows
from jax_interp.dictionaries.training.warm_start import check_count, warm_start
from jax_interp.models.sharding import rules_for
from jax_interp.surgery import read
from jax_interp.surgery.contract import Model
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic_step, fit, placed
from jax_interp.training.sharding import Rules, used

Batch = tuple[Int[Array, "seq pos"], Bool[Array, "seq pos"]]
Objective = Callable[[Any, Batch], Float[Array, ""]]
"""A function (output of the model, batch) -> loss of the model."""

Params = tuple[PyTree, tuple[Dictionary, ...]]


def _older(fields: dict[str, Any]) -> dict[str, Any]:
    """Earlier versions stored a `DictionaryConfig` for each dictionary, and had no `skip_first`."""
    return {"skip_first": 0} | fields | {"dictionaries": older_saes(fields.get("dictionaries", []), SAEConfig)}


@reads_older_files(rewritten=_older)
@dataclasses.dataclass(frozen=True)
class JointConfig:
    """The config of joint training. The optimizer is an argument of `train_joint`."""

    dictionaries: tuple[SAEConfig, ...]
    shared: tuple[Term, ...] = (OverNorm(),)
    """Terms that are added to the terms of every dictionary."""
    train: Literal["both", "dictionaries"] = "both"
    steps: int = 15_000
    skip_first: int = 0
    """The number of positions at the start of every sequence that dictionaries do not see. They are in the model's own
    loss."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_skip_first(self.skip_first)
        check_sites(self.dictionaries, "joint training")
        check_at_least_1(self, "steps")
        for config in self.dictionaries:
            check_terms(config.activation, self.shared)

    @property
    def sites(self) -> tuple[str, ...]:
        """The addresses of the dictionaries."""
        return tuple(config.address for config in self.dictionaries)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class JointState:
    """The state of joint training.

    Attributes:
      model: the model in training. None if the model is fixed.
      dictionaries: the dictionaries, in the order of the config.
      opt: the state of the optimizer for (model, dictionaries).
      since_fired: for each dictionary, the tokens since each latent fired.
      step: the number of steps done.
      key: the random key of the next step.
    """

    model: PyTree
    dictionaries: tuple[Dictionary, ...]
    opt: PyTree
    since_fired: tuple[Int[Array, " feature"], ...]
    step: Int[Array, ""]
    key: Key[Array, ""]


def next_token(output: Array, batch: Batch) -> Float[Array, ""]:
    """Cross-entropy, mean over predictions whose position and next position are both kept."""
    return output_loss("ce", output, None, *batch)


def regulariser(
    config: JointConfig,
    dictionaries: Sequence[Dictionary],
    read_values: Sequence[Float[Array, "row d"]],
    rows: Int[Array, " row"],
    state: JointState,
    key: Key[Array, ""],
) -> tuple[Float[Array, ""], list[Forward]]:
    """(mean over the dictionaries of the sum of their terms, `Forward` of each). For `rows`, see `kept_rows`."""
    losses, forwards = [], []
    for i, (one, d, value) in enumerate(zip(config.dictionaries, dictionaries, read_values, strict=True)):
        x = value[rows].astype(d.W_enc.dtype)
        code = d.training_code(x)
        fixed = jax.lax.stop_gradient(x)
        variance = jnp.sum(jnp.var(fixed, axis=0))
        progress, own_key = state.step.astype(x.dtype) / config.steps, jax.random.fold_in(key, i)
        dead = state.since_fired[i] > one.dead_after
        forwards.append(Forward(d, x, x, code, d.reconstruct(code, x), dead, variance, progress, own_key))
        losses.append(total((*config.shared, *one.loss), forwards[-1])[0])
    return jnp.mean(jnp.stack(losses)), forwards


@automatic_step
def joint_step(
    config: JointConfig,
    optimize: optax.GradientTransformation,
    objective: Objective,
    state: JointState,
    batch: Batch,
    frozen: Model | None = None,
) -> tuple[JointState, dict[str, Any]]:
    """One training step. A pure function. `frozen` is the model if it is not trained.

    Metrics before the update are `loss`, `task` (if the model is trained), `regulariser`, and for each dictionary
    `dictionary.<i>` with fvu, l0 and dead.
    """
    tokens, keep = batch
    key, rows_key, terms_key = jax.random.split(state.key, 3)
    later = jnp.arange(keep.shape[1]) >= config.skip_first
    rows, kept = kept_rows(keep & later[None, :], rows_key)

    def loss_of(params: Params):
        model, dictionaries = params
        if model is None:
            assert frozen is not None
            value, read_values = 0.0, values(frozen, config.sites, tokens)
        else:
            output, activations = read(model, *config.sites)(tokens)
            read_values = [activations[site].reshape(tokens.size, -1) for site in config.sites]
            value = objective(output, batch)
        extra, forwards = regulariser(config, dictionaries, read_values, rows, state, terms_key)
        # If nothing is kept, `rows` holds an excluded position. NaN makes `fit` stop and name the step.
        extra = jnp.where(kept > 0, extra, jnp.nan)
        task = {} if model is None else {"task": value}
        return value + extra, (task | {"regulariser": extra}, forwards)

    params: Params = (state.model, state.dictionaries)
    (value, (parts, forwards)), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    fires = tuple(
        forward.code.firing_counts(one.n_features) for one, forward in zip(config.dictionaries, forwards, strict=True)
    )
    result = StepResult(value, gradient, fires, tuple(map(observe, forwards)), kept)
    rule = UpdateRule(optimize, BESIDE_MODEL, tuple(one.decoder for one in config.dictionaries))
    learner = Learner(params, state.opt, state.since_fired, state.step, state.key)
    after, _ = apply_gradient(rule, learner, result, key)
    each = {str(i): _figures(forward, fires[i]) for i, forward in enumerate(forwards)}
    model, dictionaries = after.dictionary
    state = JointState(model, dictionaries, after.opt, after.since_fired, after.step, after.key)
    return state, parts | {"loss": value, "dictionary": each}


def _figures(forward: Forward, fires: Int[Array, " feature"]) -> dict[str, Array]:
    return {
        "fvu": jnp.sum(forward.error**2) / (forward.variance * forward.rows),
        "l0": jnp.sum(fires).astype(forward.x.dtype) / forward.rows,
        "dead": jnp.sum(forward.dead),
    }


def init_joint_state(
    config: JointConfig,
    model: Model,
    tokens: Int[Array, "seq pos"],
    optimize: optax.GradientTransformation,
    dictionaries: Sequence[Dictionary] | None = None,
) -> JointState:
    """The state before the first step.

    Args:
      config: the config of the training.
      model: the model.
      tokens: a batch of tokens. Only its shape is used.
      optimize: the optimizer.
      dictionaries: trained dictionaries to start from (`warm_start`). None: new ones, with `b_dec` 0.
    """
    shapes = jax.eval_shape(lambda model: values(model, config.sites, tokens), model)
    keys = [jax.random.fold_in(jax.random.key(one.seed), i) for i, one in enumerate(config.dictionaries)]
    of_each = tuple(
        init_sae_of(one, key, jnp.zeros((value.shape[1],)))
        for one, key, value in zip(config.dictionaries, keys, shapes, strict=True)
    )
    if dictionaries is not None:
        check_count(config.dictionaries, dictionaries)
        of_each = tuple(warm_start(*one) for one in zip(config.dictionaries, of_each, dictionaries, strict=True))
    trained = model if config.train == "both" else None
    since_fired = tuple(jnp.zeros((one.n_features,), jnp.int32) for one in config.dictionaries)
    opt = optimizers.init(optimize, (trained, of_each))
    return JointState(trained, of_each, opt, since_fired, jnp.zeros((), jnp.int32), jax.random.key(config.seed))


def train_joint(
    config: JointConfig,
    model: Model,
    batch_at: BatchAt,
    optimize: optax.GradientTransformation,
    dictionaries: Sequence[Dictionary] | None = None,
    *,
    objective: Objective = next_token,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> tuple[Model, tuple[Dictionary, ...]]:
    """Train a model and dictionaries together, or only dictionaries, from the start or from the last checkpoint of
    `run`.

    If a run is killed, the same call resumes it. The result has the same bits as that of an uninterrupted run.

    Args:
      config: the config of the training.
      model: any model that keeps the surgery contract. The object that you pass is not changed.
      batch_at: a function from the index of a batch to (tokens [seq, pos], keep [seq, pos]), as in `train_dictionary`.
      optimize: an optax optimizer for the pair (model, tuple of dictionaries). If the model is fixed, the pair is
        (None, tuple of dictionaries).
      dictionaries: trained dictionaries for raw values, to start from. None: new ones.
      objective: a function (output of the model, batch) -> loss of the model.
      run: where to save the run: a directory, or a `SaveTo` that also sets how often. None: nothing is saved.
      place: as in `train_dictionary`.
      log: what is evaluated, logged and shown.

    Returns:
      (the model, the dictionaries for inference, in the order of the config).

    Example:
        saes = tuple(SAEConfig.of(variants.april(site, 0.035)) for site in sites)
        model, _ = train_joint(JointConfig(saes), model, batch_at, optax.adam(1e-4))
    """
    shown = ("loss", "task") if config.train == "both" else ("loss",)
    log = log.with_defaults(shown=shown, per_step={"tokens": batch_at(0)[0].size}, title="joint")
    step, saving = partial(joint_step, config, optimize, objective), SaveTo.of(run, config)
    with placed(place, _rules) as there:
        model, batch_at = there.frozen(model, rules_for(model)), there.batches(batch_at)
        state = there.state(init_joint_state(config, model, jnp.asarray(batch_at(0)[0]), optimize, dictionaries))
        frozen = () if config.train == "both" else (model,)
        state = fit(step, state, batch_at, steps=config.steps, run=saving, frozen=frozen, log=log)
        return model if state.model is None else state.model, tuple(map(for_inference, state.dictionaries))


def _rules(state: JointState) -> Rules:
    """The rules of the dictionaries, and those of the model in training."""
    return used((*dictionary_rules(), *rules_for(state.model)), state)
