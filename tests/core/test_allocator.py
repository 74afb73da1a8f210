"""Memory that a thread frees is used again, instead of being fetched from the system page by page."""

import os
import subprocess
import sys

import pytest

from jax_interp.core.allocator import keep_freed_memory

SCRIPT = """
import resource, threading
from jax_interp.core.allocator import keep_freed_memory

if {keep}:
    assert keep_freed_memory({{}})

def work():
    for _ in range(2):
        b"1" * 2**26
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        b"1" * 2**26
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def _faults(keep: bool) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(keep=keep)], env=clean, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux")
def test_freed_memory_is_used_again():
    assert _faults(keep=True) < 100 < 1000 < _faults(keep=False)


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_the_settings_of_the_user_stay(name):
    assert not keep_freed_memory({name: "1"})
