"""Help: of everything, quickly."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from jax_interp.cli.main import COMMANDS, usage


def test_the_list_of_commands(command):
    code, out, err = command("--help")
    assert (code, err) == (0, "")
    assert out.strip() == usage()
    assert all(name in out for name in COMMANDS)
    assert command()[1] == out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name, command):
    code, out, err = command(name, "--help")
    assert (code, err) == (0, "")
    assert f"usage: jax-interp {name}" in out
    assert len(out.split()) > 60


def test_the_version(command):
    import jax_interp

    assert command("--version")[:2] == (0, f"jax-interp {jax_interp.__version__}\n")


def test_help_loads_nothing_heavy():
    """No JAX, no tyro: what a person waits for is Python itself."""
    said = (
        "import sys; from jax_interp.cli.main import main; main(['--help']); "
        "print([n for n in ('jax', 'tyro', 'rich', 'matplotlib') if n in sys.modules])"
    )
    began = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    assert time.perf_counter() - began < 10  # seconds; on a busy machine. It takes a tenth of one
