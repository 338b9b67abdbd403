"""``select``: candidates for the shrinkage of a Gram, judged on text that is held out of it."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from relaxprune import NM, KSparse, TransposableNM, plan_model, prune_model
from relaxprune.cli import main
from relaxprune.inputs.batches import read_batches
from relaxprune.inputs.gram_accumulator import GramAccumulator
from relaxprune.inputs.parts import Parts
from relaxprune.inputs.shrinkage import shrink
from relaxprune.models.layers import find_layers
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.statistics_options import StatisticsOptions
from relaxprune.options.target import Decided, Target
from relaxprune.problems import MaskProblem, RelaxPruneError
from relaxprune.pruning.layer_report import LayerReport
from relaxprune.pruning.selected import Chosen
from relaxprune.pruning.selecting import some_rows
from relaxprune.runs.finished_run import read_finished_run
from relaxprune.solving.solving import solve, start_mask

from ..command_line import arguments, interrupt, only_sentence
from ..recorders import BlockMemory
from ..tiny_models import padded_batches, tiny_model

COLS = 40
SHARES = (0.0, 0.2, 0.5, 1.0)
TWO = (0.0, 0.5)


class OneLayer(nn.Module):
    """A linear layer of random weights."""

    def __init__(self, rows: int = 24) -> None:
        super().__init__()
        self.up = nn.Linear(COLS, rows, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.randn(rows, COLS, generator=torch.Generator().manual_seed(1)))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.up(inputs)


def tokens(count: int, seed: int, mix: Tensor | None = None) -> Tensor:
    """Return inputs whose true correlations are none, or those of a mix (rank, cols) with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, COLS, generator=generator)
    return noise if mix is None else torch.randn(count, len(mix), generator=generator) @ mix + 0.3 * noise


def mixing(seed: int, rank: int = 4) -> Tensor:
    return torch.randn(rank, COLS, generator=torch.Generator().manual_seed(seed))


def options(**more) -> PruneOptions:
    return PruneOptions(statistics=StatisticsOptions(select=SHARES), **more)


def pruned(model, batches, kinds=("a", "b") * 4, recorder=None, **more):
    """Prune a small model quickly."""
    return prune_model(model, batches, kinds=kinds, sparsity=0.5, options=quick(**more), recorder=recorder)


def quick(**more) -> PruneOptions:
    return PruneOptions(statistics=StatisticsOptions(select=TWO), max_iterations=6, **more)


def inputs_of(batches, kinds=None, model=None, **words):
    """Return what the report says of the inputs of the only layer."""
    words = {"sparsity": 0.5, "options": options(), **words}
    (layer,) = prune_model(model or OneLayer(), batches, kinds=kinds, **words).layers
    return layer.inputs


def test_correlations_that_are_noise_take_the_largest_share():
    chosen = inputs_of([tokens(30, seed) for seed in range(4)])
    assert chosen.shrinkage == 1.0
    assert chosen.candidate_errors == sorted(chosen.candidate_errors, reverse=True)
    assert chosen.candidate_errors[-1] == pytest.approx(1.0)  # Wanda's mask


@pytest.mark.parametrize("solver", ["fw", "alps", "reconstruct", "sparsegpt"])
def test_correlations_that_stay_take_a_small_share(solver):
    batches = [tokens(400, seed, mixing(0)) for seed in range(4)]
    chosen = inputs_of(batches, solver=solver)
    assert chosen.shrinkage == min(SHARES) and chosen.candidate_errors[0] < 0.6
    assert list(chosen.held_out_errors) == [f"fold {number} of 4" for number in (1, 2, 3, 4)]


def test_kinds_that_differ_take_a_larger_share_than_one():
    two = [[tokens(400, 10 * kind + seed, mixing(kind, rank=12)) for seed in range(2)] for kind in range(2)]
    batches = [batch for pair in zip(*two, strict=True) for batch in pair]
    kinds = [name for name in ("code", "prose") for _ in range(400)] * 2
    alike, apart = inputs_of(batches), inputs_of(batches, kinds)
    assert alike.shrinkage < apart.shrinkage
    assert set(apart.held_out_errors) == {"fold 1 of 2", "fold 2 of 2", "kind code", "kind prose"}


