"""``relaxprune prune --offload``, ``--memory`` and ``--shard-size``: the same run with less memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from relaxprune.cli import main
from relaxprune.models import travelling
from relaxprune.models.blocks import NO_BLOCKS
from relaxprune.support.tensor_bits import same_bits

from ..command_line import arguments, interrupt, only_sentence
from ..tiny_llama import save_tiny_llama, tiny_tokenizer, write_text
from ..tiny_models import config_of

OFFLOAD = ["--offload", "disk"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny llama in bfloat16, in several shards, and a text."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny_llama(folder / "whole", dtype=torch.bfloat16, tied=False)
    model = AutoModelForCausalLM.from_pretrained(folder / "whole", dtype="auto")
    save_tiny_llama(folder / "tiny", dtype=torch.bfloat16, tied=False)
    model.save_pretrained(folder / "tiny", max_shard_size="20KB")
    write_text(folder / "text.txt")
    return folder


@pytest.fixture(scope="module")
def plain(place: Path) -> Path:
    """What a run without these options makes of it."""
    assert main(arguments(place, place / "plain", "--quiet")) == 0
    return place / "plain"


def tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a model's weight files."""
    found: dict[str, Tensor] = {}
    for file in folder.glob("model*.safetensors"):
        found |= load_file(file)
    return found


def assert_same(one: Path, other: Path) -> None:
    """Compare two runs: masks and settings byte by byte, weights bit by bit."""
    for name in ("masks.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    before, after = tensors(one), tensors(other)
    assert set(before) == set(after)
    assert [name for name in before if not same_bits(before[name], after[name])] == []
    facts = [json.loads((folder / "relaxprune.json").read_text())["fingerprint"] for folder in (one, other)]
    assert facts[0] == facts[1]
    assert not (other / ".relaxprune").exists()


@pytest.mark.parametrize(
    "words", [OFFLOAD, ["--memory", "8GiB"], [*OFFLOAD, "--memory", "8GiB"]], ids=["offload", "memory", "both"]
)
def test_the_result_is_that_of_a_run_without(place: Path, plain: Path, tmp_path: Path, words: list[str]) -> None:
    assert main(arguments(place, tmp_path / "out", *words)) == 0
    assert_same(plain, tmp_path / "out")


def test_a_mixture_comes_out_as_its_experts_are_stored(place: Path, tmp_path: Path) -> None:
    config = config_of("qwen3_moe")
    config.vocab_size = 122
    torch.manual_seed(0)
    (tmp_path / "text.txt").write_bytes((place / "text.txt").read_bytes())
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    for name, more in (("plain", []), ("out", OFFLOAD)):
        assert main(arguments(tmp_path, tmp_path / name, *more)) == 0
    assert_same(tmp_path / "plain", tmp_path / "out")
    assert main(["verify", str(tmp_path / "out"), *OFFLOAD]) == 0


def test_shards_are_no_larger_than_asked(
    place: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(place, out, *OFFLOAD, "--shard-size", "20KB")) == 0
    assert_same(plain, out)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 2 and {*index["weight_map"].values()} == {path.name for path in shards}
    assert max(sum(tensor.nbytes for tensor in load_file(path).values()) for path in shards) <= 20_000
    assert main(arguments(place, tmp_path / "whole", "--shard-size", "20KB")) == 0
    assert index == json.loads((tmp_path / "whole" / "model.safetensors.index.json").read_text())
    capsys.readouterr()
    for more in ([], OFFLOAD):
        assert main(["verify", str(out), *more]) == 0
        assert "30 tensors are those of" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 3


def test_kept_weights_keep_their_bits_whatever_is_computed_in(place: Path, tmp_path: Path) -> None:
    for name, more in (("plain", []), ("out", OFFLOAD)):
        assert main(arguments(place, tmp_path / name, "--dtype", "float32", *more)) == 0
    assert_same(tmp_path / "plain", tmp_path / "out")


@pytest.mark.parametrize("more", [[], ["--refit"]], ids=["masks", "refit"])
@pytest.mark.parametrize("first", [[], OFFLOAD], ids=["whole-first", "offload-first"])
def test_a_run_goes_on_wherever_its_weights_live(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: list[str], more: list[str]
) -> None:
    assert main(arguments(place, tmp_path / "plain", *more)) == 0
    then = [] if first else OFFLOAD
    interrupt(monkeypatch, tmp_path / "out", arguments(place, tmp_path / "out", *first, *more))
    assert main(arguments(place, tmp_path / "out", *then, *more, "--resume")) == 0
    assert_same(tmp_path / "plain", tmp_path / "out")


def test_what_needs_the_whole_model_gets_it_where_memory_has_room(place: Path, tmp_path: Path) -> None:
    assert main(arguments(place, tmp_path / "plain", "--refine", "1")) == 0
    assert main(arguments(place, tmp_path / "out", "--refine", "1", "--memory", "1TiB")) == 0
    assert_same(tmp_path / "plain", tmp_path / "out")


def test_a_reordered_run_is_verified_block_by_block(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--pattern", "2:4", "--permute", *OFFLOAD]
    assert main(arguments(place, tmp_path / "out", *words)) == 0
    capsys.readouterr()
    for more in ([], OFFLOAD):
        assert main(["verify", str(tmp_path / "out"), *more]) == 0
        assert "masked as asked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--memory", "lots"], "--memory must be a size such as 24GiB or 500MiB, got 'lots'"),
        (["--shard-size", "0"], "--shard-size must be a size"),
        (["--memory", "1MiB"], "memory must hold a block and the next one and what the run takes beside"),
        (["--offload", "disk", "--refine", "1"], "refine moves the weights of all blocks together"),
        (["--offload", "cpu"], "offload 'cpu' keeps blocks in memory beside an accelerator"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(arguments(place, tmp_path / "out", "--quiet", *words)) == 2
    assert sentence in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_travel_is_loaded_whole_unless_it_was_told_to(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(travelling, "find_blocks", lambda *_arguments: NO_BLOCKS)
    quick = ["--quiet", "--solver", "wanda"]
    words = [word for word in arguments(place, tmp_path / "out", *quick) if word not in ("--max-iterations", "12")]
    for more, sentence in (
        (["--memory", "1MiB"], "memory must hold the whole model and what the run takes beside"),
        (["--memory", "8GiB", *OFFLOAD], "has no list of blocks that could travel: leave out offload"),
    ):
        assert main([*words, *more]) == 2
        assert sentence in only_sentence(capsys)
    assert main([*words, "--memory", "8GiB"]) == 0
