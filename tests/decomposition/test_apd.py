"""APD's losses against the same equations written out for a toy model of superposition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from tiny_tms import TIED, pentagon, sparse

from jax_interp.decomposition.apd import APDConfig, attributions, batch_top_k, component_masks
from jax_interp.decomposition.apd.train import losses, start
from jax_interp.decomposition.components import Components, Decomposed
from jax_interp.decomposition.masks import Mask, masked_output
from jax_interp.models.toys.resid_mlp import ResidMLPConfig, init_resid_mlp

TOP_K = 0.211


def written_out(config, A, B, x, W, b):
    """Braun et al. 2025 for `relu(x W Wᵀ + b)`, whose two matrices share `P_c = A_c B_c`: scores of components, their
    top k of the batch, and the three losses."""
    P = jnp.einsum("cfm,cmd->cfd", A, B)
    pre = x @ W @ W.T + b[None]
    slope = (pre > 0).astype(jnp.float32)
    first = jnp.einsum("bf,cfd,od->bco", x, P, W)  # what P_c in the place of W contributes to output o
    second = jnp.einsum("bf,fd,cod->bco", x, W, P)  # in the place of Wᵀ
    scores = jnp.sum((slope[:, None, :] * (first + second)) ** 2, axis=-1)
    least = jnp.sort(scores.reshape(-1))[-int(TOP_K * len(x))]
    mask = jax.lax.stop_gradient((scores >= least).astype(jnp.float32))
    kept = jnp.einsum("bc,cfd->bfd", mask, P)
    y = jax.nn.relu(jnp.einsum("bf,bfd,bod->bo", x, kept, kept) + b[None])
    size = jnp.einsum("cfm,cfm->cm", A, A) * jnp.einsum("cmd,cmd->cm", B, B)
    found = {
        "parameter_match": jnp.mean((W - P.sum(0)) ** 2),
        "top_k_reconstruction": jnp.mean((y - jax.nn.relu(pre)) ** 2),
        "simplicity": jnp.einsum("bc,cm->", mask, jnp.sqrt(size + 1e-16)) / (len(x) * W.size),
    }
    total = found["parameter_match"] + found["top_k_reconstruction"] + config.simplicity * found["simplicity"]
    return total, (found, scores, mask)


def test_losses_and_gradients_are_the_equations():
    """Scores, mask, each loss and the gradient; float32, so up to its rounding."""
    model, config = pentagon(), APDConfig(tied=TIED, top_k=TOP_K)
    x = sparse(jax.random.key(5), 512)
    pair = start(config, model, seed=3).components["linear1"]
    A, B = pair.V.reshape(5, config.C, config.rank).transpose(1, 0, 2), pair.U.reshape(config.C, config.rank, 2)
    (total, (found, scores, mask)), expected = jax.value_and_grad(
        lambda A, B: written_out(config, A, B, x, model.linear1.weight, model.linear2.bias), (0, 1), has_aux=True
    )(A, B)
    decomposed = Decomposed(model, {"linear1": pair}, TIED)
    got = attributions(decomposed, config.rank, x)
    np.testing.assert_allclose(got, scores, rtol=1e-4, atol=1e-6)
    assert (np.asarray(batch_top_k(got, TOP_K)) == np.asarray(mask)).all()

    (loss, metrics), grads = jax.value_and_grad(
        lambda pair: losses(config, Decomposed(model, {"linear1": pair}, TIED), x), has_aux=True
    )(pair)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    for name, value in found.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    flat = Components(expected[0].transpose(1, 0, 2).reshape(5, -1), expected[1].reshape(-1, 2))
    np.testing.assert_allclose(grads.V, flat.V, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads.U, flat.U, rtol=1e-4, atol=1e-6)


def test_components_start_xavier_normal():
    """A_c `[5, 3]` and B_c `[3, 2]` with deviation √(2 / (d_in + d_out)) each; of many components, to 3 %."""
    config = APDConfig(tied=TIED, C=400)
    pair = start(config, pentagon()).components["linear1"]
    assert np.isclose(float(pair.V.std()), (2 / 8) ** 0.5, rtol=0.03)
    assert np.isclose(float(pair.U.std()), (2 / 5) ** 0.5, rtol=0.03)


def test_attributions_are_slopes_of_the_output():
    """`A_c = Σ_o (∂f_o / ∂m_c)²` at the target, m_c the mask of component c in every matrix and Δ kept: of a tied
    toy, and of two layers in a stack."""
    layers = init_resid_mlp(jax.random.key(0), ResidMLPConfig(4, 6, n_layers=2, d_mlp=3))
    for model, config in (
        (pentagon(), APDConfig(tied=TIED)),
        (layers, APDConfig(("blocks.*.mlp",), C=3, rank=2)),
    ):
        parts = Decomposed(model, start(config, model, seed=1).components, config.tied)
        x = sparse(jax.random.key(2), 16, n=5 if config.tied else 4, p=0.5)

        def output(m, parts=parts, config=config, x=x):
            masks = component_masks(parts, jnp.broadcast_to(m, (len(x), config.C)), config.rank)
            whole = {n: Mask(mask.components, jnp.ones((*mask.components.shape[:-1], 1))) for n, mask in masks.items()}
            return masked_output(parts, whole, x)

        slopes = jax.jit(jax.jacfwd(output))(jnp.ones(config.C))
        got = jax.jit(attributions, static_argnums=1)(parts, config.rank, x)
        np.testing.assert_allclose(got, np.sum(np.square(slopes), axis=1), rtol=1e-4, atol=1e-6)