def test_a_score_is_the_error_on_the_held_out_gram_over_wandas():
    batches = [tokens(50 + 10 * seed, seed, mixing(0)) for seed in range(2)]
    weight, keep = OneLayer().up.weight.detach(), KSparse(COLS // 2)
    own = inputs_of(batches)
    for number, name in enumerate(("fold 1 of 2", "fold 2 of 2")):
        rest, held = (batch.T @ batch / len(batch) for batch in (batches[1 - number], batches[number].double()))
        wanda = start_mask(MaskProblem(weight, rest, keep), "wanda")
        for share, found in zip(SHARES, own.held_out_errors[name], strict=True):
            problem = MaskProblem(weight, shrink(rest.clone(), share), keep)
            mask = solve(problem, "fw", max_iterations=32, polish=None).mask
            lost, base = (float(((e @ held) * e).sum()) for e in (weight.double() * ~one for one in (mask, wanda)))
            assert found == pytest.approx(lost / base, rel=1e-4)
    means = [math.prod(pair) ** 0.5 for pair in zip(*own.held_out_errors.values(), strict=True)]
    assert own.candidate_errors == pytest.approx(means)
    assert own.shrinkage == SHARES[means.index(min(means))]


def test_what_is_solved_is_the_gram_of_all_text_shrunk_by_the_choice():
    batches = [tokens(60, seed, mixing(0)) for seed in range(4)]
    reports = {}
    chosen = inputs_of(batches).shrinkage
    for name, statistics in (("chosen", {"select": SHARES}), ("given", {"shrinkage": chosen})):
        model = OneLayer()
        report = prune_model(
            model, batches, sparsity=0.5, options=PruneOptions(statistics=StatisticsOptions(**statistics))
        )
        reports[name] = (report.layers[0].loss, report.layers[0].bound, model.up.weight)
    assert reports["chosen"][:2] == reports["given"][:2] and torch.equal(reports["chosen"][2], reports["given"][2])


def test_ids_of_several_kinds_in_a_batch_are_summed_as_those_of_separate_batches():
    model = tiny_model("llama")
    together = [batch["input_ids"] for batch in padded_batches(4)]
    apart = [window for batch in together for window in batch.split(1)]
    reports = [pruned(copy.deepcopy(model), batches) for batches in (together, apart)]
    for one, other in zip(*(report.layers for report in reports), strict=True):
        assert one.inputs.candidate_errors == pytest.approx(other.inputs.candidate_errors, rel=1e-2)
        assert one.inputs.held_out_errors.keys() == other.inputs.held_out_errors.keys()


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt2", "bert"])
def test_every_architecture_and_experts_with_padding_and_kinds_in_a_batch(family):
    report = pruned(tiny_model(family), padded_batches(4))
    assert all(layer.inputs.shrinkage in TWO and layer.inputs.candidates for layer in report.layers)
    assert "shrinkage chosen on held-out text" in str(report)


def test_parts_weigh_to_the_whole():
    batches = read_batches([torch.ones(2, 3, dtype=torch.int64) for _ in range(4)])
    parts = Parts.to_hold_out(batches, ["x", "y"] * 4)
    sums, generator = GramAccumulator(5, parts=parts.count), torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 2, 3, 5, generator=generator)
    for number, batch in enumerate(parts.marked(batches)):
        for part, kept in parts.of(number, batch.kept, "up"):
            sums.add(inputs[number], kept=kept, part=part)
    assert parts.count == 4 and all(sums.part_weight([part]) == 6 for part in range(4))
    flat = inputs[:, 1].reshape(-1, 5)  # kind y
    torch.testing.assert_close(sums.gram([2, 3]), flat.T @ flat / 12)
    torch.testing.assert_close(sums.gram([0, 1, 2, 3]), sums.gram())


