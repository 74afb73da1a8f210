"""Activations that SAELens cached, and tensors that torch saved, are imported to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import run_oracle

from jax_interp.data.activation_import import import_activations
from jax_interp.data.activation_shards import StoreLayout
from jax_interp.data.foreign_activations import dataset_blocks, file_blocks

pytestmark = pytest.mark.parity


def test_rows_are_those_of_the_other_program(tmp_path):
    run_oracle("saelens", "saelens_cache.py", tmp_path)
    wanted = np.load(tmp_path / "rows.npy")
    blocks = dataset_blocks(tmp_path / "cache")
    store = import_activations(tmp_path / "store", blocks, "blocks.1.resid_post", layout=StoreLayout(40, "float32"))
    np.testing.assert_array_equal(np.concatenate(list(store.in_order(32))), wanted)
    later = np.concatenate(list(dataset_blocks(tmp_path / "cache", skip_first=1)))
    np.testing.assert_array_equal(later, wanted.reshape(15, 6, 8)[:, 1:].reshape(-1, 8))
    (rounded,) = file_blocks(tmp_path / "acts.pt")
    np.testing.assert_allclose(rounded.astype(np.float32), wanted, rtol=2**-8)
