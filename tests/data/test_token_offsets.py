"""Token offsets join to the text; token positions cover a word; prompts that do not match are refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, processors, trainers

from jax_interp.core.errors import UserError
from jax_interp.data.token_offsets import align_prompts, token_offsets, token_positions
from jax_interp.data.tokenizer import BOS, Tokenizer, train_bpe

TEXTS = ["def mean(self, values):\n    return sum(values) / len(values)\n", "John gave Mary the book. " * 3] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 330)


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_pieces_are_the_text_in_order(tokenizer, text):
    if BOS in text:
        return
    cut = token_offsets(tokenizer, text, bos=True)
    assert [p.id for p in cut] == tokenizer.encode(text, bos=True)
    assert (cut[0].text, cut[0].start, cut[0].end) == ("", 0, 0)
    assert all(p.text == text[p.start : p.end] for p in cut)
    covered = 0
    for p in cut[1:]:  # one after the other, or within one character
        assert p.start in (covered, covered - 1)
        covered = p.end
    assert covered == len(text)


def test_a_post_processor_that_trims_spaces_changes_nothing(tokenizer):
    backend = Backend.from_str(tokenizer.backend.to_str())
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    trimming = Tokenizer(backend, tokenizer.bos_id)
    text = "return  sum(values)  \n John"
    assert token_offsets(trimming, text, bos=False) == token_offsets(tokenizer, text, bos=False)
    assert trimming.encode(text, bos=False) == tokenizer.encode(text, bos=False)


def test_pieces_of_a_tokenizer_that_marks_spaces():
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False)
    )
    cut = token_offsets(Tokenizer(backend, None), "John gave Mary", bos=False)
    assert cut[0].text == "J"  # the inserted mark has no character of its own, and stands for the one it precedes
    assert "".join(p.text for p in cut[1:]) == "John gave Mary"


def test_positions_are_all_tokens_that_overlap(tokenizer):
    text = "John gave Mary the book. Then Mary left"
    cut = token_offsets(tokenizer, text, bos=True)
    for word, index in (("gave", None), ("Mary", 0), ("Mary", -1), ("ary", 1), ("ohn ga", None)):
        where = token_positions(tokenizer, text, word, bos=True, index=index)
        joined = "".join(cut[i].text for i in where)
        assert word in joined
        assert where == list(range(where[0], where[-1] + 1))
        assert word not in "".join(cut[i].text for i in where[1:])
        assert word not in "".join(cut[i].text for i in where[:-1])
    assert [i - 1 for i in token_positions(tokenizer, text, "gave", bos=True)] == token_positions(
        tokenizer, text, "gave", bos=False
    )


def test_a_substring_that_is_absent_or_not_alone(tokenizer):
    with pytest.raises(UserError, match=r"'Paul' is not in the text .*its tokens are"):
        token_positions(tokenizer, "John left", "Paul", bos=True)
    with pytest.raises(UserError, match=r"occurs 2 times .*at characters \[0, 5\]: choose one with index="):
        token_positions(tokenizer, "John John", "John", bos=True)
    with pytest.raises(UserError, match="index=2"):
        token_positions(tokenizer, "John John", "John", bos=True, index=2)
    with pytest.raises(UserError, match="empty"):
        token_positions(tokenizer, "John", "", bos=True)


def test_prompts_that_match_and_that_do_not(tokenizer):
    match = align_prompts(tokenizer, "(values", "[values", bos=True)
    assert match.differ == [1]
    assert match.first == tokenizer.encode("(values", bos=True)
    with pytest.raises(UserError, match=r"From position 1 on, the first has .*Ma.* and the second has .*Z"):
        align_prompts(tokenizer, "Mary gave", "Zqxzzq gave", bos=True)


def test_what_lacks_a_bos_says_so(tokenizer):
    with pytest.raises(UserError, match="no document-start token"):
        token_offsets(Tokenizer(tokenizer.backend, None), "x", bos=True)
