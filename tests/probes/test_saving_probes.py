"""Files of probes: nested probes, variants in fields, and what is refused by name."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.tensor_files import read_tensors, write_tensors
from jax_interp.probes import (
    PROBES,
    FittedProbes,
    Kind,
    LinearProbe,
    MassMean,
    Probe,
    ProbeFileError,
    load_probes,
    save_probes,
)
from jax_interp.probes.fit import AXES

ONE = (1,) * 6


def fitted(probe: Probe, kind: Kind | None = None) -> FittedProbes:
    axes = dict.fromkeys(AXES, (0,)) | {"site": ("embed",), "rule": ("last",), "strength": (None,)}
    return FittedProbes(kind or MassMean(), probe, axes, ("no", "yes"))


def linear(value: float = 1.0) -> LinearProbe:
    return LinearProbe(jnp.full((*ONE, 3), value), jnp.zeros(ONE), jnp.zeros(ONE))


@pytest.fixture
def nested_class():
    """A probe of probes, with arrays in a dict and plain settings; it is forgotten after the test."""

    @PROBES.register
    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Nested(Probe):
        parts: tuple[LinearProbe, ...]
        weights: dict[str, jax.Array]
        threshold: jax.Array
        power: float = dataclasses.field(default=2.0, metadata={"static": True})

        def score(self, x, read=None):
            return sum((part.score(x) for part in self.parts), jnp.zeros(()))

    yield Nested
    del PROBES._variants["Nested"]


def test_a_probe_of_probes_keeps_its_structure_and_its_bits(nested_class, tmp_path):
    probe = nested_class((linear(1.0), linear(2.0)), {"a": jnp.ones(ONE)}, jnp.zeros(ONE), 3.0)
    loaded = load_probes(save_probes(tmp_path / "p.safetensors", fitted(probe))).probes
    assert jax.tree.structure(loaded) == jax.tree.structure(probe)
    jax.tree.map(np.testing.assert_array_equal, loaded, probe)


def test_a_class_that_is_not_registered_is_refused_by_name(nested_class, tmp_path):
    path = save_probes(tmp_path / "p.safetensors", fitted(nested_class((linear(),), {}, jnp.zeros(ONE))))
    known = PROBES._variants.pop("Nested")
    with pytest.raises(ProbeFileError, match="'Nested', which is not registered"):
        load_probes(path)
    PROBES._variants["Nested"] = known

    class Mine(MassMean):
        pass

    with pytest.raises(ProbeFileError, match="Mine is not registered"):
        save_probes(path, fitted(linear(), Mine()))


def rewritten(path, change) -> None:
    file = read_tensors(path)
    header, arrays = json.loads(file.header["probes"]), dict(file.arrays)
    change(header, arrays)
    write_tensors(path, arrays, {"probes": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, arrays: header.update(format=99), "format 1"),
        (lambda header, arrays: header["kind"].update(type="os.system"), "no kind of probe 'os.system'"),
        (lambda header, arrays: header["kind"].update(type="KINDS"), "no kind of probe"),
        (lambda header, arrays: header["probes"].update(type="Path"), "'Path', which is not registered"),
        (lambda header, arrays: header["probes"].update(type="MassMean"), "'MassMean', which is not registered"),
        (lambda header, arrays: header["probes"]["fields"].pop("bias"), "lacks bias"),
        (lambda header, arrays: header["probes"]["fields"].update(more={"config": 1}), "does not hold"),
        (lambda header, arrays: header["axes"].update(site=["a", "b"]), "does not begin with the axes"),
        (lambda header, arrays: header["axes"].update(site=[1]), "axis site"),
        (lambda header, arrays: header["axes"].pop("seed"), "axes are"),
        (lambda header, arrays: header.update(more=1), "wrong entries"),
        (lambda header, arrays: arrays.update(more=np.ones(3)), "would write it otherwise"),
        (lambda header, arrays: arrays.pop("probe.bias"), "does not hold"),
        (lambda header, arrays: header.update(classes="ab"), "classes"),
        (lambda header, arrays: header["probes"]["fields"].update(weight={"array": "probe.bias"}), "otherwise"),
    ],
)
def test_a_file_that_promises_something_else_is_refused(change, message, tmp_path):
    path = save_probes(tmp_path / "p.safetensors", fitted(linear()))
    rewritten(path, change)
    with pytest.raises(ProbeFileError, match=message):
        load_probes(path)


def test_foreign_files_are_refused(tmp_path):
    other = write_tensors(tmp_path / "other.safetensors", {"x": np.ones(3, np.float32)}, {"surgery": "{}"})
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04cos\nsystem\n.")
    for path in (other, tmp_path / "pickle.safetensors", tmp_path / "nothing.safetensors"):
        with pytest.raises(UserError, match="cannot load probes"):
            load_probes(path)
