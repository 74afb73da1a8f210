"""Which way imports run between the rooms, what stays outside, and what importing the package costs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "jax_interp"

# The floors of the house, the lowest first. A room imports rooms of lower floors, never another room of its own floor
# or of a higher one. What two rooms of one floor share moves one floor down. `toys` has a floor of its own,
# because some toys are small decoders of `models`.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("surgery", "training", "views"),
    ("data",),
    ("models",),
    ("toys",),
    ("analysis", "dictionaries", "decomposition", "probes"),
    ("circuits", "steering", "diffing", "dashboards"),
    ("recipes",),
    ("cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# What each side of the house stands on, where it is bound to little.
SURGERY_STANDS_ON = frozenset({"jax", "flax", "penzai", "numpy", "jaxtyping", "safetensors"})
NEVER = frozenset({"torch", "torchvision", "transformers", "transformer_lens", "tensorflow", "nnsight"})
OUTSIDE = frozenset({"tests", "experiments", "benchmarks"})


def imported_modules(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import in a file, those inside functions and `import_module("…")` too.

    `from a.b import c` yields `a.b.c`, since `c` may be a module: a rule about `a.b` then holds for it as well.
    """
    parts = (package.name, *path.relative_to(package).with_suffix("").parts)
    parents = parts[:-1]  # the package that a relative import starts from: the same for a module and an __init__
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else ()
            stem = (*base, *(node.module.split(".") if node.module else ()))
            yield from ((node.lineno, ".".join((*stem, alias.name))) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def broken_directions(package: Path) -> list[str]:
    """Every import below `package` that the plan of the house forbids, as `file:line imports name: reason`."""
    broken, penzai_files = [], {}
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package)
        room = where.parts[0] if len(where.parts) > 1 else None  # None: the package's own __init__
        if room is not None and room not in FLOOR_OF:
            broken.append(f"{where}: {room} is not a room of the plan; give it its place in this test")
            continue
        for line, name in imported_modules(path, package):
            top, _, rest = name.partition(".")
            reason = None
            if top in NEVER:
                reason = "no torch library at run time"
            elif top in OUTSIDE or (top == "configs" and room != "cli"):
                reason = "the package stands without it"
            elif top == "penzai":
                penzai_files.setdefault(str(where), line)
            if room == "surgery" and top not in SURGERY_STANDS_ON | sys.stdlib_module_names | {package.name}:
                reason = "surgery knows JAX, Flax and penzai only"
            if top == package.name and room is not None:
                target = rest.split(".")[0]
                if target not in {room, "__version__"} and FLOOR_OF.get(target, len(FLOORS)) >= FLOOR_OF[room]:
                    lower = [name for floor in FLOORS[: FLOOR_OF[room]] for name in floor]
                    reason = f"{room} may import {', '.join(lower) or 'no other room'}"
            if reason:
                broken.append(f"{where}:{line} imports {name}: {reason}")
    if len(penzai_files) > 1:
        broken.append(f"penzai is imported in one file, not in {sorted(penzai_files)}")
    return broken


