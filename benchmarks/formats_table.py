"""The table of formats in docs/published-dictionaries.md: what is read and written, and how exactly.

    JAX_INTERP_FORMAT_FIGURES=out/formats.jsonl make parity      what the libraries themselves compute
    python benchmarks/formats_table.py out/formats.jsonl         print the table
    python benchmarks/formats_table.py out/formats.jsonl --write

Every layout of tests/dictionaries/formats is written, loaded and compared with the publisher's formulas in NumPy
float64. Where the publisher's library was run, its figures are in the file. A difference is the largest one of all
latents and outputs, relative to the largest number of those if it is above 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "published-dictionaries.md"
BEGIN, END = "<!-- formats -->", "<!-- end of formats -->"
ORACLES = {  # the format, and the library whose files are compared
    "saelens": "sae_lens",
    "temporal": "sae_lens",
    "dictionary_learning": "dictionary_learning",
    "sparsify": "sparsify",
    "circuit-tracer": "circuit_tracer",
    **dict.fromkeys(("gemma-scope", "gemma-scope-2", "llama-scope", "llama-scope-r1"), "sae_lens"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("figures", type=Path, help="the file that JAX_INTERP_FORMAT_FIGURES named")
    parser.add_argument("--write", action="store_true", help=f"replace the table in {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    measured = [json.loads(line) for line in options.figures.read_text().splitlines()]
    text = "\n".join(table(formulas(), measured))
    if not options.write:
        print(text)
        return
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def formulas() -> dict[str, list[float]]:
    """The largest difference from the publisher's formulas of each layout, by format."""
    for folder in (ROOT, ROOT / "tests" / "dictionaries" / "formats"):  # as pytest finds the layouts
        sys.path.insert(0, str(folder))
    import jax.numpy as jnp
    import numpy as np

    from jax_interp.dictionaries import load_dictionary
    from tests.dictionaries.formats.published import every_layout

    found: dict[str, list[float]] = {}
    for name, write in every_layout().items():
        with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the weights are random, and the self-test says so
            layout = write(Path(directory), np.random.default_rng(zlib.crc32(name.encode())))
            saved = load_dictionary(layout.path)
            x = jnp.asarray(layout.x, jnp.float32)
            pairs = ((saved.dictionary.encode(x), layout.latents), (saved.dictionary(x), layout.outputs))
            found.setdefault(saved.format, []).append(max(difference(*pair) for pair in pairs))
    return found


def difference(found: Any, expected: Any) -> float:
    import numpy as np

    return float(np.abs(np.asarray(found, np.float64) - expected).max() / max(1.0, np.abs(expected).max()))


def table(formulas: dict[str, list[float]], measured: Iterable[dict[str, Any]]) -> list[str]:
    """The lines of the table."""
    from jax_interp.dictionaries.formats import FORMATS

    cases: dict[tuple[str, str], dict[str, float]] = {}
    for one in measured:
        of_kind = cases.setdefault((one["format"], one["direction"]), {})
        of_kind[one["case"]] = max(one["worst"], of_kind.get(one["case"], 0.0))
    by_kind = {kind: list(worst.values()) for kind, worst in cases.items()}
    cell = lambda values: f"{len(values)}: {max(values):.0e}" if values else "–"
    lines = [
        "| `format=` | files of | read | written | formulas in float64 | library | its files here | our files there |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in sorted(FORMATS, key=lambda kind: kind.name.lower()):
        there, here = by_kind.get((kind.name, "write"), []), by_kind.get((kind.name, "read"), [])
        library = f"`{ORACLES[kind.name]}`" if there or here else "–"
        cells = [
            f"`{kind.name}`", kind.title, "yes", "yes" if kind.writes else "–", cell(formulas.get(kind.name, [])),
            library, cell(here), cell(there),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
