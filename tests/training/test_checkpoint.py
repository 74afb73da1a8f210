"""Checkpoints: what is refused, what is fallen back to, and that every kind of leaf comes back bit for bit."""

from __future__ import annotations

import dataclasses
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from same_bits import assert_same_bits

from jax_interp.core.leaves import addresses
from jax_interp.core.pytrees import register_dataclass
from jax_interp.training import checkpoint
from jax_interp.training.checkpoint import CheckpointError, CheckpointMismatch, CheckpointWarning, CorruptCheckpoint
from jax_interp.training.fingerprint import BLOCK, blockwise_fingerprint, fingerprint, fingerprints
from jax_interp.training.sharding import abstract, make_mesh, shard

P = jax.sharding.PartitionSpec

# orbax leaves coroutines behind when it fails to read
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@register_dataclass
@dataclasses.dataclass
class Pair:
    first: jax.Array
    value: jax.Array


class Tower(nnx.Module):
    def __init__(self):
        self.blocks = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(i)) for i in range(2)])
        self.scale = nnx.Param(jnp.ones(3))


def every_kind():
    key = jax.random.key(3)
    tower = Tower()
    return {
        "model": tower,
        "opt": optax.adamw(1e-3).init(tower),
        "pair": Pair(jax.random.normal(key, (5, 4)), jnp.arange(6)),
        "half": jax.random.normal(key, (7,)).astype(jnp.bfloat16),
        "eight": jnp.arange(-3, 4, dtype=jnp.int8),
        "four": jnp.arange(-3, 4, dtype=jnp.int4),
        "float8": jnp.arange(4, dtype=jnp.float32).astype(jnp.float8_e4m3fn),
        "flags": jnp.array([True, False, True]),
        "complex": jax.lax.complex(jnp.arange(3.0), -jnp.ones(3)),
        "odd values": jnp.array([np.nan, np.inf, -0.0, 1e-40], jnp.float32),
        "key": key,
        "keys": jax.random.split(jax.random.key(5, impl="rbg"), 3),
        "none": None,
        "empty": jnp.zeros((0, 3)),
        "list": [jnp.uint32(1), (jnp.float16(2.0),)],
    }


@pytest.fixture
def noisy():
    """A state whose bytes do not compress, so a flipped bit of the file is a flipped bit of a leaf."""
    key = jax.random.key(0)
    return {"w": jax.random.normal(key, (64, 64)), "deep": {"v": jax.random.bits(key, (4096,), jnp.uint32)}, "key": key}


def test_every_kind_of_leaf_comes_back(tmp_path):
    tree = every_kind()
    checkpoint.save(tmp_path, 5, tree)
    back, step = checkpoint.restore(tmp_path, jax.tree.map(jnp.zeros_like, tree))
    assert step == 5
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert_same_bits(back, tree)
    assert back["keys"].dtype == tree["keys"].dtype  # the generator too
    back["model"].scale = nnx.Param(back["model"].scale[...] + 1)  # a module again, not a dict


def test_addresses():
    assert addresses({"model": Tower(), "pair": Pair(jnp.ones(1), jnp.ones(1))}) == [
        "model.blocks.0.bias",
        "model.blocks.0.kernel",
        "model.blocks.1.bias",
        "model.blocks.1.kernel",
        "model.scale",
        "pair.first",
        "pair.value",
    ]
    assert "0.mu.w" in addresses(optax.adam(1.0).init({"w": jnp.ones(2)}))
    with pytest.raises(ValueError, match=r"same address: a\.b"):
        addresses({"a.b": 1, "a": {"b": 2}})


def test_keeps_the_last_and_the_milestones(tmp_path, noisy):
    for step in range(1, 8):
        checkpoint.save(tmp_path, step, noisy, keep=2, milestone_every=3)
    assert checkpoint.steps(tmp_path) == [3, 6, 7]
    assert checkpoint.latest(tmp_path) == 7
    checkpoint.save(tmp_path, 5, noisy, keep=2, milestone_every=3)  # the run was taken back
    assert checkpoint.steps(tmp_path) == [3, 5]


