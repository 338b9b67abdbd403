"""How many tokens, and which, a model can read: the same answer for all that reads text."""

from __future__ import annotations

import pytest
import torch
import transformers

from relaxprune import perplexity, prune_model
from relaxprune.models.token_limits import check_tokenizer, positions, try_window, vocabulary
from relaxprune.problems.errors import RelaxPruneError

SMALL = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 92}
WIDE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 92}
DEEP = {**WIDE, "intermediate_size": 48}
# family -> configuration that knows 64 positions, whatever it calls them; None where there is no end.
FAMILIES = {
    "gpt2": (transformers.GPT2Config(**SMALL, n_positions=64), 64),
    "gptj": (transformers.GPTJConfig(**SMALL, n_positions=64, rotary_dim=8), 64),
    "codegen": (transformers.CodeGenConfig(**SMALL, n_positions=64, rotary_dim=8), 64),
    "openai": (transformers.OpenAIGPTConfig(**SMALL, n_positions=64), 64),
    "ctrl": (transformers.CTRLConfig(**SMALL, n_positions=64, dff=48), 64),
    "mpt": (transformers.MptConfig(d_model=32, n_heads=4, n_layers=1, vocab_size=92, max_seq_len=64), 64),
    "llama": (transformers.LlamaConfig(**DEEP, max_position_embeddings=64), 64),
    "roberta": (transformers.RobertaConfig(**DEEP, max_position_embeddings=66, is_decoder=True), 64),
    "biogpt": (transformers.BioGptConfig(**DEEP, max_position_embeddings=64), 64),
    "opt": (transformers.OPTConfig(**WIDE, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64), 64),
    "bloom": (transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=92, seq_length=64), None),
    "falcon": (transformers.FalconConfig(**WIDE, alibi=True, max_position_embeddings=64), None),
    "mamba": (transformers.MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=92), None),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_positions(family):
    config, known = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert (positions(model), vocabulary(model)) == (known, 92)
    tokens = torch.randint(3, 90, (2, 64))
    try_window(model, tokens)
    assert perplexity(model, tokens).perplexity > 1
    longer = torch.randint(3, 90, (2, 65))
    if known is None:
        try_window(model, longer)
        return
    for call in (try_window, perplexity, lambda model, tokens: prune_model(model, [tokens], sparsity=0.5)):
        with pytest.raises(RelaxPruneError, match="length 65 exceeds the 64 positions of the model: use at most 64"):
            call(model, longer)


def test_a_model_that_knows_fewer_positions_than_it_says(tiny_llama):
    tiny_llama.config.max_position_embeddings = 4096
    table = torch.zeros(8)

    def look_up(_module, _args, kwargs):
        assert table[kwargs["hidden_states"].shape[1] - 1] == 0

    tiny_llama.model.layers[0].self_attn.register_forward_pre_hook(look_up, with_kwargs=True)
    try_window(tiny_llama, torch.ones(1, 8, dtype=torch.int64))
    for call in (try_window, perplexity):
        with pytest.raises(RelaxPruneError, match=r"fails on a window of 9 tokens .*a shorter length may fit"):
            call(tiny_llama, torch.ones(1, 9, dtype=torch.int64))


def test_ids_that_the_model_does_not_know(tiny_llama):
    for batch in (torch.tensor([[1, 64]]), {"input_ids": torch.tensor([[1, 64]])}):
        before = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
        with pytest.raises(RelaxPruneError, match="ids from 1 to 64, the model knows 0 to 63"):
            prune_model(tiny_llama, [batch], sparsity=0.5)
        assert all(torch.equal(before[name], tensor) for name, tensor in tiny_llama.state_dict().items())


def test_a_tokenizer_with_added_tokens_is_refused_whether_or_not_a_text_uses_them(tiny_llama, tiny_tokenizer):
    check_tokenizer(tiny_llama, tiny_tokenizer)
    tiny_tokenizer.add_tokens(["new0", "new1"])
    with pytest.raises(RelaxPruneError, match=r"2 tokens beyond the 64 .*'new0', id 64"):
        check_tokenizer(tiny_llama, tiny_tokenizer)
    tiny_llama.resize_token_embeddings(66)
    check_tokenizer(tiny_llama, tiny_tokenizer)
