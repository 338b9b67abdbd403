"""Tiny models with tokenizers, in memory and saved, and the one real model that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from relaxprune.cli import main
from relaxprune.models.loading import LoadedModel, load_model

from .tiny_llama import save_tiny_llama, write_text

VOCABULARY = 64


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """SmolLM2-135M-Instruct, dequantised: about 20 s to load, so once a session. Tests must not change it."""
    return load_model("smollm2-135m")


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose text is the ids themselves: "7 12 3" gives [7, 12, 3]."""
    words = {str(number): number for number in range(VOCABULARY - 1)} | {"<unk>": VOCABULARY - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """A random llama of two blocks in float32, 64 positions, in evaluation mode."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_folder(tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The tiny llama and its tokenizer as ``save_pretrained`` writes them."""
    folder = tmp_path / "tiny"
    tiny_llama.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Give torch its threads back, which ``--threads`` takes from the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny llama of three blocks and a text, once for each file of tests."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny_llama(folder / "tiny")
    write_text(folder / "text.txt")
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs "half" and "two_of_four" of a llama of one block, for what is made of runs."""
    folder = tmp_path_factory.mktemp("runs")
    save_tiny_llama(folder / "tiny", blocks=1)
    text = write_text(folder / "text.txt", words=400)
    quick = ["--windows", "2", "--length", "16", "--solver", "wanda", "--threads", "1"]
    for name, amount in (("half", ["--sparsity", "0.5"]), ("two_of_four", ["--pattern", "2:4"])):
        words = ["prune", str(folder / "tiny"), "--out", str(folder / name), "--calibration", str(text)]
        assert main([*words, *quick, *amount]) == 0
    return folder
