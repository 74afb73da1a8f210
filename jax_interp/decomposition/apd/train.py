"""Training an APD decomposition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_interp.core import optimizers as optimizer
from jax_interp.core.errors import UserError
from jax_interp.core.objectives import mean_squared_error
from jax_interp.decomposition.apd.attributions import attributions, batch_top_k, component_masks
from jax_interp.decomposition.apd.simplicity import lp_attribution, schatten
from jax_interp.decomposition.components import Components, Decomposed, decompose
from jax_interp.decomposition.config import Schedule
from jax_interp.decomposition.losses.faithfulness import faithfulness
from jax_interp.decomposition.masks import edits
from jax_interp.decomposition.matrices import check_tied
from jax_interp.decomposition.train import adam, check_batch, record
from jax_interp.surgery import edit, read
from jax_interp.training import Log, RunTarget, fit


@dataclasses.dataclass(frozen=True)
class APDConfig:
    """The defaults are the paper's for TMS 5-2. With `top_k=None` minimality is `lp` of attributions, of all
    components, and nothing is masked."""

    matrices: tuple[str, ...] = ("linear1",)
    tied: tuple[tuple[str, str], ...] = ()
    C: int = 5
    rank: int = 3
    top_k: float | None = 0.211
    parameter_match: float = 1.0
    top_k_reconstruction: float = 1.0
    activation_reconstruction: float = 0.0
    activations: tuple[str, ...] = ()
    """Addresses of the hidden activations to be reconstructed."""
    simplicity: float = 0.7
    p: float = 1.0
    lp: float = 0.0
    lp_power: float = 1.0
    init_scale: float = 1.0
    unit_norm: bool = False
    """Columns of V (A of the paper) are of norm one, and their gradients at right angles to them."""
    steps: int = 20_000
    batch: int = 2048
    schedule: Schedule = dataclasses.field(default_factory=lambda: Schedule(0.03, "constant", warm_up=0.05))
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        if not self.matrices:
            raise UserError('matrices=(): name at least one matrix, or "*" for all')
        for name in ("C", "rank", "steps", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: at least 1")
        if self.top_k is not None and not 0 < self.top_k <= self.C:
            raise UserError(f"top_k={self.top_k}: of C={self.C} components above 0 and at most all are kept on a row")
        if self.activation_reconstruction and not self.activations:
            raise UserError(
                f"activation_reconstruction={self.activation_reconstruction} without activations=: name the hidden "
                "values that are to be reconstructed"
            )
        if self.activation_reconstruction and self.top_k is None:
            raise UserError("activation_reconstruction= needs a top_k=: without one nothing is masked")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class APDState:
    components: dict[str, Components]
    opt: Any
    key: Key[Array, ""]
    step: Int[Array, ""]


def template(config: APDConfig, model: Any, seed: Any = None) -> Decomposed:
    """The model decomposed as the config says, as drawn: Xavier-normal A `[d_in, rank]` and B `[rank, d_out]` for each
    component, times `init_scale`."""
    key = jax.random.key(config.seed if seed is None else seed)
    wide = decompose(model, config.matrices, C=config.C * config.rank, key=key, tied=config.tied)
    scaled = {}
    for name, pair in wide.components.items():
        d_in, d_out, m = pair.V.shape[-2], pair.U.shape[-1], config.rank
        # `decompose` draws V of deviation 1/√d_in and U of 1/√(C m)
        V = pair.V * (d_in**0.5 * config.init_scale * (2 / (d_in + m)) ** 0.5)
        U = pair.U * ((config.C * m) ** 0.5 * config.init_scale * (2 / (m + d_out)) ** 0.5)
        scaled[name] = Components(V, U)
    return dataclasses.replace(wide, components=scaled)


def start(config: APDConfig, model: Any, *, seed: Any = None) -> APDState:
    """The state before the first step."""
    components = template(config, model, seed).components
    opt = optimizer.init(adam(config.schedule, config.steps, None), components)
    key = jax.random.fold_in(jax.random.key(config.seed if seed is None else seed), 2)
    return APDState(components, opt, key, jnp.zeros((), jnp.int32))


def losses(config: APDConfig, model: Decomposed, x: Any) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The weighted sum, and each loss by name."""
    scores = attributions(model, config.rank, x)
    found: dict[str, Array] = {"parameter_match": faithfulness(model)}
    weights = {"parameter_match": config.parameter_match}
    mask = jnp.ones_like(scores)
    if config.top_k is not None:
        mask = jax.lax.stop_gradient(batch_top_k(scores, config.top_k)).astype(scores.dtype)
    if config.top_k is not None and (config.top_k_reconstruction or config.activation_reconstruction):
        masked = edit(model, *edits(component_masks(model, mask, config.rank)))
        if config.activation_reconstruction:
            target, right = jax.lax.stop_gradient(read(model, *config.activations)(x))
            output, acts = read(masked, *config.activations)(x)
            sizes = [acts[name].size for name in acts]
            off = sum(jnp.sum((acts[name] - right[name]) ** 2) for name in acts)
            found["activation_reconstruction"] = jnp.asarray(off) / sum(sizes)
            weights["activation_reconstruction"] = config.activation_reconstruction
        else:
            target, output = jax.lax.stop_gradient(model(x)), masked(x)
        found["top_k_reconstruction"] = mean_squared_error(target, output, None)
        weights["top_k_reconstruction"] = config.top_k_reconstruction
    if config.simplicity:
        found["simplicity"] = schatten(model, mask, config.rank, config.p)
        weights["simplicity"] = config.simplicity
    if config.lp:
        outputs = jax.eval_shape(model, x).shape[-1]
        found["lp"] = lp_attribution(scores, outputs, config.lp_power)
        weights["lp"] = config.lp
    return sum((weights[name] * value for name, value in found.items()), jnp.zeros(())), found