@pytest.mark.parametrize(
    ("target", "rows"),
    [
        ({"sparsity": 0.5}, 63),
        ({"sparsity": 0.5, "allocation": "layer"}, 63),
        ({"pattern": "2:4"}, 63),
        ({"polytope": NM(2, 4)}, 63),
        ({"polytope": TransposableNM(2, 4)}, 64),
        ({"polytope": KSparse(1000, per="layer")}, 188),
    ],
)
def test_whole_coupled_blocks_are_tried(target, rows):
    from relaxprune.options.allocation import Allocation

    kind = target.get("allocation")
    asked = Target(**{**target, "allocation": None if kind is None else Allocation(kind)})
    (layer,), _ = find_layers(OneLayer(188))
    some = some_rows(layer, Decided(asked), 64)
    assert some.shape == (rows, COLS)
    report = prune_model(OneLayer(188), [tokens(60, seed) for seed in range(2)], **target, options=options())
    assert report.layers[0].inputs.shrinkage in SHARES


@pytest.mark.parametrize("more", [{"correct": 0.5, "weights": "refit"}, {"tune": 1}, {"certify": "diagonal"}])
def test_it_goes_with_the_other_stages(more):
    report = pruned(tiny_model("llama"), padded_batches(4), **more)
    assert all(layer.inputs.shrinkage in TWO for layer in report.layers)
    assert report.seconds["select"] > 0


def test_an_allocation_of_the_model_takes_the_middle_candidate_before():
    shares = StatisticsOptions(select=(0.4, 0.0, 0.1))
    assert shares.without_selection() == StatisticsOptions(shrinkage=0.1)
    batches = [tokens(40, seed) for seed in range(2)]
    report = prune_model(OneLayer(), batches, sparsity=0.5, allocation="model", options=PruneOptions(statistics=shares))
    assert report.layers[0].inputs.shrinkage == 0.4


def test_a_solver_that_searches_for_an_unknown_time_is_tried_by_another():
    chosen = inputs_of([tokens(30, seed) for seed in range(4)], solver="ils", options=options(max_iterations=2))
    assert chosen.shrinkage == 1.0


def test_layers_that_only_one_fold_reached_take_the_largest():
    class Late(OneLayer):
        """Its layer is called by large batches only."""

        def forward(self, inputs: Tensor) -> Tensor:
            return self.up(inputs) if len(inputs) > 50 else inputs

    chosen = inputs_of([tokens(60, 0), tokens(30, 1)], model=Late())
    assert chosen.shrinkage == 1.0 and chosen.candidate_errors == [] and chosen.held_out_errors == {}


def test_a_run_continued_is_the_same_run():
    model, memory = tiny_model("llama"), BlockMemory()
    whole = copy.deepcopy(model)
    report = pruned(whole, padded_batches(4), recorder=memory)
    kept = BlockMemory({0: memory.records[0]})
    again = pruned(model, padded_batches(4), recorder=kept)
    assert kept.solved == [1, 2]
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), model.parameters(), strict=True))
    assert [layer.inputs for layer in report.layers] == [layer.inputs for layer in again.layers]


def test_reports_are_read_as_they_were_written():
    report = pruned(tiny_model("llama"), padded_batches(4), kinds=None)
    layer = report.layers[0]
    assert LayerReport.from_dict(layer.to_dict()) == layer
    for broken in ({"candidate_errors": [1.0]}, {"held_out_errors": {"fold 1 of 4": [0.0] * 2}}, {"candidates": ["a"]}):
        with pytest.raises(RelaxPruneError, match=r"model\.layers\.0"):
            LayerReport.from_dict({**layer.to_dict(), **broken})
    found = Chosen.of(report.layers)
    assert found is not None and sum(found.counts) == len({layer.inputs.gram for layer in report.layers})


def test_a_summary_says_where_larger_candidates_may_be_better():
    found = [Chosen((0.0, most), (1, 3), (0.9, 0.8), {"fold 1 of 2": (0.9, 0.8)}).lines() for most in (0.4, 1.0)]
    assert found[0][0].endswith("0 for 1, 0.4 for 3 of 4 Grams; error over Wanda's there 0.9000 at 0, 0.8000 at 0.4")
    assert found[0][-1] == "  most take the largest candidate, 0.4: try larger ones"
    assert found[1][-1] == "  fold 1 of 2: 0.9000 at 0, 0.8000 at 1"
    assert Chosen((0.0, 1.0), (0, 2), (), {}).lines()[0].endswith("of which none had text to hold out")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"select": (0.1,)}, "at least 2 candidates"),
        ({"select": (0.1, 0.1)}, "all different, got 0.1, 0.1"),
        ({"select": (0.1, 1.5)}, r"select must lie in \[0, 1\], got 1.5"),
        ({"select": (0.1, "auto")}, "select must lie"),
        ({"select": 0.1}, "select must be a tuple"),
        ({"select": (0.1, 0.2), "shrinkage": 0.1}, "shrinkage is 0.1, but select"),
        ({"select": (0.1, 0.2), "shrinkage": "auto"}, "shrinkage is 'auto', but select"),
    ],
)
def test_candidates_that_cannot_be_right_are_refused(given, words):
    with pytest.raises(RelaxPruneError, match=words):
        StatisticsOptions(**given)


