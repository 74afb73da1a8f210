"""Surgeries on disk: bit for bit, whole or not at all, and no code in them."""

from __future__ import annotations

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Add, Clamp, Each, Noise, ProjectOut, Replace, Rotate, Scale, Splice, Zero, at, edit
from jax_interp.surgery.saving import SavingError, load_edits, save_edits
from tests.surgery.conftest import CONFIG, DEPTH


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Tied:
    weight: jax.Array
    name: str = dataclasses.field(metadata={"static": True}, default="tied")

    def encode(self, x):
        return jax.nn.relu(x @ self.weight)

    def decode(self, z):
        return z @ self.weight.T


def everything():
    d = CONFIG.d_model
    return (
        at("blocks.3.resid_post", Add(jnp.ones(d, jnp.bfloat16), 2.0), pos=[1, 2]),
        at("blocks.resid_mid", Noise(jax.random.key(3), 0.1), layer=-1),
        at("blocks.*.mlp_out", Each(Splice(Tied(jnp.ones((DEPTH, d, 8))), error=True))),
        at("blocks.2.attn.z", Zero(), head=slice(1, 2), where=jnp.ones((3, 12), bool)),
        at("embed", ProjectOut(np.ones((2, d), np.float32) * [[1], [2]]), feature=np.arange(d) < 4),
        at("blocks.1.resid_post", Rotate(jnp.eye(d, 3), jnp.zeros(d))),
        at("blocks.1.mlp.post", Clamp(-1.0, 1.0)),
        at("logits", Scale(0.5)),
    )


def test_edits_come_back_bit_for_bit(base, tokens, tmp_path):
    edits = everything()
    path = save_edits(tmp_path / "sub" / "steer.safetensors", edits)
    loaded = load_edits(path, types=[Tied])
    assert jax.tree.structure(loaded) == jax.tree.structure(edits)
    for old, new in zip(jax.tree.leaves(edits), jax.tree.leaves(loaded), strict=True):
        assert old.dtype == new.dtype
        if not jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(np.asarray(old), np.asarray(new))
    call = jax.jit(lambda f, *args: f(*args))
    chex.assert_trees_all_equal(call(edit(base, loaded), tokens), call(edit(base, edits), tokens))
    assert call._cache_size() == 1, "what is loaded is the same kind of surgery"
    assert [p.name for p in path.parent.iterdir()] == ["steer.safetensors"], "no temporary file is left"


def test_an_unknown_kind_is_named_with_what_to_do(tmp_path):
    path = save_edits(tmp_path / "e.safetensors", everything())
    with pytest.raises(SavingError, match=r"holds a 'Tied'.*load_edits\(path, types=\[Tied\]\)"):
        load_edits(path)


def test_a_function_cannot_be_saved_and_leaves_no_file(tmp_path):
    with pytest.raises(SavingError, match="cannot save function"):
        save_edits(tmp_path / "e.safetensors", at("embed", lambda x: x), at("logits", Zero()))
    assert not list(tmp_path.iterdir())


def test_a_missing_a_foreign_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(SavingError, match="there is no file"):
        load_edits(tmp_path / "none.safetensors")
    whole = save_edits(tmp_path / "e.safetensors", at("embed", Replace(jnp.ones(100)))).read_bytes()
    for name, content in {"cut": whole[:-50], "text": b"not a safetensors file", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SavingError, match="damaged"):
            load_edits(tmp_path / name)
    from safetensors.numpy import save_file

    save_file({"w": np.ones(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(SavingError, match="holds no edits"):
        load_edits(tmp_path / "weights.safetensors")
    header = {"surgery": json.dumps({"format": 1, "edits": [{"array": "absent"}]})}
    save_file({"w": np.ones(3)}, tmp_path / "absent.safetensors", metadata=header)
    with pytest.raises(SavingError, match="does not hold what its header promises"):
        load_edits(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda edits: ["embed"],
        lambda edits: [None],
        lambda edits: [{"value": 3}],
        lambda edits: [{**edits[0], "fields": {**edits[0]["fields"], "region": None}}],
        lambda edits: [{**edits[0], "fields": {**edits[0]["fields"], "address": {"value": 3}}}],
        lambda edits: [{**edits[0], "fields": None}],
        lambda edits: 3,
        lambda edits: {"0": edits[0]},
    ],
    ids=["string", "null", "number", "no region", "no address", "no fields", "no list", "no list but a dict"],
)
def test_entries_that_are_no_edits_are_refused(tmp_path, change):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = save_edits(tmp_path / "e.safetensors", at("embed", Zero()))
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["surgery"])
    header["edits"] = change(header["edits"])
    save_file({"w": np.ones(3)}, path, metadata={"surgery": json.dumps(header)})
    with pytest.raises(SavingError, match="does not hold what its header promises"):
        load_edits(path)


def test_others_may_read_the_file_as_the_umask_says(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    path = save_edits(tmp_path / "e.safetensors", at("embed", Zero()))
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_place_that_cannot_be_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SavingError, match=r"cannot write '.*file'"):
        save_edits(tmp_path / "file" / "e.safetensors", at("embed", Zero()))
    (tmp_path / "folder").mkdir()
    with pytest.raises(SavingError, match="cannot write"):
        save_edits(tmp_path / "folder", at("embed", Zero()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
