"""Reading a model gives TransformerLens's numbers under TransformerLens's labels, on the same random weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import analysis
from jax_interp.models import load
from jax_interp.surgery import read

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity needs torch: `make parity`")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: `make parity`")
lens = pytest.importorskip("transformer_lens", reason="parity needs transformer-lens: `make parity`")

VOCAB, LAYERS, HEADS, WIDTH = 61, 3, 4, 32


def reference(family: str):
    """A model of transformers with weights large enough that attention is peaky, biases and norms included."""
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if family == "gpt2":
        config = transformers.GPT2Config(
            n_layer=LAYERS, n_embd=WIDTH, n_head=HEADS, n_inner=48, vocab_size=VOCAB, n_positions=32, **special
        )
        config._attn_implementation = "eager"
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            num_hidden_layers=LAYERS,
            hidden_size=WIDTH,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            intermediate_size=48,
            vocab_size=VOCAB,
            max_position_embeddings=32,
            tie_word_embeddings=False,
            **special,
        )
        config._attn_implementation = "eager"
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = "ln_" in name or "norm" in name
            p.copy_(1 + 0.3 * torch.randn_like(p) if norm and name.endswith("weight") else 0.2 * torch.randn_like(p))
    return model.eval()


def tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "t0")
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


class Pair:
    """One model in both libraries, and one forward pass of each with everything kept."""

    def __init__(self, family: str, processed: bool, folder):
        hf = reference(family)
        hf.save_pretrained(folder / "model")
        self.ours, _ = load(folder / "model")
        if processed:
            from jax_interp.models.processing import process

            self.ours = process(self.ours)
        from transformer_lens.model_bridge import TransformerBridge

        self.theirs = TransformerBridge.boot_transformers(
            family if family == "gpt2" else "meta-llama/Llama-2-7b-hf",
            hf_model=hf,
            tokenizer=tokenizer(folder / "tokenizer"),
            device="cpu",
        )
        self.theirs.enable_compatibility_mode(no_processing=not processed, disable_warnings=True)
        self.processed = processed
        words = np.random.default_rng(0).integers(1, VOCAB, (2, 6))
        self.tokens = np.concatenate([words, words], axis=1)
        with torch.no_grad():
            _, self.cache = self.theirs.run_with_cache(torch.tensor(self.tokens))
        names = analysis.needed(self.ours, *analysis.NEEDED)
        names = (*names, "blocks.1.ln1.scale", "blocks.1.ln2.scale", "blocks.1.resid_post", "blocks.0.resid_post")
        _, self.acts = jax.jit(lambda f, x: f(x))(read(self.ours, *names), jnp.asarray(self.tokens))


CASES = [(family, processed) for family in ("gpt2", "llama") for processed in (False, True)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{'processed' if case[1] else 'raw'}")
def pair(request, tmp_path_factory):
    return Pair(*request.param, tmp_path_factory.mktemp("pair"))


def close(ours, theirs, atol=2e-5):
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else np.asarray(theirs)
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=atol * max(1.0, np.abs(theirs).max()), rtol=0)


def same(parts, answer):
    theirs, labels = answer
    assert list(parts.labels) == list(labels)
    close(parts.values, theirs)


@pytest.mark.parametrize("options", [{}, {"incl_mid": True}, {"layer": 1, "incl_mid": True, "mlp_input": True}])
@pytest.mark.parametrize("apply_ln", [False, True])
def test_accumulated_resid(pair, options, apply_ln):
    if apply_ln and "layer" in options and not pair.processed:
        pytest.skip("TransformerLens leaves out a norm's weight where it holds the scale")
    theirs = pair.cache.accumulated_resid(**options, apply_ln=apply_ln, return_labels=True)
    same(analysis.accumulated_resid(pair.ours, pair.acts, **options, apply_ln=apply_ln), theirs)


@pytest.mark.parametrize("mode", ["all", "attn", "mlp"])
@pytest.mark.parametrize("options", [{}, {"layer": 1}, {"layer": 1, "mlp_input": True}, {"incl_embeds": False}])
def test_decompose_resid(pair, mode, options):
    theirs = pair.cache.decompose_resid(**options, mode=mode, return_labels=True)
    same(analysis.decompose_resid(pair.ours, pair.acts, **options, mode=mode), theirs)


@pytest.mark.parametrize("options", [{}, {"layer": 2}, {"incl_remainder": True}, {"layer": 1, "incl_remainder": True}])
def test_stack_head_results(pair, options):
    theirs = pair.cache.stack_head_results(**options, return_labels=True)
    same(analysis.stack_head_results(pair.ours, pair.acts, **options), theirs)


@pytest.mark.parametrize("options", [{"layer": 2}, {"layer": 3, "incl_remainder": True}])
def test_stack_neuron_results(pair, options):
    theirs = pair.cache.stack_neuron_results(**options, return_labels=True)
    same(analysis.stack_neuron_results(pair.ours, pair.acts, **options), theirs)


@pytest.mark.parametrize(
    "options",
    [{}, {"expand_neurons": False}, {"layer": 1}, {"layer": 1, "mlp_input": True}, {"layer": 0}, {"pos_slice": -1}],
)
def test_full_decomposition(pair, options):
    theirs = pair.cache.get_full_resid_decomposition(**options, return_labels=True)
    ours = {"pos" if name == "pos_slice" else name: value for name, value in options.items()}
    same(analysis.get_full_resid_decomposition(pair.ours, pair.acts, **ours), theirs)


@pytest.mark.parametrize("apply_ln", [False, True])
def test_full_decomposition_along_a_direction(pair, apply_ln):
    if apply_ln and not pair.processed:
        pytest.skip("TransformerLens leaves out the norm's weight")
    direction = np.random.default_rng(1).standard_normal(WIDTH).astype(np.float32)
    theirs = pair.cache.get_full_resid_decomposition(
        apply_ln=apply_ln, project_output_onto=torch.tensor(direction), return_labels=True
    )
    ours = analysis.get_full_resid_decomposition(pair.ours, pair.acts, apply_ln=apply_ln, onto=jnp.asarray(direction))
    same(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"layer": 1}, {"layer": 1, "mlp_input": True}])
def test_apply_ln_to_stack(pair, options):
    stack = analysis.decompose_resid(pair.ours, pair.acts)
    theirs = pair.cache.apply_ln_to_stack(torch.tensor(np.asarray(stack.values)), **options)
    ours = analysis.apply_ln_to_stack(pair.ours, pair.acts, stack, **options).values
    weight = analysis.norm_into(pair.ours, pair.acts, **options).weight
    close(ours, theirs.numpy() * (1 if weight is None else np.asarray(weight)))  # theirs takes it as folded


def test_logit_attributions(pair):
    if not pair.processed:
        pytest.skip("TransformerLens takes the final norm's weight as folded")
    stack = analysis.decompose_resid(pair.ours, pair.acts)
    theirs_stack = torch.tensor(np.asarray(stack.values))
    right, wrong = np.asarray([3, 7]), np.asarray([5, 11])
    for tokens, incorrect in ((3, None), (3, 5), (right, None), (right, wrong), (pair.tokens, None)):
        give = [None if t is None else t if isinstance(t, int) else torch.tensor(t) for t in (tokens, incorrect)]
        theirs = pair.cache.logit_attrs(theirs_stack, *give)
        take = [None if t is None else t if isinstance(t, int) else jnp.asarray(t) for t in (tokens, incorrect)]
        close(analysis.logit_attrs(pair.ours, pair.acts, stack, *take).values, theirs)


@pytest.mark.parametrize("unit", ["component", "head"])
def test_direct_logit_attribution(pair, unit):
    if not pair.processed:
        pytest.skip("TransformerLens refuses raw weights")
    from transformer_lens.tools.analysis import direct_logit_attribution

    theirs = direct_logit_attribution(
        pair.theirs, torch.tensor(pair.tokens), torch.tensor([3, 7]), torch.tensor([5, 11]), unit=unit
    )
    ours = analysis.direct_logit_attribution(pair.ours, pair.acts, jnp.asarray([3, 7]), jnp.asarray([5, 11]), unit=unit)
    for label, row in zip(theirs.labels, theirs.attribution, strict=True):
        if label != "remainder":
            close(ours[label], row)


def test_logit_lens(pair):
    theirs = pair.cache.logit_lens(positions=None)
    ours = analysis.logit_lens(pair.ours, pair.acts)
    assert list(ours.labels) == list(theirs.labels)
    close(ours.values, theirs.values)


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_composition_scores(pair, mode):
    theirs = pair.theirs.all_composition_scores(mode)
    close(analysis.all_composition_scores(pair.ours, mode), theirs.scores)


@pytest.mark.parametrize("name", ["W_E", "W_U", "b_U", "W_Q", "W_O", "W_in", "W_out", "b_O", "b_out"])
def test_weights_by_role(pair, name):
    try:
        theirs = getattr(pair.theirs, name)
    except AttributeError:
        pytest.skip(f"TransformerLens has no {name} of this model")
    if theirs is not None:
        close(getattr(analysis, name)(pair.ours), theirs)


def test_circuits_as_factored_matrices(pair):
    for ours, theirs in ((analysis.OV(pair.ours), pair.theirs.OV), (analysis.QK(pair.ours), pair.theirs.QK)):
        assert ours.shape == tuple(theirs.shape)
        close(ours.AB, theirs.AB)
        close(ours.S, theirs.S)
        close(ours.norm(), theirs.norm())
        close(ours.make_even().AB, theirs.make_even().AB)
        close(jnp.abs(ours.collapse_l()), theirs.collapse_l().abs(), atol=2e-4)
        close(jnp.abs(ours.collapse_r()), theirs.collapse_r().abs(), atol=2e-4)
        close(ours.get_corner(2), theirs.AB[:2, :2, :2, :2])
        close(np.sort(np.abs(ours.eigenvalues)), np.sort(theirs.eigenvalues.abs().detach().numpy()), atol=1e-4)
        close(ours[1, 2].AB, theirs[1, 2].AB)
        close(ours[:, 1, 3].AB, theirs[:, 1, 3].AB)
        close(ours[0, 0, 3, -1].AB, theirs[0, 0, 3, -1].AB)
        close(ours.T.AB, theirs.T.AB)
        x = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
        close((ours @ jnp.asarray(x)).AB, (theirs @ torch.tensor(x)).AB)
        close((jnp.asarray(x) @ ours).AB, (torch.tensor(x) @ theirs).AB)
        close(ours @ jnp.asarray(x[0]), theirs @ torch.tensor(x[0]))
        close(jnp.asarray(x[0]) @ ours[0, 0], torch.tensor(x[0]) @ theirs[0, 0])
        close((ours[0] @ ours[1]).AB, (theirs[0] @ theirs[1]).AB)


@pytest.mark.parametrize("name", ["previous_token_head", "duplicate_token_head", "induction_head", "custom"])
@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("exclude", [{}, {"exclude_bos": True, "exclude_current_token": True}])
def test_head_detectors(pair, name, measure, exclude):
    from transformer_lens.head_detector import detect_head

    text = " ".join(f"t{i}" for i in pair.tokens[0])
    tokens = pair.theirs.to_tokens(text).numpy()  # with BOS
    n = tokens.shape[1]
    wanted = name
    if name == "custom":
        wanted = np.tril(np.random.default_rng(0).random((n, n)) > 0.5).astype(np.float32)
    with torch.no_grad():
        theirs = detect_head(
            pair.theirs,
            text,
            wanted if name != "custom" else torch.tensor(wanted),
            error_measure=measure,
            **exclude,
        )
    acts = read(pair.ours, "blocks.*.attn.pattern", output=False)(jnp.asarray(tokens))
    ours = analysis.detect_head(
        acts, jnp.asarray(tokens), wanted if name != "custom" else jnp.asarray(wanted), error_measure=measure, **exclude
    )
    close(ours, theirs, atol=6e-4 if measure == "abs" else 2e-5)  # theirs rounds "abs" to three digits


@pytest.mark.parametrize("kind", ["OV", "w_in", "w_out"])
def test_singular_vectors(pair, kind):
    from transformer_lens import SVDInterpreter

    head = 2 if kind == "OV" else None
    theirs = SVDInterpreter(pair.theirs).get_singular_vectors(kind, 1, num_vectors=4, head_index=head)
    ours = analysis.singular_vectors(pair.ours, kind, 1, head, num_vectors=4)
    close(np.abs(np.asarray(ours.logits)), theirs[:, 0].T.abs(), atol=1e-4)  # signs mean nothing
