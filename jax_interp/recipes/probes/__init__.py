"""The recipes of probes and monitors: labelled sets in, a page out."""
