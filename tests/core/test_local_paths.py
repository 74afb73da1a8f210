"""A path on an object store is refused by name, and nothing is created under a folder `gs:`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jax_interp.core.atomic_write import atomic_write, make_directory
from jax_interp.core.errors import UserError
from jax_interp.core.local_paths import check_local
from jax_interp.data.activation_import import import_activations
from jax_interp.data.activation_store import open_activation_store
from jax_interp.data.token_store import open_token_store, write_token_store
from jax_interp.training import open_run

USES = {
    "store": lambda path: import_activations(path, [np.ones((4, 2), np.float32)], "blocks.0.resid_post"),
    "open": open_activation_store,
    "tokens": lambda path: write_token_store(path, {"train": np.arange(3)}, bos_id=0),
    "open tokens": lambda path: open_token_store(path, "train"),
    "run": lambda path: open_run(path, {"steps": 1}).__enter__(),
    "directory": make_directory,
    "file": lambda path: atomic_write(path, "x"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("path", ["gs://bucket/x", Path("s3://bucket/x")], ids=str)
def test_an_object_store_is_refused_by_name(use, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^(gs|s3)://bucket/x.* is on an object store.*local or shared disk"):
        use(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["runs/a", "/abs/a:b", "C:/runs", "a:b", "./gs:/x"])
def test_other_paths_are_local(path):
    check_local(path)
