"""Plots, tables and HTML pages. All are drawn from plain data (numbers, strings, lists and dicts).

`plot` is for notebooks and scripts; the other modules draw the parts of reports.
"""
