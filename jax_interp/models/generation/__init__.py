"""Generation: sampling, streaming, and edits that act while a model writes."""
