"""Token stores and windows: a batch is a function of (seed, step), an epoch sees every window once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.data import batches, token_store
from jax_interp.data.batches import WindowSampler


def test_an_epoch_predicts_every_token_once():
    """With the default stride the targets of an epoch are consecutive tokens, each once, at any batch size."""
    tokens = np.arange(1003, dtype=np.uint16)
    sampler = WindowSampler(tokens, batch=7, length=11, seed=5)
    steps = -(-sampler.windows // 7)
    starts = np.concatenate([sampler.starts_at(step) for step in range(2 * steps)])
    offsets = set()
    for epoch in range(2):
        ours = np.sort(starts[epoch * sampler.windows : (epoch + 1) * sampler.windows])
        assert set(np.diff(ours)) == {10}
        offsets.add(int(ours[0]))
        assert ours[-1] + 11 <= 1003
    assert len(offsets) == 2
    batch = sampler.batch_at(3)
    assert batch.dtype == np.int32
    np.testing.assert_array_equal(batch, sampler.starts_at(3)[:, None] + np.arange(11))


def test_a_batch_is_a_function_of_seed_and_step():
    tokens = np.arange(5000, dtype=np.uint16)
    there, again = WindowSampler(tokens, 4, 33, seed=1), WindowSampler(tokens, 4, 33, seed=1)
    later = [there.batch_at(step) for step in (100, 3, 10**9)]
    for step, batch in zip((100, 3, 10**9), later, strict=True):
        np.testing.assert_array_equal(again.batch_at(step), batch)
    assert (WindowSampler(tokens, 4, 33, seed=2).batch_at(3) != later[1]).any()


def test_too_little_text_is_refused():
    with pytest.raises(UserError, match="fewer than one window"):
        WindowSampler(np.arange(12), 1, 11)
    with pytest.raises(UserError, match="batch=0"):
        WindowSampler(np.arange(100), 0, 11)


def test_repeated_stretches():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 10**9, (400, 65))
    repeated = batches.repeat_stretches(tokens, 12, fraction=0.25, seed=3)
    changed = (repeated != tokens).any(axis=1)
    assert 0.25 - 0.09 < changed.mean() < 0.25 + 0.09
    periods = set()
    for row, original in zip(repeated[changed], tokens[changed], strict=True):
        places = np.flatnonzero(row != original)
        m = len(places)
        assert 8 <= m <= 32
        assert places[-1] - places[0] == m - 1
        np.testing.assert_array_equal(row[places], row[places - m])
        periods.add(m)
    assert len(periods) > 10
    np.testing.assert_array_equal(repeated, batches.repeat_stretches(tokens, 12, fraction=0.25, seed=3))
    assert (repeated != batches.repeat_stretches(tokens, 13, fraction=0.25, seed=3)).any()
    np.testing.assert_array_equal(batches.repeat_stretches(tokens, 12, fraction=0.0), tokens)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(2, 20), st.data())
def test_evaluation_windows_hold_every_token(n, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    tokens = np.arange(1, n + 1)
    rows = batches.evaluation_windows(tokens, length, pad_id=0, overlap=overlap)
    assert rows.shape[1] == length
    new = np.concatenate([rows[0], rows[1:, overlap:].ravel()])
    np.testing.assert_array_equal(new[:n], tokens)
    assert (new[n:] == 0).all()
    if n > overlap:
        assert (rows[-1, overlap:] != 0).any() or len(rows) == 1


def test_store_round_trip(tmp_path):
    documents = [[0, 5, 6], [0], [0, 7, 8, 9]]
    tokens = token_store.pack(documents, vocab_size=100)
    assert tokens.dtype == np.uint16
    assert token_store.pack(documents, vocab_size=70_000).dtype == np.int32
    token_store.write_token_store(tmp_path, {"train": tokens}, bos_id=0, about={"corpus": "x"})
    store = token_store.open_token_store(tmp_path, "train")
    assert isinstance(store.tokens, np.memmap)
    np.testing.assert_array_equal(store.starts, [0, 3, 4])
    assert [d.tolist() for d in store.documents()] == documents
    assert store.manifest.about == {"corpus": "x"}


def test_store_errors(tmp_path):
    with pytest.raises(UserError, match="no token store"):
        token_store.open_token_store(tmp_path, "train")
    token_store.write_token_store(tmp_path, {"train": np.arange(5, dtype=np.uint16)}, bos_id=0)
    with pytest.raises(UserError, match=r"no split 'test', it has \['train'\]"):
        token_store.open_token_store(tmp_path, "test")
    np.save(tmp_path / "train.npy", np.asarray([0, 1, 2, 3, 5], np.uint16))
    with pytest.raises(UserError, match="changed since"):
        token_store.open_token_store(tmp_path, "train")
    assert token_store.open_token_store(tmp_path, "train", verify=False).tokens.size == 5
    manifest = read_json(tmp_path / "manifest.json")
    manifest["splits"]["train"]["tokens"] = 6
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(UserError, match=r"holds \[5\] uint16, its manifest says \[6\] uint16"):
        token_store.open_token_store(tmp_path, "train")
    with pytest.raises(UserError, match=r"'\.\./train' cannot be the name of a split"):
        token_store.write_token_store(tmp_path, {"../train": np.arange(5)}, bos_id=0)
    with pytest.raises(UserError, match="is 1-dimensional float64, not a flat array of ids"):
        token_store.write_token_store(tmp_path, {"train": np.ones(5)}, bos_id=0)
    with pytest.raises(UserError, match="outside a vocabulary"):
        token_store.pack([[0, 100]], vocab_size=100)


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "spl', b"[]", b"{}", b"\xff\xfe"])
def test_a_manifest_that_was_cut_short(tmp_path, content):
    token_store.write_token_store(tmp_path, {"train": np.arange(5, dtype=np.uint16)}, bos_id=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "train.npy"]
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        token_store.open_token_store(tmp_path, "train")


def test_special_tokens_are_masked():
    mask = batches.special_mask(np.asarray([[0, 5], [9, 0]]), {0, 9})
    np.testing.assert_array_equal(mask, [[False, True], [False, False]])


def test_rows_of_repetition_repeat_from_context_alone_and_are_a_function_of_seed_and_step():
    from jax_interp.data.batches import random_repeats

    text = np.full((64, 129), 5, np.int32)
    rows = random_repeats(text, 3, fraction=0.5, vocab_size=50, bos_id=7, seed=1)
    chosen = (rows != text).any(axis=1)
    assert 20 <= chosen.sum() <= 44
    assert (rows[~chosen] == 5).all(), "the other rows are the text"
    for row in rows[chosen]:
        assert row[0] == 7
        assert (row[1:] != 7).all()
        periods = [m for m in range(8, 65) if (row[1 + m :] == row[1:-m]).all()]
        assert periods, "said over and over, from the second token on"
    assert rows[chosen].max() < 50
    np.testing.assert_array_equal(rows, random_repeats(text, 3, fraction=0.5, vocab_size=50, bos_id=7, seed=1))
    assert (rows != random_repeats(text, 4, fraction=0.5, vocab_size=50, bos_id=7, seed=1)).any()
    np.testing.assert_array_equal(random_repeats(text, 3, fraction=0.0, vocab_size=50, bos_id=7), text)
    assert random_repeats(text, 3, fraction=1.0, vocab_size=50, bos_id=7, seed=-1).shape == text.shape


def test_windows_that_begin_as_documents():
    tokens = np.random.default_rng(0).integers(1, 50, (400, 17)).astype(np.int32)
    begun = batches.begin_as_documents(tokens, 7, fraction=0.5, bos_id=0, seed=3)
    np.testing.assert_array_equal(begun[:, 1:], tokens[:, 1:])
    chosen = begun[:, 0] == 0
    assert 0.4 < chosen.mean() < 0.6
    np.testing.assert_array_equal(begun[~chosen], tokens[~chosen])
    np.testing.assert_array_equal(begun, batches.begin_as_documents(tokens, 7, fraction=0.5, bos_id=0, seed=3))
    assert (begun != batches.begin_as_documents(tokens, 8, fraction=0.5, bos_id=0, seed=3)).any()
    np.testing.assert_array_equal(batches.begin_as_documents(tokens, 7, fraction=0.0, bos_id=0), tokens)
