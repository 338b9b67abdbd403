"""Files that were changed at random: every command ends, in time, with an exit code and one sentence, never wrong."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import typer.main

from .cases import CASES, Case, good_files, lay_out
from .changes import change_file
from .watching import Seen, watch

ALL, SAMPLE = 20_000, 160  # tries of all cases together
EVALUATION = ("run/evaluation.json", "run/.relaxprune.lock")
# What commands may write.
OUTPUTS = ("out", "out.safetensors", "out.html", "out.json", "new", "back", "begun", "finished", *EVALUATION)
NAMES = [f"{case.name}: {case.kind}" for case in CASES]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that are changed, as they should be."""
    return good_files(tmp_path_factory.mktemp("good"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes long and reads no file: commands made anew, drawing, the forecast of a run's seconds."""
    monkeypatch.setattr("typer.main.get_command", cache(typer.main.get_command))
    monkeypatch.setattr("relaxprune.report.writing.render", lambda _page, _name: "")
    monkeypatch.setattr("relaxprune.report.figures.svg", lambda *_: "")
    monkeypatch.setattr("relaxprune.report.content._PICTURES", 1)
    monkeypatch.setattr("relaxprune.cli.prune.run.with_prediction", lambda plan, *_: plan)


def attempt(case: Case, good: Path, place: Path, expected: Seen, chance: random.Random) -> tuple[Seen, str]:
    """Change a file, run the command, and look; returns what was seen and what was changed."""
    lay_out(case, good, place)
    path = place / chance.choice(case.changed)
    if path.is_dir():
        path = chance.choice([file for file in sorted(path.rglob("*")) if file.is_file()])
    change = change_file(path, chance, case.form)
    os.chdir(place)
    seen = watch(case.words, [place / name for name in OUTPUTS])
    if seen.code in (0, 3) and not seen.faults:
        try:
            wrong = case.judge(place, seen, expected, change)
        except Exception as error:  # the answer is about a file that others cannot read
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            seen.fault("wrong", wrong)
    return seen, f"{change} of {path.relative_to(place)}"


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_no_file_breaks_a_command(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case, long_run: bool, seed: int
) -> None:
    place = tmp_path / "try"
    lay_out(case, good, place)
    monkeypatch.chdir(place)
    expected = watch(case.words, [tmp_path])
    assert expected.code == 0 and expected.faults <= {"outside"}, expected  # caches of libraries, the first time
    shutil.rmtree(place)
    tries = max(4, case.share * (ALL if long_run else SAMPLE) // 1000)
    faults: Counter[str] = Counter()
    codes: Counter[int | None] = Counter()
    told = []
    for number in range(tries):
        seen, changed = attempt(case, good, place, expected, random.Random(f"{case.name} {seed} {number}"))
        faults.update(seen.faults)
        codes[seen.code] += 1
        told += [f"{number}, {changed}: {said}" for said in seen.told]
        shutil.rmtree(place)
    print(f"{case.name} | {case.kind} | {tries} | {dict(codes)} | {dict(faults)}")
    assert not told, f"{dict(faults)} of {tries}\n" + "\n".join(told[:40])
