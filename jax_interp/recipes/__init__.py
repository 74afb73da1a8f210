"""Whole runs: from a config to text and model, a trained artefact, a run directory and its report."""
