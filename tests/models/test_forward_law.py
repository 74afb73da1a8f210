"""The forward pass of every family, dtype, padding and layout is that of the unpadded text in float64."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CASES, config_of
from generated import drawn
from small_models import peaky

from jax_interp import Add, Each, at, edit, grad_at, replan
from jax_interp.models import Decoder
from jax_interp.models.language_modelling import next_token_loss

LENGTHS = np.array([11, 7, 4])
WIDTH = 11
PADDING = {
    "none": np.zeros(3, int),
    "left": WIDTH - LENGTHS,
    "right": np.zeros(3, int),
    "mixed": np.array([0, 2, 6]),
}
"""The column of the first real token of each row. Without padding, all rows have `WIDTH` tokens."""
# The root mean square of the error, as a part of that of the logits. In 16 bits a router may choose other experts.
TOLERANCE = {"float64": 1e-9, "float32": 2e-4, "float16": 0.02, "bfloat16": 0.12}
ROUTED = {"float64": 1e-9, "float32": 2e-3, "float16": 0.5, "bfloat16": 1.0}
SEED = int(np.random.SeedSequence().entropy % 2**32)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@cache
def texts(vocab_size: int) -> np.ndarray:
    return np.random.default_rng(SEED).integers(0, vocab_size, (3, WIDTH)).astype(np.int32)


def padded(padding: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows under padding (whose ids are no ids), and where they are real."""
    column = np.arange(WIDTH)[None] - PADDING[padding][:, None]
    real = (column >= 0) & (column < (WIDTH if padding == "none" else LENGTHS[:, None]))
    return np.where(real, np.take_along_axis(rows, np.clip(column, 0, WIDTH - 1), axis=1), -1).astype(np.int32), real


def model_of(case: str, dtype: str, layout: str) -> tuple[Decoder, Decoder]:
    """A model, and the float64 model with the same numbers."""
    model = peaky(config_of(case), dtype=dtype)
    return model if layout == "stacked" else replan(model, "*"), jax.tree.map(lambda w: w.astype(jnp.float64), model)


@jax.jit
def logits_and_loss(model, tokens, real):
    return model(tokens, mask=real), next_token_loss(model, tokens, real=real)


@jax.jit
def by_cache(model, tokens, real):
    """The logits of six columns at once, of three by themselves, and of two at once."""
    logits, kept = model(tokens[:, :6], mask=real[:, :6], cache=WIDTH)
    parts = [logits]
    for start, stop in ((6, 7), (7, 8), (8, 9), (9, 11)):
        logits, kept = model(tokens[:, start:stop], mask=real[:, start:stop], cache=kept)
        parts.append(logits)
    return jnp.concatenate(parts, axis=1)


@cache
def expected(case: str, dtype: str) -> np.ndarray:
    """The logits of the rows, without padding, in float64."""
    exact = model_of(case, dtype, "stacked")[1]
    return np.asarray(jax.jit(lambda model, tokens: model(tokens))(exact, texts(exact.config.vocab_size)))


def errors(case: str, dtype: str, layout: str) -> list[str]:
    """What is wrong in one combination, over all paddings and both ways through the model."""
    model, _ = model_of(case, dtype, layout)
    rows, right = texts(model.config.vocab_size), expected(case, dtype)
    near = (ROUTED if model.config.n_experts else TOLERANCE)[dtype]
    log_p = right - np.logaddexp.reduce(right, axis=-1, keepdims=True)
    losses = -np.take_along_axis(log_p[:, :-1], rows[:, 1:, None], axis=2)[..., 0]
    wrong = []
    for padding in PADDING:
        tokens, real = padded(padding, rows)
        full, loss = logits_and_loss(model, tokens, real)
        lengths = np.full(3, WIDTH) if padding == "none" else LENGTHS
        unpadded = np.arange(WIDTH)[None] < lengths[:, None]
        for way, logits in (("at once", full), ("by cache", by_cache(model, tokens, real))):
            error = np.asarray(logits.astype(jnp.float64))[real] - right[unpadded]
            relative = np.sqrt(np.mean(error**2) / np.mean(right[unpadded] ** 2))
            if not relative < near:
                wrong.append(f"{case}, {dtype}, {layout}, {padding}, {way}: logits off by {relative:.1e}")
        mean = losses[unpadded[:, 1:]].mean()
        if not abs(float(loss) - mean) < near * max(1.0, mean):
            wrong.append(f"{case}, {dtype}, {layout}, {padding}: loss {float(loss):.6g}, right {mean:.6g}")
    return wrong


@pytest.mark.hardening
def test_padding_precision_layout_and_cache_change_no_logits(tally):
    rng, wrong = np.random.default_rng(SEED), []
    cases = [(case, dtype, layout) for case in CASES for dtype in TOLERANCE for layout in ("stacked", "unrolled")]
    chosen = [cases[i] for i in rng.permutation(len(cases))[: drawn(6, 30)]]
    for combination in chosen:
        wrong += errors(*combination)
    tried = len(chosen) * len(PADDING) * 3
    tally("logits and losses against the unpadded float64 run", tried=tried, broken=len(wrong))
    assert not wrong, f"seed {SEED}:\n" + "\n".join(wrong)


@pytest.mark.hardening
def test_grad_at_of_every_family_is_the_finite_difference(tally):
    """Along one direction through all of these values at once, in float64."""
    names, wrong = ("embed", "blocks.*.attn.q", "blocks.*.attn.pattern", "blocks.*.attn.z", "blocks.*.mlp_out"), []
    chosen = [list(CASES)[i] for i in np.random.default_rng(SEED).permutation(len(CASES))[: drawn(3, 10)]]
    for case in chosen:
        model = model_of(case, "float64", "stacked")[0]
        at_these = names[: -1 if not model.config.d_mlp else None]
        tokens = texts(model.config.vocab_size)
        metric = lambda logits: jnp.sum(jnp.sin(logits[:, -1]))
        _, grads = jax.jit(lambda m, t: grad_at(m, at_these)(metric)(t))(model, tokens)  # noqa: B023
        rng = np.random.default_rng(SEED)
        ways = {name: rng.standard_normal(grads[name].shape) for name in at_these}

        @jax.jit
        def moved(step, model, tokens, ways=ways):
            adds = [at(name, Each(Add(d * step)) if "*" in name else Add(d * step)) for name, d in ways.items()]
            return metric(edit(model, *adds)(tokens))  # noqa: B023

        difference = (moved(1e-6, model, tokens) - moved(-1e-6, model, tokens)) / 2e-6
        slope = sum(float(np.vdot(grads[name], d)) for name, d in ways.items())
        if not abs(slope - difference) < 1e-5 * max(1.0, abs(slope)):
            wrong.append(f"{case}: slope {slope:.9g}, difference {float(difference):.9g}")
    tally("grad_at against finite differences in float64", tried=len(chosen), broken=len(wrong))
    assert not wrong, f"seed {SEED}:\n" + "\n".join(wrong)
