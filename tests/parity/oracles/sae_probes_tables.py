"""The tables of sae-probes as pandas reads them: rows without text or label, repeated texts, texts of each label.

sae_probes_tables.py OUT.json
"""

import json
import sys
from importlib.metadata import distribution
from pathlib import Path

import pandas as pd

directory = Path(distribution("sae-probes").locate_file("sae_probes")) / "data"
found = {}
for path in sorted((directory / "cleaned_data").glob("*.csv.zst")):
    rows = pd.read_csv(path, compression="zstd", dtype=str, keep_default_na=False)
    full = rows[(rows["prompt"].str.strip() != "") & (rows["target"] != "")]
    first = full.drop_duplicates("prompt")
    found[path.name[: -len(".csv.zst")]] = {
        "empty": len(rows) - len(full),
        "repeated": len(full) - len(first),
        "counts": {str(label): int(n) for label, n in first["target"].value_counts().items()},
        "letters": int(first["prompt"].map(len).sum()),
    }
# The list of data sets names those of two classes.
master = pd.read_csv(directory / "probing_datasets_MASTER.csv.zst", compression="zstd")
binary = master[master["Data type"] == "Binary Classification"]["Dataset save name"]
tables = {"tables": found, "binary": sorted(Path(name).stem for name in binary), "directory": str(directory)}
Path(sys.argv[1]).write_text(json.dumps(tables))
