"""Serving: requests with their own edits, many in one compiled program."""

from jax_interp.steering.serving.request import Request, RequestEdit
from jax_interp.steering.serving.row_edits import RowEdits, edit_rows

__all__ = ["Request", "RequestEdit", "RowEdits", "edit_rows"]
