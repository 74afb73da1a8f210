"""Benchmarks of dictionaries: what its latents are good for, beside baselines, with intervals.

No measure needs a language model as a judge. Each figure is printed beside a random dictionary, principal components
and raw values, because these come close to trained dictionaries on several of them (Korznikov et al. 2026).

measure.py             an estimate with its interval; a measure of all coders; tables and JSON
baselines.py           the coders that a dictionary is compared with
pooled.py              one vector of latents for each text, streamed
probing.py             k-sparse probing: can a few latents tell two classes of texts apart?
first_letters.py       words of a vocabulary in prompts about their first letter
absorption.py          feature absorption and splitting
concept_ablation.py    targeted probe perturbation (TPP) and spurious correlation removal (SCR)
description_length.py  the bits of a quantised code (MDL)
unlearning.py          how selectively clamped latents take an ability away
"""
