"""Harvest and train: a TopK SAE on block 3 of a Pythia-70M-shaped model, 2,048 tokens a step, float32.

6 layers, d 512, vocabulary 50,304, random weights and random tokens in sequences of 128; 8,192 features, k 32. Each
library runs its own loop, with its own way to buffer and shuffle activations: ours is one jitted step, sparsify's is
`Trainer.fit` (no buffer), SAELens's is its training runner, and dictionary_learning's is `ActivationBuffer` over
nnsight with `update` of its trainer. Libraries with a buffer harvest in bursts, so a repeat is the mean of several
steps.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time

from gemm import jax_gemm
from timing import Rounds, Work, Worker, main

FULL = {"layers": 6, "d": 512, "vocab": 50_304, "features": 8192, "k": 32, "sequences": 16, "context": 128, "steps": 6,
        "gemm": 4096}  # fmt: skip
TINY = {"layers": 4, "d": 64, "vocab": 200, "features": 128, "k": 4, "sequences": 16, "context": 16, "steps": 4,
        "gemm": 256}  # fmt: skip
LAYER = 3


def flops(sizes) -> float:
    """FLOPs of the dense computation: four blocks forward, and five products of the dictionary's size."""
    rows, d = sizes["sequences"] * sizes["context"], sizes["d"]
    blocks = (LAYER + 1) * (2 * 12 * d * d + 4 * sizes["context"] * d)
    return rows * (blocks + 5 * 2.0 * d * sizes["features"])


