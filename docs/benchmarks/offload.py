"""Prune a random model in less memory than it takes, and the same model whole; print seconds and peak memory.

python docs/benchmarks/offload.py make MODEL --blocks 186
python docs/benchmarks/offload.py run MODEL OUT -- --offload disk --memory 2GiB
python docs/benchmarks/offload.py same OUT OTHER

``make`` writes a llama with random weights in bfloat16, shard by shard, so that it takes little memory itself. ``run``
prunes it in a process of its own, with whatever options follow, and verifies the result in another. ``same`` compares
the masks and all tensors of two runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from relaxprune.residency.sources import Shards
from relaxprune.runs import open_mask_file
from relaxprune.support.container import write_tensors
from relaxprune.support.durable import write_json
from relaxprune.support.tensor_bits import same_bits

_SCALE = 0.02
_BLOCKS_PER_SHARD = 16


def make(folder: Path, blocks: int, hidden: int, inner: int, vocabulary: int) -> None:
    """Write a random llama and a tokenizer that reads text byte by byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner_tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    inner_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner_tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=inner_tokenizer).save_pretrained(folder)
    places: dict[str, str] = {}
    for number, tensors in enumerate(_parts(blocks, hidden, inner, vocabulary)):
        name = f"model-{number + 1:05d}.safetensors"
        write_tensors(folder / name, tensors, {"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def _parts(blocks: int, hidden: int, inner: int, vocabulary: int) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of a model, some blocks at a time."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.bfloat16).mul_(_SCALE)

    ones = torch.ones(hidden, dtype=torch.bfloat16)
    yield {
        "model.embed_tokens.weight": drawn(vocabulary, hidden),
        "lm_head.weight": drawn(vocabulary, hidden),
        "model.norm.weight": ones.clone(),
    }
    narrow = 64 * max(1, hidden // 256)
    attention = {"q": (hidden, hidden), "k": (narrow, hidden), "v": (narrow, hidden), "o": (hidden, hidden)}
    feed = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    for first in range(0, blocks, _BLOCKS_PER_SHARD):
        found: dict[str, Tensor] = {}
        for block in range(first, min(blocks, first + _BLOCKS_PER_SHARD)):
            prefix = f"model.layers.{block}"
            found |= {f"{prefix}.self_attn.{name}_proj.weight": drawn(*shape) for name, shape in attention.items()}
            found |= {f"{prefix}.mlp.{name}_proj.weight": drawn(*shape) for name, shape in feed.items()}
            found |= {
                f"{prefix}.{name}.weight": ones.clone() for name in ("input_layernorm", "post_attention_layernorm")
            }
        yield found


def run(model: Path, out: Path, words: list[str]) -> None:
    """Prune a model, verify the result, and print what both took."""
    size = sum(path.stat().st_size for path in model.glob("*.safetensors")) / 2**30
    prune = ["prune", str(model), "--out", str(out), *words]
    for what in (prune, ["verify", str(out), "--source", str(model), "--offload", "disk"]):
        print(f"$ relaxprune {' '.join(what)}", flush=True)
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "relaxprune", *what])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds, peak = time.perf_counter() - started, usage.ru_maxrss / 2**20
        spent = f"{seconds:.0f} s ({usage.ru_utime + usage.ru_stime:.0f} s of the processor)"
        print(f"{what[0]}: exit code {process.returncode}, {spent}, peak {peak:.2f} GiB, model {size:.2f} GiB")


def same(one: Path, other: Path) -> bool:
    """Print and return whether two runs have the same masks and tensors."""
    masks = [open_mask_file(folder)[0] for folder in (one, other)]
    shards = [Shards(sorted(folder.glob("model*.safetensors"))) for folder in (one, other)]
    differing = [name for name in masks[0] if name not in masks[1] or not torch.equal(masks[0][name], masks[1][name])]
    differing += [name for name in shards[0] if not same_bits(shards[0].read(name), shards[1].read(name))]
    equal = not differing and len(masks[0]) == len(masks[1]) and {*shards[0]} == {*shards[1]}
    print(f"{len(masks[0])} masks, {len([*shards[0]])} tensors: {'identical' if equal else f'differ, {differing[:3]}'}")
    return equal


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("model", type=Path)
    for name, value in (("blocks", 186), ("hidden", 1024), ("inner", 2816), ("vocabulary", 32000)):
        making.add_argument(f"--{name}", type=int, default=value)
    running = commands.add_parser("run")
    running.add_argument("model", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument("words", nargs=argparse.REMAINDER)
    comparing = commands.add_parser("same")
    comparing.add_argument("one", type=Path)
    comparing.add_argument("other", type=Path)
    given = parser.parse_args()
    if given.command == "make":
        make(given.model, given.blocks, given.hidden, given.inner, given.vocabulary)
    elif given.command == "run":
        run(given.model, given.out, [word for word in given.words if word != "--"])
    else:
        return 0 if same(given.one, given.other) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
