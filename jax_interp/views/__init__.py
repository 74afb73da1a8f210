"""Plots, tables and pages, drawn from plain results. It knows no method."""
