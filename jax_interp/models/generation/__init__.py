"""Writing with a model: sampling, streaming, and edits that act while it writes."""
