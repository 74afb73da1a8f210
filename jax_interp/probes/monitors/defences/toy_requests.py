"""The examples of the toy `harmful_requests`, split so that no pair of a verb and a topic is in two sets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.monitors.defences.examples import REQUEST, RESPONSE, DefenceData
from jax_interp.toys.harmful_requests import RequestConfig, draw_requests, split_pairs

CLASSES = ("benign", "harmful")
REQUESTS = RequestConfig()


def requests_as_examples(
    config: RequestConfig, pairs: np.ndarray, each: int, *, name: str = "requests", seed: int = 0
) -> LabelledTokens:
    """Labelled examples: some requests of each pair with the answers of a model that does not refuse.

    Args:
      config: the language.
      pairs: the pairs of a verb and a topic.
      each: the number of requests of each pair.
      name: the name of the set in tables.
      seed: the seed of the fillers and the order.
    """
    pair = jnp.asarray(np.repeat(pairs, each), jnp.int32)
    drawn = draw_requests(jax.random.key(seed), pair, config)
    mask, request, response = (np.asarray(x) for x in (drawn.mask, drawn.request, drawn.response))
    readable = mask.copy()
    readable[:, 0] = False
    return LabelledTokens(
        name, np.asarray(drawn.tokens), mask, readable, np.asarray(drawn.harmful).astype(np.int32), CLASSES,
        groups=np.asarray(pair), spans={REQUEST: request, RESPONSE: response},
    )  # fmt: skip


def request_data(config: RequestConfig = REQUESTS, *, each: int = 16, seed: int = 0) -> DefenceData:
    """The sets of one split: 40 % of the pairs for training and retention, 30 % for thresholds, 30 % for tests.

    Training uses look-alikes and other benign requests as its benign class. Retention uses the same benign pairs, in
    other requests. All harmful pairs outside training are tested on.

    Args:
      config: the language.
      each: the number of requests of each pair.
      seed: the seed of the split and of the requests.
    """
    train, control, test = split_pairs(config, (0.4, 0.3, 0.3), seed)
    harmful = lambda pairs: pairs[np.asarray(config.is_harmful(jnp.asarray(pairs)))]
    benign = lambda pairs: pairs[~np.asarray(config.is_harmful(jnp.asarray(pairs)))]
    dangerous = lambda pairs: pairs // config.topics < config.dangerous
    sensitive = lambda pairs: pairs % config.topics < config.sensitive
    alike = benign(test)[dangerous(benign(test)) | sensitive(benign(test))]
    other = benign(test)[~(dangerous(benign(test)) | sensitive(benign(test)))]
    made = lambda pairs, name, number: requests_as_examples(
        config, pairs, each, name=name, seed=int(np.random.default_rng((seed, number)).integers(2**31))
    )
    return DefenceData(
        train=made(train, "train", 0),
        retain=made(benign(train), "retain", 1),
        control=made(benign(control), "control", 2),
        harmful=made(np.concatenate([harmful(control), harmful(test)]), "harmful", 3),
        benign={"look-alikes": made(alike, "look-alikes", 4), "other": made(other, "other", 5)},
    )
