"""Sparse dictionaries: read one or more values, activate, write one or more values.

    forms/        where a dictionary reads and writes: SAE
    activations/  which latents are on: TopK
    losses/       what it is trained for
    sparse.py     arithmetic on k-sparse codes
"""
