"""Comparing models: what one of two models has of its own."""
