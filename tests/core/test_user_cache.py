"""The persistent compilation cache: on by default for commands, switchable, and never a reason to fail."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jax_interp.core.user_cache import DAYS_KEPT, VARIABLE, compilation_cache, use_compilation_cache, user_cache

PROGRAM = """
import sys
from jax_interp.core.user_cache import use_compilation_cache
folder = use_compilation_cache(min_compile_seconds=0.0)
assert "jax" not in sys.modules
import jax, jax.numpy as jnp
print(float(jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((3, 4)))[0, 0]))
"""


def run(tmp_path: Path, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path), **variables}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(sys.platform == "darwin", reason="the user's cache folder does not follow XDG_CACHE_HOME there")
def test_a_second_process_reads_what_the_first_compiled(tmp_path):
    first = run(tmp_path)
    (folder,) = (tmp_path / "jax_interp" / "programs").iterdir()
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")}
    assert written
    assert run(tmp_path) == first
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")} == written


def test_it_is_switched_off_and_moved_by_a_variable(tmp_path):
    run(tmp_path / "home", **{VARIABLE: ""})
    assert not (tmp_path / "home").exists()
    run(tmp_path / "home", **{VARIABLE: str(tmp_path / "elsewhere")})
    assert list((tmp_path / "elsewhere").glob("*-cache"))
    assert not (tmp_path / "home").exists()


def test_a_cache_that_the_user_chose_is_left_alone(tmp_path):
    run(tmp_path / "home", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert not (tmp_path / "home").exists()


def test_a_home_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "programs"))
    assert use_compilation_cache() is None


def test_old_programs_are_removed(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    old, new = tmp_path / "old-cache", tmp_path / "new-cache"
    for path in (old, new):
        path.write_bytes(b"")
    long_ago = time.time() - (DAYS_KEPT + 1) * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    import jax

    before = {name: getattr(jax.config, name) for name in NAMES}
    try:
        assert use_compilation_cache() == tmp_path
        assert (old.exists(), new.exists()) == (False, True)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


NAMES = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def test_where_it_is(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    folder = compilation_cache()
    assert folder is not None
    assert folder.parent == user_cache() / "programs"
