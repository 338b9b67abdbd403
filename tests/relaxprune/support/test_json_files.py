"""JSON files: what is no JSON, what is not of the stated shape, and what is left to others."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from relaxprune.problems import RelaxPruneError
from relaxprune.support.json_files import (
    JsonFormat,
    Maybe,
    Values,
    is_sealed,
    misfit,
    parse_json,
    read_document,
    read_json,
    sealed,
)
from relaxprune.support.sentences import first_line

FORM = JsonFormat(2, {"names": [str], "counts": Values(int), "note": Maybe({"text": str})}, advice="write it again")
GOOD: dict[str, Any] = {"schema_version": 2, "names": ["a"], "counts": {"a": 1}, "note": {"text": "b"}}


def write(folder: Path, content: Any) -> Path:
    path = folder / "file.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "1" * 30, '{"a": 1, "a": 2}', "[" * 10**5, '"\\udc00"'])
def test_strict_json(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
def test_depth_is_limited_wherever_the_reader_stands(pair: str) -> None:
    start, end = pair[:-1], pair[-1]
    assert parse_json(start * 99 + "1" + end * 99) != 1
    for depth in (101, 400, 900, 5000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(start * depth + "1" + end * depth, strict=False)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zeros.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    for path in tmp_path.iterdir():
        with pytest.raises(RelaxPruneError, match="is damaged: it is no regular file; fetch it again"):
            read_json(path)


def test_a_seal_is_of_the_very_content() -> None:
    content = sealed({"a": [1, 2.5, None], "b": {"c": "d"}})
    assert is_sealed(content) and is_sealed(json.loads(json.dumps(content)))
    assert not is_sealed(content | {"a": [1, 2.5]}) and not is_sealed({"a": 1})


def test_files_of_others_may_hold_more(tmp_path: Path) -> None:
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"
    assert read_json(write(tmp_path, '{"a": Infinity, "b": 1, "b": 2}'))["b"] == 2
    for text, words in (
        ('{"a": "\\ud800"}', "not valid JSON"),
        ("[1]", "a list instead of a JSON object"),
        ('{"a": ', "fetch it again"),
    ):
        with pytest.raises(RelaxPruneError, match=words):
            read_json(write(tmp_path, text))


def test_a_document_of_its_shape(tmp_path: Path) -> None:
    assert read_document(write(tmp_path, GOOD), FORM) == GOOD
    assert read_document(write(tmp_path, GOOD | {"note": None, "more": 1}), FORM)["more"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 3}, "has schema version 3, this relaxprune reads 2"),
        ({"schema_version": None}, "'schema_version' is missing"),
        ({"names": [1]}, r"'names\[0\]' is missing or has the wrong type; write it again"),
        ({"names": {}}, "'names' is missing"),
        ({"counts": {"a": True}}, r"'counts\.a' is missing"),
        ({"counts": {"a": 1.5}}, r"'counts\.a' is missing"),
        ({"note": {}}, r"'note\.text' is missing"),
    ],
)
def test_a_document_of_another_shape(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RelaxPruneError, match=words):
        read_document(write(tmp_path, GOOD | changes), FORM)


def test_whole_numbers_are_numbers_and_truth_is_none() -> None:
    assert misfit(1, float) is None and misfit(1.5, int) is not None
    assert misfit(True, int) is not None and misfit(True, (int, bool)) is None


def test_the_first_line_of_what_others_say() -> None:
    assert first_line(ValueError("wrong.\nmore")) == "wrong"
    assert first_line(ValueError("field 'a':\n  TypeError: not b\nmore")) == "field 'a': TypeError: not b"
    assert first_line(ValueError(" \n")) == first_line(ValueError()) == "ValueError"
    with pytest.raises(UnicodeDecodeError) as caught:
        (b"a" * 10**6 + b"\xff").decode()
    assert len(first_line(caught.value)) < 200
