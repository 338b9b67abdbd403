"""``masks convert``: what is written comes back, and what does not is not written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from relaxprune.cli import main
from relaxprune.cli.convert import conversion_table
from relaxprune.conversion import convert_run, load_converted, target_names
from relaxprune.conversion.registry import target_class
from relaxprune.conversion.semi_structured import SemiStructured
from relaxprune.models import LoadOptions, load_model
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.runs import read_masks

from ..command_line import only_sentence
from ..tiny_models import tiny_model


def stored(run: Path) -> dict[str, torch.Tensor]:
    """The run's tensors, as its file has them."""
    return load_file(run / "model.safetensors")


def _bytes(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[int]:
    """The bytes of a model's tensors, with its weights in a dtype."""
    yield from (parameter.numel() * dtype.itemsize for parameter in model.parameters())
    yield from (buffer.nbytes for buffer in model.buffers())


def test_what_is_not_owed_to_zeros_is_said(runs: Path, tmp_path: Path) -> None:
    found = convert_run(runs / "half", "macko", tmp_path / "out")
    assert "zeros alone" not in conversion_table(found)
    table = conversion_table(replace(found, target="openvino"))
    assert "include what 8-bit weights and another runtime save" in table
    assert f"{found.disk_bytes / found.dense_form_bytes:.1%}" in table


@pytest.mark.parametrize(
    ("target", "run", "dtype", "taken"),
    [
        ("semi-structured", "two_of_four", torch.bfloat16, 1),
        ("macko", "half", torch.float16, 5),
        ("compact", "half", torch.float32, 7),
    ],
)
def test_every_tensor_comes_back(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    target: str,
    run: str,
    dtype: torch.dtype,
    taken: int,
) -> None:
    out = tmp_path / "out"
    assert main(["masks", "convert", str(runs / run), "--to", target, "--out", str(out)]) == (0 if taken == 7 else 3)
    printed = capsys.readouterr()
    assert f"{taken} weights" in printed.out and ("stored as before, since" in printed.err) == (taken < 7)
    back, masks = load_converted(out).model.state_dict(), read_masks(runs / run)
    for name, tensor in stored(runs / run).items():
        assert torch.equal(back[name], tensor.to(dtype)), name
    assert all(not back[name][~mask].any() for name, mask in masks.items())
    record = json.loads((out / "conversion.json").read_text())
    assert record["layers"] == taken and len(record["left"]) == 7 - taken
    files = [path for path in out.glob("*.safetensors") if path.name != "masks.safetensors"]
    assert record["disk_bytes"] == sum(path.stat().st_size for path in files)
    assert record["dense_bits"] == 8 * dtype.itemsize and f"share of dense in {8 * dtype.itemsize} bits" in printed.out
    assert record["dense_form_bytes"] == sum(_bytes(load_converted(out).model, dtype))
    assert record["disk_bytes"] < record["dense_disk_bytes"] and record["from_dense"]["relative"] == 0
    assert (out / "config.json").is_file() and "sparsity_config" not in (out / "config.json").read_text()


def test_two_of_four_takes_nine_bits_of_sixteen(runs: Path, tmp_path: Path) -> None:
    convert_run(runs / "two_of_four", "semi-structured", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.semi-structured.safetensors")
    name = next(name for name in tensors if name.endswith(".packed")).removesuffix(".packed")
    entries = stored(runs / "two_of_four")[name].numel()
    assert 8 * (tensors[f"{name}.packed"].nbytes + tensors[f"{name}.meta"].nbytes) == 9 * entries
    # The kept values of every four, in their order.
    weight = stored(runs / "two_of_four")[name].to(torch.bfloat16)
    full = (weight.reshape(-1, 4) != 0).sum(1) == 2
    kept = weight.reshape(-1, 4)[full]
    assert torch.equal(tensors[f"{name}.packed"].reshape(-1, 2)[full].flatten(), kept[kept != 0])


def test_what_cannot_be_converted_is_told_in_one_sentence(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    for words, part in (
        ((runs / "half", "--to", "semi-structured"), "takes none of the 7 pruned weights"),
        ((runs / "half", "--to", "maco"), "did you mean 'macko'?"),
        ((runs / "tiny", "--to", "macko"), "is not a run's folder"),
    ):
        capsys.readouterr()
        assert main(["masks", "convert", *map(str, words), "--out", str(tmp_path / "out")]) == 2
        assert part in only_sentence(capsys)
    capsys.readouterr()
    assert main(["masks", "convert", str(runs / "half"), "--to", "macko", "--out", str(runs / "half" / "in")]) == 2
    assert "is or lies in" in only_sentence(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", target_names())
def test_a_target_says_what_it_needs(runs: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = target_class(name)
    assert kind.name == name and kind.summary and kind.tolerance >= 0 and kind.explains
    if kind.package:
        monkeypatch.setattr("relaxprune.conversion.registry.find_spec", lambda package: None)
        with pytest.raises(RelaxPruneError, match=rf"needs {kind.package}.*pip install 'relaxprune\[{kind.extra}\]'"):
            convert_run(runs / "half", name, tmp_path / "out")
    assert find_spec("relaxprune.conversion") and not (tmp_path / "out").exists()


def test_a_wrong_conversion_is_not_written(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = SemiStructured.pack

    def one_value_off(self, weight):
        packed, meta = right(self, weight)
        packed[0, 0] += 1
        return [packed, meta]

    def one_place_off(self, weight):
        return right(self, torch.cat([weight[:, 4:], weight[:, :4]], dim=1))

    for wrong in (one_value_off, one_place_off):
        with monkeypatch.context() as patch, pytest.raises(RelaxPruneError, match=r"rounding explains|is not 0"):
            patch.setattr(SemiStructured, "pack", wrong)
            convert_run(runs / "two_of_four", "semi-structured", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_another_tensor_that_is_lost_shows_in_the_logits(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relaxprune.conversion import packed

    write = packed.write_container

    def spoilt(path, form, tensors, metadata):
        return write(path, form, {**tensors, "model.norm.weight": tensors["model.norm.weight"].flip(0) + 1}, metadata)

    monkeypatch.setattr(packed, "write_container", spoilt)
    with pytest.raises(RelaxPruneError, match="logits of target 'macko'"):
        convert_run(runs / "half", "macko", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_damaged_folder_is_refused(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_run(runs / "half", "macko", out)
    file = out / "model.macko.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RelaxPruneError, match="checksum does not match"):
        load_converted(out)
    file.write_bytes(whole)
    record = out / "conversion.json"
    record.write_text(record.read_text().replace('"target": "macko"', '"target": "compact"'))
    with pytest.raises(RelaxPruneError, match=r"conversion\.json.*checksum does not match"):
        load_converted(out)
    with pytest.raises(RelaxPruneError, match="is not a converted folder"):
        load_converted(runs / "half")


def test_the_page_lists_every_target() -> None:
    page = (Path(__file__).parents[3] / "docs" / "convert.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in page.split("## What is checked")[0].splitlines() if "|" in line]
    assert rows[2:] == [f"`{name}`" for name in target_names()]


def test_experts_are_left_and_come_back(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "text.txt").write_text(" ".join(str(number % 60) for number in range(200)))
    tiny_model("qwen3_moe").save_pretrained(tmp_path / "moe")
    tiny_tokenizer.save_pretrained(tmp_path / "moe")
    words = ["prune", tmp_path / "moe", "--out", tmp_path / "half", "--sparsity", "0.5", "--solver", "wanda"]
    text = ["--calibration", tmp_path / "text.txt", "--windows", "2", "--length", "16", "--threads", "1"]
    assert main([str(word) for word in (*words, *text)]) == 0
    found = convert_run(tmp_path / "half", "macko", tmp_path / "out")
    assert found.layers == 6 and sum("kind is Expert" in item.reason for item in found.left) == 24
    back = load_converted(tmp_path / "out").model.state_dict()
    run = load_model(str(tmp_path / "half"), LoadOptions(dtype="float16")).model.state_dict()
    experts = [name for name in back if "experts" in name]
    assert experts and all(torch.equal(back[name], run[name]) for name in experts)


def test_a_device_that_the_kernels_refuse_is_told(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert_run(runs / "two_of_four", "semi-structured", tmp_path / "out")

    def refuse(*_: object) -> str:
        raise RuntimeError("architecture mismatch\nand more")

    monkeypatch.setattr(SemiStructured, "place", refuse)
    with pytest.raises(RelaxPruneError, match=r"'semi-structured' cannot run on cpu: architecture mismatch$"):
        load_converted(tmp_path / "out")
