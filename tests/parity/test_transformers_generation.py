"""Generation beside transformers: its logits processors, and greedy text of padded batches, penalty or not."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.models import Sample, generate, load, pad_left
from jax_interp.models.generation.sampling import penalized, seen_tokens

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = [[5, 9, 33, 2, 17, 40], [41, 7], [8, 8, 30, 12]]
PAD = 63
SHAPE = {"vocab_size": 64, "bos_token_id": None, "eos_token_id": None}


def small(family):
    if family == "gpt2":
        config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, n_positions=64, **SHAPE)
    else:
        config = transformers.LlamaConfig(
            tie_word_embeddings=False,
            num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
            max_position_embeddings=64, **SHAPE)  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[family])(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_((0.05 if name.endswith("bias") else 0.25) * torch.randn_like(parameter) + is_norm)
        model.lm_head.weight[PAD] = 0  # never the likeliest: transformers counts padding as a token of the text
    return model


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def both(request, tmp_path_factory):
    theirs = small(request.param)
    directory = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(directory)
    return load(directory)[0], theirs


@pytest.mark.parametrize("penalty", [None, 1.3, 0.8])
def test_greedy_text_of_rows_of_different_lengths(both, penalty):
    ours, theirs = both
    tokens, mask = pad_left(PROMPTS)
    options = {} if penalty is None else {"repetition_penalty": penalty}
    expected = theirs.generate(
        torch.as_tensor(np.where(mask, tokens, PAD)), attention_mask=torch.as_tensor(mask).long(), max_new_tokens=16,
        do_sample=False, pad_token_id=PAD, eos_token_id=None, **options)  # fmt: skip
    new = generate(ours, tokens, 16, mask=mask, repetition_penalty=penalty)
    np.testing.assert_array_equal(new, expected[:, tokens.shape[1] :].numpy())
    assert len(np.unique(new)) > 4


def test_filters_are_the_logits_processors():
    p = transformers.generation.logits_process
    rng = np.random.default_rng(0)
    ids = torch.as_tensor(rng.integers(0, 50, (3, 7)))
    for _ in range(25):
        logits = (3 * rng.standard_normal((3, 50))).astype(np.float32)
        t, k, top, low = rng.uniform(0.3, 2), int(rng.integers(1, 50)), rng.uniform(0.2, 1), rng.uniform(0.001, 0.3)
        for ours, theirs in (
            (Sample(t, k, top, low), [p.TemperatureLogitsWarper(t), p.TopKLogitsWarper(k), p.TopPLogitsWarper(top),
                                      p.MinPLogitsWarper(low)]),
            (Sample(t), [p.TemperatureLogitsWarper(t)]),
            (Sample(top_k=k), [p.TopKLogitsWarper(k)]),
            (Sample(top_p=top), [p.TopPLogitsWarper(top)]),
            (Sample(min_p=low), [p.MinPLogitsWarper(low)]),
        ):  # fmt: skip
            scores = torch.as_tensor(logits)
            for processor in theirs:
                scores = processor(ids, scores)
            expected = torch.softmax(scores, -1).numpy()
            np.testing.assert_allclose(np.exp(ours.log_probs(jnp.asarray(logits))), expected, atol=2e-6)


@pytest.mark.parametrize("penalty", [1.0, 1.7, 0.6])
def test_the_penalty_is_the_logits_processor(penalty):
    rng = np.random.default_rng(1)
    ids, logits = rng.integers(0, 50, (4, 9)), rng.standard_normal((4, 50)).astype(np.float32)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)(torch.as_tensor(ids), torch.as_tensor(logits))
    ours = penalized(jnp.asarray(logits), seen_tokens(jnp.asarray(ids), None, 50), jnp.float32(penalty))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)
