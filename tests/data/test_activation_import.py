"""Activations of other programs: every layout gives the same rows; what is damaged or unclear is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.data.activation_import import import_activations
from jax_interp.data.activation_shards import StoreLayout
from jax_interp.data.activation_store import open_activation_store
from jax_interp.data.foreign_activations import array_blocks, dataset_blocks, file_blocks
from jax_interp.dictionaries import variants
from jax_interp.dictionaries.evaluation.evaluate import evaluate_rows
from jax_interp.dictionaries.training.config import Adam
from jax_interp.dictionaries.training.from_store import train_from_store
from jax_interp.training import QUIET
from tests.torch_archives import save

ADDRESS = "blocks.1.resid_post"
VALUES = np.random.default_rng(0).normal(size=(6, 5, 8)).astype(np.float32)  # [seq, pos, d]
ROWS = VALUES.reshape(-1, 8)
EXACT = StoreLayout(12, "float32")


def save_dataset(directory: Path, values: np.ndarray, column="blocks.1.hook_resid_post", files=2, **changes) -> Path:
    """A dataset as `datasets.Dataset.save_to_disk` writes it: Arrow streams, and two JSON files."""
    pa = pytest.importorskip("pyarrow")
    directory.mkdir(parents=True, exist_ok=True)
    names = [f"data-{i:05d}-of-{files:05d}.arrow" for i in range(files)]
    for name, part in zip(names, np.array_split(values, files)):
        lists = pa.array(part.tolist(), pa.list_(pa.list_(pa.from_numpy_dtype(part.dtype))))
        tokens = pa.array([[1] * part.shape[1]] * len(part), pa.list_(pa.int32()))
        table = pa.table({column: lists, "token_ids": tokens})
        with pa.OSFile(str(directory / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    array = {"shape": list(values.shape[1:]), "dtype": str(values.dtype), "_type": "Array2D"}
    features = {column: array, "token_ids": {"feature": {"dtype": "int32"}, "_type": "Sequence"}}
    (directory / "dataset_info.json").write_text(json.dumps({"features": features | changes}))
    (directory / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return directory


def save_files(directory: Path) -> list[Path]:
    parts = np.split(VALUES, 3)
    np.save(directory / "a-1.npy", parts[0])
    np.savez(directory / "a-2.npz", parts[1])
    save_file({"acts": np.ascontiguousarray(parts[2])}, directory / "a-10.safetensors")
    return [directory / "a-1.npy", directory / "a-2.npz", directory / "a-10.safetensors"]


class Foreign:
    """An array of another library: it has the two methods of dlpack, and nothing else."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


