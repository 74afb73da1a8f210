"""Every edit, at every dtype, padding, grouping of heads and layout, whole and cached, gives what its formula gives.

The reference is a decoder in NumPy float64 that runs each text alone and unpadded (`numpy_decoder`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.surgery import Each, Scale, at, edit, replan, survey
from jax_interp.surgery.lora import LoRA, LowRank
from jax_interp.surgery.select import join, replace_each, split
from tests.generated import drawn
from tests.laws import edit_kinds, numpy_decoder

BATCH, PROMPT, NEW, DEPTH = 3, 7, 2, 2
TOLERANCE = {"float32": 2e-4, "bfloat16": 0.1, "float16": 0.02}
"""Of the norm of the difference, in units of the norm of the logits (bfloat16 has 8 bits, and errors add up)."""

call = jax.jit(lambda model, tokens, **kwargs: model(tokens, **kwargs))
begin = jax.jit(lambda model, tokens, mask: model(tokens, mask=mask, cache=PROMPT + NEW))


@functools.cache
def decoder(dtype: str, kv_heads: int, norm_places: str, qk_norm: str, lora: bool):
    """A model, its weights, and the axes and shape of every value that the reference has too."""
    config = Config(
        n_layers=DEPTH, d_model=32, n_heads=4, n_kv_heads=kv_heads, d_mlp=48, vocab_size=40, n_ctx=16,
        norm_places=norm_places, qk_norm=qk_norm,
    )  # fmt: skip
    model = jax.tree.map(lambda w: 6.0 * w if w.ndim > 1 else w, init(config, jax.random.key(0), stacked=False))
    model = jax.tree.map(lambda w: w.astype(dtype), model)
    if lora:
        for name in ("attn.q", "attn.o", "mlp.down"):
            model = replace_each(model, f"blocks.*.{name}", LoRA, jax.random.split(jax.random.key(1), DEPTH))
        trained, rest = split(model, LowRank)
        model = join(jax.tree.map(lambda w: w + jnp.asarray(0.1, w.dtype), trained), rest)
    weights, known = numpy_decoder.weights_of(model), set()
    numpy_decoder.run(weights, config, [np.arange(3)], lambda name, texts: (known.add(name), texts)[1])
    named = survey(model)(jnp.zeros((BATCH, PROMPT), jnp.int32))
    return model, weights, {name: named[name] for name in sorted(known - {"logits"})}


def padding(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Which tokens of the prompts are real."""
    if kind == "no":
        return np.ones((BATCH, PROMPT), bool)
    lengths = rng.integers(3, PROMPT + 1, BATCH)
    starts = {"left": PROMPT - lengths, "right": 0 * lengths, "mixed": rng.integers(0, PROMPT - lengths + 1)}[kind]
    columns = np.arange(PROMPT)
    return (columns >= starts[:, None]) & (columns < (starts + lengths)[:, None])


