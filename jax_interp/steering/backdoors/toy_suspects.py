"""The toy models with backdoors as suspects: each with a small dictionary of its own, trained once and cached."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.dictionaries import Dictionary, TopK, init_sae, train_dictionary, variants
from jax_interp.dictionaries.training.config import DictionaryConfig
from jax_interp.steering.backdoors.audit import AuditTexts, audit_texts
from jax_interp.steering.backdoors.method import Suspect
from jax_interp.toys.backdoors import BackdoorConfig, answered, backdoor_target, draw_texts, ordinary_words
from jax_interp.toys.cache import cached
from jax_interp.training import QUIET


@dataclasses.dataclass(frozen=True)
class ToyDictionary:
    """The dictionary of a toy: TopK, of one residual stream.

    Args:
      address: the value that it reads.
      latents: the number of latents.
      k: the number that are on at a token.
      steps: the number of training steps.
      batch: the number of texts in a step.
    """

    address: str = "blocks.0.resid_post"
    latents: int = 96
    k: int = 6
    steps: int = 400
    batch: int = 64

    @property
    def training(self) -> DictionaryConfig:
        """The config of its training."""
        return variants.topk(
            self.address, self.k, n_features=self.latents, steps=self.steps, buffer=8192, dead_after=50_000
        )


@dataclasses.dataclass(frozen=True)
class _Job:
    """What determines a cached dictionary."""

    model: BackdoorConfig
    dictionary: ToyDictionary
    trojaned: bool


def toy_suspect(
    config: BackdoorConfig,
    seed: int = 0,
    *,
    trojaned: bool = True,
    dictionary: ToyDictionary | None = None,
) -> Suspect:
    """The model with backdoors, or its clean twin, with a dictionary that is trained on its own activations.

    The dictionary is trained on texts as they are in the training of the model, triggers included. Both the model and
    the dictionary are read from the cache on disk if they were trained before.

    Args:
      config: the language, the backdoors and the training.
      seed: the seed of the model.
      trojaned: whether it is the model with backdoors.
      dictionary: the dictionary. None: that of the defaults.
    """
    dictionary = dictionary or ToyDictionary()
    pair = backdoor_target(config, seed)
    model = pair.trojaned if trojaned else pair.clean
    request = np.zeros((dictionary.batch, config.model.n_ctx), bool)
    request[:, config.request] = True

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        key = jax.random.fold_in(jax.random.key(seed + 1), step)
        return np.asarray(draw_texts(key, dictionary.batch, config, trojaned=trojaned).tokens), request

    def start() -> Dictionary:
        zero = jnp.zeros(config.d_model, jnp.float32)
        return init_sae(jax.random.key(0), config.d_model, dictionary.latents, TopK(dictionary.k), zero)

    def make() -> Dictionary:
        return train_dictionary(dictionary.training, model, batch_at, log=QUIET)

    job = _Job(config, dictionary, trojaned)
    trained = cached("backdoor-dictionary", job, seed, jax.eval_shape(start), make)
    return Suspect(model, trained, dictionary.address)


def toy_audit(
    config: BackdoorConfig, target: tuple[int, ...], count: int = 32, seed: int = 0, *, traffic: bool = False
) -> AuditTexts:
    """Requests with the mark REPLY, each followed by a target.

    Args:
      config: the language and its backdoors.
      target: the tokens of the target: `config.target(i)`, or a decoy.
      count: the number of requests.
      seed: the seed of the requests.
      traffic: whether some requests have a trigger, as in training. False: ordinary requests only.
    """
    key = jax.random.key(seed)
    if traffic:
        drawn = draw_texts(key, 4 * count, config)
        tokens = np.asarray(drawn.tokens)[np.asarray(drawn.reply)][:count]
    else:
        tokens = np.asarray(answered(ordinary_words(key, count, config), jnp.ones(count, bool), config).tokens)
    return audit_texts(tokens[:, : config.length + 2].tolist(), target, skip_last=1)
