"""Batches whose rows can be made separately: the rows of the whole batch, and only those that a host needs."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jax_interp.core.errors import UserError
from jax_interp.data.activation_import import import_activations
from jax_interp.data.batches import WindowSampler, begin_as_documents, random_repeats, repeat_stretches
from jax_interp.data.document_rows import DocumentRows
from jax_interp.data.text import Split, Text
from jax_interp.training import RowBatches, placed
from jax_interp.training.row_batches import batch_on, spans
from jax_interp.training.sharding import BATCH, make_mesh

MESHES = ({"data": 8}, {"data": 4, "tensor": 2}, {"fsdp": 2}, {"data": 2, "fsdp": 4}, {"tensor": 8})


def of_text(rows):
    tokens = np.random.default_rng(0).integers(1, 50, 4000).astype(np.uint16)
    starts = np.arange(0, 4000, 37)
    tokens[starts] = 0
    return Text({"train": Split(tokens, starts)}, frozenset({0}), 0, "a text", rows)


def of_store(directory):
    rows = np.random.default_rng(1).standard_normal((500, 6)).astype(np.float32)
    return import_activations(directory, [rows], "blocks.0.resid_post")


def changed():
    sampler = WindowSampler(np.arange(1, 3000) % 97, 16, 33, seed=4)

    def rows(step, first, stop):
        tokens = repeat_stretches(sampler.rows(step, first, stop), step, fraction=0.5, first=first)
        tokens = begin_as_documents(tokens, step, fraction=0.5, bos_id=0, first=first)
        return random_repeats(tokens, step, fraction=0.5, vocab_size=97, bos_id=0, first=first, of=16)

    return RowBatches(16, rows)


def sources(directory):
    return {
        "windows": of_text("windows").training_batches(16, 20, 3),
        "documents": of_text("documents").training_batches(16, 20, 3),
        "store": of_store(directory).batches(16, 3),
        "changed windows": changed(),
    }


def test_rows_are_those_of_the_whole_batch(tmp_path):
    for name, batch_at in sources(tmp_path).items():
        for step in (0, 7, 190):  # the last one is in a later epoch
            whole = jax.tree.leaves(batch_at(step))
            parts = [jax.tree.leaves(batch_at.rows(step, *span)) for span in ((0, 5), (5, 6), (6, 6), (6, 16))]
            for i, leaf in enumerate(whole):
                np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), leaf, err_msg=name)
        with pytest.raises(UserError, match="rows 0 to 15: there are no rows 3 to 16"):
            batch_at.rows(0, 3, 17)
    sampler = WindowSampler(np.arange(500), 4, 20, seed=1)
    np.testing.assert_array_equal(sampler.batch_at(2)[1:3], sampler.rows(2, 1, 3))
    documents = DocumentRows(np.arange(500), np.arange(0, 500, 50), 20, None, 0)
    np.testing.assert_array_equal(documents.batch_at(3, 4, 0)[0][2:], documents.batches(4, 0).rows(3, 2, 4)[0])


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_a_batch_on_a_mesh_is_the_batch(sizes, tmp_path):
    mesh = make_mesh(**sizes)
    for name, batch_at in sources(tmp_path).items():
        with placed(mesh, lambda state: ()) as there:
            leaves = jax.tree.leaves(there.batches(batch_at)(5))
        for leaf, whole in zip(leaves, jax.tree.leaves(batch_at(5)), strict=True):
            np.testing.assert_array_equal(leaf, whole, err_msg=name)
            assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, BATCH), leaf.ndim)
            assert leaf.dtype == whole.dtype


class Counting(np.ndarray):
    """An array that counts how often each of its rows is read."""

    reads: np.ndarray

    def __getitem__(self, index):
        if hasattr(self, "reads"):
            np.add.at(self.reads, np.asarray(index), 1)
        return np.asarray(self).__getitem__(index)


@pytest.mark.parametrize(
    ("sizes", "hosts"), [({"data": 8}, 4), ({"data": 2, "fsdp": 4}, 2), ({"data": 4, "tensor": 2}, 4)]
)
def test_a_host_reads_the_rows_of_its_devices_once(sizes, hosts, tmp_path):
    """Neighbouring devices are one host, as in a run over processes."""
    store, batch = of_store(tmp_path), 64
    rows = np.asarray(store.shards[0].rows).view(Counting)
    rows.reads = np.zeros(len(rows), int)
    shard = dataclasses.replace(store.shards[0])
    shard.__dict__["rows"] = rows
    batch_at = dataclasses.replace(store, shards=(shard,)).batches(batch, seed=2)
    mesh = make_mesh(**sizes)
    sharding, whole = NamedSharding(mesh, BATCH), store.batch_at(1, batch, 2)
    of_host = mesh.devices.reshape(hosts, -1)
    for devices in of_host:
        before = rows.reads.copy()
        held = spans(sharding, batch, list(devices))
        parts = [batch_at.rows(1, *span) for span in held]
        assert (rows.reads - before).sum() == batch // hosts, "nothing of other hosts is read"
        np.testing.assert_array_equal(np.concatenate(parts), np.concatenate([whole[slice(*span)] for span in held]))
    assert rows.reads.max() == 1
    assert rows.reads.sum() == batch, "all hosts together read the batch once"
    batch_on(batch_at, 1, mesh)
    assert rows.reads.sum() == 2 * batch, "copies on several devices are read once"


def test_replicated_rows_are_one_span():
    mesh = make_mesh(tensor=8)
    assert spans(NamedSharding(mesh, BATCH), 12, list(mesh.devices.flat)) == [(0, 12)]
    mesh = make_mesh(data=4, tensor=2)
    chosen = [mesh.devices.reshape(4, 2)[i, 1] for i in (0, 1, 3)]
    assert spans(NamedSharding(mesh, BATCH), 12, chosen) == [(0, 6), (9, 12)]


def test_rows_that_a_mesh_does_not_divide_are_refused():
    batch_at = RowBatches(6, lambda number, start, stop: np.zeros((stop - start, 2), np.float32))
    with pytest.raises(UserError, match="a batch of 6 cannot be split equally over a mesh of data=4"):
        batch_on(batch_at, 0, make_mesh(data=4))
