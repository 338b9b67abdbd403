"""Unfinished runs of which a file was damaged: one flipped bit is refused, and can be discarded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from relaxprune.cli import main
from relaxprune.runs.run_folder import RunFolder

from ..command_line import interrupting, only_sentence
from ..tiny_llama import save_tiny_llama, write_text
from .test_every_call import result

KINDS = {
    "refit": ["--sparsity", "0.5", "--refit"],
    "certified": ["--sparsity", "0.5", "--solver", "wanda", "--polish", "none", "--certify", "diagonal"],
    "sampled": ["--sparsity", "0.5", "--solver", "wanda", "--calibration", "self"],
    "allocated": ["--sparsity", "0.5", "--solver", "wanda", "--allocation", "model"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_tiny_llama(folder / "tiny", blocks=3)
    write_text(folder / "text.txt")
    return folder


def words_of(place: Path, kind: str, out: Path) -> list[str]:
    words = ["prune", str(place / "tiny"), "--calibration", str(place / "text.txt"), "--windows", "2", "--length", "16"]
    return [*words, "--include", "*.mlp.up_proj", "--threads", "1", "--quiet", *KINDS[kind], "--out", str(out)]


@pytest.fixture(scope="module", params=KINDS)
def runs(request: pytest.FixtureRequest, place: Path) -> tuple[str, Path, Path]:
    """A kind of run, one that is finished, and one that was interrupted after its second block."""
    kind = request.param
    meant, stopped = place / f"{kind}-meant", place / f"{kind}-stopped"
    assert main(words_of(place, kind, meant)) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save", interrupting(RunFolder.save, 3))
        assert main(words_of(place, kind, stopped)) == 130
    return kind, meant, stopped


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / ".relaxprune").rglob("*") if path.is_file())


def flip(path: Path, share: float, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[int(share * (len(data) - 1))] ^= 1 << bit
    path.write_bytes(data)


def test_one_flipped_bit_is_refused_or_discarded(
    place: Path,
    runs: tuple[str, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    long_run: bool,
) -> None:
    kind, meant, stopped = runs
    places = [(share / 40, share % 8) for share in range(41)] if long_run else [(0.5, 3)]
    for file in files_of(stopped):
        name = file.relative_to(stopped)
        block = next((int(part) for part in (name.stem, *name.stem.split(".")) if part.isdigit()), None)
        listed = block is None or block < 2  # the certificates of the third block do not count yet
        for number, (share, bit) in enumerate(places):
            out = shutil.copytree(stopped, tmp_path / f"{name.name}-{number}")
            flip(out / name, share, bit)
            capsys.readouterr()
            words = [*words_of(place, kind, out), "--resume"]
            if listed:
                assert main(words) == 2
                said = only_sentence(capsys)
                assert "is damaged" in said and "--discard-damaged" in said, said
                assert str(out / name) in said
                assert block is None or f"{block:05d}.safetensors' to solve block {block} again" in said
                caplog.clear()
                assert main([*words, "--discard-damaged"]) == 0
                assert "discarded" in caplog.text
            else:
                assert main(words) == 0
            assert result(out) == result(meant), name
            shutil.rmtree(out)


def test_what_is_deleted_is_made_again(place: Path, runs: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, meant, stopped = runs
    for name in ("blocks/00000.safetensors", "blocks/00001.safetensors", "allocation.json"):
        out = shutil.copytree(stopped, tmp_path / name.replace("/", "-"))
        (out / ".relaxprune" / name).unlink(missing_ok=True)
        assert main([*words_of(place, kind, out), "--resume"]) == 0
        assert result(out) == result(meant)


def test_a_missing_manifest_loses_nothing_silently(
    place: Path, runs: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, meant, stopped = runs
    out = shutil.copytree(stopped, tmp_path / "out")
    (out / ".relaxprune/manifest.json").unlink()
    words = words_of(place, kind, out)
    assert main(words) == 2
    assert "is not empty" in only_sentence(capsys)
    assert main([*words, "--resume"]) == 2
    assert "manifest.json' is damaged: it is missing; add --discard-damaged" in only_sentence(capsys)
    assert main([*words, "--resume", "--discard-damaged"]) == 0
    assert result(out) == result(meant)


def test_damaged_settings_of_another_run_are_refused(
    place: Path, runs: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, _, stopped = runs
    out = shutil.copytree(stopped, tmp_path / "out")
    flip(out / ".relaxprune/run.json", 0.5, 2)
    before = {path: path.read_bytes() for path in files_of(out) if path.name != "run.json"}
    for _ in range(2):
        assert main([*words_of(place, kind, out), "--sparsity", "0.4", "--resume", "--discard-damaged"]) == 2
        assert "they were not these" in only_sentence(capsys)
    assert before == {path: path.read_bytes() for path in files_of(out) if path.name != "run.json"}


def test_discarding_goes_with_resume(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words_of(place, "refit", tmp_path / "out"), "--discard-damaged"]) == 2
    assert "--discard-damaged is given, but there is no --resume" in only_sentence(capsys)


def test_a_flipped_bit_of_a_finished_run_is_refused(
    place: Path, runs: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, meant, _ = runs
    for file in sorted(path for path in meant.rglob("*") if path.is_file()):
        out = shutil.copytree(meant, tmp_path / file.name)
        flip(out / file.relative_to(meant), 0.7, 1)
        capsys.readouterr()
        assert main([*words_of(place, kind, out), "--resume"]) == 2, file
        assert file.name in only_sentence(capsys)
