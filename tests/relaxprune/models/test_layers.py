"""Finding, reading and writing the weights of layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from relaxprune.models.layers import apply_masks, check_patterns, find_layers, matches
from relaxprune.problems import RelaxPruneError

from ..tiny_models import tiny_model


def only_layer(module):
    layers, _ = find_layers(nn.Sequential(module))
    assert len(layers) == 1
    return layers[0]


def conv(**options):
    return nn.Conv2d(3, 5, **options)


MODULES = {
    "linear": (lambda: nn.Linear(6, 4), (2, 3, 6)),
    "conv1d": (lambda: Conv1D(4, 6), (2, 3, 6)),
    "conv": (lambda: conv(kernel_size=3), (2, 3, 8, 9)),
    "conv same": (lambda: conv(kernel_size=(3, 5), padding="same", dilation=(2, 1)), (2, 3, 8, 9)),
    "conv stride": (lambda: conv(kernel_size=(3, 2), stride=(2, 3), padding=(1, 2)), (2, 3, 8, 9)),
    "conv reflect": (lambda: conv(kernel_size=3, padding=1, padding_mode="reflect"), (2, 3, 8, 9)),
    "conv one image": (lambda: conv(kernel_size=1), (3, 8, 9)),
}


@pytest.mark.parametrize("name", MODULES)
def test_columns_times_matrix_is_the_module(name):
    build, shape = MODULES[name]
    module, inputs = build().double(), torch.randn(shape, dtype=torch.float64)
    layer = only_layer(module)
    output = layer.columns(inputs) @ layer.matrix().T + module.bias
    expected = module(inputs)
    if isinstance(module, nn.Conv2d):
        expected = (expected if expected.dim() == 4 else expected.unsqueeze(0)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "conv1d", "conv"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_kept_entries_keep_their_bits(name, dtype):
    module = MODULES[name][0]().to(dtype)
    with torch.no_grad():
        module.weight[0, :2] = -0.0
    layer = only_layer(module)
    before = layer.matrix().clone()
    mask = torch.rand(layer.shape) < 0.5
    mask[:2, :2] = True
    layer.apply_mask(mask)
    assert torch.equal(layer.matrix().signbit()[mask], before.signbit()[mask])
    assert torch.equal(layer.matrix()[mask], before[mask])
    zeros = layer.matrix()[~mask]
    assert not zeros.any() and not zeros.signbit().any()
    assert module.weight is layer.weight and module.weight.dtype == dtype


@pytest.mark.parametrize("mask", [torch.ones(4, 5, dtype=torch.bool), torch.ones(4, 6), torch.ones(6, 4) > 0])
def test_wrong_masks_are_refused(mask):
    with pytest.raises(RelaxPruneError, match=r"mask of '0.weight' must be bool of shape \(4, 6\)"):
        only_layer(nn.Linear(6, 4)).apply_mask(mask)


class Oddities(nn.Module):
    """One of everything that is not pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.line = nn.Conv1d(4, 4, 3)
        self.experts = nn.Module()
        self.experts.gate_up_proj = nn.Parameter(torch.ones(3, 4, 4))
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.fine = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


def test_everything_else_is_listed_with_a_reason():
    layers, skipped = find_layers(Oddities())
    assert [layer.name for layer in layers] == ["attention.out_proj", "fine"]
    reasons = {item.name: item.reason for item in skipped}
    for name, text in {
        "embedding": "embedding",
        "attention.in_proj_weight": "parameter of MultiheadAttention",
        "grouped": "2 groups",
        "line": "parameter of Conv1d|3-D",
        "experts.gate_up_proj": "experts fused in an unknown way",
        "one": "tied to two.weight",
        "two": "tied to one.weight",
    }.items():
        assert any(part in reasons.pop(name) for part in text.split("|"))
    assert sorted(reasons) == [
        "normed.parametrizations.weight.original0",
        "normed.parametrizations.weight.original1",
    ]


def test_every_matrix_is_either_prunable_or_skipped():
    for family in ("llama", "gpt2", "qwen3_moe", "gemma3_vision", "bert"):
        model = tiny_model(family)
        layers, skipped = find_layers(model)
        named = {layer.parameter.partition("[")[0] for layer in layers} | {item.name for item in skipped}
        named |= {f"{item.name}.weight" for item in skipped}
        matrices = {name for name, parameter in model.named_parameters() if parameter.dim() >= 2}
        assert matrices <= named


def test_unsupported_storage_is_skipped():
    module = nn.Linear(4, 4)
    module.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.uint8), requires_grad=False)
    _, skipped = find_layers(nn.Sequential(module))
    assert "uint8" in skipped[0].reason


