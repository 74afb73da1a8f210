"""Train a dictionary on stored activations: no model is needed, and threads read the rows ahead.

store = open_activation_store("acts/")
sae = train_from_store(variants.topk("blocks.2.resid_post", k=32, n_features=4096, steps=800), store, run="runs/sae")
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.data.activation_store import ActivationStore
from jax_interp.data.harvest import columns, long_means
from jax_interp.data.read_ahead import AHEAD, ReadAhead, read_ahead
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.sharding import rules
from jax_interp.dictionaries.training.config import DictionaryConfig, HarvestedConfig
from jax_interp.dictionaries.training.learner import Learner, lowered_rate
from jax_interp.dictionaries.training.train import SHOWN, check_one_code, export_learner, init_learner, learn
from jax_interp.training import Log, Place, RunTarget, SaveTo, fit, placed


@dataclasses.dataclass(frozen=True)
class StoreRun:
    """The stored config of a run on a store. A run can be resumed only with the same rows in the same batches."""

    dictionary: DictionaryConfig
    batch: int
    shards: tuple[str, ...]
    """The SHA-256 of each shard."""
    window: int | None = None
    """As in `ActivationStore.batches`."""


def train_from_store(
    config: DictionaryConfig,
    store: ActivationStore,
    *,
    batch: int = 2048,
    window: int | None = None,
    ahead: ReadAhead = AHEAD,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> Dictionary:
    """Train a dictionary on stored activations, from the start or from the last checkpoint of `run`.

    If a run is killed, the same call resumes it. The result has the same bits as that of an uninterrupted run, with any
    number of threads.

    Args:
      config: the config of the dictionary and of its training. It has no `buffer`, because all rows of the store are
        shuffled, and no `skip_first` or `max_norm`, because rows are left out when the store is made.
      store: an open store with the values at `config.addresses`, in this order.
      batch: the number of rows per step.
      window: None: all rows are shuffled. Otherwise they are shuffled within windows of this many rows, for stores that
        do not fit in memory (`ActivationStore.batches`).
      ahead: the threads that read batches before they are needed.
      run: as in `train_dictionary`.
      place: as in `train_dictionary`. Over several processes each one reads only the rows of its devices.
      log: as in `train_dictionary`.

    Returns:
      The dictionary, for raw activations.

    Raises:
      UserError: the store holds other values, `batch` is below 1, or the config has one of these fields.
    """
    check_one_code(config)
    _check(config, store)
    key = jax.random.split(jax.random.key(config.seed))[0]
    stored = StoreRun(config, batch, tuple(shard.sha256 for shard in store.shards), window)
    mean, variance = jnp.asarray(store.mean), jnp.asarray(store.variance)
    scale, centre = columns(jnp.asarray(store.scale), store.widths), long_means(mean, variance, store.widths)

    def step(
        learner: Learner[Dictionary], rows: Array, scale: Array, centre: Array, variance: Array,
        rate_scale: Array | None = None,
    ):  # fmt: skip
        rate = lowered_rate(config.optimizer, rate_scale)
        return learn(config, learner, rows * scale[None, :] - centre[None, :], variance, learning_rate=rate)

    with placed(place, rules) as there:
        batch_at = there.batches(store.batches(batch, config.seed, window))
        learner = fit(
            step,
            there.state(init_learner(config, key, store.widths, mean - centre)),
            batch_at,
            batches=read_ahead(batch_at, ahead),
            steps=config.steps,
            run=SaveTo.of(run, stored),
            frozen=(scale, centre, variance),
            log=log.with_defaults(shown=SHOWN, per_step={"tokens": batch}, title="dictionary"),
        )
        return export_learner(config, learner, store)


def _check(config: DictionaryConfig, store: ActivationStore) -> None:
    for name in ("buffer", "skip_first", "max_norm"):
        if getattr(config, name) != getattr(HarvestedConfig, name):
            raise UserError(
                f"{name}={getattr(config, name)} has no effect on a store, whose rows are all used and shuffled: leave "
                "it out. To leave out rows, give a `keep` when you make the store"
            )
    if store.addresses != config.addresses:
        raise UserError(
            f"the store holds {', '.join(store.addresses)}; the config asks for {', '.join(config.addresses)}"
        )
