"""Steering vectors of all layers from 64 contrast pairs, compared with steering-vectors.

GPT-2-small shape with random weights, float32. `questions`: prompts of 40 to 80 tokens with two answers of one letter.
`texts`: pairs of 8 to 16 tokens that differ from the first token on. steering-vectors runs with its default, one text
at a time, and in batches of 32. `forwards`: the bare blocks of `transformers` on the same texts, both sides, in batches
of 32 sorted by length, without logits and hooks. The folder of peers needs `v_pyvene`, with the packages of
`constraints/oracle-pyvene.txt`.
"""

from __future__ import annotations

from gpt2_shape import FULL, TINY, hf_model, our_model
from timing import Rounds, Work, Worker, main

SIZES = {**FULL, "pairs": 64, "lengths": {"questions": [40, 80], "texts": [8, 16]}}
SMALL = {**TINY, "pairs": 6, "lengths": {"questions": [8, 12], "texts": [3, 6]}}
KINDS = ("questions", "texts")


def sides(sizes, kind: str) -> list[tuple[list[int], list[int]]]:
    """The token ids (positive, negative) of each pair."""
    import random

    draw, (least, most) = random.Random(KINDS.index(kind)), sizes["lengths"][kind]
    word = lambda: draw.randrange(10, sizes["vocab"])
    pairs = []
    for number in range(sizes["pairs"]):
        n = draw.randint(least, most)
        prompt = [word() for _ in range(n)]
        if kind == "questions":
            letters = (5, 6) if number % 2 else (6, 5)
            pairs.append(([*prompt, letters[0]], [*prompt, letters[1]]))
        else:
            pairs.append((prompt, [word() for _ in range(n)]))
    return pairs


def ours(stacked: bool):
    def build(sizes):
        import numpy as np

        from jax_interp.probes import from_tokens
        from jax_interp.steering import Questions
        from jax_interp.steering.finding import (
            LogisticDirection,
            MeanDifference,
            PairedPCA,
            find_directions,
            pairs_of_questions,
        )

        model, _ = our_model(sizes, stacked)
        for kind in KINDS:
            pairs = sides(sizes, kind)
            if kind == "questions":
                split = [(tuple(a[:-1]), (a[-1],), (b[-1],)) for a, b in pairs]
                data = pairs_of_questions(Questions(kind, *map(tuple, zip(*split, strict=True))))
            else:
                data = labelled(np, from_tokens, pairs)
            every = (MeanDifference(), PairedPCA(), LogisticDirection(centre_pairs=True))
            for title, methods in ((kind, every[:1]), (f"{kind}, three methods", every)):
                yield Work(title, lambda data=data, methods=methods: find_directions(model, data, methods))

    return build


def labelled(np, from_tokens, pairs):
    """Pairs of token ids as labelled examples, padded on the right."""
    import dataclasses

    rows = [side[which] for which in (0, 1) for side in pairs]
    size = max(map(len, rows))
    tokens, mask = np.zeros((len(rows), size), np.int32), np.zeros((len(rows), size), bool)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    n = len(pairs)
    data = from_tokens(tokens, mask, label=np.repeat(np.asarray([1, 0]), n))
    return dataclasses.replace(data, pairs=np.stack([np.arange(n), n + np.arange(n)], axis=1))


def steering_vectors(sizes):
    from steering_vectors import pca_aggregator, train_steering_vector

    model, _ = hf_model(sizes)
    tokenizer = words_tokenizer(sizes["vocab"])
    for kind in KINDS:
        texts = [tuple(" ".join(f"t{i}" for i in side) for side in pair) for pair in sides(sizes, kind)]

        def train(texts=texts, **options):
            return train_steering_vector(model, tokenizer, texts, **options)

        assert len(train().layer_activations) == sizes["layers"]
        yield Work(f"{kind}, one at a time", train, note="its default")
        yield Work(f"{kind}, batches of 32", lambda train=train: train(batch_size=32))
        yield Work(f"{kind}, pca", lambda train=train: train(batch_size=32, aggregator=pca_aggregator()))


def words_tokenizer(vocab: int):
    """A tokenizer whose token i is the word ti."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", unk_token="t0", model_input_names=inputs)


def forwards(sizes):
    import torch

    model, _ = hf_model(sizes)
    for kind in KINDS:
        rows = sorted((row for pair in sides(sizes, kind) for row in pair), key=len)
        batches = []
        for start in range(0, len(rows), 32):
            some = rows[start : start + 32]
            size = max(map(len, some))
            tokens = torch.tensor([row + [0] * (size - len(row)) for row in some])
            mask = torch.tensor([[1] * len(row) + [0] * (size - len(row)) for row in some])
            batches.append((tokens, mask))

        def step(batches=batches):
            for tokens, mask in batches:
                model.transformer(tokens, attention_mask=mask, use_cache=False)

        yield Work(kind, step, note="torch, without logits and hooks")


PEER = ("torch", "transformers", "steering-vectors")
WORKERS = {
    "ours": Worker(ours(stacked=True)),
    "ours unrolled": Worker(ours(stacked=False)),
    "steering-vectors": Worker(steering_vectors, home="v_pyvene", packages=PEER),
    "forwards": Worker(forwards, home="v_pyvene", packages=PEER),
}


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    for mine in ("ours", "ours unrolled"):
        for kind in KINDS:
            for how in ("one at a time", "batches of 32"):
                ratio = rounds.ratio(f"steering-vectors: {kind}, {how}", f"{mine}: {kind}")
                if ratio is not None:
                    goal = " (to be at least 5)" if how == "one at a time" else ""
                    lines.append(f"{mine}: {kind}: {ratio:.1f} x steering-vectors, {how}{goal}")
            ratio = rounds.ratio(f"steering-vectors: {kind}, pca", f"{mine}: {kind}, three methods")
            if ratio is not None:
                lines.append(f"{mine}: {kind}, mean, PCA and logistic: {ratio:.1f} x its PCA alone in batches of 32")
            ratio = rounds.ratio(f"forwards: {kind}", f"{mine}: {kind}")
            if ratio is not None:
                lines.append(f"{mine}: {kind}: {ratio:.1f} x the bare blocks of both sides in torch")
    return lines


if __name__ == "__main__":
    main(__doc__, __file__, WORKERS, SIZES, SMALL, conclude)
