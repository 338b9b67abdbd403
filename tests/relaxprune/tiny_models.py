"""Tiny random models of every family that is tested, and batches with padding for them."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 64
WIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
COMMON = {**WIDE, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
GROUPED = {**COMMON, "num_key_value_heads": 2}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
DECODERS = ("llama", "qwen2", "qwen3", "gemma3", "mistral", "phi3", "gpt2", "opt", "gpt_neox", "qwen3_moe")


def config_of(family: str) -> transformers.PretrainedConfig:
    """Return the tiny configuration of a family: three blocks, 32 wide."""
    gemma3 = {**GROUPED, "head_dim": 8, "sliding_window": 4, "layer_types": LAYER_TYPES}
    configs = {
        "llama": lambda: transformers.LlamaConfig(**GROUPED, **ENDS),
        "qwen2": lambda: transformers.Qwen2Config(**GROUPED, **ENDS),
        "qwen3": lambda: transformers.Qwen3Config(**GROUPED, **ENDS, head_dim=8),
        "gemma3": lambda: transformers.Gemma3TextConfig(**gemma3, **ENDS),
        "mistral": lambda: transformers.MistralConfig(**GROUPED, **ENDS, sliding_window=4),
        "phi3": lambda: transformers.Phi3Config(**GROUPED, **ENDS),
        "gpt2": lambda: transformers.GPT2Config(
            n_embd=32, n_layer=3, n_head=4, vocab_size=VOCABULARY, n_positions=64, **ENDS
        ),
        "opt": lambda: transformers.OPTConfig(
            hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=VOCABULARY,
            max_position_embeddings=64, word_embed_proj_dim=16, **ENDS
        ),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**COMMON, **ENDS),
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
            **GROUPED, **ENDS, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
        ),
        "mixtral": lambda: transformers.MixtralConfig(
            **GROUPED, **ENDS, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
        ),
        "gemma": lambda: transformers.GemmaConfig(**GROUPED, **ENDS, head_dim=8),
        "gemma2": lambda: transformers.Gemma2Config(**gemma3, **ENDS),
        "olmo2": lambda: transformers.Olmo2Config(**GROUPED, **ENDS),
        "gpt_oss": lambda: transformers.GptOssConfig(
            **GROUPED, **ENDS, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4,
            layer_types=LAYER_TYPES,
        ),
        "granite": lambda: transformers.GraniteConfig(
            **GROUPED, **ENDS, embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0
        ),
        "deepseek_v3": lambda: transformers.DeepseekV3Config(
            **COMMON, **ENDS, num_key_value_heads=4, moe_intermediate_size=16, n_routed_experts=4, n_shared_experts=1,
            num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=16,
            qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        ),
        "bert": lambda: transformers.BertConfig(**COMMON, pad_token_id=0),
        "albert": lambda: transformers.AlbertConfig(**COMMON, **ENDS, embedding_size=16),
        "gemma3_vision": lambda: transformers.Gemma3Config(
            text_config=transformers.Gemma3TextConfig(**gemma3).to_dict(),
            vision_config={
                "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
                "image_size": 28, "patch_size": 14,
            },
            mm_tokens_per_image=4, boi_token_index=60, eoi_token_index=61, image_token_index=62,
        ),
    }  # fmt: skip
    return configs[family]()


def tiny_model(family: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a random model of a family, in evaluation mode; the weights are large enough to tell tokens apart."""
    config = config_of(family)
    torch.manual_seed(0)
    kind = {"bert": transformers.AutoModelForMaskedLM, "albert": transformers.AutoModelForMaskedLM}.get(
        family, transformers.AutoModelForCausalLM
    )
    if family == "gemma3_vision":
        kind = transformers.AutoModelForImageTextToText
    model = kind.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(4)
    return model


def padded_batches(count: int = 3, windows: int = 2, length: int = 12) -> list[dict[str, Tensor]]:
    """Return batches of random tokens; the last three positions of one window of the second batch are padding."""
    generator = torch.Generator().manual_seed(5)
    batches = []
    for index in range(count):
        tokens = torch.randint(3, 60, (windows, length), generator=generator)
        mask = torch.ones_like(tokens)
        if index == 1:
            mask[0, -3:] = 0
            tokens[0, -3:] = 0
        batches.append({"input_ids": tokens, "attention_mask": mask})
    return batches
