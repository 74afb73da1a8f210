"""The demo: one model, from its weights to a report."""
