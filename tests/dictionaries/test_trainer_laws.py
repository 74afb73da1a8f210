"""Laws of every registered activation in every trainer, with every loss term that goes with both.

A new activation or term is held to them as soon as it is registered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import ACTIVATIONS, Activation, BatchTopK, Gated, ReLU, SelectiveActivation
from jax_interp.dictionaries.codes import DenseCode
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.dictionaries.losses import TERMS, Reconstruction, Term
from jax_interp.dictionaries.training import cross_layer, end_to_end, joint, train
from jax_interp.dictionaries.training.config import (
    Adam,
    CrossLayerConfig,
    DictionaryConfig,
    EndToEndSAEConfig,
    SAEConfig,
)
from jax_interp.training import Log, SaveTo, checkpoint

SITES, LATER = ("blocks.0.resid_post", "blocks.1.resid_post"), "blocks.2.resid_post"
D, M, K = 16, 32, 4
RUN = {"steps": 6, "buffer": 256}
ADAM = Adam(learning_rate=0.01, warmup=2)
# With this ε the step of Adam is the gradient.
PLAIN = Adam(learning_rate=1e12, b1=0.0, b2=0.0, eps=1e12, warmup=0, decay=0.0, offset_rate=1.0)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A trainer of dictionaries, called in one way.

    Attributes:
      config: (fields of every trainer, optimizer) -> its config.
      init: (config, model) -> the state before the first step.
      step: (config, state, batch, model) -> (state, metrics).
      train: (config, model, run, log) -> what the public function returns.
      parts: state -> the dictionaries in it.
      exported: (config, state) -> dictionaries for raw values.
      scales: state -> for each dictionary what it reads was multiplied by, and what it writes, column by column.
    """

    config: Callable[[dict[str, Any], Adam], Any]
    init: Callable[..., Any]
    step: Callable[..., Any]
    train: Callable[..., Any]
    parts: Callable[[Any], Any]
    exported: Callable[[Any, Any], Any]
    scales: Callable[[Any], Any]


def optimizer_of_joint(config: Any) -> optax.GradientTransformation:
    return optax.sgd(1.0) if config.seed == 1 else optax.adamw(1e-2)


def joint_config(fields: dict[str, Any], optimizer: Adam) -> joint.JointConfig:
    return joint.JointConfig(
        (SAEConfig(SITES[1], **fields),), shared=(), steps=RUN["steps"], seed=int(optimizer is PLAIN)
    )


def end_to_end_config(fields: dict[str, Any], optimizer: Adam) -> end_to_end.EndToEndConfig:
    sae = EndToEndSAEConfig(SITES[1], optimizer=optimizer, **fields)
    return end_to_end.EndToEndConfig((sae,), downstream=(LATER,), **RUN)


