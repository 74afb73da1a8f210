"""Circuits: which parts of a model carry a behaviour, found by patching one run with values of another."""
