"""README.md of this folder, from the records in `results/`."""

from __future__ import annotations

from experiments.experiment import HERE, RESULTS, load
from jax_interp.core.atomic_write import atomic_write

HEAD = """# Experiments

Claims that the field has published, run again. Each is one file here: its docstring states the claim and the source,
its `Config` holds the numbers of the run below.

    python -m experiments                       # what there is
    python -m experiments NAME [--quick]        # run one: results/NAME.json, figures/NAME.png
    python -m experiments table                 # write this page from results/
    python -m experiments draw                  # draw all pictures again from results/

`--quick` takes under a minute, shows that it runs, and writes to `out/experiments/`; options change the config
(`python -m experiments grokking --help`). Seconds are those of the last call, on two cores of a busy machine, training
included where nothing was cached. Where a publication makes a claim and gives no figure, the third column has what an
independent program of its recipe measured. `holds` says whether our figure bears the claim out, by a bound in the
experiment's code; where it is empty, there was nothing to compare with.
"""


def page() -> str:
    """The page's text."""
    pages = [HEAD]
    for path in sorted(RESULTS.glob("*.json")):
        record = load(path)
        lines = [
            f"## {record['experiment']}",
            "",
            record["claim"],
            "",
            f"`{record['command']}`, {record['date']}, {record['seconds']} s",
            "",
            f"![{record['experiment']}](figures/{record['experiment']}.png)",
            "",
            "| | ours | published or reference | holds |",
            "|---|---|---|---|",
        ]
        for row in record["rows"]:
            holds = {True: "yes", False: "**no**", None: ""}[row["holds"]]
            cells = [row["quantity"], row["ours"], row["published"], holds]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        pages.append("\n".join(lines) + "\n")
    return "\n".join(pages)


def write() -> str:
    """Write the page; returns it."""
    text = page()
    atomic_write(HERE / "README.md", text)
    return text
