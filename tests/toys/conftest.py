"""The fixtures of decoder_fixtures.py, for the tests of this folder."""

from decoder_fixtures import call, model, tokens

__all__ = ["call", "model", "tokens"]
