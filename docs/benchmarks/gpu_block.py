"""A random decoder block of Llama-3-8B's shape, pruned end to end: seconds by stage, peak memory, and 32 such blocks.

`gpu.py --sections block` runs it: bfloat16 weights, 128 windows of 2048 random tokens, all on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from relaxprune import PruneOptions, prune_model
from relaxprune.support.memory import peak_memory_bytes

if TYPE_CHECKING:
    from gpu import Bench

BLOCKS = 32
VOCABULARY = 128256  # of the model that the block is one of
STAGES = ("capture", "statistics", "solve", "propagate")
RUNS: dict[str, dict[str, Any]] = {
    "fast, 50 %": {"sparsity": 0.5, "effort": "fast"},
    "default, 50 %": {"sparsity": 0.5},
    "reconstruct, 50 %": {"sparsity": 0.5, "options": PruneOptions(weights="refit")},
    "default, 2:4": {"pattern": "2:4"},
}


class OutOfTime(RuntimeError):
    """The time that was granted is over."""


@dataclass(frozen=True)
class BlockShape:
    """The sizes of a block, and of its calibration text."""

    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    key_heads: int = 8
    windows: int = 128
    length: int = 2048
    together: int = 4  # windows in a batch


QUICK = BlockShape(64, 160, 4, 2, 4, 32, 2)


def block(bench: Bench, shape: BlockShape, deadline: float) -> None:
    """Prune a block by every recipe, each a model of its own with the same weights.

    Args:
        bench: the device and the tables.
        shape: of the block.
        deadline: ``time.monotonic()`` after which no layer is begun.
    """
    table = f"a block of {shape.hidden} x {shape.intermediate}, {shape.windows} x {shape.length} tokens, bfloat16"
    for name, words in RUNS.items():
        with bench.guarded(table, name):
            bench.row(table, run=name, **_pruned(bench, shape, words, deadline))


def _pruned(bench: Bench, shape: BlockShape, words: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Prune one block, and return what it took."""
    model = random_block(shape, bench.device)
    block_bytes = sum(weight.numel() * weight.element_size() for weight in model.model.layers.parameters())
    on_cuda = bench.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    bench.wait()
    started = time.perf_counter()
    report = prune_model(model, _batches(shape, bench.device), on_event=_until(deadline), **words)
    bench.wait()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if on_cuda else peak_memory_bytes() or 0
    once = report.seconds.get("capture", 0.0)
    others = (BLOCKS - 1) * block_bytes + 2 * 2 * VOCABULARY * shape.hidden  # blocks; embedding and head in bfloat16
    return {
        **{f"{stage}_s": report.seconds.get(stage, 0.0) for stage in STAGES},
        "total_s": seconds,
        f"minutes_of_{BLOCKS}_blocks": (once + BLOCKS * (seconds - once)) / 60,
        "peak_GiB": peak / 2**30,
        "with_the_whole_model_GiB": (peak + others) / 2**30,
        "relative_error": report.mean_relative_error,
    }


def random_block(shape: BlockShape, device: torch.device) -> LlamaForCausalLM:
    """Return a model of one block with random weights, and a small vocabulary: its head is not pruned."""
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=1,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=shape.length,
    )
    torch.manual_seed(0)
    with device:
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def _batches(shape: BlockShape, device: torch.device) -> list[torch.Tensor]:
    """Return the windows of random tokens, in batches."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1024, (shape.windows, shape.length), generator=generator)
    return [part.to(device) for part in tokens.split(shape.together)]


def _until(deadline: float) -> Callable[[object], None]:
    """Return a listener to a run's events that ends the run after the deadline."""

    def check(_event: object) -> None:
        if time.monotonic() > deadline:
            raise OutOfTime("the minutes that were granted are over")

    return check
