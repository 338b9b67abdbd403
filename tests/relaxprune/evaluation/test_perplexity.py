"""Perplexity against an independent computation, and what it leaves untouched."""

from __future__ import annotations

import math

import pytest
import torch

from relaxprune.evaluation.perplexity import perplexity
from relaxprune.problems.errors import RelaxPruneError


def by_hand(model, tokens):
    """exp of the mean of window means, from log-probabilities gathered one by one."""
    means = []
    for window in tokens:
        with torch.no_grad():
            logits = model(window[None]).logits[0]
        terms = []
        for position in range(len(window) - 1):
            row = logits[position]
            terms.append(float(torch.logsumexp(row, 0) - row[window[position + 1]]))
        means.append(sum(terms) / len(terms))
    return math.exp(sum(means) / len(means))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_equals_independent_computation_in_float64(tiny_llama, batch_size):
    model = tiny_llama.double()
    tokens = torch.randint(64, (5, 17))
    result = perplexity(model, tokens, batch_size=batch_size)
    assert result.perplexity == pytest.approx(by_hand(model, tokens), rel=1e-12)
    assert (result.windows, result.length, len(result.window_losses)) == (5, 17, 5)
    assert "5 windows of 17 tokens" in str(result)
    assert result.to_dict()["length"] == 17


def test_positions_are_summed_over_chunks(tiny_llama, monkeypatch):
    model = tiny_llama.double()
    tokens = torch.randint(64, (2, 33))
    whole = perplexity(model, tokens).perplexity
    monkeypatch.setattr("relaxprune.evaluation.passes._POSITIONS_AT_ONCE", 5)
    assert perplexity(model, tokens).perplexity == pytest.approx(whole, rel=1e-13)


def test_uniform_model_has_the_vocabulary_as_perplexity(tiny_llama):
    torch.nn.init.zeros_(tiny_llama.lm_head.weight)
    assert perplexity(tiny_llama, torch.randint(64, (3, 9))).perplexity == pytest.approx(64, rel=1e-5)


def test_mean_of_window_means_in_bfloat16(tiny_llama):
    result = perplexity(tiny_llama.bfloat16(), torch.randint(64, (4, 12)))
    assert result.mean_loss == pytest.approx(sum(result.window_losses) / 4)
    assert result.perplexity == pytest.approx(math.exp(result.mean_loss))


def test_flags_cache_setting_and_random_state_are_restored(tiny_llama):
    tiny_llama.train()
    tiny_llama.model.layers[0].eval()
    tiny_llama.config.use_cache = True
    before = torch.random.get_rng_state()
    perplexity(tiny_llama, torch.randint(64, (2, 8), generator=torch.Generator().manual_seed(1)))
    assert tiny_llama.training and not tiny_llama.model.layers[0].mlp.training and tiny_llama.model.layers[1].training
    assert tiny_llama.config.use_cache is True
    assert torch.equal(torch.random.get_rng_state(), before)


def test_non_finite_loss_names_the_window_and_restores_the_flags(tiny_llama):
    tiny_llama.train()
    with torch.no_grad():
        tiny_llama.model.embed_tokens.weight[7] = float("nan")
    tokens = torch.ones(4, 6, dtype=torch.int64)
    tokens[2, 3] = 7
    with pytest.raises(RelaxPruneError, match="nan in window 2"):
        perplexity(tiny_llama, tokens)
    assert tiny_llama.training


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.ones(2, 65, dtype=torch.int64), "64 positions"),
        (torch.full((2, 4), 64), "0 to 63"),
        (torch.full((2, 4), -1), "0 to 63"),
        (torch.ones(8, dtype=torch.int64), "shape"),
        (torch.ones(0, 8, dtype=torch.int64), "shape"),
        (torch.ones(2, 1, dtype=torch.int64), "at least 2"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tiny_llama, tokens, message):
    with pytest.raises(RelaxPruneError, match=message):
        perplexity(tiny_llama, tokens)


def test_float_tokens_and_empty_batches_are_refused(tiny_llama):
    with pytest.raises(RelaxPruneError, match="integer tensor"):
        perplexity(tiny_llama, torch.ones(2, 4))
    with pytest.raises(RelaxPruneError, match="batch_size"):
        perplexity(tiny_llama, torch.ones(2, 4, dtype=torch.int64), batch_size=0)


def test_runs_where_the_model_is(tiny_llama, device):
    tokens = torch.randint(64, (2, 16))
    expected = perplexity(tiny_llama, tokens).perplexity
    assert perplexity(tiny_llama.to(device), tokens).perplexity == pytest.approx(expected, rel=1e-3)