def apd_step(config: APDConfig, state: APDState, x: Any, target: Any) -> tuple[APDState, dict[str, Array]]:
    """One step on the batch `x`."""
    components = state.components
    if config.unit_norm:
        components = {name: Components(_unit(pair.V), pair.U) for name, pair in components.items()}
    total = lambda pairs: losses(config, Decomposed(target, pairs, config.tied), x)
    (loss, metrics), grads = jax.value_and_grad(total, has_aux=True)(components)
    if config.unit_norm:
        grads = {n: Components(_across(g.V, components[n].V), g.U) for n, g in grads.items()}
    components, opt = optimizer.update(adam(config.schedule, config.steps, None), grads, state.opt, components)
    return APDState(components, opt, state.key, state.step + 1), {"loss": loss, **metrics}


def train_apd(
    config: APDConfig,
    model: Any,
    *,
    sample: Callable[[Array], Any],
    run: RunTarget = None,
    log: Log = Log(),
) -> Decomposed:
    """The decomposed model, its components `rank` neighbouring subcomponents each, after `config.steps` steps on
    `sample(key)`. `run` and `log` are as in `training.fit`."""
    check_batch(config.batch, jax.eval_shape(sample, jax.random.key(0)))
    log = log.with_defaults(title="APD", every=100)
    step = partial(_sampled, config, sample)
    saving = record(run, config, model)
    state = fit(step, start(config, model), steps=config.steps, run=saving, frozen=(model,), log=log)
    return Decomposed(model, state.components, config.tied)


def apd_instances(
    config: APDConfig,
    model: Any,
    *,
    seeds: Sequence[int],
    sample: Callable[[Array], Any],
    run: RunTarget = None,
    log: Log = Log(),
) -> dict[str, Components]:
    """The components of one run a seed, under one `vmap`: a leading instance axis. `run` goes on only with the config,
    seeds and model that it was begun with."""
    check_batch(config.batch, jax.eval_shape(sample, jax.random.key(0)))
    check_tied(model, config.tied)  # inside jit weights have no values to compare
    state = jax.jit(jax.vmap(lambda seed, model: start(config, model, seed=seed), (0, None)))(
        jnp.asarray(seeds, jnp.uint32), model
    )
    step = jax.vmap(partial(_sampled, config, sample), (0, None, None))
    log = log.with_defaults(title=f"{len(seeds)} APD runs", shown=(), every=100)
    saving = record(run, config, model, seeds)
    return fit(step, state, steps=config.steps, run=saving, frozen=(model,), log=log).components


def _sampled(config: APDConfig, sample: Any, state: APDState, number: Any, target: Any) -> tuple[APDState, Any]:
    return apd_step(config, state, sample(jax.random.fold_in(state.key, state.step)), target)


def _unit(V: Float[Array, "*layer d_in C"]) -> Float[Array, "*layer d_in C"]:
    return V / jnp.maximum(jnp.linalg.norm(V, axis=-2, keepdims=True), 1e-12)


def _across(grad: Array, V: Array) -> Array:
    """The gradient without its component along V."""
    return grad - jnp.sum(grad * V, axis=-2, keepdims=True) * V
