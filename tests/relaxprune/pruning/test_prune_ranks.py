"""Several ranks prune a model to the last bit as one process does, whatever is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from relaxprune.certificates import load_certificate
from relaxprune.models.layers import find_layers
from relaxprune.options import ObjectiveOptions, PruneOptions, StatisticsOptions
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.block_record import BlockRecord
from relaxprune.pruning.mask_solver import MaskSolver
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.prune_report import PruneReport
from relaxprune.pruning.tuning.block_tuner import BlockTuner
from relaxprune.ranks import ALONE, Ranks, joined
from relaxprune.residency import Residency

from ..forks import forked, told
from ..recorders import RunMemory
from ..tiny_models import padded_batches, tiny_model

BATCHES = 5
TIMES = ("seconds", "certificate_seconds", "products")  # what ranks spend; of admm, products too


@dataclass(frozen=True)
class Case:
    """One way to prune, and by how many ranks."""

    family: str = "llama"
    world: int = 2
    words: dict[str, Any] = field(default_factory=lambda: {"sparsity": 0.5})
    options: dict[str, Any] = field(default_factory=dict)
    kinds: bool = False


def statistics(**words: Any) -> dict[str, Any]:
    return {"statistics": StatisticsOptions(**words)}


REFIT = {"sparsity": 0.5, "solver": "reconstruct"}
MOVING = {"weights": "refit"}
CASES = {
    "fw": Case(),
    "fw, 4 ranks": Case(world=4),
    "fw, divided layers": Case(world=5, options={"memory_budget_bytes": 2**15}),
    "more ranks than batches": Case(world=7),
    "reconstruct, 4 ranks, corrected": Case(world=4, words=REFIT, options={**MOVING, "correct": 0.5}),
    "model, 4 ranks": Case(world=4, words={"sparsity": 0.5, "allocation": "model"}),
    "2:4, 4 ranks, reordered": Case(world=4, words={"pattern": "2:4"}, options={"permute": True}),
    "experts": Case("qwen3_moe", 3),
    "groups, capped tokens": Case("gpt2", 3, options=statistics(collect="groups", token_cap=2.0)),
    "tuned": Case(words=REFIT, options={**MOVING, "tune": 1}),
    "states on disk": Case(words={"sparsity": 0.5, "residency": Residency(states="disk")}),
}
LONG = {
    "reconstruct": Case(words=REFIT, options=MOVING),
    "model": Case(words={"sparsity": 0.5, "allocation": "model"}),
    "owl": Case(words={"sparsity": 0.5, "allocation": "owl"}),
    "layer": Case(words={"sparsity": 0.5, "allocation": "layer"}),
    "2:4": Case(words={"pattern": "2:4"}),
    "alps": Case(words={"sparsity": 0.5, "solver": "alps"}, options={"max_iterations": None}),
    "ils": Case(words={"sparsity": 0.5, "solver": "ils"}, options={"seed": 3}),
    "experts, corrected": Case("qwen3_moe", 3, REFIT, {**MOVING, "correct": 1.0}),
    "chosen shrinkage": Case(world=3, options=statistics(select=(0.1, 0.4)), kinds=True),
    "estimated shrinkage": Case(world=3, options=statistics(shrinkage="auto")),
    "coupled rows": Case(options={"objective": ObjectiveOptions("coupled"), "certify": "fw"}),
    "groups of rows, divided layers": Case(
        world=5, options={"objective": ObjectiveOptions("rows"), "memory_budget_bytes": 2**15}
    ),
    "Fisher terms, experts, moved": Case(
        "qwen3_moe", 3, {"sparsity": 0.5, "solver": "fw"}, {**MOVING, "objective": ObjectiveOptions("fisher")}
    ),
    "refined": Case(options={"refine": 1}),
    "reselected": Case(words={"sparsity": 0.5, "solver": "wanda"}, options={"max_iterations": None, "reselect": 1}),
}
NAMES = [*CASES, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)]


def pruned(case: Case, ranks: Ranks = ALONE, **more: Any) -> tuple[nn.Module, PruneReport]:
    model = tiny_model(case.family)
    kinds = [("one", "two")[number % 2] for number in range(2 * BATCHES)] if case.kinds else None
    options = PruneOptions(**{"max_iterations": 12, **case.options})
    batches = padded_batches(BATCHES)
    return model, prune_model(model, batches, options=options, kinds=kinds, ranks=ranks, **case.words, **more)


def timeless(value: Any) -> Any:
    """A report's dict without times."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def seen(model: nn.Module, report: PruneReport) -> dict[str, Any]:
    """All that a run leaves: weights, masks and numbers."""
    facts = timeless(report.to_dict())
    return {"weights": dict(model.state_dict()), "masks": report.masks, "facts": repr(facts)}


