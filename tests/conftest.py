"""Settings of all tests: eight host devices, strict promotion, and the folder of real data where it is given."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

# Before the first import of jax: the number of devices is fixed when its backend starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
# Most of the suite's time is compilation of small programs that run once, so XLA's backend does not optimise them. With
# JAX_INTERP_TEST_OPTIMIZED=1 it does, as in real use; .ci/run repeats the laws that way.
if os.environ.get("JAX_INTERP_TEST_OPTIMIZED") != "1" and "optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    if version("jaxlib").startswith("0.10."):  # later ones have no other emitter
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import hypothesis
import jax
import pytest

from jax_interp.core.user_cache import use_compilation_cache

# Programs are compiled once for both workers, all files and all runs. The cache is off where
# JAX_INTERP_COMPILATION_CACHE is set and empty.
use_compilation_cache(min_compile_seconds=0.0)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Examples are drawn anew in each run. A failure prints what reproduces it; it then becomes a case of its test.
hypothesis.settings.register_profile("project", deadline=None, print_blob=True)
hypothesis.settings.load_profile("project")

DATA_VARIABLE = "JAX_INTERP_TEST_DATA"


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs():
    """Drop the compiled programs of earlier test files before the process runs out of memory maps.

    Linux allows a process about 65,000 of them. A compiled program takes several and JAX keeps every program, so a
    worker that has run a thousand tests would be killed without a message.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real weights and texts. Where it is not set, a test that needs it is skipped with the reason."""
    path = os.environ.get(DATA_VARIABLE)
    if not path:
        pytest.skip(f"{DATA_VARIABLE} is not set: no real weights or texts to test with")
    if not Path(path).is_dir():
        pytest.fail(f"{DATA_VARIABLE}={path} is not a folder")
    return Path(path)
