"""The README of this folder, made from the records in `results/`."""

from __future__ import annotations

from experiments.experiment import HERE, RESULTS, load_record
from jax_interp.core.atomic_write import atomic_write

HEAD = """# Experiments

Published claims, reproduced. Each experiment is one file of this folder. Its docstring states the claim and the source,
and the defaults of its `Config` are the run reported below.

    python -m experiments                       # list the experiments
    python -m experiments NAME [--quick]        # run one: results/NAME.json, figures/NAME.png
    python -m experiments table                 # write this page from results/
    python -m experiments draw                  # draw all figures again from results/

`--quick` takes less than a minute, shows that the code runs, and writes to `out/experiments/`. Other options change the
config (`python -m experiments grokking --help`). The seconds are those of the last run, on two cores of a busy machine.
They include training that was not cached. If a publication gives no figure for a claim, the third column has the figure
of an independent implementation. `holds` says whether our figure supports the claim, by a bound in the experiment's
code. It is empty if there is nothing to compare with.
"""


def page() -> str:
    """The page's text."""
    pages = [HEAD]
    for path in sorted(RESULTS.glob("*.json")):
        record = load_record(path)
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
    """Write the page. Returns its text."""
    text = page()
    atomic_write(HERE / "README.md", text)
    return text
