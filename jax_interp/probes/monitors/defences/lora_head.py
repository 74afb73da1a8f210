"""LoRA and a linear head, trained together: the model learns to make its harmful responses easy to read.

    θ = adapters of the layers up to ℓ, and the head (w, b) on the residual stream after ℓ
    loss = BCE of the tokens of responses + β · retention on benign text

Retention is KL(untouched ‖ adapted), or the distance of hidden states.

The adapted model answers, and the alarm reads the head in the same forward pass. With β = 0 nothing holds the answers.
It is the baseline that representation rerouting should be compared with at the same false positive rate.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.objectives import masked_mean
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.sharding import rules_for
from jax_interp.probes.monitors.defences.adapters import ADAPTERS, Adapters, layers_up_to, split_adapters
from jax_interp.probes.monitors.defences.defended import Alarm, Defended
from jax_interp.probes.monitors.defences.examples import DefenceData, Texts, draws, wide
from jax_interp.probes.monitors.defences.retention import Retention, retention_loss
from jax_interp.probes.probe import LinearProbe
from jax_interp.surgery import Model, depth_of, values_at
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic_step, fit, placed
from jax_interp.training.placement import replicated


@dataclasses.dataclass(frozen=True)
class LoRAHeadConfig:
    """How adapters and head are trained. `adapters.layers` is replaced by the layers up to the site."""

    site: str
    """The value that the head reads, such as "blocks.2.resid_post"."""
    beta: float = 1.0
    """β, the weight of the retention loss."""
    retention: Retention = "kl"
    """"kl": next-token distributions. "hidden": residual streams of all layers, as in representation rerouting."""
    steps: int = 300
    batch: int = 32
    """The number of examples in a step, half of them harmful, and of benign examples for retention."""
    learning_rate: float = 1e-3
    adapters: Adapters = ADAPTERS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.beta < 0:
            raise UserError(f"steps={self.steps} is at least 1, and beta={self.beta} at least 0")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadState:
    """The state of a run: the adapters, the head, and the optimizer's state."""

    adapters: Any
    weight: Float[Array, " d"]
    bias: Float[Array, ""]
    opt: optax.OptState


@automatic_step
def head_step(
    config: LoRAHeadConfig, state: HeadState, batch: tuple[Texts, Texts], rest: Any, untouched: Model
) -> tuple[HeadState, dict[str, Any]]:
    """One step of adapters and head.

    Args:
      config: the site, β and the optimizer. Its adapters name the layers that are trained.
      state: the adapters, the head and the optimizer's state.
      batch: harmful and benign examples, and benign text for retention.
      rest: the parts of the model that are not trained.
      untouched: the model without adapters.

    Returns:
      The next state, and the metrics `loss`, `bce` and `retention`, in nats.
    """
    examples, retain = batch

    def loss(params: tuple[Any, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        adapters, weight, bias = params
        adapted = config.adapters.joined(adapters, rest)
        x = wide(values_at(adapted, config.site)(examples.tokens, mask=examples.mask)[config.site])
        logits = jnp.einsum("npd,d->np", x, weight, precision=jax.lax.Precision.HIGHEST) + bias
        sign = jnp.where(examples.harmful, 1.0, -1.0)[:, None]
        bce = masked_mean(jax.nn.softplus(-sign * logits), examples.response)
        keep = retention_loss(config.retention, adapted, untouched, retain)
        return bce + config.beta * keep, (bce, keep)

    params = (state.adapters, state.weight, state.bias)
    (value, (bce, keep)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    (adapters, weight, bias), opt = optimizers.update(optax.adam(config.learning_rate), grads, state.opt, params)
    return HeadState(adapters, weight, bias, opt), {"loss": value, "bce": bce, "retention": keep}


def train_lora_head(
    config: LoRAHeadConfig,
    model: Model,
    data: DefenceData,
    *,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> Defended:
    """Train adapters and a linear head together.

    Args:
      config: the site, the retention and the adapters.
      model: the model.
      data: `train` has harmful and benign examples, `retain` benign text.
      run: where the run is saved, as in `training.fit`. A run that was killed resumes from its last checkpoint.
      place: a mesh, a function, or None, as in `training.placed`.
      log: what is shown and logged.

    Returns:
      The adapted model and its alarm, with the threshold 0 (a probability of one half). `compare_defences` chooses
      thresholds on benign examples.

    Raises:
      UserError: the site is not `[batch, pos, d]` of one layer, or a part of the adapters does not exist.
    """
    depth = depth_of(model)
    config = dataclasses.replace(
        config, adapters=dataclasses.replace(config.adapters, layers=layers_up_to(config.site, depth))
    )
    examples = draws(data.train, config.batch, config.seed, balanced=True)
    retain = draws(data.retain, config.batch, config.seed + 1)
    log = log.with_defaults(shown=("bce", "retention"), title="LoRA and head")
    with placed(place, replicated) as there:
        untouched = there.frozen(model, rules_for(model))
        adapters, rest = split_adapters(config.adapters.into(untouched, jax.random.key(config.seed)))
        head = jnp.zeros(_width(model, config.site, examples(0)), jnp.float32), jnp.zeros((), jnp.float32)
        opt = optimizers.init(optax.adam(config.learning_rate), (adapters, *head))
        state = there.state(HeadState(adapters, *head, opt))
        rest = there.frozen(rest, replicated(rest))
        batch_at = there.batches(lambda step: (examples(step), retain(step)))
        step, saving = partial(head_step, config), SaveTo.of(run, config)
        state = fit(step, state, batch_at, steps=config.steps, run=saving, frozen=(rest, untouched), log=log)
    probe = LinearProbe(state.weight, state.bias, jnp.zeros((), jnp.float32), log_odds=True)
    return Defended(config.adapters.joined(state.adapters, rest), Alarm(probe, jnp.zeros((), jnp.float32), config.site))


def _width(model: Model, site: str, texts: Texts) -> int:
    shape = jax.eval_shape(lambda texts: values_at(model, site)(texts.tokens, mask=texts.mask)[site], texts).shape
    if len(shape) != 3:
        raise UserError(f"{site} has shape {shape}: a head reads one vector per token, [batch, pos, d]")
    return shape[-1]