def alone(case: Case, folder: Path) -> dict[str, Any]:
    """What one process leaves, of as many threads as ranks have."""
    found: dict[str, Any] = told(1, lambda _: seen(*pruned(case)), folder)[0]
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that differ in a bit."""
    assert list(one) == list(other)
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("name", NAMES)
def test_ranks_prune_as_one_process_does(name: str, tmp_path: Path) -> None:
    case = (CASES | LONG)[name]

    def work(rank: int) -> object:
        with joined() as ranks:
            return seen(*pruned(case, ranks))

    wanted = alone(case, tmp_path / "alone")
    for found in told(case.world, work, tmp_path / "ranks"):
        assert same(wanted["weights"], found["weights"]) == []
        assert same(wanted["masks"], found["masks"]) == []
        assert wanted["facts"] == found["facts"]


def test_models_in_float64_agree_up_to_their_rounding(tmp_path: Path) -> None:
    """Sums of float64 products are rounded, so their order counts: here in the last digits of objectives."""

    def report_of(ranks: Ranks) -> object:
        model, options = tiny_model("llama", torch.float64), PruneOptions(max_iterations=12)
        report = prune_model(model, padded_batches(BATCHES), sparsity=0.5, options=options, ranks=ranks)
        return [report.masks, [layer.objective for layer in report.layers]]

    def work(rank: int) -> object:
        with joined() as ranks:
            return report_of(ranks)

    masks, objectives = told(1, lambda _: report_of(ALONE), tmp_path / "alone")[0]
    for found, others in told(3, work, tmp_path / "ranks"):
        assert same(masks, found) == []
        assert others == pytest.approx(objectives, rel=1e-12)


def test_a_layer_of_more_than_a_share_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else the case above would say nothing."""
    divided: list[str] = []
    solve = MaskSolver.solve

    def noted(self: MaskSolver, layer: Any, *more: Any) -> Any:
        divided.extend([layer.name] * self.shared)
        return solve(self, layer, *more)

    def work(rank: int) -> object:
        monkeypatch.setattr(MaskSolver, "solve", noted)
        with joined() as ranks:
            pruned(CASES["fw, divided layers"], ranks)
        return divided

    names = [f"model.layers.{block}.mlp.down_proj" for block in range(3)]
    assert told(5, work, tmp_path) == [names] * 5


class Keeper(RunMemory):
    """Keeps certificates in files too."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def save_certificate(self, parameter: str, certificate: Any, problem: Any) -> None:
        certificate.save(problem, self.folder / f"{parameter}.safetensors")


def test_certificates_of_all_ranks_hold(tmp_path: Path) -> None:
    """The leader keeps the certificates of layers that others have solved; each verifies on the leader's problem."""
    case = Case(options={"certify": "diagonal"})
    folder = tmp_path / "certificates"
    folder.mkdir()

    def work(rank: int) -> object:
        with joined() as ranks:
            report = pruned(case, ranks, recorder=Keeper(folder) if rank == 0 else None)[1]
            return [[layer.parameter, layer.bound.lower_bound] for layer in report.layers]

    bounds = told(2, work, tmp_path / "ranks")
    assert bounds[0] == bounds[1] and len(bounds[0]) == 21
    for parameter, bound in bounds[0]:
        certificate = load_certificate(folder / f"{parameter}.safetensors")
        assert certificate.lower_bound == bound and certificate.method == "diagonal"


