"""Interventions of pyreft in a small random GPT-2, and a few steps of AdamW: FOLDER/model, FOLDER/cases.npz.

python pyreft_interventions.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import pyreft
import torch
from transformers import GPT2Config, GPT2LMHeadModel, get_scheduler

D, LAYER, RANK, STEPS = 24, 1, 3, 4
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_layer=3, n_embd=D, n_head=4, n_positions=32)).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
for parameter in model.parameters():
    parameter.requires_grad = False

rng = np.random.default_rng(0)
tokens = torch.tensor(rng.integers(0, 61, (4, 9)))
places = [[list(range(1, 9))] * len(tokens)]  # every position but the first
found = {"tokens": tokens.numpy()}


def weights(intervention):
    if hasattr(intervention, "proj_layer"):
        rows = intervention.proj_layer.weight
    else:
        rows = intervention.rotate_layer.weight.T
    source = intervention.learned_source
    return {"rows": rows, "weight": source.weight, "bias": source.bias}


for name in ("Loreft", "Direft", "Noreft", "Nodireft"):
    kind = getattr(pyreft, f"{name}Intervention")
    made = kind(embed_dim=D, low_rank_dimension=RANK, dtype=torch.float32, add_bias=False)
    config = pyreft.ReftConfig(
        representations=[
            {"layer": LAYER, "component": "block_output", "low_rank_dimension": RANK, "intervention": made}
        ]
    )
    reft = pyreft.get_reft_model(model, config, set_device=False)

    def logits(reft=reft):
        return reft({"input_ids": tokens}, unit_locations={"sources->base": (None, places)})[1].logits

    found |= {f"{name}.{key}": value.detach().clone().numpy() for key, value in weights(made).items()}
    found[f"{name}.logits"] = logits().detach().numpy()
    if name not in ("Noreft", "Nodireft"):  # the others are trained under another parametrisation than ours
        continue
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.01, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer=optimizer, num_warmup_steps=0, num_training_steps=STEPS)
    losses = []
    for _ in range(STEPS):
        predicted, targets = logits()[:, 3:-1], tokens[:, 4:]  # the first four tokens are the prompt
        loss = torch.nn.functional.cross_entropy(predicted.reshape(-1, 61), targets.reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    found[f"{name}.losses"] = np.array(losses)
    found |= {f"{name}.trained.{key}": value.detach().clone().numpy() for key, value in weights(made).items()}

folder = Path(sys.argv[1])
model.save_pretrained(folder / "model")
np.savez(folder / "cases.npz", **found)
