"""The Gram accumulator: one mean over tokens, however they are split, and nothing else in it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune.inputs import gram_accumulator as gram_module
from relaxprune.inputs.gram_accumulator import GramAccumulator, exact_matmul
from relaxprune.problems import RelaxPruneError


def accumulated(parts, **options):
    accumulator = GramAccumulator(parts[0].shape[-1])
    for part in parts:
        accumulator.add(part, **options)
    return accumulator.gram()


def scaled_difference(one, other):
    """Largest difference, relative to the root of the diagonals' product."""
    root = other.double().diagonal().sqrt()
    return ((one.double() - other.double()).abs() / (root[:, None] * root)).max().item()


def test_mean_over_tokens_in_float64():
    inputs = torch.randn(3, 5, 7, dtype=torch.float64)
    gram = accumulated(list(inputs))
    tokens = inputs.reshape(-1, 7)
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram, tokens.T @ tokens / 15, rtol=1e-14, atol=0)
    assert torch.equal(gram, gram.T)


@given(splits=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 10))
def test_split_of_batches_does_not_matter(splits, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(sum(splits), 24, generator=generator) * torch.logspace(-3, 3, 24) + 1
    whole, split = accumulated([tokens]), accumulated(list(tokens.split(splits)))
    assert scaled_difference(split, whole) < 1e-6


def test_long_splits_agree_with_float64(device):
    tokens = torch.randn(6000, 64, device=device) * torch.logspace(-3, 3, 64, device=device)
    exact = tokens.double().T @ tokens.double() / 6000
    for size in (6000, 1024, 700, 64):
        accumulator = GramAccumulator(64, device)
        for part in tokens.split(size):
            accumulator.add(part)
        assert scaled_difference(accumulator.gram(), exact) < 1e-6


def test_chunks_bound_the_product(monkeypatch):
    tokens = torch.randn(50, 8)
    whole = accumulated([tokens])
    monkeypatch.setattr(gram_module, "CHUNK_TOKENS", 7)
    assert scaled_difference(accumulated([tokens]), whole) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_in_float32(dtype):
    inputs = torch.randn(64, 16).to(dtype)
    gram = accumulated([inputs])
    assert gram.dtype == torch.float32
    exact = inputs.double().T @ inputs.double() / 64
    assert scaled_difference(gram, exact) < 1e-6


def test_autocast_and_reduced_precision_do_not_reach_the_product():
    inputs = torch.randn(64, 16)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gram = accumulated([inputs])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert scaled_difference(gram, inputs.double().T @ inputs.double() / 64) < 1e-6


def test_precision_is_restored_after_an_exception():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), exact_matmul(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "highest"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


def test_padding_never_counts():
    inputs = torch.randn(2, 4, 6)
    kept = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    poisoned = inputs.clone()
    poisoned[~kept] = torch.nan  # attention may put anything there
    expected = accumulated([inputs[kept]])
    for shaped in (poisoned, poisoned.reshape(8, 6)):
        accumulator = GramAccumulator(6)
        accumulator.add(shaped, kept=kept)
        assert accumulator.tokens == 4
        assert torch.equal(accumulator.gram(), expected)


def test_padding_with_heads_and_pooled_inputs():
    kept = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    heads = GramAccumulator(4)
    heads.add(torch.randn(2, 3, 5, 4), kept=kept)
    assert heads.tokens == 3 * 5
    pooled = GramAccumulator(4)
    pooled.add(torch.randn(2, 4), kept=kept)
    assert pooled.tokens == 2


def test_padding_that_cannot_be_matched_is_refused():
    kept = torch.tensor([[1, 1, 0]], dtype=torch.bool)
    with pytest.raises(RelaxPruneError, match=r"'up'.*batch 3.*attention mask of shape \(1, 3\)"):
        GramAccumulator(4).add(torch.randn(7, 4), kept=kept, layer="up", batch=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_name_layer_and_batch(value):
    inputs = torch.randn(2, 3, 4)
    inputs[1, 2, 3] = value
    with pytest.raises(RelaxPruneError, match=r"layer 'blocks.0.q' in batch 5 contain NaN or Inf"):
        GramAccumulator(4).add(inputs, layer="blocks.0.q", batch=5)


def test_overflowing_squares_are_refused():
    with pytest.raises(RelaxPruneError, match="overflow when squared"):
        GramAccumulator(2).add(torch.full((3, 2), 1e30), layer="x")


def test_one_token_is_one_token():
    accumulator = GramAccumulator(3)
    for inputs in (torch.ones(1, 1, 3), torch.ones(1, 3), torch.ones(3), torch.ones(1, 1, 1, 3)):
        accumulator.add(inputs)
    assert accumulator.tokens == 4
    assert torch.equal(accumulator.gram(), torch.ones(3, 3))


def test_no_token_is_no_gram():
    accumulator = GramAccumulator(3)
    accumulator.add(torch.ones(1, 2, 3), kept=torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(RelaxPruneError, match="at least one token"):
        accumulator.gram()


@pytest.mark.parametrize("inputs", [torch.ones(4, 5), torch.ones(4, 3, dtype=torch.int64), torch.tensor(1.0)])
def test_wrong_inputs_are_refused(inputs):
    with pytest.raises(RelaxPruneError, match="3 features"):
        GramAccumulator(3).add(inputs)


@pytest.mark.parametrize("features", [0, "x", 2.5])
def test_features_must_be_positive(features):
    with pytest.raises(RelaxPruneError, match="features"):
        GramAccumulator(features)


def test_dead_features_are_exact_zeros():
    inputs = torch.randn(10, 4)
    inputs[:, 1] = 0
    inputs[:, 2] = 1e-25  # its square is below the normal range of float32
    gram = accumulated([inputs])
    assert not gram[1].any() and not gram[:, 2].any() and bool(gram[0, 3] != 0)


def test_clone_is_independent():
    one = GramAccumulator(2)
    one.add(torch.ones(1, 2))
    other = one.clone()
    other.add(3 * torch.ones(1, 2))
    assert (one.tokens, other.tokens) == (1, 2)
    assert torch.equal(one.gram(), torch.ones(2, 2))
    assert torch.equal(other.gram(), 5 * torch.ones(2, 2))


@pytest.mark.parametrize("scale", [1e-16, 1e-20, 1e-30, 1e-40])
def test_faint_inputs_have_a_gram_in_float64(scale):
    inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * scale
    accumulator = GramAccumulator(6)
    accumulator.add(inputs)
    exact = inputs.double().T @ inputs.double() / 50
    assert accumulator.gram().dtype == torch.float64
    torch.testing.assert_close(accumulator.gram() / scale**2, exact / scale**2, rtol=1e-12, atol=1e-12)


def test_inputs_whose_squares_are_all_zero_are_refused():
    accumulator = GramAccumulator(3)
    accumulator.add(torch.full((4, 3), 1e-170, dtype=torch.float64))
    with pytest.raises(RelaxPruneError, match="inputs must have squares in float64, got none above 1e-170"):
        accumulator.gram()
    accumulator.add(torch.zeros(4, 3))
    still = GramAccumulator(3)
    still.add(torch.zeros(4, 3))
    assert not still.gram().any()
