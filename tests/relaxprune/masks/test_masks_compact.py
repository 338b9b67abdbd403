"""``masks compact`` and ``restore``: nothing of a checkpoint is lost, and a failure leaves nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from relaxprune.cli import main
from relaxprune.masks import compact as compact_module
from relaxprune.masks.compact import compact, restore
from relaxprune.models.checkpoint import INDEX_FILE
from relaxprune.problems.errors import RelaxPruneError

HALF = torch.arange(1.0, 4097.0).reshape(64, 64) * (torch.arange(64) % 2)


def checkpoint(folder: Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> Path:
    """A folder with one weight file, and something in a folder beside it."""
    (folder / "notes" / "empty").mkdir(parents=True)
    (folder / "notes" / "read.me").write_text("kept")
    save_file(tensors or {"w": HALF}, folder / "model.safetensors", metadata)
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path under a folder, with the bytes of the files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence with which a ``masks`` command refuses."""
    capsys.readouterr()
    assert main(["masks", *map(str, words)]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and error.startswith("relaxprune: ")
    return error


def change_metadata(file: Path, drop: tuple[str, ...] = (), **entries: str) -> None:
    """Rewrite a safetensors file with other metadata."""
    with safe_open(file, framework="pt") as opened:
        metadata = dict(opened.metadata())
    kept = {key: value for key, value in metadata.items() if key not in drop}
    save_file(load_file(file), file, kept | entries)


@pytest.mark.parametrize("command", ["compact", "restore"])
@pytest.mark.parametrize("inside", [".", "c", "deep/c", "link"])
def test_an_output_in_the_source_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, inside: str
) -> None:
    source = checkpoint(tmp_path / "source")
    if command == "restore":
        compact(source, tmp_path / "small")
        source = tmp_path / "small"
    out = source / inside
    if inside == "link":
        out = tmp_path / "elsewhere"
        out.symlink_to(source / "notes" / "empty")
    before = contents(tmp_path)
    assert "is or lies in" in refused(capsys, command, source, out)
    assert contents(tmp_path) == before


def test_an_output_that_cannot_be_renamed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(tmp_path / "source")
    monkeypatch.setattr(os.path, "ismount", lambda _: True)
    assert "is a mount point" in refused(capsys, "compact", source, tmp_path / "small")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("part", ["values", "mask"])
def test_tensors_with_the_names_of_parts_are_not_overwritten(tmp_path: Path, part: str) -> None:
    tensors = {"w": HALF, "v": HALF + 0, f"w.{part}": HALF + 0, f"w.{part}.mask": torch.ones(3)}
    source = checkpoint(tmp_path / "source", **tensors)
    before, after = compact(source, tmp_path / "small")
    assert after < before
    restore(tmp_path / "small", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(source)


def test_files_that_would_fall_together_are_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    stray = source / "notes" / "model.compact.safetensors"
    stray.write_text("mine")
    with pytest.raises(RelaxPruneError, match="only `masks compact` may give"):
        compact(source, tmp_path / "small")
    stray.unlink()
    compact(source, tmp_path / "small")
    (tmp_path / "small" / "model.safetensors").write_text("mine")
    with pytest.raises(RelaxPruneError, match=r"two files would become 'model\.safetensors'"):
        restore(tmp_path / "small", tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "source"]


@pytest.mark.parametrize("there", [True, False])
def test_a_failure_leaves_nothing_and_the_retry_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    source = checkpoint(tmp_path / "source")
    outs = [tmp_path / "new" / name for name in ("small", "again")]
    if there:
        for out in outs:
            out.mkdir(parents=True)
            out.chmod(0o750)
    for work, folder, out, breaks in (
        (compact, source, outs[0], "write_container"),
        (restore, outs[0], outs[1], "_write_source"),
    ):
        before = contents(tmp_path)
        for error in (OSError("no space"), KeyboardInterrupt()):

            def fail(*_: object, error: BaseException = error) -> None:
                assert not out.exists() or not list(out.iterdir())  # noqa: B023
                raise error

            with monkeypatch.context() as patch, pytest.raises(type(error)):
                patch.setattr(compact_module, breaks, fail)
                work(folder, out)
            assert contents(tmp_path) == before
        work(folder, out)
        assert not list(out.parent.glob(".*"))
        assert not there or out.stat().st_mode & 0o777 == 0o750
    assert contents(outs[1]) == contents(source)


def test_a_damaged_shard_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoint(tmp_path / "source")
    file = source / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"F32"', b'"F23"'))  # of the right size
    assert "a dtype that safetensors does not know" in refused(capsys, "compact", source, tmp_path / "deep" / "small")
    file.write_bytes(whole[:-1])
    assert "is truncated" in refused(capsys, "compact", source, tmp_path / "deep" / "small")
    assert list(tmp_path.iterdir()) == [source]


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out, flushed = checkpoint(tmp_path / "source"), tmp_path / "small", set()
    flush = os.fsync

    def record(descriptor: int) -> None:
        flushed.add((os.fstat(descriptor).st_ino, out.exists()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    compact(source, out)
    written = {path.stat().st_ino for path in (out, *out.rglob("*"))}
    assert {(inode, False) for inode in written} | {(tmp_path.stat().st_ino, True)} == flushed


def test_written_files_have_the_user_s_permissions(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    compact(source, tmp_path / "small")
    restore(tmp_path / "small", tmp_path / "again")
    usual = (source / "notes" / "read.me").stat().st_mode
    files = [path for name in ("small", "again") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert len(files) == 4 and {path.stat().st_mode for path in files} == {usual}


@pytest.mark.parametrize("key", ["source", "shapes", "metadata", "sha256"])
def test_metadata_that_lacks_an_entry_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    compact(checkpoint(tmp_path / "source"), tmp_path / "small")
    change_metadata(tmp_path / "small" / "model.compact.safetensors", drop=(key,))
    assert f"metadata lacks {key}" in refused(capsys, "restore", tmp_path / "small", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"source": "../model.safetensors"}, None),  # only the name counts
        ({"source": ".."}, "renamed or damaged"),
        ({"source": "other.safetensors"}, "renamed or damaged"),
        ({"shapes": "[]"}, "do not fit together"),
        ({"shapes": '{"w": [64, 32]}'}, "is damaged"),
        ({"shapes": '{"w": null}'}, "do not fit together"),
        ({"header": "{"}, "do not fit its header"),
        ({"header": '{"v": {"data_offsets": [0, 4]}}'}, "do not fit its header"),
        ({"header": '{"w": {"data_offsets": [0, 4]}}'}, "not the file that it was made from"),
        ({"file_sha256": ""}, "not the file that it was made from"),
    ],
)
def test_metadata_that_is_forged_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: dict[str, str], words: str | None
) -> None:
    compact(checkpoint(tmp_path / "source"), tmp_path / "small")
    change_metadata(tmp_path / "small" / "model.compact.safetensors", **entry)
    if words is None:
        assert restore(tmp_path / "small", tmp_path / "again").exact == ["model.safetensors"]
    else:
        assert words in refused(capsys, "restore", tmp_path / "small", tmp_path / "again")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "source"]


