"""The structure of a registered dataclass contains its class; JAX's own registration leaves it out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jax_interp
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Freeze, Replace, Zero


def make(name: str, **fields):
    return register_dataclass(
        dataclasses.make_dataclass(name, [(n, object, f) for n, f in fields.items()], frozen=True)
    )


def static(default):
    return dataclasses.field(default=default, metadata={"static": True})


def test_two_classes_have_different_structures():
    structure = jax.tree.structure
    one, other = make("One", x=None, k=static(1)), make("Other", x=None, k=static(1))
    assert structure(one(2.0)) == structure(one(3.0)) != structure(other(2.0)) != structure(other(2.0, 5))
    assert structure([one(2.0)]) != structure([other(2.0)])
    assert structure(Replace(jnp.ones(3))) != structure(Freeze(jnp.ones(3)))


def test_leaves_paths_and_static_fields_come_back():
    kind = make("Kind", x=None, k=static(1), y=None)
    tree = kind(jnp.ones(2), 7, {"a": 3.0})
    again = jax.tree.map(lambda leaf: leaf * 2, tree)
    assert (again.k, again.y, again.x.tolist()) == (7, {"a": 6.0}, [2.0, 2.0])
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert paths == [".x", ".y['a']"]
    assert jax.tree.leaves(kind(None, 2, None)) == []
    assert jax.tree.structure(Zero()).num_leaves == 0
    traced = []
    double = jax.jit(lambda t: traced.append(t.k) or jax.tree.map(lambda leaf: leaf * 2, t))
    for k in (7, 7, 8):
        assert double(dataclasses.replace(tree, k=k)).k == k
    assert traced == [7, 8]


def test_what_is_no_dataclass_or_not_all_of_its_fields_is_refused():
    with pytest.raises(TypeError, match="is no dataclass"):
        register_dataclass(int)
    with pytest.raises(TypeError, match="each field must be named once"):
        register_dataclass(dataclasses.make_dataclass("Two", ["x", "y"]), ["x"], [])
    hidden = dataclasses.make_dataclass("Hidden", [("x", object, dataclasses.field(init=False))])
    with pytest.raises(TypeError, match="parameter of the constructor"):
        register_dataclass(hidden)


def test_the_package_registers_dataclasses_in_no_other_way():
    root = Path(jax_interp.__file__).parent
    other = re.compile(r"tree_util\.register_dataclass|tree_util import .*register_dataclass|flax(\.| import )struct")
    found = [str(path) for path in root.rglob("*.py") if other.search(path.read_text()) and path.name != "pytrees.py"]
    assert found == []
    assert jax_interp.register_dataclass is register_dataclass
