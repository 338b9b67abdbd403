"""The mode inside NVIDIA Model-Optimizer's own ``sparsify``; runs in the environment of ``make test-guests``."""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

if find_spec("modelopt") is None:
    pytest.skip("Model-Optimizer has an environment of its own: make test-guests", allow_module_level=True)

from transformers import LlamaConfig, LlamaForCausalLM

from relaxprune import MaskProblem, RelaxPruneError, solve
from relaxprune.problems import NM, KSparse

with warnings.catch_warnings():  # of the host and of what it imports
    warnings.simplefilter("ignore")
    import modelopt.torch.opt as mto
    import modelopt.torch.sparsity as mts

    from relaxprune.adapters.model_optimizer import RelaxPruneSearcher

pytestmark = pytest.mark.filterwarnings("ignore::Warning")
DOWN = "model.layers.1.mlp.down_proj"
STEPS = {"max_iterations": 20}


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def batches() -> list[torch.Tensor]:
    ids = torch.randint(3, 60, (12, 16), generator=torch.Generator().manual_seed(1))
    return list(ids.split(4))


def loop(model: nn.Module) -> None:
    for ids in batches():
        model(input_ids=ids)


def sparsified(**config) -> tuple[nn.Module, LlamaForCausalLM]:
    """Return a model in the host's mode, and the dense one."""
    model = tiny_llama()
    dense = copy.deepcopy(model)
    quick = {"verbose": False, "solver_options": STEPS}
    return mts.sparsify(model, "relaxprune", {"forward_loop": loop, **quick, **config}), dense


def inputs_of(model: LlamaForCausalLM, name: str) -> torch.Tensor:
    """Return all that a layer of the dense model reads, (tokens, cols)."""
    seen: list[torch.Tensor] = []
    layer = model.get_submodule(name)
    with torch.no_grad():
        handle = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0].reshape(-1, 48)))
        loop(model)
        handle.remove()
    return torch.cat(seen).double()


@pytest.mark.parametrize(
    ("config", "polytope"),
    [
        ({}, NM(2, 4)),
        ({"pattern": "1:4 sparsity"}, NM(3, 4)),  # the host counts what is pruned
        ({"sparsity": 0.5}, KSparse(24)),
    ],
)
def test_a_sparsified_and_exported_model_is_what_solve_gives(config, polytope) -> None:
    figures: dict = {}
    model, dense = sparsified(figures=figures, **config)
    exported = mts.export(model)
    weight, inputs = dense.get_submodule(DOWN).weight.detach(), inputs_of(dense, DOWN)
    expected = solve(MaskProblem(weight, inputs.T @ inputs / len(inputs), polytope), **STEPS)
    found = exported.get_submodule(DOWN).weight.detach()
    assert type(exported.get_submodule(DOWN)) is nn.Linear
    assert torch.equal(found, weight.masked_fill(~expected.mask, 0.0))
    assert not bool(torch.signbit(found[found == 0]).any())
    assert figures[DOWN].objective == pytest.approx(expected.objective, rel=1e-6)
    assert 0 <= figures[DOWN].lower_bound <= figures[DOWN].objective and figures[DOWN].tokens == 12 * 16
    assert len(figures) == 14 and torch.equal(exported.lm_head.weight, dense.lm_head.weight)
    for name in figures:
        share = polytope.kept((32, 48)) / (32 * 48)
        assert float((exported.get_submodule(name).weight != 0).double().mean()) == pytest.approx(share)


def test_the_defaults_are_the_host_s() -> None:
    assert RelaxPruneSearcher().default_search_config["pattern"] == "2:4 sparsity"


def test_the_host_saves_restores_and_enforces_the_masks(tmp_path: Path) -> None:
    model, _ = sparsified(solver="wanda", solver_options=None)
    mto.save(model, tmp_path / "model.pth")
    restored = mto.restore(tiny_llama(), tmp_path / "model.pth")
    layer = restored.get_submodule(DOWN)
    assert torch.equal(layer.weight, model.get_submodule(DOWN).weight)
    with torch.no_grad():
        layer._parameters["weight"].add_(1.0)  # training goes on
    assert bool(((layer.weight != 0).reshape(32, 12, 4).sum(dim=2) <= 2).all())


def test_the_host_s_data_loader_and_its_rules(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_llama()
    mode = [("relaxprune", {"nn.Linear": {"*": {}, "*lm_head*": None, "*layers.0*": None}})]
    config = {"data_loader": batches(), "collect_func": lambda ids: ids, "sparsity": 0.25, "solver": "magnitude"}
    sparse = mts.sparsify(model, mode, config)
    assert not bool((sparse.model.layers[0].mlp.up_proj.weight == 0).any())
    assert bool(((sparse.model.layers[1].mlp.up_proj.weight == 0).sum(dim=1) == 8).all())


def test_a_layer_that_does_not_fit_is_told_and_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.warns(UserWarning, match="^0 is not sparsified: .*10"):
        sparse = mts.sparsify(model, "relaxprune", {"forward_loop": lambda net: net(torch.randn(20, 10))})
    assert [int((sparse[place].weight == 0).sum()) for place in (0, 2)] == [0, 16]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"solver": "fww"}, "did you mean 'fw'"),
        ({"solver_options": {"bogus": 1}}, "no option 'bogus'"),
        ({"sparsity": 1.5}, r"must lie in \[0, 1\], got 1.5"),
        ({"sparsity": 0.5, "pattern": "2:4 sparsity"}, "exactly one"),
        ({"pattern": "2:4"}, 'pattern must read "N:M sparsity"'),
        ({"patern": "2:4 sparsity"}, "config has no entry 'patern'; it has .*pattern"),
        ({"forward_loop": None}, "a data_loader or a forward_loop"),
        ({"forward_loop": lambda _model: None}, "no token reached layer"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_no_mask_is_set(config, words) -> None:
    model = tiny_llama()
    with pytest.raises(RelaxPruneError, match=words):
        mts.sparsify(model, "relaxprune", {"forward_loop": loop, **config})
    assert not bool((model.get_submodule(DOWN).weight == 0).any())
