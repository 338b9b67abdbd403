"""The container of tensor files: exact round trips, the library's own layout, and headers that lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from relaxprune.problems import RelaxPruneError
from relaxprune.support.container import TensorFormat, open_tensors, read_container, write_container, write_tensors
from relaxprune.support.tensor_header import DTYPES, read_header

FORM = TensorFormat("test file", "relaxprune.test", version=3, keys=("note",))


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(3, 5, generator=generator),
        "bits": torch.randn(7, generator=generator) > 0,
        "none": torch.zeros(0, 4, dtype=torch.int64),
        "one": torch.tensor(-0.0, dtype=torch.bfloat16),
    }


def with_header(path: Path, header: Any, data: bytes = bytes(16)) -> Path:
    """Write a file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}


def test_round_trip(tmp_path: Path) -> None:
    for place in range(3):
        described = write_container(tmp_path / str(place), FORM, tensors(), {"note": "é", "z": "1", "a": "2"})
        assert (tmp_path / str(place)).read_bytes() == (tmp_path / "0").read_bytes()
    back, metadata = read_container(tmp_path / "0", FORM)
    assert metadata == described and metadata["schema_version"] == "3"
    assert list(back) == sorted(tensors())
    for name, tensor in tensors().items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)
    assert set(load_file(tmp_path / "0")) == set(back), "the library reads it too"


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_plain_files_are_those_of_the_library(tmp_path: Path, dtype: torch.dtype) -> None:
    found = {"b": torch.ones(2, 3).to(dtype), "a": torch.zeros(4).to(dtype)}
    write_tensors(tmp_path / "file", found)
    assert (tmp_path / "file").read_bytes() == save(found)
    with open_tensors(tmp_path / "file", "it") as file:
        assert {name: (tensor.dtype, tensor.shape) for name, tensor in file.tensors().items()} == {
            name: (tensor.dtype, tensor.shape) for name, tensor in found.items()
        }


def test_what_no_file_can_hold_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RelaxPruneError, match=r"tensor 'a' of dtype torch\.complex128"):
        write_tensors(tmp_path / "file", {"a": torch.zeros(1, dtype=torch.complex128)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"format": "other"}, "is not a test file"),
        ({"schema_version": "4"}, "has schema version '4', this relaxprune reads '3'"),
        ({"note": None}, "metadata lacks note"),
        ({"sha256": None}, "metadata lacks sha256"),
        ({"note": "other"}, "its checksum does not match its content"),
    ],
)
def test_metadata_that_is_not_right(tmp_path: Path, metadata: dict[str, str | None], words: str) -> None:
    right = write_container(tmp_path / "file", FORM, {"a": torch.ones(2)}, {"note": "x"})
    changed = {key: value for key, value in (right | metadata).items() if value is not None}
    save_file({"a": torch.ones(2)}, tmp_path / "file", changed)
    with pytest.raises(RelaxPruneError, match=words):
        read_container(tmp_path / "file", FORM)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (entry(shape=[2**62] * 3), "do not match the size"),
        (entry(shape=[2**63, 0], data_offsets=[0, 0]), "no tensor can have"),
        (entry(shape=[2**70, 0], data_offsets=[0, 0]), "number is too large"),
        (entry(shape=[1] * 65 + [4]), "no tensor can have"),
        (entry(shape=[-2, -2]), "shape or data_offsets"),
        (entry(shape=[True, 4]), "shape or data_offsets"),
        (entry(shape="22"), "shape or data_offsets"),
        (entry(dtype="F23"), "dtype that safetensors does not know"),
        (entry(dtype=["F32"]), "dtype that safetensors does not know"),
        (entry(data_offsets=[0, 16, 0]), "shape or data_offsets"),
        (entry(data_offsets=[16, 0]), "do not match the size"),
        (entry(data_offsets=[4, 20]), "gaps"),
        (entry(more=1), "an entry other than"),
        ({"a": entry()["a"], "b": entry()["a"]}, "gaps or overlaps between tensors"),
        ({"__metadata__": {"a": 1}, **entry()}, "metadata that is not text"),
        ({"__metadata__": [], **entry()}, "metadata that is not text"),
        (entry(shape=[2, 1], data_offsets=[0, 8]), "too long, .* declares"),
        ([], "not a JSON object"),
        (b"{", "corrupt"),
        (b"\xff", "corrupt"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 1}', "repeated"),
        (b'{"\\ud800": 1}', "corrupt"),
    ],
)
def test_headers_that_lie_are_one_sentence(tmp_path: Path, header: Any, words: str) -> None:
    with pytest.raises(RelaxPruneError, match=words) as caught:
        read_header(with_header(tmp_path / "file", header), "file 'x'")
    assert str(caught.value).startswith("file 'x' is damaged: ") and "\n" not in str(caught.value)


def test_files_that_are_cut_or_no_file_at_all(tmp_path: Path) -> None:
    whole = with_header(tmp_path / "file", entry()).read_bytes()
    for data, words in (
        (b"", "empty"), (whole[:5], "truncated"), (whole[:30], "truncated"), (whole[:-1], "truncated"),
        (whole + b"x", "too long"), (b"\xff" * 40, "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 12\n", "git-LFS pointer"),
    ):  # fmt: skip
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(RelaxPruneError, match=words):
            read_header(tmp_path / "file", "it")
