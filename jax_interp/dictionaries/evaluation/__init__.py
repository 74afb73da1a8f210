"""Figures of a dictionary.

evaluate.py         all of them, for a dictionary in a model
reconstruction.py   how well and how sparsely it reconstructs activations
sparsity.py         how often its latents fire; whether it is too sparse
downstream.py       the loss of the model with the dictionary spliced in
published.py        figures by the definitions of other libraries
cross_layer.py      figures of a cross-layer dictionary, by layer and for its replacement model
similarity.py       cosines between the directions of two dictionaries
recovery.py         comparison with known features
controls.py         controls to compare a trained dictionary with
batch_sums.py       sums over batches in float64
benchmarks/         what latents are good for: probing, absorption, ablation of concepts, unlearning, bits
evolution/          which features persist across layers or through training, are born, and die
ravel/              whether some latents hold one attribute of an entity and no other
"""
