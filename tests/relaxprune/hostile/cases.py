"""The files that are changed, the commands that take them, and what each answer must agree with."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from relaxprune.certificates.verify.claim_file import FORMAT as CERTIFICATE_FILE
from relaxprune.cli import main
from relaxprune.masks.compact import COMPACT_FILE
from relaxprune.runs.mask_file import MASK_FILE, write_masks
from relaxprune.runs.problem_file import LayerProblem, write_problem_file
from relaxprune.support.container import TensorFormat

from ..command_line import interrupt
from ..saved_models import shard
from ..tiny_llama import WORDS, save_tiny_llama, write_text
from . import judges
from .judges import Judge
from .tiny_gguf import write_gguf

MODEL = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
TEXT = ["--windows", "2", "--length", "8"]
HALF = ["--sparsity", "0.5", "--solver", "wanda", "--polish", "none", "--refit"]


@dataclass(frozen=True)
class Case:
    """A command, and the files whose changes it is to survive.

    Attributes:
        name: of the case.
        kind: of the files.
        words: the command; paths are in the place of the try.
        needs: what the place has of the good files.
        changed: paths of which one is changed; a folder stands for all files in it.
        judge: what an answer must agree with.
        form: of a tensor file of ours.
        share: of all tries, in thousandths.
    """

    name: str
    kind: str
    words: Sequence[str]
    needs: Sequence[str]
    changed: Sequence[str]
    judge: Judge = judges.anything
    form: TensorFormat | None = None
    share: int = 50


_SOLVE = ["solve", "problem.safetensors", "--sparsity", "0.5", "--max-iterations", "20"]
_PRUNE = ["prune", "source", *HALF, *TEXT, "--calibration", "text.txt", "--threads", "1", "--quiet"]
CASES = (
    Case("solve", "problem", [*_SOLVE, "--out", "out.safetensors"], ["problem.safetensors"], ["problem.safetensors"],
         judges.solved, share=100),
    Case("solve --refit", "problem", ["solve", "moving.safetensors", *_SOLVE[2:], "--refit"], ["moving.safetensors"],
         ["moving.safetensors"], share=40),
    Case("compare", "problem", ["compare", "problem.safetensors", "--sparsity", "0.5", "--solvers", "wanda,swap"],
         ["problem.safetensors"], ["problem.safetensors"], share=30),
    Case("verify", "certificate", ["verify", "problem.safetensors", "proof.safetensors"],
         ["problem.safetensors", "proof.safetensors"], ["proof.safetensors"], judges.verified, CERTIFICATE_FILE, 110),
    Case("verify --exact", "certificate", ["verify", "problem.safetensors", "proof.safetensors", "--exact"],
         ["problem.safetensors", "proof.safetensors"], ["proof.safetensors"], judges.verified, CERTIFICATE_FILE, 30),
    Case("verify", "problem", ["verify", "problem.safetensors", "proof.safetensors"],
         ["problem.safetensors", "proof.safetensors"], ["problem.safetensors"], judges.verified, share=30),
    Case("masks stats", "mask", ["masks", "stats", "masks.safetensors"], ["masks.safetensors"], ["masks.safetensors"],
         judges.counted, MASK_FILE, 110),
    Case("masks diff", "mask", ["masks", "diff", "first.safetensors", "masks.safetensors"],
         ["first.safetensors", "masks.safetensors"], ["masks.safetensors"], judges.compared, MASK_FILE, 60),
    Case("masks unpack", "mask", ["masks", "unpack", "masks.safetensors", "out.safetensors"],
         ["first.safetensors", "masks.safetensors"], ["masks.safetensors"], judges.exported, MASK_FILE, 40),
    Case("apply", "mask package", ["apply", "goods", "source", "--out", "out"], ["goods", "source", "plain"],
         ["goods", "goods/relaxprune-masks.json", "goods/relaxprune.json", "source/model.safetensors"],
         judges.applied, MASK_FILE, 20),
    Case("masks compact", "run folder", ["masks", "compact", "run", "out"], ["run"], ["run"],
         judges.compacted, share=30),
    Case("masks restore", "compact", ["masks", "restore", "small", "out"], ["small", "model.safetensors"],
         ["small/model.compact.safetensors"] * 4 + ["small"], judges.restored, COMPACT_FILE, 80),
    Case("masks semi-structured", "model", ["masks", "semi-structured", "run"], ["run"], ["run/model.safetensors"],
         judges.judged, share=40),
    Case("report", "run folder", ["report", "run", "--out", "out.html"], ["run"],
         ["run/relaxprune.json", "run/relaxprune.json", "run/evaluation.json", "run/config.json"],
         judges.reported, share=40),
    Case("report", "mask", ["report", "run", "--out", "out.html"], ["run"], ["run/masks.safetensors"],
         judges.reported, MASK_FILE, 10),
    Case("report, two runs", "run folder", ["report", "run", "finished", "--out", "out.html"], ["run", "finished"],
         ["finished/relaxprune.json", "finished/masks.safetensors", "run/evaluation.json"], share=10),
    Case("verify, a run", "run folder", ["verify", "run"], ["run", "finished", "source", "original"],
         ["run", "run/relaxprune.json"], judges.unchanged, share=30),
    Case("verify, a run", "model", ["verify", "run"], ["run", "source", "original"],
         ["source/config.json", "source/model.safetensors", "source/model.safetensors", "source/tokenizer.json"],
         judges.masked, share=20),
    Case("masks semi-structured, shards", "model", ["masks", "semi-structured", "shards"], ["shards"],
         [f"shards/{name}" for name in SHARDS], share=10),
    Case("eval", "model", ["eval", "source", "--text", "text.txt", *TEXT], ["source", "text.txt"],
         [f"source/{name}" for name in (*MODEL, "config.json")], judges.measured, share=40),
    Case("eval, shards", "model", ["eval", "shards", "--text", "text.txt", *TEXT], ["shards", "text.txt"],
         [f"shards/{name}" for name in (*SHARDS, SHARDS[2])], judges.measured, share=20),
    Case("eval, gguf", "gguf", ["eval", "model.gguf", "--text", "text.txt", *TEXT], ["model.gguf", "text.txt"],
         ["model.gguf"], judges.measured, share=20),
    Case("eval, a run", "run folder", ["eval", "run", "--text", "text.txt", *TEXT], ["run", "text.txt"],
         ["run/relaxprune.json", "run/evaluation.json"], judges.measured, share=10),
    Case("eval --record", "run folder", ["eval", "source", "--text", "text.txt", *TEXT, "--record", "run"],
         ["run", "source", "text.txt"], ["run/relaxprune.json", "run/evaluation.json"], judges.measured, share=10),
    Case("prune", "model", [*_PRUNE, "--out", "new"], ["source", "text.txt"], [f"source/{name}" for name in MODEL],
         share=20),
    Case("prune --resume", "unfinished run", [*_PRUNE, "--out", "begun", "--resume"],
         ["begun", "run", "source", "text.txt"], ["begun/.relaxprune"], judges.resumed, share=25),
    Case("prune --resume, finished", "run folder", [*_PRUNE, "--out", "finished", "--resume"],
         ["finished", "run", "source", "text.txt"], ["finished"], judges.resumed, share=15),
)  # fmt: skip


def good_files(root: Path) -> Path:
    """Make all files: problems, masks, certificates, models, runs."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(3, 6, generator=generator), torch.randn(40, 6, generator=generator)
    gram = inputs.T @ inputs / 40
    write_problem_file(root / "problem.safetensors", LayerProblem(weight, gram))
    write_problem_file(root / "moving.safetensors", LayerProblem(weight, gram, 0.9 * gram, gram))
    words = ["solve", str(root / "problem.safetensors"), "--sparsity", "0.5", "--certify", "diagonal"]
    assert main([*words, "--certificate", str(root / "proof.safetensors")]) == 0
    masks = {"a": torch.rand(4, 9, generator=generator) > 0.5, "b": torch.eye(3) > 0, "c": torch.ones(2, 3, 8) > 0}
    for name in ("masks", "first"):
        write_masks(root / f"{name}.safetensors", masks, {"note": [1, 2]})
    write_text(root / "text.txt")
    shutil.copytree(save_tiny_llama(root / "source", blocks=2), root / "original")
    shard(save_tiny_llama(root / "shards", blocks=1))
    write_gguf(root / "model.gguf", save_tiny_llama(root / "spare", blocks=1, tied=False), WORDS)
    make_runs(root)
    return root


def make_runs(root: Path) -> None:
    """Make a finished run, its compact form, and the same run after one of its two blocks."""
    words = [*_PRUNE, "--out", "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        interrupt(patch, root / "run", words)
        shutil.copytree(root / "run", root / "begun")
        assert main([*words, "--resume"]) == 0
        shutil.copytree(root / "run", root / "finished")
        assert main(["eval", "run", "--text", "text.txt", *TEXT]) == 0
        kept = [word for word in words[:-1] if word != "--refit"]  # of a run that moves weights there is no package
        assert main([*kept, "plain"]) == 0
        assert main(["masks", "export", "plain", "goods"]) == 0
    assert main(["masks", "compact", str(root / "run"), str(root / "small")]) == 0
    shutil.copy(root / "run/model.safetensors", root / "model.safetensors")


def lay_out(case: Case, good: Path, place: Path) -> None:
    """Copy what a case needs into the place of a try."""
    place.mkdir()
    (place / "outside").mkdir()
    (place / "outside/secret.safetensors").write_bytes((good / "problem.safetensors").read_bytes())
    for name in case.needs:
        if (good / name).is_dir():
            shutil.copytree(good / name, place / name)
        else:
            shutil.copy(good / name, place / name)
