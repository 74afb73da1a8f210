"""A model and its dictionaries trained together: a model whose values are easily written as few features (Lai &
Heimersheim 2025, "SAE regularisation produces more interpretable models").

    L = task + mean_l [ Σ shared terms + Σ its own terms ]            published: task = CE, shared = λ R_l / N_l, λ = 3

The dictionaries look on: the model's output is its own. But their losses' gradients flow into what they read, and so
into the model. Afterwards they are thrown away, and fresh ones are trained on the model, which is then held fixed
(`train="dictionaries"`: several sites at once, on raw values in their own order, no buffer):

    config = JointConfig(tuple(variants.april(site, 0.035, ...) for site in sites), steps=15_000)
    model, _ = train_joint(config, model, batch_at, optimizer)

Values are read raw: the model changes, and with it any scale that could be measured. `Reconstruction(kind="fvu")` is in
units of the variance of the batch at hand, a constant to gradients. Of the dictionaries' configs `address`,
`n_features`, `activation`, `loss`, `decoder`, `centred` and `dead_after` count; steps and optimizer are one for all.
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

from jax_interp.core import optimizers as optimizer
from jax_interp.core.errors import UserError
from jax_interp.core.unit_rows import unit_rows, without_parallel
from jax_interp.data.harvest import values
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.losses.forward import Forward
from jax_interp.dictionaries.losses.term import TERMS, Term, check_terms, coefficient_only, total
from jax_interp.dictionaries.training.config import DictionaryConfig
from jax_interp.dictionaries.training.end_to_end import check_saes, output_loss
from jax_interp.dictionaries.training.normalisation import for_inference
from jax_interp.dictionaries.training.spliced import kept_rows
from jax_interp.dictionaries.training.train import init_dictionary
from jax_interp.dictionaries.training.warm_start import check_count, warm_start
from jax_interp.surgery import read
from jax_interp.training import Log, RunTarget, SaveTo, fit

Batch = tuple[Int[Array, "seq pos"], Bool[Array, "seq pos"]]
Objective = Callable[[Any, Batch], Float[Array, ""]]


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class OverNorm(Term):
    """λ R / N: mean ‖x - x̂‖² over mean ‖x‖. N has its gradient, which holds against the shrinking of values by which
    the model would lower R; it is not squared, as published."""

    coefficient: float = 3.0

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        sse = jnp.sum(forward.error * forward.error) / forward.rows
        square = jnp.sum(forward.y * forward.y, axis=-1)
        some = square > 0
        norm = jnp.where(some, jnp.sqrt(jnp.where(some, square, jnp.ones_like(square))), jnp.zeros_like(square))
        return self.coefficient * sse / jnp.mean(norm)


@dataclasses.dataclass(frozen=True)
class JointConfig:
    dictionaries: tuple[DictionaryConfig, ...]
    shared: tuple[Term, ...] = (OverNorm(),)
    """Terms of every dictionary, beside its own."""
    train: Literal["both", "dictionaries"] = "both"
    steps: int = 15_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_saes(self.dictionaries, "joint training")
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: at least 1")
        if any(config.resampling is not None for config in self.dictionaries):
            raise UserError("resampling is for dictionaries with an optimizer of their own: use AuxK in joint training")
        for config in self.dictionaries:
            check_terms(config.activation, self.shared)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(config.reads[0] for config in self.dictionaries)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class JointState:
    """`model` is None where it is not trained. `since_fired` counts tokens, for each dictionary."""

    model: Any
    dictionaries: tuple[Dictionary, ...]
    opt: Any
    since_fired: tuple[Int[Array, " feature"], ...]
    step: Int[Array, ""]
    key: Key[Array, ""]


def next_token(output: Any, batch: Batch) -> Float[Array, ""]:
    """Cross-entropy of the predictions that are made at a kept position and of a kept token."""
    return output_loss("ce", output, None, *batch)


def regulariser(
    config: JointConfig,
    dictionaries: Sequence[Dictionary],
    read_values: Sequence[Float[Array, "row d"]],
    rows: Int[Array, " row"],
    state: JointState,
    key: Key[Array, ""],
) -> tuple[Float[Array, ""], list[Forward]]:
    """(mean over the dictionaries of their terms, what each has computed). `rows` as in `kept_rows`."""
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


def joint_step(
    config: JointConfig,
    optimize: optax.GradientTransformation,
    objective: Objective,
    state: JointState,
    batch: Batch,
    frozen: Any = None,
) -> tuple[JointState, dict[str, Any]]:
    """One step. Pure. `frozen`: the model where it is not trained.

    Metrics, before the update: `loss`, `task` (where the model is trained), `regulariser`, and for each dictionary
    under `dictionary.<i>` fvu, l0 and dead.
    """
    tokens, keep = batch
    key, rows_key, terms_key = jax.random.split(state.key, 3)
    rows, kept = kept_rows(keep, rows_key)

    def of(params):
        model, dictionaries = params
        if model is None:
            value, found = 0.0, values(frozen, config.sites, tokens)
        else:
            output, activations = read(model, *config.sites)(tokens)
            found = [activations[site].reshape(tokens.size, -1) for site in config.sites]
            value = objective(output, batch)
        extra, forwards = regulariser(config, dictionaries, found, rows, state, terms_key)
        # Where nothing is kept the rows are one that should not be seen: `fit` stops at NaN and names the step.
        extra = jnp.where(kept > 0, extra, jnp.nan)
        task = {} if model is None else {"task": value}
        return value + extra, (task | {"regulariser": extra}, forwards)

    params = (state.model, state.dictionaries)
    (value, (parts, forwards)), (of_model, grads) = jax.value_and_grad(of, has_aux=True)(params)
    unit = [config.decoder == "unit" for config in config.dictionaries]
    tangent = lambda g, d: dataclasses.replace(g, W_dec=without_parallel(g.W_dec, d.W_dec))
    grads = tuple(tangent(g, d) if on else g for g, d, on in zip(grads, state.dictionaries, unit, strict=True))
    (model, updated), opt = optimizer.update(optimize, (of_model, grads), state.opt, params)
    updated = [dataclasses.replace(d, W_dec=unit_rows(d.W_dec)) if on else d for d, on in zip(updated, unit)]

    since_fired, each = [], {}
    for i, (one, forward, before) in enumerate(zip(config.dictionaries, forwards, state.since_fired, strict=True)):
        activation = forward.dictionary.activation.observe(forward.dictionary, forward.code)
        if activation is not None:
            updated[i] = dataclasses.replace(updated[i], activation=activation)
        fires = forward.code.firing_counts(one.n_features)
        since_fired.append(jnp.where(fires > 0, 0, jnp.minimum(before, 2**30) + kept))
        each[str(i)] = {
            "fvu": jnp.sum(forward.error**2) / (forward.variance * forward.rows),
            "l0": jnp.sum(fires).astype(forward.x.dtype) / forward.rows,
            "dead": jnp.sum(forward.dead),
        }
    state = JointState(model, tuple(updated), opt, tuple(since_fired), state.step + 1, key)
    return state, parts | {"loss": value, "dictionary": each}


def init_joint_state(
    config: JointConfig,
    model: Any,
    tokens: Int[Array, "seq pos"],
    optimize: optax.GradientTransformation,
    dictionaries: Sequence[Dictionary] | None = None,
) -> JointState:
    """The state before the first step; `tokens` for their shape. Dictionaries as given (`warm_start`), or as
    `init_dictionary` makes them for values of mean 0."""
    shapes = jax.eval_shape(lambda model: values(model, config.sites, tokens), model)
    keys = [jax.random.fold_in(jax.random.key(one.seed), i) for i, one in enumerate(config.dictionaries)]
    of_each = tuple(
        init_dictionary(one, key, (value.shape[1],), jnp.zeros((value.shape[1],)))
        for one, key, value in zip(config.dictionaries, keys, shapes, strict=True)
    )
    if dictionaries is not None:
        check_count(config.dictionaries, dictionaries)
        of_each = tuple(warm_start(*one) for one in zip(config.dictionaries, of_each, dictionaries, strict=True))
    trained = model if config.train == "both" else None
    since_fired = tuple(jnp.zeros((one.n_features,), jnp.int32) for one in config.dictionaries)
    opt = optimizer.init(optimize, (trained, of_each))
    return JointState(trained, of_each, opt, since_fired, jnp.zeros((), jnp.int32), jax.random.key(config.seed))


def train_joint(
    config: JointConfig,
    model: Any,
    batch_at: Callable[[int], Batch],
    optimize: optax.GradientTransformation,
    dictionaries: Sequence[Dictionary] | None = None,
    *,
    objective: Objective = next_token,
    run: RunTarget = None,
    log: Log = Log(),
) -> tuple[Any, tuple[Dictionary, ...]]:
    """(model, dictionaries as they are used after training), from the start or from the last checkpoint of `run`.

    optimize    of optax, over the pair (model, tuple of dictionaries), or (None, tuple) where the model is held fixed.
    objective   (output of the model, batch) -> what the model is for.
    dictionaries  initial ones.
    run, log    as in `training.fit`. The same call after a kill ends with the same bits.
    """
    state = init_joint_state(config, model, batch_at(0)[0], optimize, dictionaries)
    shown = ("loss", "task") if config.train == "both" else ("loss",)
    log = log.with_defaults(shown=shown, per_step={"tokens": batch_at(0)[0].size}, title="joint")
    step = partial(joint_step, config, optimize, objective)
    frozen = () if config.train == "both" else (model,)
    saving = SaveTo.of(run, config)
    state = fit(step, state, batch_at, steps=config.steps, run=saving, frozen=frozen, log=log)
    return model if state.model is None else state.model, tuple(map(for_inference, state.dictionaries))
