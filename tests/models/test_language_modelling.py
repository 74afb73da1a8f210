"""The objective and the figures of merit: against float64 by hand, and on models whose answers are known."""

from __future__ import annotations

import dataclasses
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core import optimizers as optimization
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.core.leaves import flatten
from jax_interp.core.objectives import cross_entropy
from jax_interp.core.pytrees import register_dataclass
from jax_interp.data.batches import evaluation_windows
from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.models.language_modelling import (
    Optimization,
    block_matrices,
    decays,
    evaluate_induction,
    evaluate_text,
    init_state,
    next_token_loss,
    repeated_tokens,
    train_step,
)

SMALL = Config(n_layers=2, d_model=16, n_heads=2, d_mlp=24, vocab_size=30, n_ctx=16)


def test_token_losses_and_masks():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(3, 5, 11)) * 4, rng.integers(0, 11, (3, 6))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(p, tokens[:, 1:, None], -1)[..., 0])
    ours = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(tokens[:, 1:]))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)

    def model(_):
        return jnp.asarray(logits, jnp.float32)

    mask = rng.random((3, 5)) < 0.5
    np.testing.assert_allclose(next_token_loss(model, jnp.asarray(tokens)), expected.mean(), rtol=1e-5)
    masked = next_token_loss(model, jnp.asarray(tokens), jnp.asarray(mask))
    np.testing.assert_allclose(masked, expected[mask].mean(), rtol=1e-5)
    assert next_token_loss(model, jnp.asarray(tokens), jnp.zeros((3, 5), bool)) == 0
    half = cross_entropy(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(tokens[:, 1:]))
    assert half.dtype == jnp.float32


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Bigram:
    """A model with one token of context, so overlapping windows cannot change what it says."""

    table: jax.Array

    def __call__(self, tokens):
        return self.table[tokens]


