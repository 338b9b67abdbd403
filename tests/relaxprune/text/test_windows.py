"""Token windows: seeded, non-overlapping, never from the other part, and honest about how many there are."""

from __future__ import annotations

import argparse
import hashlib
import keyword
import platform
import struct
import sys
import threading
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.text.corpora import open_text, split_text
from relaxprune.text.token_windows import tokens_sha256, windows_from_tokens
from relaxprune.text.windows import HELD_OUT_SEED, CalibrationOptions, calibration_windows, evaluation_windows


def numbers(start, count):
    """Text whose tokens count upwards, modulo 61, so that a window shows where it came from."""
    return " ".join(str(value % 61) for value in range(start, start + count))


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(numbers(20 * line, 20) for line in range(40)), encoding="utf-8")  # 800 tokens
    return str(path)


def starts(windows):
    """Each window's first token; checks on the way that every window is one piece of the counting text."""
    for window in windows.tokens.tolist():
        assert window == [(window[0] + step) % 61 for step in range(len(window))]
    return windows.tokens[:, 0].tolist()


def test_same_seed_same_windows_other_seed_others(text_file, tiny_tokenizer):
    options = CalibrationOptions(windows=5, length=16, seed=3)
    first, again = (calibration_windows(text_file, tiny_tokenizer, options) for _ in range(2))
    other = calibration_windows(text_file, tiny_tokenizer, CalibrationOptions(windows=5, length=16, seed=4))
    assert torch.equal(first.tokens, again.tokens) and first.sha256 == again.sha256
    assert first.sha256 != other.sha256
    assert first.tokens.shape == (5, 16) and first.tokens.dtype == torch.int64
    assert first.sha256 in str(first.description) and first.sha256[:12] in str(first)
    starts(first)


def test_calibration_windows_do_not_overlap_and_leave_the_random_state(tmp_path, tiny_tokenizer):
    path = tmp_path / "text.txt"
    path.write_text(numbers(0, 61), encoding="utf-8")  # every token once: an overlap would repeat one
    before = torch.random.get_rng_state()
    windows = calibration_windows(str(path), tiny_tokenizer, CalibrationOptions(windows=None, length=7, held_out=0.0))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(windows) == 61 // 7
    assert windows.tokens.unique().numel() == windows.tokens.numel()


def test_evaluation_windows_are_in_order_and_drop_the_remainder(tmp_path, tiny_tokenizer):
    path = tmp_path / "text.txt"
    path.write_text(numbers(0, 50), encoding="utf-8")
    windows = evaluation_windows(str(path), tiny_tokenizer, CalibrationOptions(windows=None, length=12, held_out=1.0))
    assert starts(windows) == [0, 12, 24, 36]


def test_parts_of_a_file_are_disjoint(tmp_path, tiny_tokenizer):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(str(value) for value in range(60)), encoding="utf-8")
    options = CalibrationOptions(windows=None, length=2)
    calibration = calibration_windows(str(path), tiny_tokenizer, options).tokens.flatten().tolist()
    evaluation = evaluation_windows(str(path), tiny_tokenizer, options).tokens.flatten().tolist()
    assert calibration and evaluation and not set(calibration) & set(evaluation)
    assert max(calibration) < min(evaluation)


