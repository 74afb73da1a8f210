"""What surgeries cost: programs compiled, operations, size, and nothing where nothing was asked."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.surgery import Add, Each, Noise, Replace, Resample, Splice, Zero, at, edit, read, replan
from tests.surgery.conftest import CONFIG, DEPTH


def counted():
    """A jitted `call`, and a function that says how many programs it has compiled."""
    call = jax.jit(lambda f, *args: f(*args))
    return call, call._cache_size


SWEEPS = {
    "layer": lambda i: at("blocks.resid_post", Add(jnp.ones(CONFIG.d_model)), layer=i),
    "layer as mask": lambda i: at("blocks.mlp_out", Zero(), layer=np.arange(DEPTH) == i),
    "head": lambda i: at("blocks.2.attn.z", Zero(), head=i),
    "position": lambda i: at("blocks.2.resid_post", Zero(), pos=i),
    "positions": lambda i: at("blocks.2.resid_post", Zero(), pos=[i, i + 1]),
    "span": lambda i: at("blocks.2.resid_post", Zero(), pos=slice(i, None) if i % 2 else slice(0, i)),
    "feature": lambda i: at("blocks.2.mlp.post", Zero(), feature=i),
    "coefficient, however it is spelled": lambda i: at(
        "blocks.2.resid_post", Add(jnp.ones(CONFIG.d_model), [1.0, np.float32(2), jnp.float32(3), jnp.asarray(4.0)][i])
    ),
    "vector": lambda i: at("blocks.2.resid_post", Add(jnp.full(CONFIG.d_model, float(i)))),
    "donor value": lambda i: at("blocks.*.mlp_out", Each(Replace(jnp.full((DEPTH, 3, 12, CONFIG.d_model), float(i))))),
    "donor example": lambda i: at("blocks.2.mlp_out", Resample(jnp.array([i % 3, i // 3, 2]))),
    "noise": lambda i: at("blocks.2.mlp_out", Noise(jax.random.key(i), 0.1 * i)),
    "mask": lambda i: at("blocks.2.mlp_out", Zero(), where=jnp.arange(12)[None] < jnp.full((3, 1), i)),
}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_compiles_once(base, tokens, sweep):
    call, compiled = counted()
    outputs = [call(edit(base, SWEEPS[sweep](i)), tokens) for i in range(4)]
    assert compiled() == 1
    assert len({np.asarray(out).tobytes() for out in outputs}) == 4, "the sweep changes something"


def test_another_kind_of_surgery_compiles_again(base, tokens):
    call, compiled = counted()
    for surgery in (base, edit(base, SWEEPS["head"](0)), edit(base, SWEEPS["layer"](0)), read(base, "embed")):
        call(surgery, tokens)
    assert compiled() == 4


# ---- operations ---------------------------------------------------------------------------------------------


def compiled(f, *args):
    return jax.jit(f).lower(*args).compile()


@pytest.fixture(scope="module")
def deep():
    return init(Config(n_layers=12, d_model=64, n_heads=4, d_mlp=256, vocab_size=512, n_ctx=64), jax.random.key(0))


@pytest.fixture(scope="module")
def few():
    return jnp.zeros((2, 16), jnp.int32)


def test_reading_block_3_of_12_costs_a_third_of_the_forward(deep, few):
    unrolled = replan(deep, "*")
    full = compiled(lambda m, t: m(t), unrolled, few).cost_analysis()["flops"]
    for reading in (
        lambda m, t: read(m, "blocks.3.resid_post", output=False)(t),
        lambda m, t: read(m, "blocks.3.resid_post")(t)[1],  # XLA drops what the output alone needs
    ):
        assert compiled(reading, unrolled, few).cost_analysis()["flops"] <= 0.35 * full
    # of a scanned model XLA counts the loop's body once, so count its turns
    scanned = compiled(lambda m, t: read(m, "blocks.3.resid_post", output=False)(t), deep, few)
    assert re.findall(r'known_trip_count.{0,8}?"?n"?:"?(\d+)', scanned.as_text()) == ["4"]
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(deep.blocks))
    assert scanned.memory_analysis().temp_size_in_bytes < weights, "no copy of the layers that run"


def test_sites_that_nobody_taps_leave_no_trace(base, tokens):
    """The same optimised program, operation for operation, with every name taken out of the model."""
    from collections import Counter

    from jax_interp.surgery import Site

    def operations(model):
        text = compiled(lambda m, t: m(t), model, tokens).as_text()
        return Counter(re.findall(r"= \S+ ([a-z][\w-]*)\(", text))

    named = operations(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Site, "__call__", lambda self, name, x, axes="": x)
        assert operations(base) == named
    assert sum(named.values()) > 20


def test_a_scanned_reading_keeps_only_the_layers_asked_for(deep, few):
    one = compiled(lambda m, t: read(m, "blocks.5.resid_post", output=False)(t), deep, few).memory_analysis()
    every = compiled(lambda m, t: read(m, "blocks.:6.resid_post", output=False)(t), deep, few).memory_analysis()
    row = 2 * 16 * 64 * 4
    assert one.output_size_in_bytes == row
    assert every.output_size_in_bytes == 6 * row
    assert one.temp_size_in_bytes <= every.temp_size_in_bytes


def test_a_scanned_program_is_as_long_at_48_layers_as_at_12():
    def lines(n_layers):
        config = Config(n_layers=n_layers, d_model=64, n_heads=4, d_mlp=128, vocab_size=64, n_ctx=64)
        model = jax.eval_shape(lambda: init(config, jax.random.key(0)))
        surgery = read(
            edit(model, at("blocks.5.mlp_out", Zero()), at("blocks.resid_post", Add(jnp.ones(64)), layer=2)),
            "blocks.*.resid_post", "blocks.3.attn.z",
        )  # fmt: skip
        return len(jax.jit(lambda f, t: f(t)).lower(surgery, jnp.zeros((1, 8), jnp.int32)).as_text().splitlines())

    assert lines(12) == lines(48)


def test_an_edited_model_adds_its_own_leaves_and_no_more(base):
    def leaves(model):
        return len(jax.tree.leaves(model))

    assert leaves(edit(base, at("blocks.2.mlp_out", Zero()))) == leaves(base)
    assert leaves(edit(base, at("blocks.2.mlp_out", Add(jnp.ones(3)), pos=1))) == leaves(base) + 3


def test_a_dictionary_is_only_computed_at_its_layer(deep, few):
    """Of a scanned model, the splice sits in a branch: its products are in the program once, and run once."""
    import dataclasses

    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Linear:
        w: jax.Array

        def encode(self, x):
            return x @ self.w

        def decode(self, z):
            return z @ self.w.T

    surgery = edit(deep, at("blocks.5.mlp_out", Splice(Linear(jnp.ones((64, 33))))))
    text = jax.jit(lambda f, t: f(t)).lower(surgery, few).as_text()
    assert text.count("stablehlo.case") == 1
    assert len(re.findall(r"dot_general.*33xf32", text)) == 2