def ours(sizes):
    from functools import partial

    import jax
    import jax.numpy as jnp

    from jax_interp.dictionaries import variants
    from jax_interp.dictionaries.training.train import init_train_state, train_step
    from jax_interp.models import Config, Rope, init

    config = Config(
        n_layers=sizes["layers"], d_model=sizes["d"], n_heads=8, d_mlp=4 * sizes["d"], vocab_size=sizes["vocab"],
        n_ctx=2048, norm="layernorm", parallel="two norms", act="gelu", gated_mlp=False,
        rope=Rope(dim=sizes["d"] // 32),
        qkv_bias=True, out_bias=True, mlp_bias=True, tied_embedding=False,
    )  # fmt: skip
    model = init(config, jax.random.key(0))
    shape = (sizes["sequences"], sizes["context"])
    keep = jnp.ones(shape, bool)
    batch_at = lambda i: (jax.random.randint(jax.random.fold_in(jax.random.key(1), i), shape, 0, sizes["vocab"]), keep)
    dictionary = variants.topk(
        f"blocks.{LAYER}.resid_post", k=sizes["k"], n_features=sizes["features"], steps=30_000, dead_after=10_000_000,
        buffer=64 * sizes["context"],
    )  # fmt: skip
    state = init_train_state(dictionary, model, batch_at)
    advance = jax.jit(partial(train_step, dictionary), donate_argnums=0)
    held = {"state": jax.tree.map(jnp.copy, state), "i": 0}

    def seconds():
        begin = time.perf_counter()
        for _ in range(sizes["steps"]):
            held["i"] += 1
            held["state"], metrics = advance(held["state"], batch_at(held["i"]), model)
        jax.block_until_ready((held["state"], metrics))
        return (time.perf_counter() - begin) / sizes["steps"]

    yield Work("step", lambda: None, flops=flops(sizes), seconds=seconds)
    yield jax_gemm(sizes["gemm"])


def _neox(sizes):
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        hidden_size=sizes["d"], num_hidden_layers=sizes["layers"], num_attention_heads=8,
        intermediate_size=4 * sizes["d"], vocab_size=sizes["vocab"], bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


def _words(sizes):
    """A tokenizer whose i-th word is "t<i>", for a library that accepts only text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(sizes["vocab"])}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "t0", "eos_token": "t0", "pad_token": "t0", "unk_token": "t0"}
    directory = tempfile.mkdtemp()  # TransformerLens loads a tokenizer again from its path
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(directory)
    return PreTrainedTokenizerFast.from_pretrained(directory)


def _random_tokens(sizes, sequences):
    import torch

    return torch.randint(0, sizes["vocab"], (sequences, sizes["context"]), generator=torch.Generator().manual_seed(8))


class Ticks:
    """The mean time in seconds between calls that happen once in each step, without the first two steps."""

    def __init__(self):
        self.at = []

    def tick(self):
        self.at.append(time.perf_counter())

    def mean(self):
        spent = [b - a for a, b in zip(self.at[2:], self.at[3:])]
        return sum(spent) / len(spent)


def sparsify(sizes):
    from datasets import Dataset
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    model = _neox(sizes)
    tokens = _random_tokens(sizes, sizes["sequences"] * (sizes["steps"] + 3))

    def seconds():
        ticks = Ticks()
        data = Dataset.from_dict({"input_ids": tokens.tolist()}).with_format("torch")
        with tempfile.TemporaryDirectory() as directory:
            coder = SparseCoderConfig(num_latents=sizes["features"], k=sizes["k"])
            options = {"layers": [LAYER], "log_to_wandb": False, "save_dir": directory}
            trainer = Trainer(TrainConfig(coder, batch_size=sizes["sequences"], **options), data, model)
            plain = trainer.get_current_k
            trainer.get_current_k = lambda: (ticks.tick(), plain())[1]
            trainer.fit()
        return ticks.mean()

    yield Work("step", lambda: None, flops=flops(sizes), seconds=seconds)


def dictionary_learning(sizes):
    from dictionary_learning.buffer import ActivationBuffer
    from dictionary_learning.trainers.top_k import TopKTrainer
    from nnsight import LanguageModel

    hf = _neox(sizes)
    model = LanguageModel(hf, tokenizer=_words(sizes))
    rows = _random_tokens(sizes, 4000)
    texts = iter([" ".join(f"t{int(i)}" for i in row) for row in rows])
    buffer = ActivationBuffer(
        texts, model, model.gpt_neox.layers[LAYER], d_submodule=sizes["d"], n_ctxs=64, ctx_len=sizes["context"],
        refresh_batch_size=sizes["sequences"], out_batch_size=sizes["sequences"] * sizes["context"], device="cpu",
    )  # fmt: skip
    trainer = TopKTrainer(
        steps=30_000, activation_dim=sizes["d"], dict_size=sizes["features"], k=sizes["k"], layer=LAYER, lm_name="none",
        device="cpu",
    )  # fmt: skip
    held = {"i": 0}

    def seconds():
        begin = time.perf_counter()
        for _ in range(sizes["steps"]):
            trainer.update(held["i"], next(buffer))
            held["i"] += 1
        return (time.perf_counter() - begin) / sizes["steps"]

    yield Work("step", lambda: None, flops=flops(sizes), seconds=seconds)


def saelens(sizes):
    from datasets import Dataset
    from sae_lens import (
        LanguageModelSAERunnerConfig,
        LanguageModelSAETrainingRunner,
        LoggingConfig,
        TopKTrainingSAEConfig,
    )
    from sae_lens.training.sae_trainer import SAETrainer
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    d = sizes["d"]
    shape = HookedTransformerConfig(
        n_layers=sizes["layers"], d_model=d, n_ctx=2048, d_head=d // 8, n_heads=8, d_vocab=sizes["vocab"], d_mlp=4 * d,
        act_fn="gelu", normalization_type="LN", positional_embedding_type="rotary", rotary_dim=d // 32,
        parallel_attn_mlp=True, device="cpu", seed=0, default_prepend_bos=False,
    )  # fmt: skip
    model = HookedTransformer(shape, tokenizer=_words(sizes), move_to_device=False).eval()
    batch = sizes["sequences"] * sizes["context"]
    tokens = _random_tokens(sizes, sizes["sequences"] * (3 * sizes["steps"] + 40)).tolist()
    plain = SAETrainer.step

    def seconds():
        ticks = Ticks()

        def step(self, data):
            result = plain(self, data)
            ticks.tick()
            return result

        SAETrainer.step = step
        with tempfile.TemporaryDirectory() as directory:
            config = LanguageModelSAERunnerConfig(
                sae=TopKTrainingSAEConfig(k=sizes["k"], d_in=d, d_sae=sizes["features"]), model_name="none",
                hook_name=f"blocks.{LAYER}.hook_resid_post", dataset_path="local", streaming=False,
                is_dataset_tokenized=True, context_size=sizes["context"], training_tokens=(sizes["steps"] + 3) * batch,
                train_batch_size_tokens=batch, store_batch_size_prompts=sizes["sequences"], n_batches_in_buffer=64,
                device="cpu", logger=LoggingConfig(log_to_wandb=False), checkpoint_path=directory,
                output_path=directory, prepend_bos=False,
            )  # fmt: skip
            data = Dataset.from_dict({"input_ids": tokens})
            LanguageModelSAETrainingRunner(config, override_dataset=data, override_model=model).run()
        SAETrainer.step = plain
        return ticks.mean()

    yield Work("step", lambda: None, flops=flops(sizes), seconds=seconds)


WORKERS = {
    "ours": Worker(ours, packages=("jax", "jaxlib", "flax", "optax")),
    "sparsify": Worker(sparsify, home="v", packages=("torch", "eai-sparsify", "transformers")),
    "dictionary_learning": Worker(
        dictionary_learning, home="v_dl", packages=("torch", "dictionary-learning", "nnsight", "transformers")
    ),
    "SAELens": Worker(saelens, home="v_sae", packages=("torch", "sae-lens", "transformer-lens")),
}


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    for peer in WORKERS:
        if peer != "ours" and (ratio := rounds.ratio(f"{peer}: step", "ours: step")) is not None:
            peaks = rounds.peak_mb(f"{peer}: step"), rounds.peak_mb("ours: step")
            lines.append(
                f"{peer} takes {ratio:.2f} times as long as ours; peak {peaks[0]:.0f} MB, ours {peaks[1]:.0f} MB"
            )
    if "ours: step" in rounds.rows:
        share = rounds.gflops("ours: step") / rounds.gflops("ours: GEMM")
        lines.append(f"ours: {share:.0%} of XLA's GEMM rate, counting the dense computation's FLOPs")
    return lines


if __name__ == "__main__":
    main(__doc__, __file__, WORKERS, FULL, TINY, conclude)