@dataclasses.dataclass(frozen=True)
class Case:
    """One drawn case. All of it follows from the seed."""

    seed: int

    def holds(self) -> str:
        """Runs the case. Returns what is wrong, or nothing."""
        rng = np.random.default_rng(self.seed)
        pick = lambda *of: of[rng.integers(len(of))]
        dtype, pad, cached = pick(*TOLERANCE), pick("no", "left", "right", "mixed"), pick(False, True)
        lora = pick(False, False, True)
        model, weights, named_values = decoder(dtype, pick(4, 2, 1), pick("before", "around"), pick("no", "head"), lora)
        layout = pick("stacked", "unrolled")
        mask = padding(rng, pad)
        prompt_lengths = mask.sum(1).tolist()
        new = NEW if cached else 0
        tokens = rng.integers(0, 40, (BATCH, PROMPT + new))
        mask = np.concatenate([mask, np.ones((BATCH, new), bool)], axis=1)
        columns = tuple(np.flatnonzero(row) for row in mask)

        address = pick(*named_values)
        axes, sizes = named_values[address].axes, named_values[address].shape
        of_texts = {"batch": BATCH, "pos": PROMPT + new, "key": PROMPT + new}
        shape = tuple(of_texts.get(name, n) for name, n in zip(axes, sizes, strict=True))
        value = edit_kinds.Value(address, axes, shape, columns)
        kinds = edit_kinds.edits(rng, value)
        if cached and pad != "no":
            kinds = {name: kind for name, kind in kinds.items() if name not in ("Mean()", "Resample")}
        name = pick(*kinds)
        fn, formula = kinds[name]
        region, inside = pick(*edit_kinds.regions(rng, value, prompt_lengths))
        how, layers, the_edit = self.layers(rng, address, fn, region)

        def named(here, texts):
            if here not in layers:
                return texts
            return [np.where(i, new, old) for i, new, old in zip(inside, formula(texts), texts, strict=True)]

        texts = [row[of] for row, of in zip(tokens, columns, strict=True)]
        want = numpy_decoder.run(weights, model.config, texts, named)
        edited = edit(model if layout == "unrolled" else replan(model), the_edit)
        if edit_kinds.HALVED in name:
            below = {"feature": edit_kinds.LATENTS, "layer": the_edit.layer}
            edited = edit(edited, at(f"{the_edit.address}.latents", Scale(0.5), **below))
        got = self.run(edited, tokens, mask, pad, cached)
        got = [np.asarray(row[of], np.float64) for row, of in zip(got, columns, strict=True)]
        # A model whose every stream is zeroed has logits 0.
        size = lambda row: max(np.linalg.norm(row), 1e-6)
        error = max(np.linalg.norm(a - b) / size(b) for a, b in zip(got, want, strict=True))
        if error < TOLERANCE[dtype]:
            return ""
        case = f"{name} at {address} {region} {how}, {dtype}, {pad} padding, {layout}, {cached=}, {lora=}"
        return f"seed {self.seed}: {case}, {model.config.n_kv_heads} key heads: off by {error:.2g}"

    def layers(self, rng, address: str, fn: Any, region: dict) -> tuple[str, list[str], Any]:
        """The edit at one layer or at all, written in one of four ways, and the addresses where it acts."""
        if not address.startswith("blocks."):
            return "", [address], at(address, fn, **region)
        _, layer, name = address.split(".", 2)
        every = [f"blocks.{i}.{name}" for i in range(DEPTH)]
        twice = lambda leaf: jnp.stack([jnp.asarray(leaf)] * DEPTH) if jnp.ndim(leaf) else leaf
        ways = [
            ("", [address], lambda: at(address, fn, **region)),
            ("layer=", [address], lambda: at(f"blocks.{name}", fn, layer=int(layer), **region)),
            ("every layer", every, lambda: at(f"blocks.*.{name}", fn, **region)),
        ]
        if fn is not jnp.tanh:
            ways.append(("Each", every, lambda: at(f"blocks.*.{name}", Each(jax.tree.map(twice, fn)), **region)))
        how, where, make = ways[rng.integers(len(ways))]
        return how, where, make()

    def run(self, model, tokens: np.ndarray, mask: np.ndarray, pad: str, cached: bool) -> np.ndarray:
        """The logits at all tokens, in one call or token by token with a cache."""
        given = None if pad == "no" else jnp.asarray(mask)
        tokens = jnp.asarray(tokens)
        if not cached:
            return np.asarray(call(model, tokens, mask=given), np.float32)
        logits, cache = begin(model, tokens[:, :PROMPT], None if given is None else given[:, :PROMPT])
        parts = [logits]
        for i in range(NEW):
            logits, cache = call(model, tokens[:, PROMPT + i : PROMPT + i + 1], cache=cache)
            parts.append(logits)
        return np.concatenate([np.asarray(part, np.float32) for part in parts], axis=1)


@pytest.mark.hardening
def test_every_edit_is_its_formula_on_unpadded_float64_texts(tally):
    seed = np.random.SeedSequence().entropy % 2**31
    cases = [Case(seed + i) for i in range(drawn(20, 70))]
    broken = [found for case in cases if (found := case.holds())]
    tally("edits against unpadded float64 texts", tried=len(cases), broken=len(broken))
    assert not broken, "\n".join(broken)
