"""Plots, tables and HTML pages. All are drawn from plain data (numbers, strings, lists and dicts)."""