@pytest.mark.parametrize(
    ("batches", "kinds", "words"),
    [
        ([tokens(30, 0)], None, "select holds out batches and needs at least 2, got 1"),
        ([tokens(3, 0), tokens(3, 1)], ["a"] * 5, "kinds must name a kind for each of 6 windows, got 5"),
        ([tokens(3, 0), tokens(3, 1)], "ababab", "kinds must name the kind of each window, got 'ababab'"),
        ([tokens(3, 0), tokens(3, 1)], ["a", "b", "a"] * 2, "tells the kinds in a batch apart, for which.*token ids"),
    ],
)
def test_text_that_cannot_be_held_out_is_refused(batches, kinds, words):
    with pytest.raises(RelaxPruneError, match=words):
        inputs_of(batches, kinds)


def test_a_plan_counts_the_sums_and_the_trials():
    model, batches = tiny_model("llama"), padded_batches(8)
    plain = plan_model(model, sparsity=0.5, batches=batches)
    plans = [
        plan_model(model, sparsity=0.5, batches=batches, kinds=kinds, options=options())
        for kinds in (None, ["a", "b", "c", "d"] * 4)
    ]
    assert plain.estimated_bytes < plans[0].estimated_bytes < plans[1].estimated_bytes
    assert plain.prediction is not None and "select" not in plain.prediction.seconds
    plans.append(plan_model(tiny_model("qwen3_moe"), sparsity=0.5, batches=batches, options=quick()))
    assert all(plan.prediction is not None and plan.prediction.seconds["select"] > 0 for plan in plans)


def mixture(place: Path, *more: str) -> list[str]:
    """Return the words of a run on a mixture, whose batches hold both kinds."""
    words = arguments(place, place / "unused", *more)
    text = f"{place / 'text.txt'}:70,self:30"
    spelt = [text if word == str(place / "text.txt") else word for word in words]
    return [*spelt, "--select", "0,0.6"]


def test_the_command_chooses_and_says_so(place: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def words(out: Path, *more: str) -> list[str]:
        return [*mixture(place), "--out", str(out), *more]

    assert main(words(tmp_path / "whole")) == 0
    said = capsys.readouterr().out
    assert "shrinkage chosen on held-out text" in said and "kind self" in said and "fold 1 of 2" in said
    run = read_finished_run(tmp_path / "whole")
    assert run.settings["statistics"]["select"] == [0.0, 0.6] and run.settings["statistics"]["shrinkage"] is None
    assert all(layer.inputs.candidates == [0.0, 0.6] for layer in run.layers)
    assert main(["report", str(tmp_path / "whole")]) == 0
    assert "Shrinkage chosen on held-out text" in (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")

    interrupt(monkeypatch, tmp_path / "parts", words(tmp_path / "parts"))
    assert main(words(tmp_path / "parts", "--resume")) == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--select", "0,none"], "--select must be numbers with commas between, got '0,none'"),
        (["--select", "0.3"], "select must have at least 2 candidates"),
        (["--select", "0,0.1", "--shrinkage", "0.2"], "shrinkage is 0.2, but select"),
        (["--select", "0,0.1"], "select holds out batches and needs at least 2, got 1"),
    ],
)
def test_the_command_refuses_before_loading(place: Path, tmp_path: Path, more, expected, capsys) -> None:
    assert main(arguments(place, tmp_path / "out", *more)) == 2
    assert expected in only_sentence(capsys)
    assert not (tmp_path / "out").exists()
