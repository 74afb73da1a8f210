"""Recipes of steering: vectors found, applied, measured and served."""