TRAINERS = {
    "single": Trainer(
        config=lambda fields, optimizer: DictionaryConfig(SITES[1], optimizer=optimizer, **fields | RUN),
        init=lambda config, model: train.init_train_state(config, model, batch_at),
        step=train.train_step,
        train=lambda config, model, run, log: train.train_dictionary(config, model, batch_at, run=run, log=log),
        parts=lambda state: [state.learner.dictionary],
        exported=lambda config, state: [train.export(config, state)],
        scales=lambda state: [(state.stream.scale[0], jnp.full(D, state.stream.scale[0]))],
    ),
    "cross-layer": Trainer(
        config=lambda fields, optimizer: CrossLayerConfig(SITES, optimizer=optimizer, **fields | RUN),
        init=lambda config, model: cross_layer.init_cross_layer_state(config, model, batch_at),
        step=cross_layer.cross_layer_step,
        train=lambda config, model, run, log: cross_layer.train_cross_layer(config, model, batch_at, run=run, log=log),
        parts=lambda state: [source.dictionary for source in state.learner.dictionary.sources],
        exported=lambda config, state: [one.dictionary for one in cross_layer.export(config, state).sources],
        scales=lambda state: [
            (state.stream.scale[i], jnp.repeat(state.stream.scale[i:], D)) for i in range(len(SITES))
        ],
    ),
    "joint": Trainer(
        config=joint_config,
        init=lambda config, model: joint.init_joint_state(config, model, batch_at(0)[0], optimizer_of_joint(config)),
        step=lambda config, state, batch, model: joint.joint_step(
            config, optimizer_of_joint(config), joint.next_token, state, batch
        ),
        train=lambda config, model, run, log: joint.train_joint(
            config, model, batch_at, optimizer_of_joint(config), run=run, log=log
        ),
        parts=lambda state: state.dictionaries,
        exported=lambda config, state: [joint.for_inference(one) for one in state.dictionaries],
        scales=lambda state: [(jnp.float32(1), jnp.ones(D))],
    ),
    "end to end": Trainer(
        config=end_to_end_config,
        init=lambda config, model: end_to_end.init_end_to_end_state(config, model, batch_at),
        step=end_to_end.end_to_end_step,
        train=lambda config, model, run, log: end_to_end.train_end_to_end(config, model, batch_at, run=run, log=log),
        parts=lambda state: [learner.dictionary for learner in state.learners],
        exported=lambda config, state: end_to_end.export_end_to_end(state),
        scales=lambda state: [(state.scale[0], jnp.full(D, state.scale[0]))],
    ),
}


def fields_of(kind: type[Activation], loss: Iterable[Term] = (Reconstruction(),)) -> dict[str, Any]:
    """The fields of a config with an activation of this kind."""
    activation = kind(k=K) if issubclass(kind, SelectiveActivation) else kind()
    decoder = "free" if activation.uses_encoder else "unit"
    return {"n_features": M, "activation": activation, "loss": tuple(loss), "decoder": decoder, "dead_after": 100}


def terms_of(kind: type[Activation], name: str) -> list[Term]:
    """Every term that goes with the activation in this trainer."""
    activation, terms = fields_of(kind)["activation"], []
    for term in (make() for make in TERMS):
        try:
            term.check(activation)
        except UserError:
            continue
        if name != "cross-layer" or term.cross_layer is not None:
            terms.append(term)
    return terms


FAST = ((BatchTopK, "single"), (Gated, "single"))  # one that is chosen by comparison, one that is not
CASES = [
    pytest.param(kind, name, id=f"{kind.__name__}, {name}", marks=() if (kind, name) in FAST else pytest.mark.slow)
    for kind in ACTIVATIONS
    for name in TRAINERS
    if name != "cross-layer" or kind.cross_layer
]


def on_every_latent(training_code):
    """`Dictionary.training_code` in the plainest form that autodiff can take: a dense code. What is on is given."""

    def plain(dictionary, x):
        code = training_code(dictionary, x)
        if dictionary.activation.elementwise or not dictionary.activation.uses_encoder:
            return code  # its own formula, and nothing written by hand to take its derivative
        on = jax.lax.stop_gradient(code.dense(dictionary.n_features) > 0)
        pre = dictionary.linear(x) + dictionary.b_enc[None, :]
        return DenseCode(jnp.where(on, pre, jnp.zeros_like(pre)), pre)

    return plain


