"""Padding is read from one kind of mask, wherever it lies, and everything else is refused in a sentence."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from relaxprune.inputs.batches import read_batches
from relaxprune.inputs.token_streams import token_streams
from relaxprune.models.forward import borrowed
from relaxprune.models.layers import find_layers
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.pipeline import prune_model

from ..tiny_models import tiny_model

IDS = torch.arange(3, 11).view(2, 4)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float32])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_mask_is_found_at_any_depth_and_in_any_dtype(dtype, depth):
    batch: dict[str, object] = {"input_ids": IDS, "attention_mask": MASK.to(dtype)}
    for level in range(depth):
        batch = {f"level {level}": batch, "other": 3}
    kept = read_batches([batch])[0].kept
    assert kept is not None and torch.equal(kept, MASK > 0)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"attention_mask": (MASK - 1) * 1e9}, "got an additive one, 0 for tokens in batch 0"),
        ({"attention_mask": torch.where(MASK > 0, 0.0, -torch.inf)}, "got an additive one"),
        ({"attention_mask": torch.tensor([[1, 1, 2, 2]])}, "got other numbers"),
        ({"attention_mask": MASK * 0.5}, "got other numbers"),
        ({"attention_mask": MASK * torch.nan}, "got other numbers"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 6)}, r"shape of input_ids, \(2, 4\), got \(2, 6\)"),
        ({"a": {"attention_mask": MASK}, "b": {"attention_mask": MASK}}, "must hold one attention_mask, got two"),
        ({"src_key_padding_mask": MASK == 0}, "src_key_padding_mask in batch 0 says it in another way"),
        ({"x": {"padding_mask": MASK == 0}}, "padding_mask in batch 0"),
        ({"mask": MASK}, "mask in batch 0"),
        ({"pixel_mask": torch.tril(torch.ones(1, 3, 3))}, "pixel_mask in batch 0"),
        ({"encoder_attention_mask": MASK}, "encoder_attention_mask in batch 0"),
        ({"input_ids": IDS, "attention_mask": MASK * 0}, "0 everywhere"),
    ],
)
def test_other_masks_are_refused(batch, words):
    with pytest.raises(RelaxPruneError, match=words) as caught:
        read_batches([batch])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["loss_mask", "special_tokens_mask", "global_attention_mask", "labels"])
def test_masks_that_mark_no_padding_are_passed_on(name):
    assert read_batches([{"input_ids": IDS, name: MASK}])[0].kept is None
    assert read_batches([{"input_ids": IDS, "key_padding_mask": MASK * 0}])[0].kept is None


class Torch(nn.Module):
    """A model of torch's own layers, in which True marks padding, that has its mask under transformers' name."""

    def __init__(self, invert: bool) -> None:
        super().__init__()
        self.embedding, self.invert = nn.Embedding(16, 8), invert
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))

    def forward(self, input_ids, attention_mask):
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x, None, attention_mask == 0 if self.invert else attention_mask)
        return x


def test_a_mask_that_the_model_reads_the_other_way_around_is_refused():
    batch = {"input_ids": IDS, "attention_mask": MASK > 0}
    with pytest.raises(RelaxPruneError, match="src_key_padding_mask marks other positions"):
        prune_model(Torch(invert=False), [batch], sparsity=0.5, solver="wanda")
    report = prune_model(Torch(invert=True), [batch], sparsity=0.5, solver="wanda")
    assert {layer.inputs.tokens for layer in report.layers} == {6}


def longformer() -> nn.Module:
    config = transformers.LongformerConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        attention_window=8, max_position_embeddings=80, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LongformerForMaskedLM(config).eval()


@pytest.mark.parametrize("masked", [False, True])
def test_a_model_that_pads_by_itself_is_refused(masked):
    ids = torch.randint(3, 64, (2, 10))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if masked else ids
    with pytest.raises(RelaxPruneError, match=r"pads 10 tokens to 16 .* give windows of 16 tokens"):
        prune_model(longformer(), [batch], sparsity=0.5, solver="wanda")
    report = prune_model(longformer(), [torch.randint(3, 64, (2, 16))], sparsity=0.5, solver="wanda")
    assert {layer.inputs.tokens for layer in report.layers} == {32}


def test_windows_and_tokens_exchanged_are_refused_also_where_they_are_as_many():
    ids = torch.randint(3, 64, (16, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[3, 12:] = 0
    with pytest.raises(RelaxPruneError, match=r"attention mask of shape \(16, 16\), and not in its order"):
        prune_model(longformer(), [{"input_ids": ids, "attention_mask": mask}], sparsity=0.5, solver="wanda")


class TwoStreams(nn.Module):
    """Tokens with padding, and as many patches without."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.tokens, self.patches = nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, input_ids, attention_mask, image):
        return self.tokens(self.embedding(input_ids)) + self.patches(image)


def test_another_stream_of_the_same_shape_has_no_padding():
    batch = {"input_ids": IDS, "attention_mask": MASK, "image": torch.zeros(2, 4, 8)}
    model = TwoStreams()
    batch["image"][:, :, 0] = 1  # flags, which no change of a window touches
    report = prune_model(model, [batch], sparsity=0.5, solver="wanda")
    assert {layer.name: layer.inputs.tokens for layer in report.layers} == {"tokens": 6, "patches": 8}


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "qwen3_moe", "opt"])
def test_families_read_one_stream(family):
    model = tiny_model(family)
    ids = torch.randint(3, 60, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :2] = mask[2, 4:] = 0
    batches = read_batches([{"input_ids": ids, "attention_mask": mask}])
    with borrowed(model):
        streams = token_streams(model, find_layers(model)[0], batches)
    assert not streams.apart and not streams.decoder
