"""Whole runs: each takes a config, loads text and model, trains, and writes a run directory with a report."""
