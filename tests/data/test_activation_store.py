"""Activations on disk: the rows that the model gives, whole or refused by name, and trained on to the bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.data.activation_shards import StoreLayout
from jax_interp.data.activation_store import open_activation_store
from jax_interp.data.activation_writing import write_activation_store
from jax_interp.data.harvest import harvest, init_stream
from jax_interp.dictionaries import variants
from jax_interp.dictionaries.training.config import Adam
from jax_interp.dictionaries.training.from_store import train_from_store
from jax_interp.training import QUIET, Log, SaveTo

ADDRESSES = ("blocks.0.resid_post", "blocks.1.resid_post")
OPTIONS = {"rows": 500, "layout": StoreLayout(200, "float32"), "model_name": "toy", "quiet": True}


def kept(model, n):
    rows, i = [], 0
    while sum(map(len, rows)) < n:
        tokens, keep = batch_at(i)
        rows.append(np.asarray(harvest(model, ADDRESSES, tokens))[np.asarray(keep).reshape(-1)])
        i += 1
    return np.concatenate(rows)[:n]


@pytest.fixture(scope="module")
def model():
    return toy()


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory):
    return write_activation_store(tmp_path_factory.mktemp("store") / "new", model, ADDRESSES, batch_at, **OPTIONS)


def test_the_rows_are_the_models(model, stored):
    want = kept(model, 500)
    assert [len(shard) for shard in stored.shards] == [200, 200, 100]
    np.testing.assert_allclose(stored.take(np.arange(500)), want, atol=1e-6)
    scaled = want * np.repeat(stored.scale, stored.widths)
    first = scaled[:, :16].astype(np.float64)
    np.testing.assert_allclose((first**2).sum(1).mean(), 16, rtol=1e-5)
    np.testing.assert_allclose(stored.mean, scaled.mean(0), atol=1e-5)
    np.testing.assert_allclose(stored.variance[0], first.var(0).sum(), rtol=1e-5)


def test_every_row_once_an_epoch(stored):
    rows = {row.tobytes() for row in stored.take(np.arange(500))}
    epoch = np.concatenate([stored.batch_at(i, 100) for i in range(5)])
    assert sorted(row.tobytes() for row in epoch) == sorted(row.tobytes() for row in stored.take(np.arange(500)))
    again = stored.batch_at(5, 100)
    assert {row.tobytes() for row in again} <= rows
    assert not np.array_equal(again, epoch[:100])
    assert not np.array_equal(stored.batch_at(0, 100, seed=1), epoch[:100])
    np.testing.assert_array_equal(stored.batch_at(3, 100), epoch[300:400])


def test_writing_that_was_killed_goes_on(model, stored, tmp_path):
    class Killed(Exception):
        pass

    calls = []

    def dying(i):
        calls.append(i)
        if len(calls) == 6:
            raise Killed
        return batch_at(i)

    with pytest.raises(Killed):
        write_activation_store(tmp_path, model, ADDRESSES, dying, **OPTIONS)
    with pytest.raises(UserError, match="200 of 500 rows: repeat the same write_activation_store call"):
        open_activation_store(tmp_path)
    whole = write_activation_store(tmp_path, model, ADDRESSES, batch_at, **OPTIONS)
    for a, b in zip(whole.shards, stored.shards, strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)
    assert (tmp_path / "store.json").read_bytes() == (stored.directory / "store.json").read_bytes()
    with pytest.raises(UserError, match="holds another store: rows 500, not 600"):
        write_activation_store(tmp_path, model, ADDRESSES, batch_at, **OPTIONS | {"rows": 600})
    with pytest.raises(UserError, match="holds another store: other weights"):
        write_activation_store(tmp_path, jax.tree.map(lambda a: 2 * a, model), ADDRESSES, batch_at, **OPTIONS)
    with pytest.raises(UserError, match="holds another store: other tokens"):
        write_activation_store(tmp_path, model, ADDRESSES, lambda i: batch_at(i + 1), **OPTIONS)


def test_masks_that_leave_nothing_are_refused_wherever_they_begin(model, tmp_path):
    nothing = lambda i: (batch_at(i)[0], batch_at(i)[1] & (i < 2))
    with pytest.raises(UserError, match="100 token batches in a row exclude every position"):
        write_activation_store(tmp_path, model, ADDRESSES, nothing, **OPTIONS)
    with pytest.raises(UserError, match="100 token batches in a row exclude every position"):
        init_stream(jax.random.key(0), model, ADDRESSES, nothing, 10_000)
    silent = jax.tree.map(jnp.zeros_like, model)
    with pytest.raises(UserError, match="all zero"):
        write_activation_store(tmp_path / "zero", silent, ADDRESSES, batch_at, **OPTIONS)


def test_a_damaged_shard_is_named(model, tmp_path):
    write_activation_store(tmp_path, model, ADDRESSES, batch_at, **OPTIONS | {"layout": StoreLayout(200)})
    path = tmp_path / "shard-00001.npy"
    whole = path.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-7]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"shard-00001\.npy"):
            open_activation_store(tmp_path).take(np.arange(200, 210))
        with pytest.raises(UserError, match=r"shard-00001\.npy"):
            open_activation_store(tmp_path, verify=True)
        with pytest.raises(UserError, match=r"shard-00001\.npy"):
            write_activation_store(tmp_path, model, ADDRESSES, batch_at, **OPTIONS | {"layout": StoreLayout(200)})
    path.unlink()
    with pytest.raises(UserError, match=r"shard-00001\.npy"):
        open_activation_store(tmp_path)
    write_json(tmp_path / "store.json", read_json(tmp_path / "store.json") | {"format": 9})
    with pytest.raises(UserError, match="format 9"):
        open_activation_store(tmp_path)
    with pytest.raises(UserError, match="no activation store"):
        open_activation_store(tmp_path / "elsewhere")
    enormous = jax.tree.map(lambda a: a * 1e5, model)
    with pytest.raises(UserError, match=r"ask for StoreLayout\(dtype='float32'\)"):
        write_activation_store(
            tmp_path / "large", enormous, ADDRESSES, batch_at, **OPTIONS | {"layout": StoreLayout(200)}
        )


@pytest.mark.slow
def test_training_from_a_store_learns_and_resumes_to_the_bit(model, stored, tmp_path):
    class Killed(Exception):
        pass

    def die(record):
        if record["step"] == 25:
            raise Killed

    fields = {"n_features": 32, "steps": 40, "optimizer": Adam(warmup=2)}
    config = variants.transcoder(*ADDRESSES, k=6, **fields)
    log = []
    with pytest.raises(Killed):
        train_from_store(
            config,
            stored,
            batch=100,
            run=SaveTo(tmp_path / "killed", every=10),
            log=Log(every=5, on_record=die, quiet=True),
        )
    resumed = train_from_store(
        config, stored, batch=100, run=SaveTo(tmp_path / "killed", every=10), log=Log(every=5, quiet=True)
    )
    whole = train_from_store(
        config,
        stored,
        batch=100,
        run=SaveTo(tmp_path / "whole", every=10),
        log=Log(every=5, on_record=log.append, quiet=True),
    )
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert log[-1]["fvu"] < 0.8 * log[0]["fvu"]
    rows = stored.take(np.arange(500))
    error = rows[:, 16:] - np.asarray(whole(rows[:, :16]))
    fvu = (error**2).sum() / ((rows[:, 16:] - rows[:, 16:].mean(0)) ** 2).sum()
    np.testing.assert_allclose(fvu, log[-1]["fvu"], rtol=0.25)  # exported for raw activations
    with pytest.raises(UserError, match="batch"):  # other rows a step
        train_from_store(config, stored, batch=75, run=tmp_path / "whole", log=QUIET)
    with pytest.raises(UserError, match=r"the config asks for blocks\.1\.resid_post"):
        train_from_store(variants.topk(ADDRESSES[1], k=4, **fields), stored)