def test_nothing_there(tmp_path, noisy):
    assert checkpoint.latest(tmp_path / "none") is None
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoint.restore(tmp_path, noisy)
    checkpoint.save(tmp_path, 2, noisy)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 .* there are \[2\]"):
        checkpoint.restore(tmp_path, noisy, step=3)


def test_another_state_is_refused_in_one_error(tmp_path, noisy):
    path = checkpoint.save(tmp_path, 1, noisy)
    other = {
        "w": noisy["w"].astype(jnp.bfloat16),
        "deep": {"u": noisy["deep"]["v"]},
        "key": jax.random.split(noisy["key"]),
    }
    with pytest.raises(CheckpointMismatch) as error:
        checkpoint.restore(tmp_path, other)
    for words in (
        str(path),
        "w has dtype float32, wanted bfloat16",
        "it has no deep.u (but it has deep.v)",
        "it has deep.v, which is not wanted",
        "key has shape [], wanted [2]",
    ):
        assert words in str(error.value)
    with pytest.raises(CheckpointMismatch, match=r"key has dtype key<fry>, wanted key<rbg>"):
        checkpoint.restore(tmp_path, noisy | {"key": jax.random.key(0, impl="rbg")})


def flip(file, position, bit=0):
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


def test_a_flipped_bit_is_found_and_its_leaf_named(tmp_path, noisy):
    path = checkpoint.save(tmp_path, 1, noisy)
    needle = np.asarray(noisy["deep"]["v"]).tobytes()[256:288]
    files = [file for file in path.rglob("*") if file.is_file() and needle in file.read_bytes()]
    assert files, "the leaf is not stored plainly: find another way to damage it"
    for file in files:
        flip(file, file.read_bytes().index(needle) + 5, bit=3)
    with pytest.raises(CorruptCheckpoint, match=r"00000001 is damaged: the bits of deep\.v are not"):
        checkpoint.restore(tmp_path, noisy, step=1)


def test_no_flipped_bit_anywhere_gives_other_arrays(tmp_path, noisy):
    """Over all files of a step: refused by name, or (a byte nobody reads) exactly what was saved."""
    rng = np.random.default_rng(0)
    path = checkpoint.save(tmp_path / "good", 1, noisy)
    files = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file() and file.stat().st_size)
    refused = 0
    for trial in range(40):
        name = files[trial % len(files)]
        bad = tmp_path / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(tmp_path / "good", bad)
        flip(bad / path.name / name, rng.integers((path / name).stat().st_size), rng.integers(8))
        try:
            back, _ = checkpoint.restore(bad, noisy, step=1)
        except CorruptCheckpoint as error:
            refused += str(bad / path.name) in str(error)
        else:
            assert_same_bits(back, noisy)
    assert refused > 10


def damage_truncate(path):
    file = max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    with open(file, "r+b") as handle:
        handle.truncate(file.stat().st_size // 2)


def damage_missing_arrays(path):
    shutil.rmtree(path / "arrays")


def damage_missing_metadata(path):
    for file in path.rglob("manifest.ocdbt"):
        file.unlink()


def damage_half_description(path):
    file = path / "leaves.json"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_no_description(path):
    (path / "leaves.json").unlink()


def damage_empty(path):
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_missing_arrays,
        damage_missing_metadata,
        damage_half_description,
        damage_no_description,
        damage_empty,
    ],
)
def test_a_damaged_step_is_refused_by_name_and_the_previous_one_used(tmp_path, noisy, damage):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, noisy | {"w": noisy["w"] + step})
    damage(tmp_path / "00000020")
    with pytest.warns(CheckpointWarning, match=r"00000020 is damaged: .*; using step 10 instead"):
        back, step = checkpoint.restore(tmp_path, noisy)
    assert step == 10
    assert_same_bits(back, noisy | {"w": noisy["w"] + 10})
    with pytest.raises(CorruptCheckpoint, match="00000020 is damaged"):
        checkpoint.restore(tmp_path, noisy, step=20)
    damage(tmp_path / "00000010")
    with pytest.raises(CorruptCheckpoint, match=r"no sound checkpoint is left: .*00000020.*00000010"):
        checkpoint.restore(tmp_path, noisy)