def with_dead_latents(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    """A leaf of a state, in float64: the first latents are silent, and have been so for long."""
    names = [getattr(key, "name", None) for key in path]
    if "since_fired" in names:
        return jnp.where(jnp.arange(M) < 5, 10**6, leaf)
    if names[-1] == "b_enc" and "opt" not in names:
        return jnp.where(jnp.arange(M) < 5, -5.0, leaf).astype(jnp.float64)
    return leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_step_is_that_of_dense_autodiff(kind, name, monkeypatch):
    """In float64, with latents that are dead: the loss, and the gradient of every parameter of every dictionary."""
    trainer = TRAINERS[name]
    terms = terms_of(kind, name)
    if name in ("joint", "end to end"):  # of the terms all are in "single", and here they only cost time
        terms = [Reconstruction(), *terms[-2:]]
    config = trainer.config(fields_of(kind, terms), PLAIN)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        model = jax.tree.map(lambda a: a.astype(jnp.float64), toy())
        state = trainer.init(config, model)

        state = jax.tree_util.tree_map_with_path(with_dead_latents, state)
        batch = batch_at(9)
        after, metrics = jax.jit(partial(trainer.step, config))(state, batch, model)
        monkeypatch.setattr(Dictionary, "training_code", on_every_latent(Dictionary.training_code))
        monkeypatch.setattr(train, "loss_and_grad", autodiff)
        plain, wanted = jax.jit(partial(trainer.step, config))(state, batch, model)
        assert np.isfinite(metrics["loss"])
        np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-9)
        for before, now, want in zip(trainer.parts(state), trainer.parts(after), trainer.parts(plain), strict=True):
            gradient, want = (jax.tree.map(lambda a, b: a - b, before, one) for one in (now, want))
            assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
            for g, w in zip(jax.tree.leaves(gradient), jax.tree.leaves(want), strict=True):
                assert np.isfinite(g).all()
                np.testing.assert_allclose(g, w, rtol=1e-6, atol=1e-9 * (1e-3 + float(jnp.abs(w).max())))


def autodiff(config, terms, loss_of, dictionary, x):
    of = lambda dictionary: loss_of(dictionary, dictionary.training_code(x))
    return jax.value_and_grad(of, has_aux=True)(dictionary)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_restored_state_goes_on_to_the_bit_and_what_is_exported_is_what_is_trained(kind, name, tmp_path):
    trainer, model = TRAINERS[name], toy()
    config = trainer.config(fields_of(kind), ADAM)
    step = jax.jit(partial(trainer.step, config))
    state = first = trainer.init(config, model)
    for i in range(4):
        if i == 2:
            checkpoint.save(tmp_path, i, state)
        state, _ = step(state, batch_at(9 + i), model)
    template = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), first)
    again, done = checkpoint.restore(tmp_path, template)
    assert done == 2
    for i in range(2, 4):
        again, _ = step(again, batch_at(9 + i), model)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        same = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b)]
        np.testing.assert_array_equal(*same)
    x = jax.random.normal(jax.random.key(3), (20, 16))
    each = zip(trainer.parts(state), trainer.exported(config, state), trainer.scales(state), strict=True)
    for trained, exported, (read, write) in each:
        want = trained.decode(trained.encode(read * x)) / write[None, :]
        np.testing.assert_array_equal(exported.encode(x) > 0, trained.encode(read * x) > 0)
        np.testing.assert_allclose(exported.decode(exported.encode(x)), want, rtol=1e-3, atol=1e-4)


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", [n if n == "single" else pytest.param(n, marks=pytest.mark.slow) for n in TRAINERS])
def test_a_killed_run_ends_with_the_same_bits(name, tmp_path):
    def die(record):
        if record["step"] == 5:
            raise Killed

    trainer, model = TRAINERS[name], toy()
    config = trainer.config(fields_of(BatchTopK), ADAM)
    if isinstance(config, joint.JointConfig | end_to_end.EndToEndConfig):  # with a dictionary of another kind beside it
        first = dataclasses.replace(config.dictionaries[0], address=SITES[0], activation=ReLU(), decoder="unit")
        config = dataclasses.replace(config, dictionaries=(first, *config.dictionaries))
    run = lambda name, log: trainer.train(config, model, SaveTo(tmp_path / name, every=2), log)
    with pytest.raises(Killed):
        run("killed", Log(every=1, on_record=die, quiet=True))
    resumed, whole = (run(name, Log(every=1, quiet=True)) for name in ("killed", "whole"))
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
