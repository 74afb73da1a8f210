"""RAVEL: do some latents hold one attribute of an entity, and nothing else? (Huang et al. 2024; SAEBench.)

    table = EntityTable.read("ravel_city_entity_attributes.json", "ravel_city_attribute_to_prompts.json")
    prompts = known_prompts(model, entity_prompts(table, tokenizer))     what the model answers rightly
    result = ravel(model, "blocks.5.resid_post", compare(key, sae, rows), prompts)
    result.measures()                                                    cause, isolation, disentangle, by coder

table.py    entities and attributes as a table of yours, and their prompts as tokens
pairs.py    pairs of a base and a source prompt, and what the model should answer
masks.py    which latents are exchanged: a learned mask, or those that separate the values
ravel.py    cause and isolation of a dictionary and of its baselines
"""

from jax_interp.dictionaries.evaluation.ravel.masks import MaskConfig, interchange, separation, train_mask
from jax_interp.dictionaries.evaluation.ravel.pairs import Pairs, known_prompts, make_pairs
from jax_interp.dictionaries.evaluation.ravel.ravel import AttributeScore, RavelConfig, RavelResult, ravel
from jax_interp.dictionaries.evaluation.ravel.table import EntityPrompt, EntityTable, entity_prompts

__all__ = [
    "AttributeScore",
    "EntityPrompt",
    "EntityTable",
    "MaskConfig",
    "Pairs",
    "RavelConfig",
    "RavelResult",
    "entity_prompts",
    "interchange",
    "known_prompts",
    "make_pairs",
    "ravel",
    "separation",
    "train_mask",
]