@pytest.mark.parametrize("held_out", [0.0, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("text", ["one two\nthree four\n\nfive six seven " * 9, "abcdefgh" * 11, "", "x"])
def test_split_loses_and_repeats_nothing(text, held_out):
    calibration, evaluation = split_text(text, held_out)
    assert calibration + evaluation == text
    assert abs(len(evaluation) - held_out * len(text)) <= len(text) / 20 + 1


def test_builtin_parts_share_no_paragraph():
    source = open_text("builtin")
    parts = [" ".join(source.documents(part)[0].split()) for part in ("calibration", "evaluation")]
    paragraphs = [
        {" ".join(p.split()) for p in source.documents(part)[0].split("\n\n")} - {""}
        for part in ("calibration", "evaluation")
    ]
    assert min(map(len, parts)) > 50_000
    assert not paragraphs[0] & paragraphs[1]
    assert source.description["python"] and len(source.description["text_sha256"]) == 64


def test_python_source_is_files_as_they_are():
    source = open_text("python")
    calibration, evaluation = (source.documents(part)[0] for part in ("calibration", "evaluation"))
    assert 0.2 < len(evaluation) / len(calibration + evaluation) < 0.3
    for part, own, other in ((calibration, argparse, threading), (evaluation, threading, argparse)):
        text = Path(own.__file__).read_text(encoding="utf-8").rstrip()
        assert text in part and Path(other.__file__).read_text(encoding="utf-8").rstrip() not in part
    assert Path(keyword.__file__).read_text(encoding="utf-8").rstrip() not in calibration  # a generated table
    assert source.description["python"] == platform.python_version() and source.description["files"] > 100
    assert source.description["text_sha256"] == hashlib.sha256((calibration + evaluation).encode()).hexdigest()
    assert open_text("python", 0).documents("calibration")[0] == calibration + evaluation
    assert open_text("python", 1).documents("evaluation")[0] == calibration + evaluation


def test_python_source_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(RelaxPruneError, match="no source files"):
        open_text("python")


def test_asking_for_too_many_says_how_many_there_are(text_file, tiny_tokenizer):
    available = len(calibration_windows(text_file, tiny_tokenizer, CalibrationOptions(windows=None, length=16)))
    exact = CalibrationOptions(windows=available, length=16)
    assert len(calibration_windows(text_file, tiny_tokenizer, exact)) == available
    with pytest.raises(RelaxPruneError, match=f"has {available} windows of 16 tokens.*{available + 1} were asked for"):
        calibration_windows(text_file, tiny_tokenizer, CalibrationOptions(windows=available + 1, length=16))


def test_text_too_short_for_one_window(text_file, tiny_tokenizer):
    with pytest.raises(RelaxPruneError, match=r"too few for one window of 4096"):
        calibration_windows(text_file, tiny_tokenizer, CalibrationOptions(windows=1, length=4096))
    with pytest.raises(RelaxPruneError, match=r"has 0 tokens in its evaluation part"):
        evaluation_windows(text_file, tiny_tokenizer, CalibrationOptions(windows=1, length=8, held_out=0.0))


def test_a_tokenizer_that_loads_and_fails(text_file, tiny_tokenizer):
    tiny_tokenizer.model_max_length = "long"
    with pytest.raises(RelaxPruneError, match="tokenizer could not be used: '>' not supported"):
        calibration_windows(text_file, tiny_tokenizer, CalibrationOptions(windows=1, length=16))


def test_bad_sources(tmp_path, tiny_tokenizer):
    with pytest.raises(RelaxPruneError, match="did you mean 'wikitext2'"):
        calibration_windows("wikitxt2", tiny_tokenizer)
    with pytest.raises(FileNotFoundError, match="no such file"):
        calibration_windows(str(tmp_path / "missing.txt"), tiny_tokenizer)
    with pytest.raises(RelaxPruneError, match="is a folder"):
        calibration_windows(str(tmp_path), tiny_tokenizer)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(RelaxPruneError, match="not UTF-8"):
        calibration_windows(str(tmp_path / "latin.txt"), tiny_tokenizer)
    with pytest.raises(RelaxPruneError, match="needs a tokenizer"):
        calibration_windows("builtin", None)


@pytest.mark.parametrize(
    "options",
    [
        {"windows": 0},
        {"windows": 2.5},
        {"length": 1},
        {"seed": -1},
        {"seed": 2.5},
        {"seed": float("inf")},
        {"seed": 2**63},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
    ],
)
def test_bad_options(options):
    with pytest.raises(RelaxPruneError, match=next(iter(options))):
        CalibrationOptions(**options)


def test_bad_held_out(tiny_tokenizer):
    with pytest.raises(RelaxPruneError, match="held_out"):
        calibration_windows("builtin", tiny_tokenizer, CalibrationOptions(held_out=1.5))


# -- data sets, through a local stand-in for datasets.load_dataset


@pytest.fixture
def loaded(monkeypatch):
    """Replace the download by small data sets; the list holds (name, split) of every load."""
    calls: list[tuple[str, str]] = []

    def load_dataset(name, *config, split, token, data_files=None):
        calls.append((name, split))
        base = 0 if split == "train" else 30
        texts = [" ".join([str(base + row)] * (4 + row)) for row in range(20)]
        return datasets.Dataset.from_dict({"text": texts})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_wikitext2_uses_the_official_splits(loaded, tiny_tokenizer):
    options = CalibrationOptions(windows=None, length=10)
    calibration = calibration_windows("wikitext2", tiny_tokenizer, options)
    evaluation = evaluation_windows("wikitext2", tiny_tokenizer, options)
    assert loaded == [("Salesforce/wikitext", "train"), ("Salesforce/wikitext", "test")]
    assert int(calibration.tokens.max()) < 30 <= int(evaluation.tokens.min())
    assert len(evaluation) == sum(4 + row for row in range(20)) // 10


def test_c4_takes_one_window_per_long_document_and_evaluates_on_validation(loaded, tiny_tokenizer):
    options = CalibrationOptions(windows=8, length=16)
    calibration = calibration_windows("c4", tiny_tokenizer, options)
    documents = [set(window) for window in calibration.tokens.tolist()]
    assert all(len(document) == 1 for document in documents)  # never across two documents
    assert len(set().union(*documents)) == 8  # rows 12 to 19 are long enough, each taken once
    evaluation = evaluation_windows("c4", tiny_tokenizer, CalibrationOptions(windows=3, length=16))
    assert loaded == [("allenai/c4", "train"), ("allenai/c4", "validation")]
    assert int(evaluation.tokens.min()) >= 30
    with pytest.raises(RelaxPruneError, match="has 8 windows of 16 tokens"):
        calibration_windows("c4", tiny_tokenizer, CalibrationOptions(windows=9, length=16))
    with pytest.raises(RelaxPruneError, match="give a number of windows"):
        calibration_windows("c4", tiny_tokenizer, CalibrationOptions(windows=None, length=16))


def test_unreachable_data_set_is_one_sentence(monkeypatch, tiny_tokenizer):
    def offline(*arguments, **options):
        raise ConnectionError("Couldn't reach 'allenai/c4' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(RelaxPruneError, match=r"Couldn't reach .* go online") as caught:
        calibration_windows("c4", tiny_tokenizer)
    assert "\n" not in str(caught.value)


def test_missing_datasets_package_names_the_extra(monkeypatch, tiny_tokenizer):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RelaxPruneError, match=r"pip install 'relaxprune\[data\]'"):
        calibration_windows("wikitext2", tiny_tokenizer)


# -- sampled from the model, and tokens passed in


def test_self_is_seeded_and_leaves_no_trace(tiny_llama, tiny_tokenizer):
    tiny_llama.train()
    before = torch.random.get_rng_state()
    options = CalibrationOptions(windows=18, length=12, seed=5)  # more than are written side by side
    first, again = (calibration_windows("self", tiny_tokenizer, options, model=tiny_llama) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before) and tiny_llama.training
    assert torch.equal(first.tokens, again.tokens) and first.tokens.shape == (18, 12)
    other = CalibrationOptions(windows=18, length=12, seed=6)
    assert calibration_windows("self", None, other, model=tiny_llama).sha256 != first.sha256


def test_windows_that_are_spread_reach_from_the_beginning_to_the_end(text_file, tiny_tokenizer):
    def taken(count, spread):
        options = CalibrationOptions(windows=count, length=8)
        return evaluation_windows(text_file, tiny_tokenizer, options, spread=spread).tokens.tolist()

    every = taken(None, False)
    assert taken(None, True) == every and taken(1, True) == every[:1]
    assert taken(4, True) == [every[place * len(every) // 4] for place in range(4)] != taken(4, False)


def test_self_for_evaluation_is_no_calibration_text(tiny_llama, tiny_tokenizer):
    options = CalibrationOptions(windows=4, length=12)
    unseen, again = (evaluation_windows("self", tiny_tokenizer, options, model=tiny_llama) for _ in range(2))
    seen = calibration_windows("self", tiny_tokenizer, options, model=tiny_llama)
    assert unseen.sha256 == again.sha256 and unseen.source == "self" and unseen.description["seed"] == HELD_OUT_SEED
    assert not {tuple(row) for row in unseen.tokens.tolist()} & {tuple(row) for row in seen.tokens.tolist()}
    other = evaluation_windows("self", tiny_tokenizer, replace(options, seed=7), model=tiny_llama)
    assert other.sha256 == unseen.sha256


def test_self_follows_the_models_distribution(tiny_llama):
    """Nearly greedy sampling repeats what an argmax over full forward passes (no cache) gives."""
    tiny_llama.lm_head.weight.data.mul_(50)
    options = CalibrationOptions(windows=3, length=10, temperature=1e-4)
    tokens = calibration_windows("self", None, options, model=tiny_llama).tokens
    with torch.no_grad():
        for position in range(1, 10):
            expected = tiny_llama(tokens[:, :position]).logits[:, -1].argmax(-1)
            assert torch.equal(tokens[:, position], expected)


def test_self_refusals(tiny_llama, tiny_tokenizer):
    with pytest.raises(RelaxPruneError, match="give the model"):
        calibration_windows("self", tiny_tokenizer)
    with pytest.raises(RelaxPruneError, match="64 positions"):
        calibration_windows("self", tiny_tokenizer, CalibrationOptions(windows=1, length=65), model=tiny_llama)
    with pytest.raises(RelaxPruneError, match="dense model"):
        evaluation_windows("self", tiny_tokenizer, CalibrationOptions(windows=2, length=8))
    with pytest.raises(RelaxPruneError, match="number of windows"):
        evaluation_windows("self", tiny_tokenizer, model=tiny_llama)
    with torch.no_grad():
        tiny_llama.lm_head.weight[0] = float("nan")
    with pytest.raises(RelaxPruneError, match="not finite"):
        calibration_windows("self", None, CalibrationOptions(windows=1, length=4), model=tiny_llama)


def test_tokens_passed_in():
    tokens = torch.arange(12, dtype=torch.int32).view(3, 4)
    windows = windows_from_tokens(tokens)
    tokens[0, 0] = 9  # the windows are a copy
    assert windows.tokens.tolist()[0] == [0, 1, 2, 3] and windows.tokens.dtype == torch.int64
    assert windows.sha256 == tokens_sha256(windows.tokens)
    assert tokens_sha256(torch.arange(12).view(4, 3)) != windows.sha256  # the shape counts
    by_hand = b"(3, 4)" + b"".join(struct.pack("<q", number) for number in range(12))
    assert windows.sha256 == hashlib.sha256(by_hand).hexdigest()
    with pytest.raises(RelaxPruneError, match="integer tensor"):
        windows_from_tokens(torch.ones(2, 2))
    with pytest.raises(RelaxPruneError, match="shape"):
        windows_from_tokens(torch.ones(2, dtype=torch.int64))
    with pytest.raises(RelaxPruneError, match="negative id -100"):
        windows_from_tokens(torch.full((1, 2), -100))