def test_overlapping_windows_count_every_token_once():
    rng = np.random.default_rng(1)
    table = rng.normal(size=(9, 9))
    tokens = np.where(rng.random(500) < 0.05, 0, rng.integers(1, 9, 500))
    tokens[0] = 0
    log_p = table - np.log(np.exp(table).sum(-1, keepdims=True))
    losses = -log_p[tokens[:-1], tokens[1:]][tokens[1:] != 0]
    for n_ctx in (8, 13):
        for overlap, skip in ((1, 0), (n_ctx // 2 + 1, n_ctx // 2)):
            rows = evaluation_windows(tokens, n_ctx + 1, pad_id=0, overlap=overlap)
            result = evaluate_text(
                Bigram(jnp.asarray(table, jnp.float32)), rows, bos_id=0, text_bytes=1000, skip=skip, batch=7
            )
            assert result["tokens"] == len(losses)
            assert result["loss"] == pytest.approx(losses.mean(), rel=1e-5)
            assert result["bits_per_byte"] == pytest.approx(losses.sum() / math.log(2) / 1000, rel=1e-5)
            assert len(result["loss_by_position"]) == n_ctx


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Copier:
    """Predicts what followed the last earlier occurrence of the current token, else nothing in particular."""

    sure: jax.Array

    def __call__(self, tokens):
        same = tokens[:, :, None] == tokens[:, None, :]
        n = tokens.shape[1]
        earlier = same & jnp.tril(jnp.ones((1, n, n), bool), -1)
        last = jnp.max(jnp.where(earlier, jnp.arange(n)[None, None], -1), axis=-1)
        following = jnp.take_along_axis(tokens, jnp.minimum(last + 1, n - 1), axis=1)
        found = (last >= 0).astype(jnp.float32)
        return jax.nn.one_hot(following, 1000) * (found * self.sure)[..., None]


def test_induction_of_a_model_that_copies_and_of_one_that_cannot():
    tokens = repeated_tokens(jax.random.key(3), vocab_size=1000, bos_id=4, rows=5, length=20)
    assert tokens.shape == (5, 41)
    assert (tokens[:, 0] == 4).all()
    assert (tokens[:, 1:] != 4).all()
    np.testing.assert_array_equal(tokens[:, 1:21], tokens[:, 21:])
    assert repeated_tokens(jax.random.key(3), vocab_size=10, bos_id=None, rows=5, length=20).shape == (5, 40)

    sizes = {"vocab_size": 1000, "bos_id": 4, "rows": 16, "length": 32}
    copier = evaluate_induction(Copier(jnp.float32(20.0)), jax.random.key(0), **sizes)
    assert copier["second_half"] < 1.0
    assert copier["first_half"] > math.log(1000) - 0.1
    blind = evaluate_induction(Bigram(jnp.zeros((1000, 1000), jnp.float32)), jax.random.key(0), **sizes)
    assert blind["score"] == pytest.approx(0, abs=1e-5)
    assert blind["second_half"] == pytest.approx(math.log(1000), rel=1e-5)
    with pytest.raises(UserError, match="at least 2 tokens"):
        evaluate_induction(Bigram(jnp.zeros((9, 9), jnp.float32)), jax.random.key(0), vocab_size=9, bos_id=0, length=1)


@pytest.mark.parametrize("stacked", [True, False])
def test_norms_are_not_decayed(stacked):
    model = init(SMALL, jax.random.key(0), stacked=stacked)
    for address, decayed in flatten(decays(model)).items():
        assert decayed == (".ln" not in f".{address}"), address


def test_norms_of_queries_and_keys_are_norms():
    """The matrices are named here one by one: what is decayed, and in the blocks what Muon steps."""
    model = init(dataclasses.replace(SMALL, qk_norm="head"), jax.random.key(0))
    parts = [*(f"attn.{name}" for name in ("q", "k", "v", "o")), *(f"mlp.{name}" for name in ("gate", "up", "down"))]
    matrices = {f"blocks.0.block.{part}.weight" for part in parts}
    assert "blocks.0.block.attn.q_norm.weight" in flatten(model)
    assert {address for address, decayed in flatten(decays(model)).items() if decayed} == matrices | {"embed.weight"}
    stepped = {a.removesuffix(".value.reduction_axis") for a in flatten(block_matrices(model))}
    assert {a for a in stepped if not a.endswith("output_axis")} == matrices


def test_schedule():
    """The step's size (of Adam on a constant gradient it is the learning rate) over a run."""
    optimizer = Optimization(learning_rate=1e-2, warmup=10, final=0.1, decay=0.5, weight_decay=0.0, clip=1e9).build(100)
    params, rates = {"w": jnp.zeros(())}, []
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = optimizer.init(params)
        for _ in range(100):
            updates, state = optimizer.update({"w": jnp.ones(())}, state, params)
            rates.append(-float(updates["w"]))
    np.testing.assert_allclose(rates[:11], 1e-3 * np.arange(11), rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(rates[10:51], 1e-2, rtol=1e-3)
    cosine = 1e-2 * (0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(50) / 50)) / 2)
    np.testing.assert_allclose(rates[50:], cosine, rtol=1e-3)
    with pytest.raises(UserError, match="warmup=100 must be"):
        Optimization(warmup=100).build(100)
    with pytest.raises(UserError, match="decay=0"):
        Optimization(decay=0.0).build(1000)


@pytest.mark.parametrize("stacked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_muon_steps_the_matrices_of_the_blocks_each_layer_by_itself(stacked):
    """Muon's step is (nearly) orthogonal: all singular values of a layer's matrix are alike, whatever the gradient's.
    Everything else takes AdamW's step."""
    model = init(SMALL, jax.random.key(0), stacked=stacked)
    stepped_by_muon = {address.removesuffix(".value.reduction_axis") for address in flatten(block_matrices(model))}
    stepped_by_muon = {address for address in stepped_by_muon if not address.endswith("output_axis")}
    assert stepped_by_muon == {a for a in flatten(model) if a.startswith("blocks.") and ".ln" not in a}
    rates = {"learning_rate": 1e-3, "warmup": 0, "weight_decay": 0.0, "clip": 1e9}
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape) ** 3, model)
    steps = {}
    for muon in (0.02, None):
        optimizer = Optimization(muon=muon, **rates).build(100)
        after, _ = optimization.update(optimizer, grads, optimization.init(optimizer, model), model)
        steps[muon] = flatten(jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), after, model))
    for address in flatten(model):
        if address not in stepped_by_muon:
            np.testing.assert_array_equal(steps[0.02][address], steps[None][address])
            continue
        for matrix in steps[0.02][address].reshape(-1, *steps[0.02][address].shape[-2:]):
            values = np.linalg.svd(matrix, compute_uv=False)
            assert 0.6 < values.min() / values.max() <= 1, address
            assert 0.5 * 0.02 < values.max() < 3 * 0.02, address


def test_a_step_lowers_the_loss_on_its_batch():
    optimizer = Optimization(learning_rate=1e-2, warmup=0).build(50)
    state = init_state(init(SMALL, jax.random.key(0)), optimizer)
    tokens = jax.random.randint(jax.random.key(1), (4, 17), 0, 30)
    step, losses = jax.jit(train_step(optimizer)), []
    for _ in range(30):
        state, metrics = step(state, tokens)
        losses.append(float(metrics["loss"]))
    assert abs(losses[0] - math.log(30)) < 0.1
    assert losses[-1] < losses[0] - 1
    assert float(metrics["grad_norm"]) > 0


