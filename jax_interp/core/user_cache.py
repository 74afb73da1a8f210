"""The user's cache folder, and JAX's persistent compilation cache in it.

    use_compilation_cache()        before the first program is compiled

A program that this machine has compiled before is then read from disk. The command line and the tests call it; in a
script or a notebook of your own it is one line. Nothing else in the package writes compiled programs.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from pathlib import Path

VARIABLE = "JAX_INTERP_COMPILATION_CACHE"
DAYS_KEPT = 30


def user_cache() -> Path:
    """`~/Library/Caches/jax_interp` on macOS; elsewhere `$XDG_CACHE_HOME/jax_interp`, or `~/.cache/jax_interp`."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "jax_interp"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jax_interp"


def compilation_cache() -> Path | None:
    """The folder of compiled programs; None where the cache is switched off.

    It is `JAX_INTERP_COMPILATION_CACHE` where that is set (empty: off), otherwise `programs/` in the user's cache, with
    one folder for each kind of processor: machine code for another one may not run.
    """
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE]).expanduser() if os.environ[VARIABLE] else None
    return user_cache() / "programs" / _processor()


def use_compilation_cache(*, min_compile_seconds: float = 0.1) -> Path | None:
    """Switch JAX's persistent compilation cache on, unless the user has chosen one by JAX's own settings.

    Files that were written more than 30 days ago are removed. Works before and after the first `import jax`; before
    it, JAX is not imported.

    Args:
      min_compile_seconds: programs that compiled faster than this are not kept.

    Returns:
      The folder in use; None where the cache is off or the user's own.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return None
    folder = compilation_cache()
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_old(folder)
    except OSError:
        return None  # a home that cannot be written: programs are compiled anew
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": min_compile_seconds,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if "jax" not in sys.modules:
        os.environ |= {name.upper(): str(value) for name, value in settings.items()}
        return folder
    import jax

    for name, value in settings.items():
        jax.config.update(name, value)
    return folder


def _remove_old(folder: Path) -> None:
    oldest = time.time() - DAYS_KEPT * 24 * 3600
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file() and entry.stat().st_mtime < oldest:
                os.unlink(entry.path)


def _processor() -> str:
    """A short name of the processor's kind and of what it can do."""
    features = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            features = next((line for line in file if line.startswith(("flags", "Features"))), features)
    except OSError:
        pass
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
