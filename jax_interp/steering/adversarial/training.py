"""Targeted latent adversarial training (Sheshadri et al. 2024, arXiv:2407.15549).

    min over adapters   max over ‖δ_t‖₂ ≤ ε   of the loss of the model under the perturbation δ

An attacker perturbs named values of the model (embeddings, outputs of MLPs, residual streams) at each token of harmful
requests, until the model answers. Then the model takes some steps towards a refusal under this perturbation, and keeps
its benign answers. Both are one compiled step.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.models.sharding import rules_for
from jax_interp.probes.monitors.defences import Adapters, DefenceData, Defended, LatentAttack
from jax_interp.probes.monitors.defences.adapters import ADAPTERS, split_adapters
from jax_interp.probes.monitors.defences.examples import Texts, draws
from jax_interp.probes.monitors.defences.latent_attack import Attacked, search
from jax_interp.probes.monitors.defences.rerouting import AdapterState
from jax_interp.steering.adversarial.losses import BOTH, Benign, Weights, benign_loss, response_losses
from jax_interp.steering.adversarial.refusals import with_refusal
from jax_interp.surgery import Model
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic_step, fit, placed
from jax_interp.training.placement import replicated


@dataclasses.dataclass(frozen=True)
class LatentAdversarialConfig:
    """How a model is trained against perturbations of its own values."""

    attack: LatentAttack
    """The values, ε and the steps of the attacker. The published settings perturb the embedding and the outputs of the
    MLPs of four blocks, with 16 steps; `optimizer="adam"` is the published one. Its alarm is not used."""
    refusal: tuple[int, ...]
    """The token ids of the refusal that the model should give."""
    attacker: Weights = BOTH
    """Toward the harmful response, away from the refusal."""
    model: Weights = BOTH
    """Toward the refusal, away from the harmful response."""
    benign: Benign = "sft"
    """The loss on benign text. "sft": cross-entropy of its responses. "kl": KL from the untouched model."""
    benign_weight: float = 1.0
    updates: int = 4
    """The steps of the model for each perturbation."""
    steps: int = 100
    batch: int = 16
    """The number of harmful examples in a step, and of benign examples."""
    learning_rate: float = 2e-5
    clip: float = 1.0
    """The largest norm of the gradient of all adapters."""
    adapters: Adapters = ADAPTERS
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.updates, self.steps, self.batch) < 1 or not self.learning_rate > 0 or not self.clip > 0:
            raise UserError(f"updates, steps and batch are at least 1, learning_rate and clip above 0: {self}")
        if not self.benign_weight >= 0 or self.benign not in ("sft", "kl", "hidden"):
            raise UserError(f"benign={self.benign!r} is sft, kl or hidden, and benign_weight at least 0")
        if not self.refusal:
            raise UserError("refusal=() has no tokens: give the ids of a refusal")


def strongest(config: LatentAdversarialConfig, model: Model, harmful: Texts, refused: Texts, key: Array) -> Attacked:
    """The perturbations that the attacker finds: the best of all its steps.

    Args:
      config: the attack and the weights of the attacker.
      model: the model.
      harmful: harmful requests with harmful responses.
      refused: the same requests with refusals.
      key: the key of the random starts.
    """

    def objective(delta: Any) -> tuple[Array, Array]:
        toward, away = response_losses(config.attacker, model, harmful, refused, delta)
        return config.attacker.toward * toward + config.attacker.away * away, jnp.zeros(len(toward), bool)

    both = dataclasses.replace(harmful, response=harmful.response | refused.response)
    return search(config.attack, model, both, objective, key)


@automatic_step
def latent_adversarial_step(
    config: LatentAdversarialConfig,
    state: AdapterState,
    batch: tuple[Texts, Texts, Texts],
    rest: Any,
    untouched: Model,
) -> tuple[AdapterState, dict[str, Any]]:
    """One attack, and some steps of the adapters against it.

    Args:
      config: the attack, the losses and the optimizer.
      state: the adapters and the optimizer's state.
      batch: harmful examples, the same requests with refusals, and benign examples.
      rest: the parts of the model that are not trained.
      untouched: the model without adapters.

    Returns:
      The next state, and the metrics: `attack`, the loss that the attacker reached; and of the first update `loss`,
      `toward` (CE of the refusal), `away` (-log(1 - p) of the harmful response) and `benign`, in nats.
    """
    harmful, refused, retain = batch
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    found = strongest(config, config.adapters.joined(state.adapters, rest), harmful, refused, key)

    def loss(adapters: Any) -> tuple[Array, dict[str, Array]]:
        adapted = config.adapters.joined(adapters, rest)
        toward, away = map(jnp.mean, response_losses(config.model, adapted, refused, harmful, found.perturbation))
        keep = jnp.zeros((), jnp.float32)
        if config.benign_weight:
            keep = benign_loss(config.benign, adapted, untouched, retain)
        total = config.model.toward * toward + config.model.away * away + config.benign_weight * keep
        return total, {"loss": total, "toward": toward, "away": away, "benign": keep}

    def update(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], dict[str, Array]]:
        adapters, opt = carry
        grads, metrics = jax.grad(loss, has_aux=True)(adapters)
        return optimizers.update(_optimizer(config), grads, opt, adapters), metrics

    (adapters, opt), metrics = jax.lax.scan(update, (state.adapters, state.opt), None, length=config.updates)
    metrics = {"attack": jnp.mean(found.loss), **{name: values[0] for name, values in metrics.items()}}
    return AdapterState(adapters, opt, state.step + 1), metrics


def _optimizer(config: LatentAdversarialConfig) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(config.learning_rate))


def train_against_perturbations(
    config: LatentAdversarialConfig,
    model: Model,
    data: DefenceData,
    *,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> Defended:
    """Train adapters so that the model refuses harmful requests even if its values are perturbed.

    Args:
      config: the attack, the refusal and the adapters.
      model: the model.
      data: `train` has the harmful examples, `retain` the benign ones.
      run: where the run is saved, as in `training.fit`. A run that was killed resumes from its last checkpoint.
      place: a mesh, a function, or None, as in `training.placed`.
      log: what is shown and logged.

    Returns:
      The trained model, without an alarm. It stands in `compare_defences` beside other defences.

    Raises:
      UserError: a value or a part of the adapters does not exist, or the examples are padded on the left.
    """
    with_answer, with_refusals = with_refusal(data.train.take(data.train.labels == 1), config.refusal)
    harmful, refused = (draws(one, config.batch, config.seed) for one in (with_answer, with_refusals))
    retain = draws(data.retain, config.batch, config.seed + 1)
    log = log.with_defaults(shown=("attack", "toward", "benign"), title="latent adversarial training")
    with placed(place, replicated) as there:
        untouched = there.frozen(model, rules_for(model))
        adapters, rest = split_adapters(config.adapters.into(untouched, jax.random.key(config.seed)))
        opt = optimizers.init(_optimizer(config), adapters)
        state = there.state(AdapterState(adapters, opt, jnp.zeros((), jnp.int32)))
        rest = there.frozen(rest, replicated(rest))
        batch_at = there.batches(lambda step: (harmful(step), refused(step), retain(step)))
        step, saving = partial(latent_adversarial_step, config), SaveTo.of(run, config)
        state = fit(step, state, batch_at, steps=config.steps, run=saving, frozen=(rest, untouched), log=log)
    return Defended(config.adapters.joined(state.adapters, rest))
