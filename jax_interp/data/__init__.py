"""Text, tokenizers, batches of tokens, and activations in streams and stores.

`stdlib` is a text corpus that exists on every machine, `text` reads a user's own text, and `tokenizer` is byte-level
BPE with an explicit BOS. `token_store` stores tokens on disk, `batches` cuts them into windows, and `prepared` converts
a corpus into token stores. `harvest` streams shuffled activations, and `activation_store` stores activations on disk.
`ngram` is a baseline for language models.
"""