@pytest.mark.parametrize("final_windows", [1, 7, None])
def test_the_baseline_is_judged_on_the_tokens_that_the_model_is(final_windows):
    """Which tokens count is written out here, window by window; the losses are those of known tables."""
    from types import SimpleNamespace

    from jax_interp.data.ngram import fit_kneser_ney
    from jax_interp.data.prepared import PreparedText, TextConfig
    from jax_interp.data.token_store import TokenStore
    from jax_interp.recipes.train_lm import LanguageModelConfig, final_results

    rng = np.random.default_rng(2)
    train, held_out = (np.where(rng.random(n) < 0.05, 0, rng.integers(1, 9, n)) for n in (2000, 403))
    held_out[200:] = np.where(held_out[200:] > 0, 1 + held_out[200:] % 2, 0)  # the end is another kind of text
    train[0] = held_out[0] = 0
    stores = (TokenStore(tokens, 0, {}) for tokens in (train, held_out))
    text = PreparedText(SimpleNamespace(vocab_size=9), *stores, {"validation_bytes": 1000})
    config = LanguageModelConfig(
        model=dataclasses.replace(SMALL, vocab_size=9, n_ctx=8),
        text=TextConfig(vocab_size=9),
        final_windows=final_windows,
        baseline_order=2,
    )
    table = rng.normal(size=(9, 9)).astype(np.float32)
    results = final_results(Bigram(jnp.asarray(table)), config, text)

    starts = range(0, 402 - 4, 4)  # every window has 9 tokens and begins 4 after the one before it
    chosen = starts if final_windows is None else [starts[round(i)] for i in np.linspace(0, 99, final_windows)]
    targets = [start + j for start in chosen for j in range(1 if start == 0 else 5, 9)]
    targets = np.asarray([i for i in targets if i < 403 and held_out[i] != 0])
    if final_windows is None:
        np.testing.assert_array_equal(targets, np.flatnonzero(held_out))
    elif final_windows > 1:
        assert (targets > 200).any()
    log_p = table - np.log(np.exp(table.astype(np.float64)).sum(-1, keepdims=True))
    losses = -log_p[held_out[targets - 1], held_out[targets]]
    expected = -fit_kneser_ney(train, vocab_size=9, bos_id=0, order=2).log_probs(held_out)[targets]
    assert results["validation"]["tokens"] == results["baseline"]["tokens"] == len(targets)
    assert results["validation"]["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert results["baseline"]["loss"] == pytest.approx(expected.mean(), rel=1e-12)
    assert {"bits_per_byte" in results[name] for name in ("validation", "baseline")} == {final_windows is None}


@pytest.mark.parametrize("name", ["evaluate_windows", "final_windows", "baseline_order"])
def test_counts_of_a_run_are_checked_before_it_starts(name):
    from jax_interp.data.prepared import TextConfig
    from jax_interp.recipes.train_lm import LanguageModelConfig

    text = TextConfig(vocab_size=SMALL.vocab_size)
    with pytest.raises(UserError, match=f"{name}=0 must be at least 1"):
        LanguageModelConfig(model=SMALL, text=text, **{name: 0})


@pytest.mark.slow
def test_train_lm_from_text_to_figures_and_on_again(tmp_path):
    """A run that is trained on in a second call ends with the bits of one that was not stopped."""
    from jax_interp.data.prepared import TextConfig
    from jax_interp.models.hf import load
    from jax_interp.recipes.train_lm import LanguageModelConfig, train_lm

    config = LanguageModelConfig(
        model=dataclasses.replace(SMALL, vocab_size=300, n_ctx=32),
        text=TextConfig(vocab_size=300, max_documents=4),
        optimization=Optimization(warmup=2, decay=0.1),
        steps=20,
        batch=2,
        repeats=((0, 0.5), (10, 0.25)),
        log_every=1,
        checkpoint_every=6,
        evaluate_every=7,
        evaluate_windows=4,
        final_windows=8,
        baseline_order=2,
    )
    whole = train_lm(config, tmp_path / "whole", quiet=True)
    assert read_json(tmp_path / "whole" / "results.json") == whole
    assert whole["validation"]["tokens"] > 0
    assert whole["baseline"]["loss"] > 0
    with jax.numpy_dtype_promotion("standard"):
        model, tokenizer = load(tmp_path / "whole" / "export")
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(jnp.float32)}
    assert tokenizer.vocab_size == 300
    assert (tmp_path / "whole" / "export" / "model.safetensors").stat().st_size < 4 * whole["parameters"]
    with pytest.raises(UserError, match="another config"):
        train_lm(dataclasses.replace(config, batch=3), tmp_path / "whole", quiet=True)

    # What a run killed between its last two checkpoints leaves behind.
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    steps = sorted(path.name for path in (cut / "checkpoints").iterdir())
    shutil.rmtree(cut / "checkpoints" / steps[-1])
    (cut / "results.json").unlink()
    assert train_lm(config, cut, quiet=True) == whole
    assert (cut / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    described = [directory / "checkpoints" / steps[-1] / "leaves.json" for directory in (cut, tmp_path / "whole")]
    assert described[0].read_bytes() == described[1].read_bytes()

    longer = train_lm(dataclasses.replace(config, steps=22), tmp_path / "more", quiet=True, parent=tmp_path / "whole")
    assert longer["parent"] == {"run": str(tmp_path / "whole"), "step": 20}
    records = (tmp_path / "more" / "metrics.jsonl").read_bytes()
    assert records.startswith((tmp_path / "whole" / "metrics.jsonl").read_bytes())
    assert records.count(b"\n") == 22
