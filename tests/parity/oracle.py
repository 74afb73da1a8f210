"""Run a script with a library that cannot be installed beside the others, and exchange files with it.

`make parity` makes one environment per library, `.venv-oracle-<name>`, from `constraints/oracle-<name>.txt`. A script
in `tests/parity/oracles/` runs there: it writes weights as that library does, with inputs, latents and outputs as
`.npz`, or reads what this package wrote. It must not import jax_interp.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).resolve().parent / "oracles"
FOLDER = "JAX_INTERP_ORACLES"


def run_oracle(name: str, script: str, *arguments: str | Path) -> str:
    """Run `tests/parity/oracles/<script>` in the environment of a library. Returns what it printed.

    Args:
      name: the library: "saelens", "dictionary_learning", "sparsify", "circuit_tracer", "sae_probes", "pyvene",
        "concept_erasure" or "eap_ig".
      script: the file name of the script.
      arguments: its command-line arguments.
    """
    folder = Path(os.environ.get(FOLDER) or ROOT)
    python = folder / f".venv-oracle-{name}" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"there is no {python.parent.parent}: `make oracles ORACLES={name}` makes this environment")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    command = [str(python), str(SCRIPTS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{script} failed in the environment of {name}:\n{done.stderr[-4000:]}"
    return done.stdout
