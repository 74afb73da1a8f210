"""The benchmark for a GPU runs: small on a CPU, so that it works when a GPU is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def lines_of(out: Path, *options: str, platform: str) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": platform, "XLA_FLAGS": ""}
    command = [sys.executable, str(SCRIPT), "--rounds", "1", "--out", str(out), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "absent" not in done.stdout
    return done.stdout


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path):
    lines = lines_of(tmp_path, platform="cpu")
    for worker in ("float32", "bfloat16", "dictionary step", "sparse products", "harvest and train", "patching"):
        assert f"- {worker}: " in lines
    assert "of the time of generation" in lines


@pytest.mark.gpu
def test_it_runs_with_kernels_on_a_gpu(tmp_path):
    """JAX_PLATFORMS=cuda pytest -m gpu tests/models/test_gpu_benchmark.py"""
    if jax.default_backend() != "gpu":
        pytest.skip("needs a GPU")
    assert "of the time of the kernel" in lines_of(tmp_path, "--tiny", platform="cuda")
