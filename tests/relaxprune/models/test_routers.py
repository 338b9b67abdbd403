"""Routers of mixtures are found in every form, and nothing else is."""

from __future__ import annotations

import pytest
from torch import nn

from relaxprune.models.routers import find_routers
from relaxprune.options.prune_options import PruneOptions
from relaxprune.pruning.planner import plan_model

from ..tiny_models import tiny_model


class Mlp(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.gate_proj, self.down_proj = nn.Linear(6, width), nn.Linear(width, 6)


class TopRouter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)


class Mixture(nn.Module):
    """A mixture of experts with one child more."""

    def __init__(self, name: str, router: nn.Module) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Mlp() for _ in range(8))
        self.shared_experts = Mlp()
        setattr(self, name, router)


@pytest.mark.parametrize(
    ("name", "router", "found"),
    [
        ("gate", nn.Linear(6, 8), "gate"),
        ("router", nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8)), "router.1"),
        ("wg", nn.Linear(6, 8), "wg"),
        ("chooser", TopRouter(), "chooser.layer"),
        ("shared_expert_gate", nn.Linear(6, 1), "shared_expert_gate"),
        ("gate", nn.Linear(6, 5), None),
        ("up_proj", nn.Linear(6, 8), None),
        ("gate_proj", nn.Linear(6, 8), None),
    ],
)
def test_forms(name, router, found):
    model = nn.Sequential(Mixture(name, router))
    assert find_routers(model) == (set() if found is None else {model.get_submodule(f"0.{found}")})


def test_a_gate_without_experts_is_no_router():
    assert find_routers(nn.Sequential(Mlp())) == set()


def test_left_alone_unless_named():
    model = nn.Sequential(Mixture("gate", nn.Linear(6, 8)))
    plan = plan_model(model, sparsity=0.5)
    assert "0.gate" not in [layer.name for layer in plan.layers]
    reason = "router of a mixture of experts: left alone unless an include pattern names it"
    assert [(item.name, item.reason) for item in plan.skipped] == [("0.gate", reason)]
    named = plan_model(model, sparsity=0.5, options=PruneOptions(include=("*gate",)))
    assert [layer.name for layer in named.layers] == ["0.gate"]


def test_routers_that_are_parameters_say_so():
    plan = plan_model(tiny_model("qwen3_moe"), sparsity=0.5)
    reasons = [item.reason for item in plan.skipped if item.name.endswith("mlp.gate")]
    assert len(reasons) == 3 and all(reason.startswith("router of a mixture of experts") for reason in reasons)
