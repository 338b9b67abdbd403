"""``relaxprune masks``: what it says of masks, and that what it converts comes back bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.sparse import SparseSemiStructuredTensorCUTLASS

from relaxprune.cli import main
from relaxprune.masks.compact import compact, restore
from relaxprune.masks.difference import compare_masks
from relaxprune.masks.mask_statistics import describe
from relaxprune.masks.semi_structured import judge
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.pipeline import prune_model
from relaxprune.runs.mask_file import write_masks

from ..saved_models import shard
from ..tiny_models import padded_batches, tiny_model


def saved(folder: Path, family: str, dtype: torch.dtype, **amount) -> Path:
    """Prune a tiny model and save it with its masks, as a run folder has them."""
    model = tiny_model(family, dtype)
    report = prune_model(model, padded_batches(), solver="wanda", **amount)
    with torch.no_grad():  # kept values that are easy to lose
        weight = next(parameter for name, parameter in model.named_parameters() if name == report.layers[0].parameter)
        mask = report.masks[report.layers[0].parameter]
        stored = mask.T if report.layers[0].kind == "Conv1D" else mask
        place = stored.nonzero()[:2]
        weight[tuple(place[0])] = -0.0
        weight[tuple(place[1])] = float("nan")
    model.save_pretrained(folder)
    write_masks(folder / "masks.safetensors", report.masks)
    return folder


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compact_and_back_is_bit_exact(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    source = saved(tmp_path / "source", family, dtype, sparsity=0.5)
    if family == "llama":
        shard(source)
    before, after = compact(source, tmp_path / "small")
    restore(tmp_path / "small", tmp_path / "again")
    assert not list((tmp_path / "small").glob("model*[0-9l].safetensors")) and after < before
    names = {path.name for path in source.iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    for path in source.glob("*.safetensors"):
        there, back = load_file(path), load_file(tmp_path / "again" / path.name)
        assert set(there) == set(back)
        for name, tensor in there.items():
            assert tensor.dtype == back[name].dtype and tensor.shape == back[name].shape
            assert torch.equal(bits(tensor), bits(back[name])), name
    with pytest.raises(RelaxPruneError, match="is not empty"):
        compact(source, tmp_path / "small")


def test_half_of_a_bfloat16_matrix_takes_nine_bits_of_sixteen(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mask = torch.zeros(512, 1024, dtype=torch.bool).scatter_(1, torch.rand(512, 1024).topk(512, dim=1).indices, True)
    save_file({"w": torch.randn(512, 1024).bfloat16().masked_fill(~mask, 0.0)}, tmp_path / "model.safetensors")
    (tmp_path / "source").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "source" / "model.safetensors")
    write_masks(tmp_path / "source" / "masks.safetensors", {"w": mask})
    before, after = compact(tmp_path / "source", tmp_path / "small")
    assert after / before == pytest.approx(9 / 16, abs=0.002)


def test_a_run_folder_comes_back_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "source", "llama", torch.float32, sparsity=0.5)
    assert main(["masks", "compact", str(source), str(tmp_path / "small")]) == 0
    assert main(["masks", "restore", str(tmp_path / "small"), str(tmp_path / "again")]) == 0
    for path in source.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert loaded.config.model_type == "llama"
    assert "model.safetensors: as it was, byte for byte" in capsys.readouterr().out


def test_what_is_damaged_or_does_not_belong_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "source", "llama", torch.float32, sparsity=0.5)
    compact(source, tmp_path / "small")
    file = next((tmp_path / "small").glob("*.compact.safetensors"))
    whole = file.read_bytes()
    capsys.readouterr()
    for data, words in (
        (whole[:1000], "is damaged: it is truncated"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "is damaged"),
        (whole.replace(b"relaxprune.compact", b"relaxprune.compacT"), "is not a compact checkpoint"),
    ):
        file.write_bytes(data)
        assert main(["masks", "restore", str(tmp_path / "small"), str(tmp_path / f"out{len(data)}{words[:2]}")]) == 2
        error = capsys.readouterr().err.strip()
        assert words in error and "\n" not in error
    for words in (["stats", str(tmp_path)], ["diff", str(source), str(tmp_path / "absent")]):
        assert main(["masks", *words]) == 2
        assert "does not exist" in capsys.readouterr().err


def test_statistics_and_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = torch.zeros(4, 8, dtype=torch.bool)
    first[:3, ::2] = True
    second = first.clone()
    second[0, 0], second[0, 1] = False, True
    one = describe("w", first)
    assert (one.kept, one.sparsity, one.empty_rows, one.empty_columns, one.pattern) == (12, 0.625, 1, 4, "2:4")
    assert describe("w", torch.eye(8, dtype=torch.bool).roll(1, 0) | torch.eye(8, dtype=torch.bool)).pattern == "2:8"
    assert describe("w", torch.rand(4, 32, generator=torch.Generator().manual_seed(0)) > 0.5).pattern == ""
    assert (one.row_least, one.row_most, one.column_most) == (0.0, 0.5, 0.75)
    difference = compare_masks({"w": first}, {"w": second}).layers[0]
    assert (difference.both, difference.jaccard, difference.rows_that_differ) == (11, 11 / 13, 1)
    apart = compare_masks({"w": first}, {"v": first})
    assert (apart.layers, apart.first_only, apart.second_only) == ([], ["w"], ["v"])
    with pytest.raises(RelaxPruneError, match="different models"):
        compare_masks({"w": first}, {"w": first[:2]})
    for name, mask in (("a", first), ("b", second)):
        write_masks(tmp_path / f"{name}.safetensors", {"w": mask})
    files = [str(tmp_path / f"{name}.safetensors") for name in ("a", "b")]
    assert main(["masks", "stats", files[0]]) == 0 and "2:4" in capsys.readouterr().out
    assert main(["masks", "diff", *files]) == 0 and "0.8462" in capsys.readouterr().out
    assert main(["masks", "unpack", files[0], str(tmp_path / "bools.safetensors")]) == 0
    assert torch.equal(load_file(tmp_path / "bools.safetensors")["w"], first)
    assert main(["masks", "unpack", files[0], str(tmp_path / "bools.safetensors")]) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(64, 128), (48, 64), (32, 32), (16, 16), (30, 64)])
def test_verdicts_are_torch_s_own(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Of dtype and shape; the device that torch asks for first is not here, so its checks are called one by one."""
    weight = torch.zeros(shape, dtype=dtype)
    weight[:, ::2] = 1
    verdict = judge("w", weight)
    try:
        SparseSemiStructuredTensorCUTLASS._validate_device_dim_dtype_shape(_Elsewhere(weight))
        accepted = True
    except RuntimeError:
        accepted = False
    assert ("CUTLASS" in verdict.accepted) is accepted
    weight[0, :4] = 1
    if shape[1] % 4 == 0:
        assert not judge("w", weight).accepted and "rows are not" in judge("w", weight).reason


class _Elsewhere:
    """A tensor that says it is on the device that the kernels need."""

    is_cuda = True

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __getattr__(self, name: str):
        return getattr(self._tensor, name)


def test_semi_structured_lists_every_pruned_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "source", "qwen3_moe", torch.bfloat16, pattern="2:4")
    assert main(["masks", "semi-structured", str(source)]) == 0
    text = capsys.readouterr().out
    names = [name for name in load_file(source / "model.safetensors") if name.endswith("proj.weight")]
    assert all(name in text for name in names) and f"of {len(names)} weights" in text
    assert "cuSPARSELt" in text
