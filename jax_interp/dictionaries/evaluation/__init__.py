"""Figures of a dictionary.

evaluate.py         all of them, for a dictionary in a model
reconstruction.py   how well and how sparsely it reconstructs activations
sparsity.py         how often its latents fire; whether it is too sparse
downstream.py       the loss of the model with the dictionary spliced in
published.py        figures as other libraries define them
cross_layer.py      a cross-layer dictionary, layer by layer and as a replacement model
similarity.py       its directions against those of another dictionary
recovery.py         its latents against known features
controls.py         what a trained dictionary should be compared with
batch_sums.py       sums over batches in float64
"""