def test_what_the_leader_has_kept_is_not_done_again(tmp_path: Path) -> None:
    """Blocks and the allocation come from the leader's recorder, and what is new is saved there alone."""
    case = Case(words={"sparsity": 0.5, "allocation": "model"})

    def work(rank: int) -> object:
        with joined() as ranks:
            first, second = RunMemory(), RunMemory()
            whole = seen(*pruned(case, ranks, recorder=first))
            second.counts, second.records = first.counts, {index: first.records[index] for index in (0, 1) if rank == 0}
            events: list[str] = []
            again = seen(
                *pruned(
                    case, ranks, recorder=second, on_event=lambda event: events.append(f"{event.kind} {event.block}")
                )
            )
            started = sorted({event for event in events if event.startswith("layer_start")})
            return (
                whole["masks"],
                again["masks"],
                whole["weights"],
                again["weights"],
                started,
                first.solved,
                second.solved,
            )

    for rank, result in enumerate(told(2, work, tmp_path)):
        whole, again, before, after, started, first, second = result
        assert same(whole, again) == [] and same(before, after) == []
        assert started == ["layer_start 2"]
        assert (first, second) == (([0, 1, 2], [2]) if rank == 0 else ([], []))


def test_all_ranks_end_with_the_leader_s_tuned_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors that round otherwise."""

    def work(rank: int) -> object:
        run = BlockTuner.run

        def rounded(self: BlockTuner, epochs: int) -> object:
            found = run(self, epochs)
            for layer in self.part.layers:
                layer.weight.data.mul_(1 + rank * 1e-3)
            return found

        monkeypatch.setattr(BlockTuner, "run", rounded)
        with joined() as ranks:
            return dict(pruned(CASES["tuned"], ranks)[0].state_dict())

    one, other = told(2, work, tmp_path)
    assert same(one, other) == []


@pytest.mark.parametrize("what", ["model", "calibration text", "options"])
def test_ranks_that_were_given_other_things_are_refused(what: str, tmp_path: Path) -> None:
    def work(rank: int) -> object:
        odd = rank == 1
        model, batches = tiny_model("llama"), padded_batches(3)
        if odd and what == "model":
            with torch.no_grad():
                find_layers(model)[0][0].weight[0, 0] += 1
        if what == "model":
            cpu_offload(model, execution_device=torch.device("cpu"))
        if odd and what == "calibration text":
            batches[2]["input_ids"][0, 0] += 1
        try:
            with joined() as ranks:
                sparsity = 0.6 if odd and what == "options" else 0.5
                prune_model(model, batches, sparsity=sparsity, solver="wanda", ranks=ranks)
        except RelaxPruneError as error:
            return str(error)
        return None

    sentence = f"all 2 ranks must have the same {what}, got another on rank 1 than on rank 0"
    assert told(2, work, tmp_path) == [sentence, sentence]


def test_an_error_in_the_recorder_ends_all_ranks(tmp_path: Path) -> None:
    class Broken(RunMemory):
        def save(self, block_index: int, record: BlockRecord) -> None:
            raise OSError(28, "No space left on device")

    def work(rank: int) -> object:
        try:
            with joined() as ranks:
                pruned(
                    Case(words={"sparsity": 0.5, "solver": "wanda"}, options={"max_iterations": None}),
                    ranks,
                    recorder=Broken(),
                )
        except OSError as error:
            return [type(error).__name__, str(error)]
        return None

    first, second = (rank.told for rank in forked(2, work, tmp_path))
    assert first == ["OSError", "[Errno 28] No space left on device"]
    assert second[0] == "RankError" and "rank 0 of 2" in second[1] and "No space left on device" in second[1]
