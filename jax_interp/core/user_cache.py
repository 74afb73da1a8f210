"""The user's cache folder, and JAX's persistent compilation cache in it.

    use_compilation_cache()        before the first program is compiled

A program that this machine has compiled before is then read from disk. The command line and the tests call this
function. Add this line to your own scripts and notebooks. Nothing else in the package writes compiled programs.
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
    """The folder of compiled programs; None if the cache is switched off.

    If `JAX_INTERP_COMPILATION_CACHE` is set, the folder is its value (empty: the cache is off). Otherwise it is a
    subfolder of `programs/` in the user's cache, one for each kind of processor, because machine code for another
    processor may not run.
    """
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE]).expanduser() if os.environ[VARIABLE] else None
    return user_cache() / "programs" / _processor()


def use_compilation_cache(*, min_compile_seconds: float = 0.1) -> Path | None:
    """Switch on JAX's persistent compilation cache, unless `JAX_COMPILATION_CACHE_DIR` is set.

    Files that are older than 30 days are removed. The function works before and after the first `import jax`, and does
    not import JAX itself.

    Args:
      min_compile_seconds: programs that compile faster than this are not stored.

    Returns:
      The folder in use; None if the cache is off, or if `JAX_COMPILATION_CACHE_DIR` is set.
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
        return None  # the folder cannot be written: programs are compiled every time
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
    """A short name for the kind of processor and its features."""
    features = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            features = next((line for line in file if line.startswith(("flags", "Features"))), features)
    except OSError:
        pass
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
