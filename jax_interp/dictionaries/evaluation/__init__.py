"""What a dictionary is worth.

evaluate.py                     all of it, one pass over the text
reconstruction.py, density.py   how well and how sparsely it reconstructs; how often its latents fire
downstream.py                   what splicing it in costs the model
similarity.py, detection.py     against other dictionaries, and against features that are known
controls.py                     what it must beat, and what it cannot
cross_layer.py                  layer by layer, and as the model that runs on it
latent_scaling.py, hedging.py   whose features they are; whether there are too few
published.py                    figures as other libraries define them
"""
