"""``relaxprune prune --permute``: a plain model on the disk, its orders in the record, and a run that was killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from relaxprune.cli import main
from relaxprune.models.layers import apply_masks
from relaxprune.pruning.channels.permutation import Permutation
from relaxprune.pruning.channels.reorder import apply_permutations
from relaxprune.runs.mask_file import read_masks

from ..command_line import SAME, arguments, interrupt, only_sentence

PERMUTE = ("--pattern", "2:4", "--permute")


@pytest.fixture(scope="module")
def permuted(place: Path) -> Path:
    """A run with channels reordered that nothing interrupted."""
    out = place / "permuted"
    assert main(arguments(place, out, *PERMUTE)) == 0
    return out


def orders_of(folder: Path) -> list[Permutation]:
    record = json.loads((folder / "relaxprune.json").read_text())
    assert record["fingerprint"]["settings"]["permute"] is record["report"]["options"]["permute"] is True
    return [Permutation.from_dict(item) for item in record["report"]["permutations"]]


def test_the_folder_is_the_source_in_another_order(place: Path, permuted: Path) -> None:
    """Plain transformers loads it; source + orders + masks of the record give it bit by bit, so kept bits are kept."""
    saved, meant = (AutoModelForCausalLM.from_pretrained(folder) for folder in (permuted, place / "tiny"))
    tokens = torch.arange(2, 34).unsqueeze(0)
    with torch.no_grad():
        dense = meant(tokens).logits
        apply_permutations(meant, orders_of(permuted))
        assert (meant(tokens).logits - dense).norm() < 1e-5 * dense.norm()
        masks = read_masks(permuted / "masks.safetensors")
        apply_masks(meant, masks)
        assert torch.equal(saved(tokens).logits, meant(tokens).logits)
    for name, weight in saved.state_dict().items():
        assert torch.equal(weight.view(torch.int32), meant.state_dict()[name].view(torch.int32)), name
    assert all((mask.view(len(mask), -1, 4).sum(-1) == 2).all() for mask in masks.values())
    assert "in the order of channels" in (permuted / "README.md").read_text()


def test_interrupted_and_resumed_is_identical(
    place: Path,
    permuted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    interrupt(monkeypatch, out, arguments(place, out, *PERMUTE))
    assert main(arguments(place, out, *PERMUTE, "--resume")) == 0
    assert "columns reordered (6 of 21 layers)" in capsys.readouterr().out
    assert orders_of(out) == orders_of(permuted)
    for name in SAME:
        assert (out / name).read_bytes() == (permuted / name).read_bytes(), name


def test_the_source_keeps_its_dtype(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(arguments(place, out, *PERMUTE, "--permute-by", "saliency", "--dtype", "float64")) == 0
    saved, meant = (AutoModelForCausalLM.from_pretrained(folder) for folder in (out, place / "tiny"))
    apply_permutations(meant, orders_of(out))
    apply_masks(meant, read_masks(out / "masks.safetensors"))
    assert saved.dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(saved.parameters(), meant.parameters(), strict=True))


def test_an_order_searched_by_the_error(place: Path, permuted: Path, tmp_path: Path) -> None:
    """The record says how it was searched; what the run was given beside it stays as it is."""
    out = tmp_path / "out"
    assert main(arguments(place, out, *PERMUTE, "--permute-by", "error", "--include", "*.0.*down_proj")) == 0
    settings = json.loads((out / "relaxprune.json").read_text())["fingerprint"]["settings"]
    (item,) = orders_of(out)
    assert settings["permute_by"] == item.by == "error"
    assert item.error_after is not None and item.error_before is not None and item.error_after < item.error_before
    assert main(["verify", str(out)]) == 0


def test_refusals(place: Path, permuted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(place, tmp_path / "out", "--permute")) == 2
    assert "permute reorders channels for an N:M pattern, got sparsity 0.5" in only_sentence(capsys)
    assert main(arguments(place, tmp_path / "out", "--permute-by", "error")) == 2
    assert "permute_by is 'error', but permute is False" in only_sentence(capsys)
    assert not (tmp_path / "out").exists()
    assert main(arguments(place, permuted, "--pattern", "2:4", "--resume")) == 2
    assert "settings.permute was true and is now false" in only_sentence(capsys)
