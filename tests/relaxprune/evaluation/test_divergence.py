"""KL divergence from the dense model against an independent computation, its invariants and its refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats

from relaxprune import DivergenceResult, PairedDifference, divergence, perplexity
from relaxprune.problems.errors import RelaxPruneError

TOKENS = torch.randint(64, (5, 17), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def pruned(tiny_llama):
    """The tiny llama without half of its weights."""
    model = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)) < 0.5)
        model.lm_head.weight.mul_(30)
    return model


def by_hand(model, dense, tokens):
    """Window means of KL(dense ‖ model) by scipy, in float64."""
    with torch.no_grad():
        logits, dense_logits = (each.double()(tokens).logits.numpy() for each in (model, dense))
    p, q = special.softmax(dense_logits, axis=-1), special.softmax(logits, axis=-1)
    return special.rel_entr(p, q).sum(-1).mean(-1).tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_equals_independent_computation_in_float64(tiny_llama, pruned, batch_size):
    expected = by_hand(pruned, tiny_llama, TOKENS)
    result = divergence(pruned, tiny_llama, TOKENS, batch_size=batch_size)
    assert result.window_means == pytest.approx(expected, rel=1e-9)
    assert result.mean == pytest.approx(sum(expected) / 5, rel=1e-9)
    assert result.standard_error == pytest.approx(stats.sem(expected), rel=1e-9)
    assert (result.windows, result.length) == (5, 17)
    assert f"KL {result.mean:.4f} ± {result.standard_error:.4f} nats a token (5 windows of 17 tokens)" == str(result)


def test_float32_is_close_to_float64_and_positions_are_summed_over_chunks(tiny_llama, pruned, monkeypatch):
    single = divergence(pruned, tiny_llama, TOKENS)
    monkeypatch.setattr("relaxprune.evaluation.passes._POSITIONS_AT_ONCE", 5)
    chunked = divergence(pruned, tiny_llama, TOKENS)
    assert chunked.window_means == pytest.approx(single.window_means, rel=1e-5)
    assert single.window_means == pytest.approx(by_hand(pruned, tiny_llama, TOKENS), rel=1e-4)


def test_perplexities_are_those_of_each_model_alone(tiny_llama, pruned):
    result = divergence(pruned, tiny_llama, TOKENS, batch_size=2)
    assert result.perplexity == perplexity(pruned, TOKENS, batch_size=2)
    assert result.dense_perplexity == perplexity(tiny_llama, TOKENS, batch_size=2)
    kept = result.to_dict()
    assert kept["perplexity"]["window_losses"] == list(result.perplexity.window_losses)
    assert kept["tokens_sha256"] == result.tokens_sha256 and kept["window_means"] == list(result.window_means)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_model_does_not_diverge_from_itself(tiny_llama, dtype):
    model = tiny_llama.to(dtype)
    result = divergence(model, copy.deepcopy(model), TOKENS, batch_size=2)
    assert set(result.window_means) == {0.0} and (result.mean, result.standard_error) == (0.0, 0.0)
    assert divergence(model, model, TOKENS).mean == 0.0


class Fixed(torch.nn.Module):
    """A model whose logits depend on the token alone."""

    def __init__(self, logits):
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(logits)
        self.config = type("Config", (), {})()

    def get_input_embeddings(self):
        return None

    def forward(self, input_ids, use_cache):
        return type("Output", (), {"logits": self.table(input_ids)})()


LOGITS = arrays("float32", (6, 6), elements=st.floats(-50, 50, width=32))


@settings(max_examples=60, deadline=None)
@given(LOGITS, LOGITS)
def test_it_is_never_negative_and_zero_only_for_the_same_distributions(one, other):
    model, dense = Fixed(torch.tensor(one)), Fixed(torch.tensor(other))
    tokens = torch.arange(6).repeat(2, 1)
    found = divergence(model, dense, tokens).mean
    p, q = (special.softmax(each.astype("float64"), axis=-1) for each in (other, one))
    exact = special.rel_entr(p, q).sum(-1).mean()
    assert found >= 0 and found == pytest.approx(exact, rel=1e-4, abs=1e-5)
    assert divergence(model.double(), dense.double(), tokens).mean == pytest.approx(exact, rel=1e-9, abs=1e-13)
    # Logits that differ by a constant are the same distribution.
    shifted = Fixed(torch.tensor(one + 1).double())
    assert divergence(shifted, model, tokens).mean == pytest.approx(0, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=2, max_size=30))
def test_a_paired_difference_is_that_of_a_t_test(pairs):
    first, second = zip(*pairs, strict=True)
    found, back = PairedDifference.of(first, second), PairedDifference.of(second, first)
    assert found.mean == pytest.approx(sum(first) / len(first) - sum(second) / len(second), abs=1e-12)
    assert found.standard_error == pytest.approx(stats.sem([one - other for one, other in pairs]), rel=1e-9, abs=1e-12)
    assert (back.mean, back.standard_error, back.windows) == (-found.mean, found.standard_error, len(pairs))


def test_a_paired_difference_needs_the_same_tokens(tiny_llama, pruned):
    result = divergence(pruned, tiny_llama, TOKENS)
    difference = result.minus(divergence(tiny_llama, tiny_llama, TOKENS))
    assert difference == PairedDifference(result.mean, result.standard_error, 5)
    assert str(difference) == f"{result.mean:.4f} ± {result.standard_error:.4f}"
    with pytest.raises(RelaxPruneError, match="same tokens"):
        result.minus(divergence(pruned, tiny_llama, TOKENS.flip(0)))
    with pytest.raises(RelaxPruneError, match="5 and 4"):
        PairedDifference.of(result.window_means, result.window_means[:4])


def test_a_single_window_has_no_standard_error(tiny_llama, pruned):
    result = divergence(pruned, tiny_llama, TOKENS[:1])
    assert result.standard_error is None and str(result).startswith(f"KL {result.mean:.4f} nats")
    assert result.minus(result) == PairedDifference(0.0, None, 1)


def test_models_of_different_dtypes(tiny_llama, pruned):
    exact = divergence(pruned, tiny_llama, TOKENS).mean
    assert divergence(copy.deepcopy(pruned).bfloat16(), tiny_llama, TOKENS).mean == pytest.approx(exact, rel=0.05)
    wide = divergence(pruned, copy.deepcopy(tiny_llama).double(), TOKENS)
    assert wide.mean == pytest.approx(exact, rel=1e-4)


def test_models_on_different_devices(tiny_llama, pruned, device):
    exact = divergence(pruned, tiny_llama, TOKENS).mean
    assert divergence(copy.deepcopy(pruned).to(device), tiny_llama, TOKENS).mean == pytest.approx(exact, rel=1e-3)
    assert divergence(pruned, tiny_llama.to(device), TOKENS).mean == pytest.approx(exact, rel=1e-3)


def test_flags_and_random_state_are_restored(tiny_llama, pruned):
    tiny_llama.train()
    before = torch.random.get_rng_state()
    divergence(pruned, tiny_llama, TOKENS)
    assert tiny_llama.training and not pruned.training
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("broken", ["model", "dense model"])
def test_logits_that_are_not_finite_name_the_model_and_the_window(tiny_llama, pruned, broken):
    chosen = pruned if broken == "model" else tiny_llama
    chosen.train()
    with torch.no_grad():
        chosen.model.embed_tokens.weight[7] = math.nan
    tokens = torch.ones(4, 6, dtype=torch.int64)
    tokens[2, 5] = 7  # the last position, which no loss sees
    with pytest.raises(RelaxPruneError, match=rf"^{broken} gives logits that are not finite in window 2"):
        divergence(pruned, tiny_llama, tokens)
    assert chosen.training


def test_models_of_other_vocabularies_are_refused(tiny_llama, pruned):
    pruned.resize_token_embeddings(70)
    with pytest.raises(RelaxPruneError, match=r"70 and 64.*resize_token_embeddings\(64\)"):
        divergence(pruned, tiny_llama, TOKENS)
    with pytest.raises(RelaxPruneError, match="6 and 5"):  # known from the logits only
        divergence(Fixed(torch.zeros(6, 6)), Fixed(torch.zeros(6, 5)), torch.zeros(1, 4, dtype=torch.int64))


def test_the_result_is_public():
    import relaxprune.evaluation

    assert relaxprune.evaluation.DivergenceResult is DivergenceResult
    assert relaxprune.evaluation.PairedDifference is PairedDifference