def test_patterns_that_match_nothing_suggest_names():
    names = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"]
    check_patterns("exclude", ("*q_proj",), names)
    with pytest.raises(RelaxPruneError, match=r"exclude pattern 'layers.0.self_attn.q_prj'.*'model.layers.0.self_attn"):
        check_patterns("exclude", ("layers.0.self_attn.q_prj",), names)
    with pytest.raises(RelaxPruneError, match="there are none"):
        check_patterns("include", ("*",), [])
    assert matches("a.b", ("*.b",)) and not matches("a.B", ("*.b",))


def test_masks_by_name():
    model = nn.Sequential(nn.Linear(3, 2), Conv1D(4, 2))
    masks = {"0.weight": torch.rand(2, 3) < 0.5, "1.weight": torch.rand(4, 2) < 0.5}
    apply_masks(model, masks)
    assert torch.equal(model[0].weight != 0, masks["0.weight"])
    assert torch.equal(model[1].weight != 0, masks["1.weight"].T)
    with pytest.raises(RelaxPruneError, match=r"'0.wieght'.*near: 0.weight"):
        apply_masks(model, {"0.wieght": masks["0.weight"]})


def test_a_layer_alone_is_pruned_in_one_line():
    layer = nn.Linear(3, 2)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    before = layer.weight.detach().clone()
    apply_masks(layer, {"weight": mask})
    assert torch.equal(layer.weight, before.masked_fill(~mask, 0.0)) and not torch.signbit(layer.weight[~mask]).any()


@pytest.mark.parametrize(
    ("masks", "weights", "words"),
    [
        ({"1.weight": torch.ones(2, 4, dtype=torch.bool)}, {}, "mask of '1.weight' must be bool of shape"),
        ({"1.weight": [[True, False]]}, {}, "mask of '1.weight' must be bool of shape .*, got list"),
        ({}, {"1.weight": torch.ones(2, 4)}, "weights names '1.weight', for which there is no mask"),
        ({"1.weight": torch.ones(4, 2, dtype=torch.bool)}, {"1.weight": torch.ones(2, 4)}, "new values of '1.weight'"),
    ],
)
def test_nothing_is_written_where_anything_does_not_fit(masks, weights, words):
    model = nn.Sequential(nn.Linear(3, 2), Conv1D(4, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = {"0.weight": torch.zeros(2, 3, dtype=torch.bool)}
    with pytest.raises(RelaxPruneError, match=words):
        apply_masks(model, first | masks, {"0.weight": torch.ones(2, 3)} | weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Quantised(nn.Module):
    """As quantisers write it: the weight lies in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))


class Opaque(nn.Module):
    in_features, out_features = 4, 8


class Wrapper(Tensor):
    """A tensor of a class of its own."""


def of_a_class() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4).as_subclass(Wrapper), requires_grad=False)
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    ("build", "name", "words"),
    [
        (lambda: nn.Conv1d(4, 4, 3), "0", "parameter of Conv1d (4, 4, 3): only"),
        (lambda: nn.ConvTranspose1d(4, 4, 2), "0", "parameter of ConvTranspose1d"),
        (lambda: nn.Conv3d(1, 4, 2), "0", "parameter of Conv3d"),
        (lambda: nn.Bilinear(4, 4, 2), "0", "parameter of Bilinear"),
        (lambda: nn.LSTM(4, 4), "0.weight_ih_l0", "parameter of LSTM"),
        (lambda: nn.GRUCell(4, 4), "0.weight_hh", "parameter of GRUCell"),
        (lambda: nn.ParameterList([torch.ones(4, 4)]), "0.0", "parameter of ParameterList"),
        (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), "0.parametrizations.weight.original", "compu"),
        (lambda: nn.utils.weight_norm(nn.Linear(4, 4)), "0.weight_v", "weight of this Linear is computed from"),
        (lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), "0.weight_orig", "is computed from"),
        (of_a_class, "0", "weight held as a Wrapper of torch.float32"),
        (Quantised, "0", "with buffers qweight (4, 4) of torch.int32"),
        (Opaque, "0", "a Opaque without a matrix among its parameters"),
    ],
)
def test_reasons_are_the_reason(build, name, words):
    layers, skipped = find_layers(nn.Sequential(build(), nn.BatchNorm1d(4)))
    reasons = {item.name: item.reason for item in skipped}
    assert not layers and words in reasons[name] and "experts" not in reasons[name] and "tied" not in reasons[name]


def test_a_model_without_values_is_refused():
    with pytest.raises(RelaxPruneError, match=r"got '0.weight' without values: run it once before"):
        find_layers(nn.Sequential(nn.LazyLinear(4)))
