"""What several ranks have to do and to say: processor time by stage, bytes, and whether the result is the same.

A random llama with blocks of SmolLM2-135M's shapes is pruned by 1, 2 and 4 processes of one thread each. Times are of
processors, not of clocks, so the table means the same on a machine with fewer cores than ranks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import head, line
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from relaxprune import prune_model
from relaxprune.inputs.gram_accumulator import GramAccumulator
from relaxprune.options import PruneOptions
from relaxprune.pruning import outcome
from relaxprune.pruning.mask_solver import MaskSolver
from relaxprune.ranks import joined

MIB = 2**20
FORKS = multiprocessing.get_context("fork")  # each rank has imported everything
STAGES = ("capture", "statistics", "propagate", "solve")


def model(blocks: int) -> LlamaForCausalLM:
    """Return a random llama with blocks of SmolLM2-135M's shapes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=blocks,
        num_attention_heads=9,
        num_key_value_heads=3,
        initializer_range=0.08,
    )
    return LlamaForCausalLM(config).eval()


def one_rank(settings: argparse.Namespace, folder: Path) -> None:
    """Be one of the ranks; write what it did, and the leader's sums and masks, into a folder."""
    outcome.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[attr-defined]
    sums, solved = _noted()
    tokens = torch.randint(0, 2000, (settings.windows, 256), generator=torch.Generator().manual_seed(1))
    options = PruneOptions(max_iterations=settings.iterations)
    started = time.process_time()
    with joined() as ranks:
        report = prune_model(model(settings.blocks), tokens.split(4), sparsity=0.5, options=options, ranks=ranks)
        spent = time.process_time() - started
        traffic = getattr(ranks, "traffic", SimpleNamespace(summed_bytes=0, told_bytes=0))
        facts = {
            "seconds": report.seconds | {"total": spent},
            "summed": traffic.summed_bytes,
            "told": traffic.told_bytes,
            "layers": len(solved),
        }
        (folder / f"{ranks.rank}.json").write_text(json.dumps(facts))
        if ranks.leader:
            save_file({str(number): tensor for number, tensor in enumerate(sums)}, folder / "sums.safetensors")
            save_file({name: mask.byte() for name, mask in report.masks.items()}, folder / "masks.safetensors")


def _noted() -> tuple[list[Tensor], list[str]]:
    """Return lists of the Grams' float64 sums, and of the layers that are solved here, that grow in the run."""
    sums: list[Tensor] = []
    solved: list[str] = []
    gram, solve = GramAccumulator.gram, MaskSolver.solve

    def noted_gram(self: GramAccumulator, *parts: Any) -> Tensor:
        sums.append(self._sum.clone())
        return gram(self, *parts)

    def noted_solve(self: MaskSolver, layer: Any, *more: Any) -> Any:
        solved.append(layer.name)
        return solve(self, layer, *more)

    GramAccumulator.gram = noted_gram  # type: ignore[method-assign]
    MaskSolver.solve = noted_solve  # type: ignore[method-assign]
    return sums, solved


def start(world: int, settings: argparse.Namespace, folder: Path) -> None:
    """Start as many processes as a launcher would."""

    def rank_of(rank: int) -> None:
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
        os.environ.update({name: str(value) for name, value in variables.items()}, MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = str(settings.port + world)
        one_rank(settings, folder)

    ranks = [FORKS.Process(target=rank_of, args=(rank,)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    if any(rank.exitcode for rank in ranks):
        raise SystemExit(f"{world} ranks have failed")


def row(world: int, folder: Path, alone: Path) -> list[object]:
    """Return the line of the table for a number of ranks."""
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
    most = [max(rank["seconds"].get(stage, 0.0) for rank in ranks) for stage in (*STAGES, "total")]
    layers = [rank["layers"] for rank in ranks]
    sent = [max(rank[kind] for rank in ranks) / MIB for kind in ("summed", "told")]
    masks, wanted = (load_file(path / "masks.safetensors") for path in (folder, alone))
    equal = all(torch.equal(mask, wanted[name]) for name, mask in masks.items())
    sums, single = (load_file(path / "sums.safetensors") for path in (folder, alone))
    entries = sum(tensor.numel() for tensor in single.values())
    wide = sum(int((sums[name] != tensor).sum()) for name, tensor in single.items())
    narrow = sum(int((sums[name].float() != tensor.float()).sum()) for name, tensor in single.items())
    same = "same" if equal else "OTHER"
    spent = [f"{seconds:.1f}" for seconds in most]
    span = ", ".join(map(str, layers))
    return [world, *spent, span, *(f"{size:.1f}" for size in sent), f"{wide} of {entries}", narrow, same]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", default="1,2,4", help="numbers of ranks, the first of which is 1")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--windows", type=int, default=64, help="of 256 tokens, four at a time")
    parser.add_argument("--iterations", type=int, default=32)
    parser.add_argument("--port", type=int, default=29510, help="where ranks meet, and the next few")
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    spent = (f"{stage}, s" for stage in (*STAGES, "in all"))
    head("ranks", *spent, "layers", "MiB of sums", "MiB of the rest", "sums that differ", "in float32", "masks")
    with tempfile.TemporaryDirectory() as place:
        for world in map(int, settings.ranks.split(",")):
            folder = Path(place) / str(world)
            folder.mkdir()
            start(world, settings, folder)
            line(*row(world, folder, Path(place) / "1"))


if __name__ == "__main__":
    main()
