"""Published claims, reproduced: one file for each claim. `python -m experiments` lists them."""
