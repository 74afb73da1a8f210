"""The HTTP front of a server. It needs the extra `serve`; the engine itself does not."""