def test_no_two_test_files_have_one_name():
    """pytest imports a test file by its name alone, so the second file of a name ends the whole run."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, n in names.items() if n > 1] == []


def test_imports_run_one_way():
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 10, f"looked in the wrong place: {PACKAGE}"
    assert broken_directions(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("surgery/site.py", "from jax_interp.models import load", "surgery may import core"),
        ("surgery/site.py", "from ..models.decoder import Decoder", "surgery may import core"),
        ("surgery/site.py", "def f():\n    import optax", "surgery knows JAX"),
        ("surgery/deep/er.py", "from ...dictionaries import topk", "surgery may import core"),
        ("training/loop.py", "from jax_interp import dictionaries", "training may import core"),
        ("training/loop.py", "from .. import read", "training may import core"),
        ("data/text.py", "import jax_interp.models.decoder", "data may import core"),
        ("dictionaries/sae.py", "from ..decomposition import decompose", "dictionaries may import"),
        ("dictionaries/sae.py", "from ..probes.fit import fit", "dictionaries may import"),
        ("probes/fit.py", "from jax_interp.steering import extract", "probes may import"),
        ("steering/extract.py", "from jax_interp.diffing import diff", "steering may import"),
        ("models/decoder.py", "from jax_interp.toys import tms", "models may import"),
        ("models/load.py", "def f():\n    from jax_interp.cli import main", "models may import"),
        ("models/load.py", "def f():\n    import torch", "no torch library"),
        ("models/load.py", "import importlib\nimportlib.import_module('transformers')", "no torch library"),
        ("models/load.py", "import configs.train", "stands without it"),
        ("views/plot.py", "from tests.conftest import x", "stands without it"),
        ("views/plot.py", "from ..training import log", "views may import core"),
        ("core/errors.py", "from ..surgery import read", "core may import no other room"),
        ("extras/thing.py", "", "not a room of the plan"),
        ("surgery/a.py", "from penzai import pz", "penzai is imported in one file"),
    ],
)
def test_the_checker_sees_each_kind_of_breach(tmp_path: Path, file: str, source: str, complaint: str):
    package = tmp_path / "jax_interp"
    files = {
        "__init__.py": "from .surgery import read\nfrom .models import load",
        "core/errors.py": "class UserError(ValueError): ...",
        "surgery/__init__.py": "import jax\nfrom .site import Site\nfrom ..core.errors import UserError",
        "surgery/select.py": "def f():\n    from penzai import pz",
        "dictionaries/sae.py": "import jax\nfrom ..surgery import read\nfrom jax_interp.training import loop",
        "models/decoder.py": "from jax_interp.surgery import Site\nfrom .mlp import MLP\nimport jax_interp.data.text",
        "cli/main.py": "import configs\nfrom jax_interp.models import load\nfrom ..dictionaries import sae",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    assert broken_directions(package) == []

    (package / file).parent.mkdir(parents=True, exist_ok=True)
    (package / file).write_text(source)
    (found,) = broken_directions(package)
    assert complaint in found
    assert file.partition("/")[0] in found


# Run in a fresh interpreter. CPU seconds of the process, start-up included: a busy machine does not stretch them much.
REPORT = """
import json, sys, time
print(json.dumps({"cpu_s": time.process_time(), "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def test_import_is_quick_and_light():
    """jax, flax and the surgery verbs in under 1.5 s of CPU time (best of three; on a slow machine, in hardly more than
    jax and flax take by themselves), heavy libraries left for later."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "JAX_PLATFORMS": "cpu"}

    def best_of_three(imports: str) -> dict:
        command = [sys.executable, "-c", imports + REPORT]
        runs = [subprocess.run(command, env=environment, check=True, capture_output=True).stdout for _ in range(3)]
        return min(map(json.loads, runs), key=lambda run: run["cpu_s"])

    ours = best_of_three("import jax_interp\nfrom jax_interp import read, edit, at, sites")
    if ours["cpu_s"] >= 1.5:
        assert ours["cpu_s"] < 1.25 * best_of_three("import jax, flax.nnx")["cpu_s"]
    loaded = set(ours["loaded"])
    assert "jax" in loaded
    assert not loaded & {"orbax", "grain", "penzai", "matplotlib", "plotly", "tokenizers", "huggingface_hub", "torch"}


def test_every_exported_name_exists():
    import jax_interp

    for name in jax_interp.__all__:
        assert getattr(jax_interp, name) is not None
    with pytest.raises(AttributeError, match="it exports"):
        _ = jax_interp.raed


def test_no_two_files_of_the_tests_share_a_name():
    """pytest and the tests import them by name alone, so the first one that is imported would be used for both."""
    names = [
        path.name for path in Path(__file__).parent.rglob("*.py") if path.name not in ("conftest.py", "__init__.py")
    ]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
