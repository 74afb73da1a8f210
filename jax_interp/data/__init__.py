"""Text, tokenizers, token stores, batches as a function of the step, a shuffle buffer. Knows no method.

`stdlib` the corpus that is on every machine; `tokenizer` byte-level BPE with BOS explicit; `batches` token stores and
which windows a step sees; `prepared` the way from text to tokens on disk; `ngram` the baseline; `buffer` shuffling on
the device.
"""
