"""The interface of dictionaries that evaluation uses. It is defined in `surgery`, because `Splice` uses it too."""

from jax_interp.surgery.contract import Dictionary as EncoderDecoder
from jax_interp.surgery.sparse_coder import SparseCoder, as_sparse_coder

__all__ = ["EncoderDecoder", "SparseCoder", "as_sparse_coder"]
