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
TALLY = "cases of a generated law"


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


class Tally:
    """What a generated law tried, and in how many of these cases it did not hold. A test run prints the sums."""

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties

    def __call__(self, law: str, *, tried: int, broken: int) -> None:
        self._properties.append((TALLY, (law, tried, broken)))


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Report the counts of a law: `tally("damage of saved files", tried=33, broken=0)`. The test still asserts."""
    return Tally(request.node.user_properties)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    sums: dict[str, list[int]] = {}
    for report in (
        r for reports in terminalreporter.stats.values() for r in reports if isinstance(r, pytest.TestReport)
    ):
        for name, value in report.user_properties if report.when == "call" else ():
            if name == TALLY:
                law, tried, broken = value
                total = sums.setdefault(law, [0, 0])
                total[0], total[1] = total[0] + tried, total[1] + broken
    if sums:
        terminalreporter.section("generated laws: cases tried, and cases in which the law did not hold")
        for law, (tried, broken) in sorted(sums.items()):
            terminalreporter.write_line(f"{tried:7,} {broken:5,}  {law}")
