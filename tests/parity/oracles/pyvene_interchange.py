"""Interchange interventions of pyvene in a small random GPT-2: FOLDER/model, FOLDER/cases.npz.

python pyvene_interchange.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import pyvene
import torch
from transformers import GPT2Config, GPT2LMHeadModel

D, LAYER, HEADS = 24, 1, 4
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_layer=3, n_embd=D, n_head=HEADS, n_positions=32)).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))

rng = np.random.default_rng(0)
base, source = (torch.tensor(rng.integers(0, 61, (5, 9))) for _ in range(2))
one = [[int(rng.integers(9))] for _ in range(5)], [[int(rng.integers(9))] for _ in range(5)]
two = [rng.permutation(9)[:2].tolist() for _ in range(5)], [rng.permutation(9)[:2].tolist() for _ in range(5)]
found = {"base": base.numpy(), "source": source.numpy()}


def run(name, component, kind, places, prepare=None, subspaces=None, unit="pos", **options):
    settings = {"layer": LAYER, "component": component, "unit": unit, "intervention_type": kind, **options}
    intervenable = pyvene.IntervenableModel(pyvene.IntervenableConfig([settings]), model)
    intervention = next(iter(intervenable.interventions.values()))
    intervention = intervention[0] if isinstance(intervention, (list, tuple)) else intervention
    with torch.no_grad():
        if prepare:
            found.update({f"{name}.{key}": value for key, value in prepare(intervention).items()})
        locations = {"sources->base": ([places[0]], [places[1]])}
        given = {} if subspaces is None else {"subspaces": [subspaces]}
        _, output = intervenable({"input_ids": base}, [{"input_ids": source}], locations, **given)
    found[f"{name}.logits"] = output.logits.numpy()
    found[f"{name}.source_pos"], found[f"{name}.base_pos"] = (np.array(place) for place in places)


def rotation(intervention):
    return {"basis": intervention.rotate_layer.weight.detach().numpy()}


def boundary(intervention):
    intervention.set_temperature(torch.tensor(2.0))
    j = np.arange(D)
    mask = 1 / (1 + np.exp(-j / 2.0)) / (1 + np.exp(-(0.5 * D - j) / 2.0))  # its formula, with b = 0.5
    return {"basis": intervention.rotate_layer.weight.detach().numpy(), "mask": mask.astype(np.float32)}


def neurons(intervention):
    intervention.mask.copy_(torch.linspace(-0.05, 0.05, D))
    return {"mask": torch.sigmoid(intervention.mask / 0.01).numpy()}


run("whole", "block_output", pyvene.VanillaIntervention, one)
run("whole of two positions", "block_output", pyvene.VanillaIntervention, two)
run("low rank", "block_output", pyvene.LowRankRotatedSpaceIntervention, one, rotation, low_rank_dimension=3)
run("rotation", "mlp_output", pyvene.RotatedSpaceIntervention, one, rotation, subspaces=[[0, 1, 2, 3]] * 5)
run("boundless", "block_output", pyvene.BoundlessRotatedSpaceIntervention, one, boundary)
run("neurons", "attention_output", pyvene.SigmoidMaskIntervention, one, neurons)

folder = Path(sys.argv[1])
model.save_pretrained(folder / "model")
np.savez(folder / "cases.npz", **found)
