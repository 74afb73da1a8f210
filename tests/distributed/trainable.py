"""Everything that the package trains, each as a function of where it is trained: `train(place) -> (result, log)`.

The list is made from the registries and from the named variants, so a new activation, trainer, loss or importance
function is held to the law of meshes as soon as it is registered.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import optax

from jax_interp.analysis.lens_training import TunedLensConfig, train_tuned_lens
from jax_interp.core.errors import UserError
from jax_interp.decomposition import DecompositionConfig, train_decomposition
from jax_interp.decomposition.apd import APDConfig
from jax_interp.decomposition.apd.train import train_apd
from jax_interp.decomposition.importance import IMPORTANCE_FUNCTIONS
from jax_interp.decomposition.losses import LOSSES, Faithfulness
from jax_interp.dictionaries import variants
from jax_interp.dictionaries.activations import ACTIVATIONS, Activation, SelectiveActivation
from jax_interp.dictionaries.losses import AuxK, Reconstruction
from jax_interp.dictionaries.training.config import (
    Adam,
    CrossLayerConfig,
    DictionaryConfig,
    EndToEndSAEConfig,
    SAEConfig,
)
from jax_interp.dictionaries.training.cross_layer import train_cross_layer
from jax_interp.dictionaries.training.end_to_end import EndToEndConfig, train_end_to_end
from jax_interp.dictionaries.training.joint import JointConfig, train_joint
from jax_interp.dictionaries.training.sweep import Sweep, train_sweep
from jax_interp.dictionaries.training.train import train_dictionary
from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.models.language_modelling import Optimization, init_state, train_step
from jax_interp.models.sharding import rules_for
from jax_interp.training import Log, Place, fit, placed
from tests.tiny_tms import TIED, sparse, tiny

Train = Callable[[Place], Any]

CONFIG = Config(n_layers=2, d_model=16, n_heads=2, d_mlp=32, vocab_size=64, n_ctx=16)
SITES, WRITES = ("blocks.0.resid_post", "blocks.1.resid_post"), ("blocks.0.mlp_out", "blocks.1.mlp_out")
M, K, STEPS = 32, 4, 3
# With this ε, Adam's step is .1 times the gradient. Adam would turn rounding errors of small gradients into steps.
FIELDS: dict[str, Any] = {"n_features": M, "dead_after": 100}
RUN: dict[str, Any] = {
    "steps": STEPS, "buffer": 256,
    "optimizer": Adam(learning_rate=1e11, b1=0.0, b2=0.0, eps=1e12, warmup=0, decay=0.0, offset_rate=1.0),
}  # fmt: skip


@cache
def model():
    """A decoder whose blocks change the residual stream visibly."""
    return jax.tree.map(lambda w: 4.0 * w if w.ndim > 2 else w, init(CONFIG, jax.random.key(0)))


def tokens_at(number: int):
    return np.random.default_rng(number).integers(0, CONFIG.vocab_size, (8, 8), np.int32)


def batch_at(number: int):
    """Tokens, and a mask that leaves some out."""
    tokens = tokens_at(number)
    return tokens, tokens > 1


def logged(train: Callable[..., Any]) -> Train:
    """`train(place, log)` as a function of the place. The result is (what it returns, the records of its log)."""

    def run(place: Place) -> Any:
        records: list[dict[str, Any]] = []
        result = train(place=place, log=Log(every=1, on_record=records.append, quiet=True))
        return result, records

    return run


def of_variant(make: Callable[..., Any]) -> Train:
    """A named variant, trained by the trainer of its config."""
    first = next(iter(inspect.signature(make).parameters))
    where = {"address": SITES[1:], "addresses": (SITES,), "reads": (SITES, WRITES), "read": (SITES[0], WRITES[1])}[
        first
    ]
    small = {"k": K} if "k" in inspect.signature(make).parameters else {}
    config = make(*where, **small, **FIELDS, **RUN)
    train = train_cross_layer if isinstance(config, CrossLayerConfig) else train_dictionary
    return logged(partial(train, config, model(), batch_at))


def fields_of(kind: type[Activation]) -> dict[str, Any]:
    activation = kind(k=K) if issubclass(kind, SelectiveActivation) else kind()
    loss = (Reconstruction(), AuxK()) if activation.uses_encoder else (Reconstruction(),)
    return FIELDS | {"activation": activation, "loss": loss, "decoder": "free" if activation.uses_encoder else "unit"}


def cross_layer(kind: type[Activation]) -> Train:
    return logged(partial(train_cross_layer, CrossLayerConfig(SITES, **fields_of(kind), **RUN), model(), batch_at))


def joint(kind: type[Activation], train: str) -> Train:
    config = JointConfig((SAEConfig(SITES[1], **fields_of(kind)),), shared=(), train=train, steps=STEPS)  # type: ignore
    return logged(partial(train_joint, config, model(), batch_at, optax.sgd(0.1)))


def end_to_end(kind: type[Activation]) -> Train:
    sae = EndToEndSAEConfig(SITES[0], optimizer=RUN["optimizer"], **fields_of(kind))
    config = EndToEndConfig((sae,), downstream=SITES[1:], steps=STEPS, buffer=256)
    return logged(partial(train_end_to_end, config, model(), batch_at))


def sweep(kind: type[Activation], batched: bool) -> Train:
    config, grid = DictionaryConfig(SITES[1], **fields_of(kind), **RUN), Sweep(seeds=(0, 1))
    train = partial(train_sweep, config, grid, model(), batch_at, batched=batched)
    return logged(lambda **where: [dictionary for _, dictionary in train(**where)])


def spd_of_decoder(importance: Any) -> Train:
    config = DecompositionConfig(
        ("blocks.*.mlp",), C=4, steps=STEPS, batch=8, warm_up=None, compare="kl", importance=importance
    )
    return logged(partial(train_decomposition, config, model(), batch_at=tokens_at))


def spd_of_toy(loss: Any) -> Train:
    config = DecompositionConfig(tied=TIED, C=4, steps=STEPS, batch=8, warm_up=None, losses=(loss, Faithfulness()))
    return logged(partial(train_decomposition, config, tiny(), sample=partial(sparse, batch=8, p=0.7)))


def apd() -> Train:
    config = APDConfig(tied=TIED, C=4, rank=2, steps=STEPS, batch=8)
    return logged(partial(train_apd, config, tiny(), sample=partial(sparse, batch=8, p=0.7)))


def language_model(muon: float | None) -> Train:
    optimizer = Optimization(learning_rate=1e-2, warmup=1, muon=muon).build(STEPS)

    def train(place: Place, log: Log) -> Any:
        with placed(place, rules_for) as there:
            state = there.state(init_state(model(), optimizer))
            return fit(train_step(optimizer), state, there.batches(tokens_at), steps=STEPS, log=log).model

    return logged(train)


def lens() -> Train:
    return logged(partial(train_tuned_lens, TunedLensConfig(steps=STEPS), model(), tokens_at))


SMALL = {
    "GlobalTransformer": {"d_model": 8, "blocks": 1, "heads": 2, "d_mlp": 16}, "GlobalMLP": {"hidden": (8,)},
    "SharedMLP": {"hidden": (8,)}, "ScalarMLP": {"hidden": 4}, "VectorMLP": {"hidden": 4},
}  # fmt: skip


def everything() -> dict[str, Callable[[], Train]]:
    """{name: a function that makes the training}."""
    own = lambda registry: [kind for kind in registry if kind.__module__.startswith("jax_interp.")]
    named = [
        make for name, make in vars(variants).items()
        if inspect.isfunction(make) and make.__module__ == variants.__name__ and not name.startswith("_")
    ]  # fmt: skip
    found: dict[str, Callable[[], Train]] = {make.__name__: partial(of_variant, make) for make in named}
    for kind in own(ACTIVATIONS):
        trainers = {
            "end to end": end_to_end,
            "joint": partial(joint, train="both"),
            "joint, fixed model": partial(joint, train="dictionaries"),
            "sweep": partial(sweep, batched=False),
            "sweep, batched": partial(sweep, batched=True),
        }
        if accepts_cross_layer(kind):
            trainers["cross-layer"] = cross_layer
        found |= {f"{trainer}: {kind.__name__}": partial(make, kind) for trainer, make in trainers.items()}
    for kind in own(IMPORTANCE_FUNCTIONS):
        importance = dataclasses.replace(kind(), **SMALL.get(kind.__name__, {}))
        found[f"decomposition: {kind.__name__}"] = partial(spd_of_decoder, importance)
    found |= {f"decomposition of a toy: {kind.__name__}": partial(spd_of_toy, kind()) for kind in own(LOSSES)}
    found |= {"APD": apd, "tuned lens": lens}
    return found | {
        "language model": partial(language_model, None),
        "language model, Muon": partial(language_model, 0.02),
    }


def accepts_cross_layer(kind: type[Activation]) -> bool:
    try:
        CrossLayerConfig(SITES, **fields_of(kind), **RUN)
    except UserError:
        return False
    return True