def test_what_a_killed_save_leaves_is_not_a_step(tmp_path, noisy):
    path = checkpoint.save(tmp_path, 10, noisy)
    shutil.copytree(path, tmp_path / ".00000020.tmp")
    assert checkpoint.steps(tmp_path) == [10]
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        assert checkpoint.restore(tmp_path, noisy)[1] == 10
    checkpoint.save(tmp_path, 20, noisy)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000010", "00000020"]


RULES = (("w", P(("data", "fsdp"), "tensor")), ("v", P("fsdp")), ("keys", P("data")), ("**", P()))


def sharded_state():
    key = jax.random.key(0)
    return {
        "w": jax.random.normal(key, (16, 8)),
        "v": jax.random.normal(key, (3, 8)).astype(jnp.bfloat16),
        "keys": jax.random.split(key, 4),
        "n": jnp.int32(4),
    }


MESHES = {1: {}, 2: {"fsdp": 2}, 4: {"data": 2, "tensor": 2}, 8: {"data": 2, "fsdp": 2, "tensor": 2}}


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_saved_on_one_mesh_restored_on_another_the_bits_are_the_same(tmp_path, devices, explicit):
    state = sharded_state()
    here = make_mesh(**MESHES[devices], explicit=explicit)
    marks = fingerprints(state)
    assert fingerprints(shard(state, RULES, here)) == marks
    checkpoint.save(tmp_path, 1, shard(state, RULES, make_mesh(fsdp=4, tensor=2)))
    template = abstract(state, RULES, here)
    back, _ = checkpoint.restore(tmp_path, template)
    assert_same_bits(back, state)
    for x, wanted in zip(jax.tree.leaves(back), jax.tree.leaves(template)):
        assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)


def test_fingerprints_see_every_bit_and_every_swap():
    x = jax.random.normal(jax.random.key(0), (32,))
    marks = {fingerprints(x.at[i].set(jnp.nextafter(x[i], jnp.float32(9))))[""] for i in range(32)}
    marks |= {fingerprints(jnp.roll(x, n))[""] for n in range(32)}
    marks |= {fingerprints(x.reshape(4, 8))[""]}  # the order of the bits, not the shape
    assert len(marks) == 32 + 32
    assert fingerprints(jnp.float32(0.0)) != fingerprints(jnp.float32(-0.0))
    with jax.enable_x64(True):
        y = jnp.asarray(np.arange(4.0))
        assert fingerprints(y) != fingerprints(y.at[2].set(np.nextafter(2.0, 3.0)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.bool_])
def test_a_fingerprint_by_blocks_is_the_fingerprint(dtype):
    x = jax.random.normal(jax.random.key(0), (3, BLOCK // 2 + 77)) * 5
    x = (x > 0) if dtype == jnp.bool_ else x.astype(dtype)
    assert int(blockwise_fingerprint(x)) == int(fingerprint(x))
    changed = x.at[2, 5].set((x[2, 5] == jnp.zeros((), dtype)).astype(dtype))
    assert int(blockwise_fingerprint(changed)) == int(fingerprint(changed)) != int(fingerprint(x))


def test_a_fingerprint_by_blocks_takes_no_memory():
    x = jax.ShapeDtypeStruct((100, BLOCK), jnp.float32)
    compiled = jax.jit(blockwise_fingerprint).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.05 * 100 * BLOCK * 4
