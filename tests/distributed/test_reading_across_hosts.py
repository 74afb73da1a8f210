"""The package reads arrays whose parts may be on several hosts by `to_host` and `on_host`, and divides its commands."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from pathlib import Path

import jax
import numpy as np
import pytest

import jax_interp
from jax_interp.cli.main import COMMANDS, IN_ONE_PROCESS, main
from jax_interp.cli.mesh_option import MeshOption
from jax_interp.core.processes import on_host, to_host
from jax_interp.training.metrics import flatten_metrics
from jax_interp.training.sharding import make_mesh, shard_batch

PACKAGE = Path(jax_interp.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.usefixtures("hosts_are_apart")
def test_a_read_across_hosts_is_noticed():
    rows = shard_batch(np.arange(8.0, dtype=np.float32), make_mesh(data=2, devices=jax.devices()[:2]))
    with pytest.raises(AssertionError, match="with parts on several devices"):
        flatten_metrics({"rows": rows})  # as a host that has one half of the rows
    np.testing.assert_array_equal(on_host(rows), np.arange(8.0))
    np.testing.assert_array_equal(to_host({"rows": rows})["rows"], np.arange(8.0))


def test_no_code_takes_the_devices_of_another_process_for_its_own():
    """`jax.devices()[0]` is a device of process 0, in every process."""
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "jax.devices()"
        and ast.unparse(node.slice) == "0"
    ]  # fmt: skip
    assert found == []


def test_arrays_are_fetched_in_one_file():
    """`jax.device_get` fails if parts are on other hosts. `to_host` exchanges them."""
    found = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.device_get"
    }
    assert found == {"core/processes.py"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_a_mesh_or_runs_in_one_process(command):
    module = importlib.import_module(f"jax_interp.cli.{COMMANDS[command][0]}")
    options = [
        kind for _, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__ and dataclasses.is_dataclass(kind)
    ]  # fmt: skip
    if command == "store":
        pytest.skip("each process writes its own part of a store, also without a mesh")
    assert any(issubclass(kind, MeshOption) for kind in options) == (command not in IN_ONE_PROCESS)


def test_a_command_of_one_process_refuses_several(capsys):
    of_two = ["--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "0"]
    assert main(["sites", "stdlib-small", *of_two]) == 2
    assert "sites runs in one process: start it without --coordinator" in capsys.readouterr().err
