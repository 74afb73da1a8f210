"""Text, tokenizers, tokens in batches, and activations in streams and stores. It knows no method.

`stdlib` is the corpus that is on every machine, `text` a user's own text, `tokenizer` byte-level BPE with an explicit
BOS. `token_store` keeps tokens on disk, `batches` cuts windows from them, `prepared` goes from a corpus to its token
stores. `harvest` streams shuffled activations, `activation_store` keeps them on disk. `ngram` is the baseline of
language models.
"""
