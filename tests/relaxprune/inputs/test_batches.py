"""Batches are read from tensors and mappings, and run without a cache."""

from __future__ import annotations

import pytest
import torch

from relaxprune.inputs.batches import read_batches, run_model
from relaxprune.models.forward import borrowed
from relaxprune.problems import RelaxPruneError

from ..tiny_models import padded_batches, tiny_model


def test_tokens_and_mappings():
    ids = torch.arange(6)
    one, two, three = read_batches(iter([ids, ids.view(2, 3), {"input_ids": ids.view(1, 6), "use_cache": True}]))
    assert one.args[0].shape == (1, 6) and two.args[0].shape == (2, 3)
    assert list(three.kwargs) == ["input_ids"]
    assert read_batches([torch.ones(4)])[0].args[0].shape == (4,)


def test_padding_is_read_from_the_mask():
    batches = read_batches(padded_batches())
    assert batches[0].kept is None
    assert int((~batches[1].kept).sum()) == 3


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "at least one batch"),
        ("some text", "iterable of tensors or mappings, got one str"),
        ({"input_ids": 1}, "got one dict"),
        (3, "got one int"),
        (torch.zeros(2, 3, 8, 8), "got one Tensor"),
        ([["a"]], "got a list at index 0"),
        ([{"attention_mask": torch.ones(1, 1, 3, 3)}], r"\(batch, tokens\), got \(1, 1, 3, 3\) in batch 0"),
    ],
)
def test_other_batches_are_refused(batches, words):
    with pytest.raises(RelaxPruneError, match=words):
        read_batches(batches)


def test_cache_is_not_asked_for():
    model = tiny_model("llama")
    with borrowed(model):
        assert run_model(model, read_batches(padded_batches())[0]).past_key_values is None
