"""A tiny random llama with a tiny word tokenizer and a chat template, saved to a folder; and a text to calibrate on."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"word{index}" for index in range(120)]
CHAT_TEMPLATE = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}\n{% endfor %}"


def save_tiny_llama(folder: Path, *, blocks: int = 3, dtype: torch.dtype = torch.float32, tied: bool = True) -> Path:
    """Save a llama of ``blocks`` decoder blocks, 32 wide, and its tokenizer; returns ``folder``."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    torch.nn.Module.to(model, dtype)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows WORDS, a token for each."""
    vocabulary = {"<s>": 0, "</s>": 1} | {word: index + 2 for index, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="</s>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_text(path: Path, words: int = 4000) -> Path:
    """Write a text of pseudo-random words that the tokenizer knows; returns ``path``."""
    generator = random.Random(3)
    path.write_text(" ".join(generator.choice(WORDS) for _ in range(words)), encoding="utf-8")
    return path