def test_semi_structured_says_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoint(tmp_path / "source")
    file = source / "model.safetensors"
    whole = file.read_bytes()
    for data, words in (
        (whole[:-1], "is truncated"),
        (whole[:4], "is truncated"),
        (b"", "is empty"),
        (whole.replace(b'"F32"', b'"F23"'), "its safetensors header is corrupt"),
    ):
        file.write_bytes(data)
        assert words in refused(capsys, "semi-structured", source)
    file.unlink()
    assert "has no weights" in refused(capsys, "semi-structured", source)
    assert "does not exist" in refused(capsys, "semi-structured", tmp_path / "absent")


def rewrite_header(file: Path) -> None:
    """Write the same tensors with another header: names backwards, spaces, several entries of metadata."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = {"z": "é", "a": "1", "m": "\n"}
    text = json.dumps(dict(reversed(header.items())), indent=1, ensure_ascii=False).encode() + b"   "
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def test_any_valid_file_comes_back_byte_for_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = {
        "none": torch.zeros(0, 4),
        "one": torch.tensor(-0.0),
        "bool": HALF > 0,
        "eight": HALF.to(torch.float8_e4m3fn),
        "scale": HALF.to(torch.float8_e8m0fnu),
        "pair": torch.complex(HALF, HALF),
    }
    source = checkpoint(tmp_path / "source", **many, w=HALF)
    rewrite_header(source / "model.safetensors")
    compact(source, tmp_path / "small")
    assert main(["masks", "restore", str(tmp_path / "small"), str(tmp_path / "again")]) == 0
    assert contents(tmp_path / "again") == contents(source)
    printed = capsys.readouterr().out
    assert "7 tensors" in printed and "model.safetensors: as it was, byte for byte" in printed


def test_what_was_compacted_before_bytes_were_recorded_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = checkpoint(tmp_path / "source", {"format": "pt"}, w=HALF, b=torch.ones(3))
    rewrite_header(source / "model.safetensors")
    compact(source, tmp_path / "small")
    change_metadata(tmp_path / "small" / "model.compact.safetensors", drop=("header", "file_sha256"))
    assert main(["masks", "restore", str(tmp_path / "small"), str(tmp_path / "again")]) == 0
    printed = capsys.readouterr().out
    assert "byte for byte" not in printed and "model.safetensors: every tensor as it was" in printed
    there, back = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "again"))
    assert there.keys() == back.keys() and all(torch.equal(tensor, back[name]) for name, tensor in there.items())
    with safe_open(tmp_path / "again" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"z": "é", "a": "1", "m": "\n"}


def test_shards_in_a_folder_of_their_own_come_back(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    (source / "parts").mkdir()
    (source / "model.safetensors").rename(source / "parts" / "one.safetensors")
    (source / INDEX_FILE).write_text(json.dumps({"weight_map": {"w": "parts/one.safetensors"}}))
    compact(source, tmp_path / "small")
    assert restore(tmp_path / "small", tmp_path / "again").exact == ["parts/one.safetensors"]
    assert contents(tmp_path / "again") == contents(source)


def test_links_are_followed_to_files_and_refused_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoint(tmp_path / "source")
    (source / "link").symlink_to(source / "notes" / "read.me")
    compact(source, tmp_path / "small")
    assert (tmp_path / "small" / "link").read_text() == "kept" and not (tmp_path / "small" / "link").is_symlink()
    for target, words in (("nothing", "a broken link"), ("notes", "a link to a folder")):
        (source / "link").unlink()
        (source / "link").symlink_to(source / target)
        assert words in refused(capsys, "compact", source, tmp_path / "other")
        assert not (tmp_path / "other").exists()
