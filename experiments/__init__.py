"""Published claims, run again: one file a claim. `python -m experiments` lists them."""
