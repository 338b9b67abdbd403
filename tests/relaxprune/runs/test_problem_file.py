"""Problem files: what any codebase writes is read, and what is no layer is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from relaxprune.problems import RelaxPruneError
from relaxprune.runs.problem_file import LayerProblem, read_problem_file, write_problem_file


def test_round_trip(tmp_path: Path) -> None:
    layer = LayerProblem(torch.randn(3, 4), torch.eye(4).double(), torch.eye(4), torch.eye(4))
    write_problem_file(tmp_path / "file", layer)
    back = read_problem_file(tmp_path / "file")
    for name in ("weight", "gram", "cross", "dense_gram"):
        assert torch.equal(getattr(back, name), getattr(layer, name))
    write_problem_file(tmp_path / "file", LayerProblem(layer.weight, layer.gram))
    assert set(load_file(tmp_path / "file")) == {"weight", "gram"}
    assert read_problem_file(tmp_path / "file").cross is None


def test_tensors_of_other_names_are_not_read(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1, 2), "gram": torch.eye(2), "bias": torch.ones(1)}, tmp_path / "file")
    assert read_problem_file(tmp_path / "file").weight.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gram": None}, "has no tensor 'gram'"),
        ({"weight": torch.ones(2)}, "must have 2 dimensions"),
        ({"weight": torch.ones(1, 2).to(torch.float8_e4m3fn)}, "one of the dtypes .* got torch.float8_e4m3fn"),
        ({"gram": torch.ones(2, 2, dtype=torch.int64)}, "'gram' .* got torch.int64"),
    ],
)
def test_what_is_no_layer(tmp_path: Path, changes: dict[str, torch.Tensor | None], words: str) -> None:
    tensors = {"weight": torch.ones(1, 2), "gram": torch.eye(2), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "file")
    with pytest.raises(RelaxPruneError, match=words):
        read_problem_file(tmp_path / "file")


def test_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RelaxPruneError, match="does not exist"):
        read_problem_file(tmp_path / "file")