SOURCES = {
    "a dataset of SAELens": lambda path: dataset_blocks(save_dataset(path / "cache", VALUES)),
    "a folder of files": lambda path: save_files(path) and file_blocks(path),
    "files in order": lambda path: file_blocks(save_files(path)),
    "arrays": lambda path: array_blocks(iter([VALUES[:2], jnp.asarray(VALUES[2:3]), ROWS[15:]])),
    "arrays through dlpack": lambda path: array_blocks([Foreign(VALUES[:4]), Foreign(jnp.asarray(VALUES[4:]))]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_rows_of_every_layout(source, tmp_path):
    store = import_activations(tmp_path / "store", SOURCES[source](tmp_path), ADDRESS, model="gpt2", layout=EXACT)
    assert (store.addresses, store.widths, store.manifest.model) == ((ADDRESS,), (8,), "gpt2")
    assert [len(shard) for shard in store.shards] == [12, 12, 6]
    np.testing.assert_array_equal(np.concatenate(list(store.in_order(7))), ROWS)
    np.testing.assert_allclose(store.mean, ROWS.mean(0) * store.scale[0], atol=1e-6)
    np.testing.assert_allclose((ROWS**2).sum(1).mean() * store.scale[0] ** 2, 8, rtol=1e-5)


@pytest.mark.parametrize("source", ["a dataset of SAELens", "arrays"])
def test_first_positions_are_left_out(source, tmp_path):
    blocks = {
        "a dataset of SAELens": lambda: dataset_blocks(save_dataset(tmp_path / "cache", VALUES), skip_first=2),
        "arrays": lambda: array_blocks([VALUES], skip_first=2),
    }[source]()
    store = import_activations(tmp_path / "store", blocks, ADDRESS, layout=EXACT)
    np.testing.assert_array_equal(store.take(np.arange(store.rows)), VALUES[:, 2:].reshape(-1, 8))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_dtypes(dtype, tmp_path):
    """Half precision is kept to the bit, and float64 is rounded to what the store has."""
    low = VALUES.astype(dtype)
    save_file({"acts": low}, tmp_path / "a.safetensors")
    blocks = array_blocks([low]) if dtype == np.float64 else file_blocks(tmp_path / "a.safetensors")
    store = import_activations(tmp_path / "store", blocks, ADDRESS, layout=EXACT)
    np.testing.assert_array_equal(store.take(np.arange(30)), low.astype(np.float32).reshape(-1, 8))


def test_bfloat16_through_dlpack(tmp_path):
    low = jnp.asarray(ROWS, jnp.bfloat16)
    store = import_activations(tmp_path / "store", array_blocks([Foreign(low)]), ADDRESS, layout=EXACT)
    np.testing.assert_array_equal(store.take(np.arange(30)), np.asarray(low, np.float32))


def test_several_values_of_a_row(tmp_path):
    store = import_activations(tmp_path, array_blocks([ROWS]), ("a", "b"), widths=(3, 5), layout=EXACT)
    assert (store.addresses, store.widths) == (("a", "b"), (3, 5))
    for widths in (None, (3, 4), (8,)):
        with pytest.raises(UserError, match="a row has 8 numbers for 2 values, and there are"):
            import_activations(tmp_path / "other", array_blocks([ROWS]), ("a", "b"), widths=widths)


def test_import_train_and_measure(tmp_path):
    """From arrays of another program to a dictionary and its figures, without a model."""
    sparse = np.random.default_rng(1).exponential(size=(4000, 12)) * (
        np.random.default_rng(2).random((4000, 12)) < 0.15
    )
    rows = (sparse @ np.random.default_rng(3).normal(size=(12, 8))).astype(np.float32)
    store = import_activations(tmp_path, array_blocks(np.split(rows, 8)), ADDRESS, layout=StoreLayout(1500))
    config = variants.topk(ADDRESS, k=3, n_features=24, steps=300, optimizer=Adam(learning_rate=3e-3))
    sae = train_from_store(config, store, batch=256, log=QUIET)
    figures = evaluate_rows(sae, map(jnp.asarray, store.in_order(1000)))
    assert figures.reconstruction.tokens == 4000
    assert figures.reconstruction.fvu < 0.2
    with pytest.raises(UserError, match=r"blocks\.1\.resid_post"):
        train_from_store(config.with_fields(address="blocks.0.resid_post"), store, log=QUIET)


def test_an_import_that_stopped_begins_again(tmp_path):
    def stops():
        yield ROWS[:14]
        raise OSError("the disk of the source is gone")

    with pytest.raises(OSError, match="gone"):
        import_activations(tmp_path, stops(), ADDRESS, layout=EXACT)
    with pytest.raises(UserError, match="no activation store"):
        open_activation_store(tmp_path)
    import_activations(tmp_path, array_blocks([ROWS]), ADDRESS, layout=EXACT)
    with pytest.raises(UserError, match="holds a store already"):
        import_activations(tmp_path, array_blocks([ROWS]), ADDRESS, layout=EXACT)
    path = tmp_path / "shard-00001.npy"
    changed = np.load(path)
    changed[0, 0] += 1
    np.save(path, changed)
    with pytest.raises(UserError, match=r"shard-00001\.npy was changed"):
        open_activation_store(tmp_path, verify=True)


BAD_ARRAYS = {
    "NaN": ([np.where(ROWS[3, 3] == ROWS, np.nan, ROWS)], "activations of shard 0 are not finite"),
    "beyond float16": ([ROWS * 1e6], r"exceed float16's range: ask for StoreLayout\(dtype='float32'\)"),
    "zeros": ([ROWS * 0], "are all zero"),
    "integers": ([np.ones((2, 3), int)], "array 0 has dtype int64: activations are floating-point numbers"),
    "other widths": ([ROWS, ROWS[:, :5]], r"block 1 has shape \[30, 5\]; blocks are \[row, 8\]"),
    "one axis": ([ROWS[0]], r"array 0 has shape \[8\]: activations are \[row, d\] or \[seq, pos, d\]"),
    "no array": ([[1.0, 2.0]], "array 0 is a list: give arrays of NumPy"),
    "nothing": ([], "there are no rows to import"),
    "no rows": ([ROWS[:0]], "there are no rows to import"),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_wrong_arrays_are_refused(what, tmp_path):
    arrays, message = BAD_ARRAYS[what]
    with pytest.raises(UserError, match=message):
        import_activations(tmp_path, array_blocks(arrays), ADDRESS)
    assert not (tmp_path / "store.json").exists()


def test_positions_that_are_unclear(tmp_path):
    with pytest.raises(UserError, match="without positions, so skip_first=1 is unclear"):
        list(array_blocks([ROWS], skip_first=1))
    with pytest.raises(UserError, match="skip_first=5 leaves no position"):
        list(array_blocks([VALUES], skip_first=5))


def test_wrong_files_are_refused(tmp_path):
    save_file({"a": ROWS, "b": ROWS}, tmp_path / "two.safetensors")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "other.bin").write_bytes(b"x")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "empty").mkdir()
    for path, message in [
        ("two.safetensors", "has 'a', 'b': give the name of one"),
        ("cut.npy", "is not a whole .npy file"),
        ("cut.npz", "is not a whole .npz file"),
        ("objects.npy", "without pickles"),
        ("other.bin", "is not one of the files that are read"),
        ("nowhere.npy", "there is no file"),
        ("empty", "has no files of activations"),
    ]:
        with pytest.raises(UserError, match=message):
            list(file_blocks(tmp_path / path))
    with pytest.raises(UserError, match="there is no 'c'"):
        list(file_blocks(tmp_path / "two.safetensors", name="c"))
    np.testing.assert_array_equal(next(file_blocks(tmp_path / "two.safetensors", name="b")), ROWS)


def test_wrong_datasets_are_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    whole = save_dataset(tmp_path / "whole", VALUES)
    with pytest.raises(UserError, match=r"columns of arrays 'blocks.1.hook_resid_post' among .*there is no 'x'"):
        list(dataset_blocks(whole, column="x"))
    two = save_dataset(tmp_path / "two", VALUES, other={"shape": [5, 8], "dtype": "float32", "_type": "Array2D"})
    with pytest.raises(UserError, match="give column="):
        list(dataset_blocks(two))
    assert len(list(dataset_blocks(two, column="blocks.1.hook_resid_post"))) == 4
    lies = save_dataset(tmp_path / "lies", VALUES, column="x", files=1)
    about = read_json(lies / "dataset_info.json")
    about["features"]["x"]["shape"] = [5, 7]
    (lies / "dataset_info.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="has a list of 8 where its dataset says 7"):
        list(dataset_blocks(lies))
    cut = save_dataset(tmp_path / "cut", VALUES, files=1)
    data = next(cut.glob("*.arrow"))
    data.write_bytes(data.read_bytes()[:-400])
    with pytest.raises(UserError, match="is not a whole Arrow stream"):
        list(dataset_blocks(cut))
    data.unlink()
    with pytest.raises(UserError, match=r"lacks data-00000-of-00001\.arrow"):
        list(dataset_blocks(cut))
    (cut / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../whole/data.arrow"}]}))
    with pytest.raises(UserError, match="names no data files"):
        list(dataset_blocks(cut))
    null = save_dataset(tmp_path / "null", VALUES, column="x", files=1)
    values = VALUES.tolist()
    values[2][1][4] = None
    table = pa.table({"x": pa.array(values, pa.list_(pa.list_(pa.float32())))})
    with pa.OSFile(str(null / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    with pytest.raises(UserError, match="column 'x' has null values"):
        list(dataset_blocks(null))


def test_tensors_of_torch_files(tmp_path):
    """With a name and without: `torch.save({"acts": x})` and `torch.save(x)`."""
    for name, content in {"a.pt": {"acts": ROWS, "step": 3}, "b.pt": ROWS}.items():
        save(tmp_path / name, content)
    np.testing.assert_array_equal(np.concatenate(list(file_blocks(tmp_path))), np.concatenate([ROWS, ROWS]))


def test_jax_arrays_on_a_mesh_are_gathered(tmp_path):
    mesh = jax.make_mesh((2,), ("data",))
    split = jax.device_put(ROWS, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    store = import_activations(tmp_path, array_blocks([split]), ADDRESS, layout=EXACT)
    np.testing.assert_array_equal(store.take(np.arange(30)), ROWS)
