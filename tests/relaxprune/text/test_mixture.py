"""Mixtures of calibration text: how they are written, what they hold, and the order of their windows."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from relaxprune.cli import main
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.text.mixture import SourcePart, interleaved, source_parts, spelt, with_samples
from relaxprune.text.token_windows import windows_from_tokens
from relaxprune.text.windows import CalibrationOptions, calibration_windows

from ..command_line import arguments, only_sentence

COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def numbers(path: Path, first: int, last: int, words: int = 2000) -> str:
    """Write a text whose tokens lie between two numbers, and return its path."""
    path.write_text(" ".join(str(first + at % (last - first)) for at in range(words)), encoding="utf-8")
    return str(path)


@given(COUNTS)
def test_every_prefix_holds_each_kind_within_one_of_its_share(counts: list[int]) -> None:
    order = interleaved(counts)
    assert [order.count(kind) for kind in range(len(counts))] == counts
    taken = [0] * len(counts)
    for place, kind in enumerate(order, 1):
        taken[kind] += 1
        for count, seen in zip(counts, taken, strict=True):
            assert abs(seen - Fraction(count * place, len(order))) < 1


@given(COUNTS, st.sampled_from([1, 2, 4]), st.sampled_from([2, 3, 4]))
def test_every_kth_batch_holds_each_kind_almost_in_its_share(counts: list[int], batch: int, stride: int) -> None:
    order = interleaved(counts)
    batches = [order[at : at + batch] for at in range(0, len(order), batch)]
    for first in range(stride):
        held = list(itertools.chain(*batches[first::stride]))
        for kind, count in enumerate(counts):
            assert abs(held.count(kind) - count * len(held) / len(order)) <= 7  # alternating kinds: up to 25


def test_held_out_batches_of_even_kinds_are_even() -> None:
    for counts in ([32, 32], [8, 24], [32, 32, 64]):
        order = interleaved(counts)
        batches = [order[at : at + 4] for at in range(0, len(order), 4)]
        for first in range(4):
            held = list(itertools.chain(*batches[first::4]))
            assert [4 * held.count(kind) for kind in range(len(counts))] == counts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("builtin", [("builtin", 64)]),
        ("builtin:8", [("builtin", 8)]),
        ("builtin:32,self:16,a/b.txt:1", [("builtin", 32), ("self", 16), ("a/b.txt", 1)]),
        ("builtin,self", [("builtin", 32), ("self", 32)]),
        ("builtin,self,c4", [("builtin", 22), ("self", 21), ("c4", 21)]),
        ("C:/texts/one.txt", [("C:/texts/one.txt", 64)]),
        ("C:/texts/one.txt:5", [("C:/texts/one.txt", 5)]),
        ("text:1:32", [("text:1", 32)]),
        (r"one\,two.txt:3,self:4", [("one,two.txt", 3), ("self", 4)]),
        ("builtin:3, self:4", [("builtin", 3), ("self", 4)]),
    ],
)
def test_how_sources_are_written(text: str, expected: list[tuple[str, int]]) -> None:
    parts = source_parts(text, 64)
    assert [(part.source, part.windows) for part in parts] == expected
    assert source_parts(",".join(map(str, parts)), None) == parts


def test_without_a_number_each_source_is_taken_whole() -> None:
    assert source_parts("builtin,a.txt", None) == (SourcePart("builtin", None), SourcePart("a.txt", None))


def test_the_name_of_a_file_means_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one,two.txt", "text:1"):
        (tmp_path / name).write_text("text")
        assert source_parts(name, 7) == (SourcePart(name, 7),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("builtin:32,self", "a number of windows with each of its parts or with none, got none with 'self'"),
        ("builtin:4,self:4,builtin:4", "source 'builtin' must be named once"),
        ("builtin:0,self:4", "windows of source 'builtin' must be a whole number of at least 1, got 0"),
        ("builtin:4,,self:4", "must name a text between its commas"),
        (",".join("abcd"), "windows must be at least one for each of 4 sources, got 3"),
        ("", "must name a text"),
    ],
)
def test_what_is_written_wrong(text: str, sentence: str) -> None:
    with pytest.raises(RelaxPruneError, match=sentence):
        source_parts(text, 3)


def test_a_mixture_holds_the_windows_of_its_parts(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, tiny_llama: LlamaForCausalLM
) -> None:
    low, high = numbers(tmp_path / "low.txt", 0, 20), numbers(tmp_path / "high.txt", 30, 50)
    options = CalibrationOptions(length=12, seed=3)
    mixture = calibration_windows(f"{low}:6,self:4,{high}:2", tiny_tokenizer, options, model=tiny_llama)
    assert len(mixture) == 12 and [mixture.kinds.count(kind) for kind in (low, "self", high)] == [6, 4, 2]
    assert mixture.source == f"{low}:6,self:4,{high}:2"
    for number, kind in enumerate((low, "self", high)):
        alone = calibration_windows(f"{kind}:{(6, 4, 2)[number]}", tiny_tokenizer, options, model=tiny_llama)
        assert alone.source == kind and set(alone.kinds) == {kind}
        chosen = torch.tensor([label == kind for label in mixture.kinds])
        assert torch.equal(mixture.tokens[chosen], alone.tokens)
        assert mixture.description["parts"][kind] == alone.description
        assert alone.sha256 in str(mixture.description)
    again = calibration_windows(f"{low}:6,self:4,{high}:2", tiny_tokenizer, options, model=tiny_llama)
    assert again.sha256 == mixture.sha256


def test_sources_that_share_windows(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    one, other = numbers(tmp_path / "one.txt", 0, 20), numbers(tmp_path / "other.txt", 30, 50)
    shared = calibration_windows(f"{one},{other}", tiny_tokenizer, CalibrationOptions(windows=7, length=8))
    spelt = calibration_windows(f"{one}:4,{other}:3", tiny_tokenizer, CalibrationOptions(length=8))
    assert shared.source == spelt.source == f"{one}:4,{other}:3" and shared.sha256 == spelt.sha256
    whole = calibration_windows(f"{one},{other}", tiny_tokenizer, CalibrationOptions(windows=None, length=8))
    assert len(whole) == 2 * (1500 // 8)


def test_every_part_is_opened_before_the_model_is_asked(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, tiny_llama: LlamaForCausalLM
) -> None:
    text = numbers(tmp_path / "one.txt", 0, 20)
    tiny_llama.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(RelaxPruneError, match="'builtni' is neither a text file nor one of"):
        calibration_windows("self:4,builtni:4", tiny_tokenizer, model=tiny_llama)
    with pytest.raises(RelaxPruneError, match="give the model and a number of windows"):
        calibration_windows(f"{text}:2,self:4", tiny_tokenizer)
    with pytest.raises(RelaxPruneError, match="give the model and a number of windows"):
        calibration_windows(f"{text},self", tiny_tokenizer, CalibrationOptions(windows=None), model=tiny_llama)


def test_kinds_of_tokens_that_one_has() -> None:
    tokens = torch.ones(3, 4, dtype=torch.int64)
    assert windows_from_tokens(tokens, "mine").kinds == ("mine",) * 3
    assert windows_from_tokens(tokens, kinds=["a", "b", "a"]).kinds == ("a", "b", "a")
    with pytest.raises(RelaxPruneError, match="a source for each of 3 windows, got 1"):
        windows_from_tokens(tokens, kinds=["a"])


def test_a_run_on_a_mixture_and_its_resumption(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, mixture = tmp_path / "out", f"{place / 'text.txt'}:3,self:2"
    assert main(arguments(place, out, "--calibration", mixture)) == 0
    facts = json.loads((out / "relaxprune.json").read_text())["fingerprint"]["calibration"]
    assert facts["source"] == mixture and facts["windows"] == 5
    parts = facts["description"]["parts"]
    assert [part["windows"] for part in parts.values()] == [3, 2]
    assert len({part["sha256"] for part in parts.values()} - {facts["sha256"]}) == 2
    assert mixture in (out / "README.md").read_text()
    assert main(arguments(place, out, "--calibration", mixture, "--resume")) == 0
    assert main(["verify", str(out)]) == 0
    capsys.readouterr()
    for other in (f"self:2,{place / 'text.txt'}:3", f"{place / 'text.txt'}:2,self:3", str(place / "text.txt")):
        assert main(arguments(place, out, "--calibration", other, "--resume")) == 2
        assert "calibration.source was" in only_sentence(capsys)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, "builtin:24"), (1 / 3, "builtin:24,self:8"), (0.04, "builtin:24"), (2.0, "builtin:24,self:48")],
)
def test_samples_come_beside_a_text(share, expected):
    assert spelt(with_samples(SourcePart("builtin", 24), share)) == expected
    assert with_samples(SourcePart("self", 24), share) == (SourcePart("self", 24),)
